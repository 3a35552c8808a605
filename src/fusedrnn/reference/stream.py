"""One time step after the other through stacked layers, the state kept between the calls. Forward only.

`step` checks its own arguments, because no other layer stands before it; `set_state` relies on its caller.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fusedrnn import checks
from fusedrnn.backends import Weights
from fusedrnn.reference.activations import Array
from fusedrnn.reference.sequence import Cell, biases, step_forward


class Stepper:
    """Stacked layers (cell, parameters), the lowest first, at a fixed batch size."""

    def __init__(self, layers: tuple[tuple[Cell, Weights], ...], batch_size: int) -> None:
        self._layers = layers
        cell, (w_ih, w_hh, _, _) = layers[0]
        self._input_shape = (batch_size, w_ih.shape[1])
        self._busy: dict[str, object] = {}
        self._halfway = False
        # (layers, S, B, H)
        self._state = np.zeros((len(layers), cell.states, batch_size, w_hh.shape[1]), w_ih.dtype)

    def get_state(self) -> tuple[Array, Array | None]:
        """The present h and c, new arrays (layers, B, H); None for c unless the cell has one."""
        with self._alone():
            if self._halfway:
                raise checks.stream_halfway()
            h, *c = self._state.swapaxes(0, 1).copy()
        return h, c[0] if c else None

    def set_state(self, h: Array, c: Array | None = None) -> None:
        """Take over copies of h, and of c where the cell has one, both (layers, B, H)."""
        with self._alone():
            self._halfway = True
            self._state[:, 0] = h
            if c is not None:
                self._state[:, 1] = c
            self._halfway = False

    def reset(self) -> None:
        """Set every state to zero."""
        with self._alone():
            self._halfway = True
            self._state[...] = 0
            self._halfway = False

    def forked(self) -> None:
        """In the child of a fork: a step that was under way has no thread any more, and counts as interrupted."""
        self._busy = {}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # No lock: a signal handler may raise as soon as a lock is taken, before anybody knows that it is. Who finds
        # their own object here has it; nothing below `finally` is a call, after which handlers run.
        mine, busy = object(), self._busy
        try:
            if busy.setdefault("by", mine) is not mine:
                raise checks.stream_busy()
            yield
        finally:
            if busy == {"by": mine}:
                del busy["by"]

    @np.errstate(all="ignore")  # as the compiled kernels: NaN in, NaN out, no warning
    def step(self, x_t: Array, out: Array | None = None) -> Array:
        """One time step of x_t (B, I): the last layer's new h (B, H), written to `out` if given."""
        x_t = checks.x_t(x_t, self._input_shape, self._state.dtype)
        if out is not None:
            checks.out(out, self._state.shape[2:], self._state.dtype)
        with self._alone():
            if self._halfway:
                raise checks.stream_halfway()
            self._halfway = True
            h = self._advance(x_t)
            self._halfway = False
        if out is None:
            return h
        out[...] = h
        return out

    def _advance(self, x_t: Array) -> Array:
        h = x_t
        for (cell, parameters), state in zip(self._layers, self._state, strict=True):
            w, u = parameters[:2]
            b, v = biases(parameters)
            new, *_ = step_forward(cell, h @ w.T + b, state, u, v)
            state[...] = new
            h = new[0]
        return h
