"""The work that is timed: a cell, its sizes and dtype, its arrays, fusedrnn doing it, and how far two answers differ.

It knows no peer. Letters: T time steps, B batch, I input size, H hidden size, G gates.
Only the package's public names are used, so that an older fusedrnn can be timed with it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import fusedrnn as fr

LOOK = 12e-3  # seconds between two looks at the CPU time of a process; a kernel may count it in ticks of 1 to 10 ms

Array: TypeAlias = npt.NDArray[Any]

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "gru_reset_before": 3, "lstm": 4}
LAYERS: dict[str, tuple[str, dict[str, Any]]] = {  # the class, in PyTorch's words, and what else it is told
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
    "lstm": ("LSTM", {}),
}
PASSES = {"inference": "forward", "training": "training", "stream": "stream"}
"""What a mode is called in a name: training is forward with a tape, and backward."""

# Relative to the norm of what is expected. Sums of a thousand terms through a hundred steps stay below a tenth of this.
TOLERANCE = {"float32": 5e-5, "float64": 1e-12}
# A rounding error can put a preactivation on the other side of the kink, where its gradient is another one: a few among
# millions, which the norm does not feel much.
KINKS = 5e-3


@dataclasses.dataclass(frozen=True)
class Work:
    """Layers of one cell, with both biases and a zero initial state, over one batch."""

    cell: str
    B: int
    T: int
    I: int
    H: int
    dtype: str = "float32"
    layers: int = 1
    bidirectional: bool = False
    lengths: tuple[int, ...] | None = None  # of B sequences; None: all are T
    scale: float = 1.0  # of the weights; 1e-39 makes float32 denormal

    def __str__(self) -> str:
        more = (f"x{self.layers}" if self.layers > 1 else "") + (" bidirectional" if self.bidirectional else "")
        return f"{self.cell}{more} B{self.B} T{self.T} I{self.I} H{self.H} {self.dtype}"

    def kernel(self, mode: str) -> str:
        """`<cell>_<pass>_<dtype>`, as the kernels are called."""
        return f"{self.cell}_{PASSES[mode]}_{self.dtype[0]}{8 * self.itemsize}"

    def flops(self, mode: str = "inference") -> int:
        """Of the products alone, a multiply-add being two; a training step has those of dx, dh and dW besides.

        What is multiplied by no initial state does not count, in the first step and in dW; a stream has one.
        """
        of_x, of_h = sum(self.inputs), self.H * len(self.inputs)
        rows = self.valid * (of_x + of_h) - (0 if mode == "stream" else self.begun * of_h)
        if mode == "training":
            rows += rows + self.valid * (of_x + of_h)
        return 2 * self.directions * GATES[self.cell] * self.H * rows

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.bidirectional else 1

    @property
    def inputs(self) -> tuple[int, ...]:
        """The input size of each layer."""
        return (self.I, *[self.directions * self.H] * (self.layers - 1))

    @property
    def valid(self) -> int:
        """Steps of all sequences that are no padding."""
        return self.B * self.T if self.lengths is None else sum(self.lengths)

    @property
    def begun(self) -> int:
        """Sequences with a first step."""
        return min(self.T, 1) * self.B if self.lengths is None else sum(n > 0 for n in self.lengths)

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return np.dtype(self.dtype).itemsize

    @property
    def tolerance(self) -> float:
        """How far two answers may differ; see `difference`."""
        return KINKS if self.cell == "rnn_relu" else TOLERANCE[self.dtype]

    @property
    def weights(self) -> dict[str, Array]:
        """By PyTorch's names and in its order, drawn as PyTorch draws them."""
        return drawn_weights(self)

    @property
    def x(self) -> Array:
        """(T, B, I)."""
        return drawn_sequence(self, 1, self.I)

    @property
    def dy(self) -> Array:
        """(T, B, D*H)."""
        return drawn_sequence(self, 2, self.directions * self.H)


# Those of the last job, not of all: a large one has gigabytes.


@functools.lru_cache(maxsize=1)
def drawn_weights(work: Work) -> dict[str, Array]:
    """Uniform within 1 / sqrt(H)."""
    rng, rows, limit = np.random.default_rng([work.I, work.H]), GATES[work.cell] * work.H, 1 / math.sqrt(work.H)
    weights = {}
    for layer, inputs in enumerate(work.inputs):
        for direction in ("", "_reverse")[: work.directions]:
            shapes = {"weight_ih": (rows, inputs), "weight_hh": (rows, work.H), "bias_ih": (rows,), "bias_hh": (rows,)}
            for name, shape in shapes.items():
                drawn = rng.random(shape, np.float32) * (2 * limit) - limit
                weights[f"{name}_l{layer}{direction}"] = (drawn * work.scale).astype(work.dtype)
    return weights


@functools.lru_cache(maxsize=2)
def drawn_sequence(work: Work, seed: int, columns: int) -> Array:
    """Standard normal numbers (T, B, columns)."""
    rng = np.random.default_rng([seed, work.B, work.T, columns])
    return rng.standard_normal((work.T, work.B, columns), np.float32).astype(work.dtype)


Run = Callable[[], Any]
"""Does the work once; returns an array, or a tuple of arrays."""


def layer(work: Work, backend: str | None = None) -> Any:
    """fusedrnn's layer with the weights of the work."""
    kind, options = LAYERS[work.cell]
    made = getattr(fr, kind)(
        work.I,
        work.H,
        work.layers,
        bidirectional=work.bidirectional,
        dtype=np.dtype(work.dtype),
        backend=backend,
        **options,
    )
    made.load_state_dict(work.weights)
    return made


def inference(work: Work, backend: str | None = None) -> Run:
    """A frozen layer over the sequence: y."""
    frozen, x, lengths = layer(work, backend).freeze(), work.x, work.lengths
    return lambda: frozen(x, lengths=lengths)[0]


def training(work: Work, backend: str | None = None) -> Run:
    """Forward with a tape, and backward: the gradients of x and of the parameters in PyTorch's order."""
    net, x, dy, lengths = layer(work, backend), work.x, work.dy, work.lengths

    def run() -> tuple[Array, ...]:
        gradients = net.backward(net.forward(x, lengths=lengths)[-1], dy)
        return (gradients.x, *gradients.parameters.values())

    return run


def stream(work: Work, backend: str | None = None) -> Run:
    """One step after another on the first x_t, the state carried on: h."""
    step = layer(work, backend).freeze().stream(batch_size=work.B).step
    x_t, out = work.x[0], np.empty((work.B, work.H), work.dtype)
    return lambda: step(x_t, out=out)


MODES: dict[str, Callable[..., Run]] = {"inference": inference, "training": training, "stream": stream}


def arrays(answer: Any) -> list[Array]:
    """Copies of what a run returned."""
    return [np.asarray(a).copy() for a in (answer if isinstance(answer, tuple) else (answer,))]


def difference(got: list[Array], want: list[Array]) -> float:
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


def assert_right(work: Work, got: list[Array], want: list[Array]) -> None:
    """Both are the same answer, but for rounding."""
    off = difference(got, want)
    if not off <= work.tolerance:
        raise AssertionError(f"{work}: off by {off:.3g}, allowed {work.tolerance:.3g}")


def once(run: Run, seconds: float, least: int = 3) -> float:
    """Seconds of one run: the median of as many as fit into `seconds`, `least` at least."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def rest(most: float = 1.0) -> None:
    """Wait until this process's threads sleep, `most` seconds at the longest.

    Those of a BLAS or another thread pool spin for up to a tenth of a second after their work and have a CPU that
    whoever is timed next should have.
    """
    end, spent = time.perf_counter() + most, math.inf
    while spent > LOOK / 4 and time.perf_counter() < end:
        before = time.process_time()
        time.sleep(LOOK)
        spent = time.process_time() - before
