"""One generic test case, run through every implementation of the backend protocol, and the comparisons of results.

A `Case` says in words what is computed, `problem` turns it into arrays, `run` hands those to any backend, `oracle` is
what the reference says in a wider type. Nothing here knows a backend by name except the oracle: the reference.

Letters: T time steps, B batch, I input size, H hidden size, G gates, D directions.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np

import fusedrnn
from fusedrnn import reference

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}
CELLS = tuple(GATES)
DTYPES = ("float32", "float64")
FUNCTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh": ("rnn", {}),
    "rnn_relu": ("rnn", {"nonlinearity": "relu"}),
    "lstm": ("lstm", {}),
    "gru": ("gru", {}),
    "gru_reset_before": ("gru", {"reset_after": False}),
}
PARAMETERS = ("w_ih", "w_hh", "b_ih", "b_hh")

Results = dict[str, "np.ndarray | None"]


@dataclasses.dataclass(frozen=True)
class Case:
    """What to compute; every field has a default, so that a test names only what it is about."""

    cell: str
    dtype: str = "float32"
    T: int = 7
    B: int = 3
    I: int = 4
    H: int = 5
    biases: str = "both"  # both | none | ih | hh
    states: str = "given"  # given | zero | h | c: which initial states are passed
    lengths: str = "none"  # none | any | zeros | full | short
    directions: str = "forward"  # forward | reverse | both
    grads: str = "yhc"  # which of dy, dh_n, dc_n are passed
    seed: int = 0

    @property
    def lstm(self) -> bool:
        return self.cell == "lstm"

    def __str__(self) -> str:
        options = f"{self.biases}-{self.states}-{self.lengths}-{self.directions}-{self.grads}"
        return f"{self.cell}-{self.dtype}-T{self.T}-B{self.B}-I{self.I}-H{self.H}-{options}"


@dataclasses.dataclass(frozen=True)
class Problem:
    """The arguments of one forward and one backward call, as the backend protocol takes them."""

    cell: str
    x: np.ndarray  # (T, B, I)
    directions: tuple[tuple[Any, np.ndarray | None, np.ndarray | None, bool], ...]  # (weights, h0, c0, reverse)
    lengths: np.ndarray | None  # (B,)
    dy: np.ndarray | None  # (T, B, D*H)
    dh_n: np.ndarray | None  # (D, B, H)
    dc_n: np.ndarray | None  # (D, B, H)

    def map(self, f: Any) -> Problem:
        """The same problem with `f` applied to every floating array."""

        def g(a: np.ndarray | None) -> np.ndarray | None:
            return None if a is None else f(a)

        directions = tuple((tuple(map(g, w)), g(h0), g(c0), reverse) for w, h0, c0, reverse in self.directions)
        return dataclasses.replace(
            self, x=f(self.x), directions=directions, dy=g(self.dy), dh_n=g(self.dh_n), dc_n=g(self.dc_n)
        )

    def astype(self, dtype: Any) -> Problem:
        return self.map(lambda a: a.astype(dtype))

    def rows(self, index: Any) -> Problem:
        """The same problem for the sequences `index` (an integer array) of the batch alone."""

        def g(a: np.ndarray | None, axis: int) -> np.ndarray | None:
            return None if a is None else np.ascontiguousarray(a.take(index, axis=axis))

        return Problem(
            self.cell,
            np.ascontiguousarray(self.x.take(index, axis=1)),
            tuple((w, g(h0, 0), g(c0, 0), reverse) for w, h0, c0, reverse in self.directions),
            g(self.lengths, 0),
            *(g(a, 1) for a in (self.dy, self.dh_n, self.dc_n)),
        )


def problem(case: Case) -> Problem:
    """The arrays of a case: deterministic, in its dtype, NaN wherever the promise is that nothing reads."""
    if case.cell != "rnn_relu":
        return _draw(case)
    # At a kink the sign of a rounding error decides the derivative, and no tolerance helps: keep clear of it, by a few
    # times the error of one preactivation (the weights drawn here make errors of earlier steps fade).
    return draw_clear_of_kinks(case, 2 * float(np.finfo(case.dtype).eps) * math.sqrt(case.I + case.H + 16))


def draw_clear_of_kinks(case: Case, margin: float) -> Problem:
    """A problem of rnn_relu whose preactivations all keep `margin` from zero, found by trying seeds."""
    for seed in range(case.seed, case.seed + 100):
        p = _draw(dataclasses.replace(case, seed=seed))
        if _smallest_preactivation(p.astype(np.float64)) > margin:
            return p
    raise RuntimeError(f"no seed keeps {case} {margin} from the kinks of relu: make it smaller")


def _draw(case: Case) -> Problem:
    T, B, I, H, G, D = case.T, case.B, case.I, case.H, GATES[case.cell], 1 + (case.directions == "both")
    rng = np.random.default_rng([case.seed, T, B, I, H, CELLS.index(case.cell)])

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(case.dtype)

    def uniform(limit: float, *shape: int) -> np.ndarray:
        return rng.uniform(-limit, limit, shape).astype(case.dtype)

    def direction(reverse: bool) -> tuple[Any, ...]:
        # Preactivations of variance about 1.5: gates neither saturate nor stay at their linear middle.
        w_ih, w_hh = uniform(math.sqrt(3 / I), G * H, I), uniform(math.sqrt(1.5 / H), G * H, H)
        b_ih, b_hh, h0, c0 = uniform(0.5, G * H), uniform(0.5, G * H), uniform(1, B, H), normal(B, H)
        return (
            (
                w_ih,
                w_hh,
                b_ih if case.biases in ("both", "ih") else None,
                b_hh if case.biases in ("both", "hh") else None,
            ),
            h0 if case.states in ("given", "h") else None,
            c0 if case.states in ("given", "c") and case.lstm else None,
            reverse,
        )

    x, dy, dh_n, dc_n = normal(T, B, I), normal(T, B, D * H), normal(D, B, H), normal(D, B, H)
    directions = tuple(map(direction, {"forward": [False], "reverse": [True], "both": [False, True]}[case.directions]))
    lengths = _lengths(case, rng)
    if lengths is not None:
        padding = np.arange(T)[:, None] >= lengths
        x[padding] = dy[padding] = np.nan
    return Problem(
        case.cell,
        x,
        directions,
        lengths,
        dy if "y" in case.grads else None,
        dh_n if "h" in case.grads else None,
        dc_n if "c" in case.grads and case.lstm else None,
    )


def _lengths(case: Case, rng: np.random.Generator) -> np.ndarray | None:
    T, B = case.T, case.B
    match case.lengths:
        case "none":
            return None
        case "any":
            return rng.integers(min(T, 1), T + 1, B)
        case "zeros":
            return rng.integers(0, T + 1, B) * (np.arange(B) % 2)
        case "full":
            return np.full(B, T, np.int64)
        case "short":
            return np.full(B, T // 2, np.int64)
    raise ValueError(case.lengths)


def _smallest_preactivation(p: Problem) -> float:
    """Distance from zero of the preactivation nearest to it, over all valid steps (a cell of one gate)."""
    T, B, _ = p.x.shape
    y = reference.forward(p.cell, p.x, p.directions, p.lengths, False)[0]
    lengths = np.full(B, T) if p.lengths is None else p.lengths
    valid = np.arange(T)[:, None] < lengths
    x = np.where(valid[:, :, None], p.x, 0)
    smallest = math.inf
    for (weights, h0, _, reverse), h in zip(p.directions, np.split(y, len(p.directions), axis=2), strict=True):
        w_ih, w_hh, *biases = weights
        start = np.zeros(h.shape[1:]) if h0 is None else h0
        previous = np.concatenate([h[1:], start[None]] if reverse else [start[None], h[:-1]])[:T]
        if reverse:
            for b, length in enumerate(lengths):
                previous[length - 1 : length, b] = start[b]
        pre = x @ w_ih.T + previous @ w_hh.T + sum(b for b in biases if b is not None)
        smallest = min(smallest, np.abs(pre[valid]).min(initial=math.inf))
    return smallest


# Running -------------------------------------------------------------------------------------------------------------


def forward(backend: Any, p: Problem, *, training: bool = False) -> tuple[Results, Any]:
    """Outputs by name, and the tape."""
    y, h_n, c_n, tape = backend.forward(p.cell, p.x, p.directions, p.lengths, training)
    return {"y": y, "h_n": h_n, "c_n": c_n}, tape


def run_functional(backend: str, p: Problem, training: bool = True) -> Results:
    """The same as `run` (or its outputs alone) for one direction, through the public functions and all their checks."""
    function, options = FUNCTIONS[p.cell]
    ((weights, h0, c0, reverse),) = p.directions
    lstm = p.cell == "lstm"
    *outputs, tape = getattr(fusedrnn, f"{function}_forward")(
        p.x,
        *weights,
        *((h0, c0) if lstm else (h0,)),
        lengths=p.lengths,
        reverse=reverse,
        training=training,
        backend=backend,
        **options,
    )
    results = {"y": outputs[0], "h_n": outputs[1][None], "c_n": outputs[2][None] if lstm else None}
    if not training:
        assert tape is None
        return results
    finals = [None if a is None else a[0] for a in (p.dh_n, p.dc_n)]
    g = getattr(fusedrnn, f"{function}_backward")(tape, p.dy, *finals[: 1 + lstm])
    return results | {"x": g.x} | {f"0.{name}": getattr(g, name) for name in (*PARAMETERS, "h0", "c0")}


def run(backend: Any, p: Problem) -> Results:
    """All outputs and all gradients by name; a gradient of direction d is called "d.name"."""
    results, tape = forward(backend, p, training=True)
    return results | backward(backend, p, tape)


def backward(backend: Any, p: Problem, tape: Any, of_x: bool = True) -> Results:
    """Gradients by name."""
    dx, gradients = backend.backward(tape, p.dy, p.dh_n, p.dc_n, of_x)
    results = {"x": dx}
    for d, gradient in enumerate(gradients):
        results |= {f"{d}.{name}": g for name, g in zip((*PARAMETERS, "h0", "c0"), gradient, strict=True)}
    return results


@functools.lru_cache(maxsize=8)  # the targets of one case follow each other
def oracle(case: Case) -> Results:
    """What is right: the reference in float64; for float64 in longdouble, unless that takes too long (no BLAS)."""
    work = case.T * case.B * case.H * (case.I + case.H) * GATES[case.cell] * (1 + (case.directions == "both"))
    wide = np.float64 if case.dtype == "float32" or work > 3e6 else np.longdouble
    return run(reference, problem(case).astype(wide))


# Comparing -----------------------------------------------------------------------------------------------------------


def tolerance(dtype: Any, terms: int, steps: int) -> float:
    """Allowed error relative to the largest element of an array, for sums of `terms` terms through `steps` time steps.

    A rounding error is at most eps/2 and of random sign, so that a chain of n additions is off by about sqrt(n) of them
    (n in the worst case, which is not seen). Each step adds its own, relative to what it works on: sqrt(steps) again.
    The factor covers the activations (2 ulp each), sums that cancel, and the worst element of many. Measured, the
    reference stays below half of this bound, at most sizes below a tenth.
    """
    return 2 * float(np.finfo(dtype).eps) * math.sqrt(terms + 16) * math.sqrt(steps + 1)


def bounds(p: Problem) -> dict[str, float]:
    """The tolerance of each result of a problem, from the length of the sums it goes through."""
    (T, B, I), H, G = p.x.shape, p.directions[0][0][1].shape[1], GATES[p.cell]
    # Going forwards, the cells drawn here forget in some ten steps, older errors with the rest. Going backwards, what
    # fades is the result itself.
    outputs = tolerance(p.x.dtype, I + H + 2, min(T, 10))
    states = tolerance(p.x.dtype, max(G * H, I + H + 2), T)
    parameters = tolerance(p.x.dtype, max(G * H, I + H + 2) + T * B, T)
    return (
        dict.fromkeys(("y", "h_n", "c_n"), outputs)
        | dict.fromkeys(("x", "h0", "c0"), states)
        | dict.fromkeys(PARAMETERS, parameters)
    )


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Largest error, relative to the largest element wanted (absolute where that is zero: zero must be exact).

    What has faded to where the kernels flush to zero counts as no more than that.
    """
    want = np.asarray(want, np.longdouble)
    scale = float(np.abs(want).max(initial=0))
    if scale > 0:
        info = np.finfo(got.dtype)
        scale = max(scale, float(info.smallest_normal / info.eps))
    return float(np.abs(got.astype(np.longdouble) - want).max(initial=0) / (scale or 1))


def assert_close(got: Results, want: Results, p: Problem) -> None:
    """The same names, shapes and nothing else than finite numbers in p's dtype, within the tolerance of each."""
    assert got.keys() == want.keys()
    allowed = bounds(p)
    for name, w in want.items():
        g = got[name]
        if w is None:
            assert g is None, f"{name}: expected None"
            continue
        assert isinstance(g, np.ndarray), f"{name}: expected an array, got {type(g)}"
        assert g.shape == w.shape, f"{name}: shape {g.shape}, expected {w.shape}"
        assert g.dtype == p.x.dtype, f"{name}: dtype {g.dtype}, expected {p.x.dtype}"
        assert np.isfinite(g).all(), f"{name}: not finite"
        e, limit = error(g, w), allowed[name.split(".")[-1]]
        assert e <= limit, f"{name}: off by {e:.3g} of its largest element, allowed {limit:.3g}"


def assert_same(got: Results, want: Results) -> None:
    """Equal in every bit but the sign of zero, dtypes and shapes included."""
    assert got.keys() == want.keys()
    for name, w in want.items():
        g = got[name]
        if w is None or g is None:
            assert g is w, f"{name}: {g} instead of {w}"
            continue
        assert (g.dtype, g.shape) == (w.dtype, w.shape), f"{name}: {g.dtype}{g.shape} instead of {w.dtype}{w.shape}"
        different = ~((g == w) | (np.isnan(g) & np.isnan(w)))
        assert not different.any(), (
            f"{name}: {different.sum()} of {g.size} elements differ, first at {tuple(np.argwhere(different)[0])}, "
            f"by at most {np.abs(g - w)[different].max()}"
        )


# Bursts of short calls that go on without a worker that is just waking up, and pauses in which it falls asleep; then
# long calls, in which it has to take part.
BURSTS = """
import random, time
import numpy as np
import fusedrnn as fr

fr.set_num_threads(2)
frozen = fr.LSTM(128, 128).freeze()
stream, long = frozen.stream(batch_size=4), np.zeros((100, 32, 128), np.float32)
x, out = np.zeros((4, 128), np.float32), np.empty((4, 128), np.float32)

def has_help():
    mine, all = time.thread_time(), time.process_time()
    frozen(long)
    mine, all = time.thread_time() - mine, time.process_time() - all
    return all > 1.2 * mine

end = time.monotonic() + 4
while time.monotonic() < end:
    for _ in range(500):
        for _ in range(random.randrange(1, 20)):
            stream.step(x, out=out)
        until = time.perf_counter() + random.uniform(80e-6, 120e-6)
        while time.perf_counter() < until:
            pass
    patient = time.monotonic() + 30  # beside whoever has the CPUs
    while not has_help(): assert time.monotonic() < patient, "a worker never came back"
print("done")
"""
