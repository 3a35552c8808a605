"""The way of a sequence through stacked layers, for layers and frozen layers alike: arguments checked, batch-first and
unbatched ones turned into (T, B, I) views, states split by layer and joined again. It holds no weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn import checks
from fusedrnn.backends import Backend, Direction
from fusedrnn.checks import Array

__all__ = ["Layers", "Stack"]

Layers: TypeAlias = Sequence[tuple[Direction, ...]]
"""The directions of every layer, without initial states."""

Arguments: TypeAlias = tuple[Array, Array | None, Array | None, npt.NDArray[np.int64] | None, bool]
"""Of a call: x (T, B, I), h0 and c0 (num_layers * D, B, H), lengths, and whether they came unbatched."""


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
    two_states: bool = field(init=False)  # a state is a pair (h, c)
    simple: bool = field(init=False)  # one layer, time-major: nothing to turn or to join

    def __post_init__(self) -> None:
        """Work out what every call asks."""
        object.__setattr__(self, "two_states", self.cell == "lstm")
        object.__setattr__(self, "simple", self.num_layers == 1 and not self.batch_first)

    def enter(self, x: npt.ArrayLike, state: Any, lengths: npt.ArrayLike | None) -> Arguments:
        """Check the arguments of a call and turn them round."""
        batch_first, input_size, hidden_size = self.batch_first, self.input_size, self.hidden_size
        x = checks.features(x, 3, "B, T" if batch_first else "T, B", input_size, self.dtype)
        unbatched = x.ndim == 2
        if unbatched:
            x = x[:, None]
        elif batch_first:
            x = x.swapaxes(0, 1)
        steps, batch, _ = x.shape
        if ((steps + 1) * (batch + 1) + 8 * hidden_size) * (8 * hidden_size + input_size) >= checks.FAR:
            checks.memory(x, hidden_size, self.directions)
        h0 = c0 = None
        if state is not None:
            h0, c0 = self.split("state", ("h0", "c0"), state, batch, unbatched)
        if lengths is not None:
            lengths = checks.no_lengths() if unbatched else checks.lengths(lengths, steps, batch)
        return x, h0, c0, lengths, unbatched

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

    def both(self, states: Sequence[Any]) -> Array:
        """Each direction's state (B, H), or its gradient, as (D, B, H)."""
        return np.stack(states) if len(states) > 1 else states[0][None]

    def join(self, h: Sequence[Array], c: Sequence[Any], unbatched: bool) -> Any:
        """The states of all layers, each (D, B, H), in the form of `split`'s."""
        state = _joined(h, unbatched)
        return (state, _joined(c, unbatched)) if self.two_states else state

    def inward(self, dy: Array, unbatched: bool) -> Array:
        """`dy` of the caller's form as (T, B, D*H): a view."""
        if unbatched:
            return dy[:, None]
        return dy.swapaxes(0, 1) if self.batch_first else dy

    def outward(self, y: Array, unbatched: bool) -> Array:
        """`y` (T, B, D*H), or dx, in the caller's form: a view."""
        if unbatched:
            return y[:, 0]
        return y.swapaxes(0, 1) if self.batch_first else y

    def rows(self, layer: int, states: Array | None) -> Array | None:
        """The part (D, B, H) of one layer."""
        return None if states is None else states[layer * self.directions : (layer + 1) * self.directions]

    def begin(
        self, layer: int, directions: tuple[Direction, ...], h0: Array | None, c0: Array | None
    ) -> tuple[Direction, ...]:
        """One layer's directions, with their initial states."""
        if h0 is None and c0 is None:
            return directions
        first = layer * self.directions
        return tuple(
            [
                (weights, None if h0 is None else h0[first + d], None if c0 is None else c0[first + d], reverse)
                for d, (weights, _, _, reverse) in enumerate(directions)
            ]
        )

    def infer(
        self, backend: Backend, layers: Layers, x: npt.ArrayLike, state: Any, lengths: npt.ArrayLike | None
    ) -> tuple[Array, Any]:
        """Run all layers and keep nothing: y and the state."""
        y, h0, c0, valid, unbatched = self.enter(x, state, lengths)
        h, c = [], []
        for layer, directions in enumerate(layers):
            if state is not None:
                directions = self.begin(layer, directions, h0, c0)
            y, h_n, c_n, _ = backend.forward(self.cell, y, directions, valid, False)
            h.append(h_n)
            c.append(c_n)
        if self.simple and not unbatched:  # nothing to turn, nothing to join
            return y, (h_n, c_n) if self.two_states else h_n
        return self.outward(y, unbatched), self.join(h, c, unbatched)


def _joined(parts: Sequence[Array], unbatched: bool) -> Array:
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return whole[:, 0] if unbatched else whole
