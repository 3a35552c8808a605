"""The LSTM (Hochreiter & Schmidhuber 1997) with forget gate (Gers, Schmidhuber & Cummins 2000), without peepholes:
pointwise forward and backward of one step, equations (L*) of docs/math.md.

The products (L1) and (L2) belong to the time loop, sequence.py.
Shapes: a, s and their gradients (B, 4H), gates i, f, g, o side by side; everything else (B, H).
"""

import numpy as np

from fusedrnn.reference.activations import Array, dsigmoid, dtanh, sigmoid, tanh
from fusedrnn.reference.sequence import Cell, Kept, StepGradient, StepResult


def forward(a: Array, s: Array, _h_prev: Array, c_prev: Array) -> StepResult:
    p_i, p_f, p_g, p_o = np.split(a + s, 4, axis=1)
    i = sigmoid(p_i)  # (L3)
    f = sigmoid(p_f)  # (L4)
    g = tanh(p_g)  # (L5)
    o = sigmoid(p_o)  # (L6)
    c = f * c_prev + i * g  # (L7)
    k = tanh(c)  # (L8)
    h = o * k  # (L9)
    return (h, c), (i, f, g, o, k, c_prev)


def backward(kept: Kept, dh: Array, dc: Array) -> StepGradient:
    i, f, g, o, k, c_prev = kept
    do, dk = dh * k, dh * o  # (L9')
    dc = dc + dk * dtanh(k)  # (L8')
    df, dc_prev, di, dg = dc * c_prev, dc * f, dc * g, dc * i  # (L7')
    dp_o = do * dsigmoid(o)  # (L6')
    dp_g = dg * dtanh(g)  # (L5')
    dp_f = df * dsigmoid(f)  # (L4')
    dp_i = di * dsigmoid(i)  # (L3')
    dp = np.concatenate((dp_i, dp_f, dp_g, dp_o), axis=1)
    return dp, dp, (0, dc_prev)


LSTM = Cell(gates=4, states=2, forward=forward, backward=backward)
