"""The RNN (Elman 1990), tanh or relu: pointwise forward and backward of one step, equations (R*) of docs/math.md.

The products (R1) and (R2) belong to the time loop, sequence.py.
Shapes: a, s, h_prev, h and all gradients (B, H).
"""

from fusedrnn.reference.activations import Array, drelu, dtanh, relu, tanh
from fusedrnn.reference.sequence import Cell, Kept, StepGradient, StepResult


def tanh_forward(a: Array, s: Array, _h_prev: Array) -> StepResult:
    h = tanh(a + s)  # (R3)
    return (h,), (h,)


def tanh_backward(kept: Kept, dh: Array) -> StepGradient:
    (h,) = kept
    dp = dh * dtanh(h)  # (R3')
    return dp, dp, (0,)


def relu_forward(a: Array, s: Array, _h_prev: Array) -> StepResult:
    h = relu(a + s)  # (R3)
    return (h,), (h,)


def relu_backward(kept: Kept, dh: Array) -> StepGradient:
    (h,) = kept
    dp = dh * drelu(h)  # (R3')
    return dp, dp, (0,)


RNN_TANH = Cell(gates=1, states=1, forward=tanh_forward, backward=tanh_backward)
RNN_RELU = Cell(gates=1, states=1, forward=relu_forward, backward=relu_backward)
