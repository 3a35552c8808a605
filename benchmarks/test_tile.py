"""The Numba backend's tiles alone, on one thread: products whose right operand lies in the core's own caches."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fusedrnn as fr
from fusedrnn.bench import machine

ROWS = {4: 6, 3: 8, 2: 8, 1: 8}  # of a full tile with 32 registers, by the vectors of its panel
TILES, ROUNDS, FLOPS = 10, 15, 1e8

pytestmark = [
    pytest.mark.skipif("numba" not in fr.backends.available(), reason="needs Numba"),
    pytest.mark.skipif(not machine.is_probed(), reason="needs the compiled extension's probe"),
]


@functools.cache
def repeat() -> Callable[[int, int, int], None]:
    """A jitted loop over the product at an address."""
    from fusedrnn.numba.jit import Kernel
    from fusedrnn.numba.machine import call_native

    def repeat(product, p, times):
        for _ in range(times):
            call_native(product, p)

    return Kernel(repeat, "void(int64, int64, int64)").call


@pytest.mark.parametrize("depth", [96, 256, 512])
@pytest.mark.parametrize("width", ROWS)
@pytest.mark.parametrize("dtype", machine.DTYPES)
def test_tile(benchmark: BenchmarkFixture, dtype, width, depth):
    """`fraction`: of the multiply-adds that registers allow, probed beside every round."""
    from fusedrnn.numba import backend, jit, tile

    real, rows = np.dtype(dtype), ROWS[width] * TILES
    lanes = jit.VECTOR_BYTES // real.itemsize
    tiles, product = backend.tiles(real, [width]), backend.native(tile.product, real)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((rows, depth)).astype(real)
    memory = np.zeros(depth * width * lanes + lanes, real)
    start = -memory.ctypes.data % jit.VECTOR_BYTES // real.itemsize
    w = memory[start : start + depth * width * lanes].reshape(depth, width * lanes)
    w[:] = rng.standard_normal(w.shape)
    out = np.zeros((rows, width * lanes), real)
    pointers = [np.array([row.ctypes.data for row in array], np.int64) for array in (a, out)]
    p = np.zeros(1, tile.PRODUCT)
    for name, value in {
        "rows": rows, "a": pointers[0].ctypes.data, "a_step": 1, "segments": 1, "depth": depth, "w": w.ctypes.data,
        "width": width, "vectors": width, "last": width, "out": pointers[1].ctypes.data, "out_panel": width * lanes,
        "out_step": lanes, "tiles": tiles,
    }.items():  # fmt: skip
        p[name] = value
    run = repeat()
    run(product, p.ctypes.data, 1)
    # K roundings of a sum that grows to about sqrt(K) wander off by 0.35 K eps; five times that is the most of so many.
    np.testing.assert_allclose(out, a.astype(np.longdouble) @ w, rtol=0, atol=2 * depth * np.finfo(real).eps)

    flops = 2.0 * rows * depth * width * lanes
    times = max(1, int(FLOPS / flops))
    peaks: list[float] = []
    seconds: list[float] = []

    def loop() -> None:
        began = time.perf_counter()
        run(product, p.ctypes.data, times)
        seconds.append((time.perf_counter() - began) / times)

    benchmark.group = "tile"
    benchmark.pedantic(loop, setup=lambda: peaks.append(machine.flops(dtype, 1, 0.002)), rounds=ROUNDS)
    fractions = [flops / taken / peak for taken, peak in zip(seconds, peaks, strict=True)] if peaks else []
    benchmark.extra_info.update(
        kernel=f"tile_{ROWS[width]}x{width}", dtype=dtype, backend="numba", depth=depth, limit="multiply-adds",
        seconds=statistics.median(seconds), fraction=statistics.median(fractions or [float("nan")]),
        best=max(fractions, default=float("nan")), fractions=[round(f, 5) for f in fractions],
    )  # fmt: skip
