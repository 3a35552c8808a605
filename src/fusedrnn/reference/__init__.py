"""The reference backend: what is right, in NumPy alone, one line an equation of docs/math.md.

Any NumPy float dtype, longdouble included; vectorised over the batch only. It is the oracle of every other backend and
the fallback where none is built. It promises no bits and no speed, and checks no argument: that is done above it.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fusedrnn.backends import Gradients, Weights
from fusedrnn.reference.activations import Array
from fusedrnn.reference.gru import GRU, GRU_RESET_BEFORE
from fusedrnn.reference.lstm import LSTM
from fusedrnn.reference.rnn import RNN_RELU, RNN_TANH
from fusedrnn.reference.sequence import Run, run_backward, run_forward
from fusedrnn.reference.stream import Stepper

__all__ = ["CELLS", "Packed", "Tape", "backward", "forward", "pack", "stream"]

CELLS = {
    "rnn_tanh": RNN_TANH,
    "rnn_relu": RNN_RELU,
    "lstm": LSTM,
    "gru": GRU,
    "gru_reset_before": GRU_RESET_BEFORE,
}


@dataclass(frozen=True)
class Packed:
    """One direction's parameters, copied and read-only."""

    cell: str
    parameters: Weights

    @property
    def input_size(self) -> int:
        """I."""
        return int(self.parameters[0].shape[1])

    @property
    def hidden_size(self) -> int:
        """H."""
        return int(self.parameters[1].shape[1])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The one dtype of all parameters."""
        return self.parameters[0].dtype


Direction: TypeAlias = tuple[Weights | Packed, Array | None, Array | None, bool]
"""Parameters, h0 (B, H), c0 (B, H), reverse. None is zeros."""


@dataclass
class Tape:
    """What forward keeps for backward, x and the parameters by reference."""

    x: Array  # (T, B, I)
    valid: Array  # (T, B) bool
    runs: list[Run]  # one a direction


def pack(cell: str, w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None) -> Packed:
    """Copy one direction's parameters."""
    return Packed(cell, (_frozen(w_ih), _frozen(w_hh), _frozen(b_ih), _frozen(b_hh)))


@np.errstate(all="ignore")  # as the compiled kernels: NaN in, NaN out, no warning
def forward(
    cell: str, x: Array, directions: tuple[Direction, ...], lengths: Array | None, training: bool
) -> tuple[Array, Array, Array | None, Tape | None]:
    """Run one layer in one or two directions.

    x (T, B, I); lengths (B,) int64 or None for T everywhere.
    Returns y (T, B, D*H), h_n (D, B, H), c_n (D, B, H) or None, tape or None.
    """
    time, batch, _ = x.shape
    valid = np.ones((time, batch), bool) if lengths is None else np.arange(time)[:, None] < lengths
    outputs, states, runs = [], [], []
    for weights, h0, c0, reverse in directions:
        parameters = weights.parameters if isinstance(weights, Packed) else weights
        state = np.zeros((CELLS[cell].states, batch, parameters[1].shape[1]), x.dtype)
        _fill(state, h0, c0)
        y, run = run_forward(CELLS[cell], x, valid, parameters, state, reverse, training)
        outputs.append(y)
        states.append(state)
        if run is not None:
            runs.append(run)
    h_n, *c_n = np.stack(states, axis=1)
    return np.concatenate(outputs, axis=2), h_n, c_n[0] if c_n else None, Tape(x, valid, runs) if training else None


@np.errstate(all="ignore")
def backward(
    tape: Tape, dy: Array | None, dh_n: Array | None, dc_n: Array | None, of_x: bool = True
) -> tuple[Array | None, tuple[Gradients, ...]]:
    """Gradients of one layer: dx (T, B, I) or None, and per direction those of w_ih, w_hh, b_ih, b_hh, h0, c0.

    dy (T, B, D*H), dh_n (D, B, H), dc_n (D, B, H); None is zeros.
    """
    dx = np.zeros(tape.x.shape, tape.x.dtype) if of_x else None
    gradients = []
    for d, run in enumerate(tape.runs):
        size = run.parameters[1].shape[1]
        dstate = np.zeros((run.cell.states, tape.x.shape[1], size), tape.x.dtype)
        _fill(dstate, None if dh_n is None else dh_n[d], None if dc_n is None else dc_n[d])
        dy_d = None if dy is None else dy[:, :, d * size : (d + 1) * size]
        gradients.append(run_backward(run, tape.x, tape.valid, dy_d, dstate, dx))
    return dx, tuple(gradients)


def stream(layers: tuple[Packed, ...], batch_size: int) -> Stepper:
    """Stacked layers, the lowest first, to be run one time step at a time."""
    return Stepper(tuple((CELLS[layer.cell], layer.parameters) for layer in layers), batch_size)


def _frozen(array: Any) -> Any:
    if array is None:
        return None
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


def _fill(state: Array, h: Array | None, c: Array | None) -> None:
    if h is not None:
        state[0] = h
    if c is not None:
        state[1] = c
