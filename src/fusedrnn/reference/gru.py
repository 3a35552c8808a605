"""The GRU in both forms: pointwise forward and backward of one step, equations (G*) and (C*) of docs/math.md.

``gru`` resets after the recurrent product (PyTorch, cuDNN): n = tanh(W_n x + b_n + r * (U_n h + v_n)).
``gru_reset_before`` resets before it (Cho et al. 2014):     n = tanh(W_n x + b_n + U_n (r * h) + v_n).
The second form has a product in the middle of the step, so it comes in two pointwise pairs, before and after it.
The products themselves belong to the time loop, sequence.py.
Shapes: a, s and their gradients (B, 3H), gates r, z, n side by side, unless said otherwise; everything else (B, H).
"""

import numpy as np

from fusedrnn.reference.activations import Array, dsigmoid, dtanh, sigmoid, tanh
from fusedrnn.reference.sequence import Cell, Kept, Reset, StepGradient, StepResult


def after_forward(a: Array, s: Array, h_prev: Array) -> StepResult:
    a_r, a_z, a_n = np.split(a, 3, axis=1)
    s_r, s_z, q = np.split(s, 3, axis=1)
    r = sigmoid(a_r + s_r)  # (G3)
    z = sigmoid(a_z + s_z)  # (G4)
    n = tanh(a_n + r * q)  # (G5)
    h = (1 - z) * n + z * h_prev  # (G6)
    return (h,), (r, z, n, q, h_prev)


def after_backward(kept: Kept, dh: Array) -> StepGradient:
    r, z, n, q, h_prev = kept
    dz, dn, dh_prev = dh * (h_prev - n), dh * (1 - z), dh * z  # (G6')
    dp_n = dn * dtanh(n)  # (G5')
    dr, dq = dp_n * q, dp_n * r  # (G5')
    dp_z = dz * dsigmoid(z)  # (G4')
    dp_r = dr * dsigmoid(r)  # (G3')
    da = np.concatenate((dp_r, dp_z, dp_n), axis=1)
    ds = np.concatenate((dp_r, dp_z, dq), axis=1)
    return da, ds, (dh_prev,)


def reset_forward(p_r: Array, h_prev: Array) -> tuple[Array, Kept]:
    """Before the product (C5). p_r (B, H): a_r + s_r."""
    r = sigmoid(p_r)  # (C3)
    q = r * h_prev  # (C4)
    return q, (r, h_prev)


def reset_backward(kept: Kept, dq: Array) -> tuple[Array, Array]:
    r, h_prev = kept
    dr, dh_prev = dq * h_prev, dq * r  # (C4')
    dp_r = dr * dsigmoid(r)  # (C3')
    return dp_r, dh_prev


def before_forward(a: Array, s: Array, h_prev: Array) -> StepResult:
    """After the product (C5)."""
    _, p_z, p_n = np.split(a + s, 3, axis=1)
    z = sigmoid(p_z)  # (C6)
    n = tanh(p_n)  # (C7)
    h = (1 - z) * n + z * h_prev  # (C8)
    return (h,), (z, n, h_prev)


def before_backward(kept: Kept, dh: Array) -> StepGradient:
    """Gradients (B, 2H) of gates z and n; gate r follows from reset_backward."""
    z, n, h_prev = kept
    dz, dn, dh_prev = dh * (h_prev - n), dh * (1 - z), dh * z  # (C8')
    dp_n = dn * dtanh(n)  # (C7')
    dp_z = dz * dsigmoid(z)  # (C6')
    dp = np.concatenate((dp_z, dp_n), axis=1)
    return dp, dp, (dh_prev,)


GRU = Cell(gates=3, states=1, forward=after_forward, backward=after_backward)
GRU_RESET_BEFORE = Cell(
    gates=3,
    states=1,
    forward=before_forward,
    backward=before_backward,
    reset=Reset(reset_forward, reset_backward),
)
