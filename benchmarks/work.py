"""The work that is timed: a cell, its sizes and dtype, its arrays, fusedrnn doing it, and how far two answers differ.

It times nothing and knows no peer. Letters: T time steps, B batch, I input size, H hidden size, G gates.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

import fusedrnn as fr

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "gru_reset_before": 3, "lstm": 4}
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {  # the class, in PyTorch's words, and what else it is told
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
    "lstm": ("LSTM", {}),
}
POINTS = (  # (B, T, I, H)
    (1, 100, 64, 64),
    (1, 100, 256, 256),
    (1, 100, 512, 512),
    (1, 200, 16, 100),
    (3, 60, 20, 150),
    (8, 100, 128, 128),
    (17, 40, 33, 190),
    (32, 50, 256, 256),
    (48, 30, 40, 330),
    (64, 50, 512, 512),
    (128, 28, 28, 128),
    (250, 20, 64, 64),
)
STREAM_POINTS = (
    (1, 1, 32, 32),
    (1, 1, 28, 100),
    (1, 1, 256, 256),
    (1, 1, 512, 512),
    (8, 1, 128, 128),
    (32, 1, 256, 256),
)

# Relative to the norm of what is expected. Sums of a thousand terms through a hundred steps stay below a tenth of this.
TOLERANCE = {"float32": 5e-5, "float64": 1e-12}
# A rounding error can put a preactivation on the other side of the kink, where its gradient is another one: a few among
# millions, which the norm does not feel much.
KINKS = 5e-3


@dataclasses.dataclass(frozen=True)
class Work:
    """One layer, one direction, with both biases and a zero initial state."""

    cell: str
    B: int
    T: int
    I: int
    H: int
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.cell} B{self.B} T{self.T} I{self.I} H{self.H} {self.dtype}"

    def flops(self, *, training: bool = False) -> int:
        """Of the products alone, a multiply-add being two; a training step has those of dx, dh and dW besides."""
        forward = 2 * self.T * self.B * GATES[self.cell] * self.H * (self.I + self.H)
        return 3 * forward if training else forward

    @property
    def tolerance(self) -> float:
        return KINKS if self.cell == "rnn_relu" else TOLERANCE[self.dtype]

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        """By PyTorch's names, drawn as PyTorch draws them."""
        rng, rows, bound = self._rng(0), GATES[self.cell] * self.H, 1 / math.sqrt(self.H)
        shapes = {
            "weight_ih_l0": (rows, self.I),
            "weight_hh_l0": (rows, self.H),
            "bias_ih_l0": (rows,),
            "bias_hh_l0": (rows,),
        }
        return {name: rng.uniform(-bound, bound, shape).astype(self.dtype) for name, shape in shapes.items()}

    @functools.cached_property
    def x(self) -> np.ndarray:
        """(T, B, I)."""
        return self._rng(1).standard_normal((self.T, self.B, self.I)).astype(self.dtype)

    @functools.cached_property
    def dy(self) -> np.ndarray:
        """(T, B, H)."""
        return self._rng(2).standard_normal((self.T, self.B, self.H)).astype(self.dtype)

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([stream, self.B, self.T, self.I, self.H])


Run = Callable[[], Any]  # does the work once; returns an array, or a tuple of arrays


def layer(work: Work, backend: str | None = None, scale: float = 1) -> Any:
    """fusedrnn's layer with the weights of the work, times `scale`."""
    kind, options = LAYERS[work.cell]
    made = getattr(fr, kind)(work.I, work.H, dtype=work.dtype, backend=backend, **options)
    made.load_state_dict({name: (w * scale).astype(work.dtype) for name, w in work.weights.items()})
    return made


def inference(work: Work, backend: str | None = None, *, lengths: Any = None, scale: float = 1) -> Run:
    """A frozen layer over the sequence: y."""
    frozen, x = layer(work, backend, scale).freeze(), work.x
    return lambda: frozen(x, lengths=lengths)[0]


def training(work: Work, backend: str | None = None, *, lengths: Any = None, scale: float = 1) -> Run:
    """Forward with a tape, and backward: the gradients of x and of the parameters in PyTorch's order."""
    net, x, dy = layer(work, backend, scale), work.x, work.dy

    def run() -> tuple[np.ndarray, ...]:
        gradients = net.backward(net.forward(x, lengths=lengths)[-1], dy)
        return (gradients.x, *gradients.parameters.values())

    return run


def stream(work: Work, backend: str | None = None) -> Run:
    """One step after another on the first x_t, the state carried on: h."""
    step = layer(work, backend).freeze().stream(batch_size=work.B).step
    x_t, out = work.x[0], np.empty((work.B, work.H), work.dtype)
    return lambda: step(x_t, out=out)


def arrays(answer: Any) -> list[np.ndarray]:
    """Copies of what a run returned."""
    return [np.array(a) for a in (answer if isinstance(answer, tuple) else (answer,))]


def difference(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """The largest distance of two arrays, relative to the norm of the wanted one; infinite where shapes differ.

    What lies near the smallest normal number counts as zero: the kernels flush there.
    """
    if [a.shape for a in got] != [a.shape for a in want]:
        return math.inf
    largest = 0.0
    for g, w in zip(got, want, strict=True):
        info = np.finfo(w.dtype)
        floor = math.sqrt(w.size) * float(info.smallest_normal / info.eps)
        distance = float(np.linalg.norm(g.astype(np.float64) - w.astype(np.float64)))
        largest = max(largest, distance / max(float(np.linalg.norm(w.astype(np.float64))), floor))
        if not math.isfinite(distance):
            return math.inf
    return largest


def assert_right(work: Work, run: Run, reference: Run) -> None:
    """Both give the same answer."""
    off = difference(arrays(run()), arrays(reference()))
    assert off <= work.tolerance, f"{work}: off by {off:.3g}, allowed {work.tolerance:.3g}"
