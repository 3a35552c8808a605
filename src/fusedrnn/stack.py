"""The way of a sequence through stacked layers, for layers and frozen layers alike: arguments checked, batch-first and
unbatched ones turned into (T, B, I) views, states split by layer and joined again. It holds no weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fusedrnn import checks
from fusedrnn.backends import Backend, Direction, Packed, Weights
from fusedrnn.checks import Array

__all__ = ["Arguments", "Stack"]

Layers = Sequence[Sequence[Weights | Packed]]
"""By layer, by direction."""


@dataclass(slots=True)
class Arguments:
    """What a call was given, as the backends want it."""

    x: Array  # (T, B, I)
    h0: Array | None  # (num_layers * D, B, H)
    c0: Array | None
    lengths: npt.NDArray[np.int64] | None
    unbatched: bool


@dataclass(frozen=True, slots=True)
class Stack:
    """Sizes and layout of stacked layers; D is `directions`."""

    cell: str
    input_size: int
    hidden_size: int
    num_layers: int
    directions: int
    batch_first: bool
    dtype: np.dtype[Any]

    @property
    def two_states(self) -> bool:
        """Whether a state is a pair (h, c)."""
        return self.cell == "lstm"

    def enter(self, x: npt.ArrayLike, state: Any, lengths: npt.ArrayLike | None) -> Arguments:
        """Check the arguments of a call and turn them round."""
        x = checks.features(x, "B, T" if self.batch_first else "T, B", self.input_size, self.dtype)
        unbatched = x.ndim == 2
        if unbatched:
            x = x[:, None]
        elif self.batch_first:
            x = x.swapaxes(0, 1)
        steps, batch, _ = x.shape
        checks.memory(x, self.hidden_size, self.directions)
        h0, c0 = (None, None) if state is None else self.split("state", ("h0", "c0"), state, batch, unbatched)
        if lengths is not None:
            lengths = checks.no_lengths() if unbatched else checks.lengths(lengths, steps, batch)
        return Arguments(x, h0, c0, lengths, unbatched)

    def split(
        self, name: str, parts: tuple[str, str], state: Any, batch: int, unbatched: bool
    ) -> tuple[Array | None, Array | None]:
        """A state, or its gradient, as h and c of shape (num_layers * D, B, H)."""
        rows, size = self.num_layers * self.directions, self.hidden_size
        shape = (rows, size) if unbatched else (rows, batch, size)
        h, c = checks.state(name, parts if self.two_states else parts[:1], state, shape, self.dtype)
        if unbatched:
            return h if h is None else h[:, None], c if c is None else c[:, None]
        return h, c

    def join(self, h: Sequence[Array], c: Sequence[Array | None], unbatched: bool) -> Any:
        """The states of all layers, each (D, B, H), as the caller wants them."""
        state = self._joined(h, unbatched)
        return (state, self._joined(c, unbatched)) if self.two_states else state

    def _joined(self, parts: Sequence[Any], unbatched: bool) -> Array:
        whole: Array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return whole[:, 0] if unbatched else whole

    def outward(self, y: Array, unbatched: bool) -> Array:
        """y (T, B, D*H), or dx, as the caller wants it: a view."""
        if unbatched:
            return y[:, 0]
        return y.swapaxes(0, 1) if self.batch_first else y

    def inward(self, dy: Array, unbatched: bool) -> Array:
        """What `outward` made, as (T, B, D*H): a view."""
        if unbatched:
            return dy[:, None]
        return dy.swapaxes(0, 1) if self.batch_first else dy

    def of_layer(self, layer: int, states: Array | None) -> Array | None:
        """The rows (D, B, H) of one layer."""
        return None if states is None else states[layer * self.directions : (layer + 1) * self.directions]

    def arguments(
        self, layer: int, weights: Sequence[Weights | Packed], h0: Array | None, c0: Array | None
    ) -> tuple[Direction, ...]:
        """One layer's directions, as the backends want them."""
        first = layer * self.directions
        return tuple(
            (w, None if h0 is None else h0[first + d], None if c0 is None else c0[first + d], d == 1)
            for d, w in enumerate(weights)
        )

    def infer(
        self, backend: Backend, layers: Layers, x: npt.ArrayLike, state: Any, lengths: npt.ArrayLike | None
    ) -> tuple[Array, Any]:
        """Run all layers and keep nothing: y and the state."""
        given = self.enter(x, state, lengths)
        y, h, c = given.x, [], []
        for layer, weights in enumerate(layers):
            directions = self.arguments(layer, weights, given.h0, given.c0)
            y, h_n, c_n, _ = backend.forward(self.cell, y, directions, given.lengths, False)
            h.append(h_n)
            c.append(c_n)
        return self.outward(y, given.unbatched), self.join(h, c, given.unbatched)
