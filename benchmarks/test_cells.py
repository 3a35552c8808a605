"""Every cell and pass under its kernel's name, over the grid, DeepBench's shapes and those of small real networks.

The reference backend is timed where it takes some milliseconds.
"""

from __future__ import annotations

import pytest
import shapes
from conftest import Timer, every_backend, fast_backends, over

from fusedrnn.bench.work import Work

REFERENCE_FLOPS = 1e8

grid = [
    (Work(cell, *shape, dtype), mode)
    for dtype, cells, points in (
        ("float32", shapes.CELLS, shapes.GRID),
        ("float32", shapes.THREE, shapes.ODD),
        ("float64", shapes.CELLS, shapes.GRID_FLOAT64),
    )
    for cell in cells
    for mode in ("inference", "training")
    for shape in points
]
deep = [(shapes.shortened(cell, shape), mode) for cell, shape in shapes.DEEPBENCH for mode in ("inference", "training")]
small = [(name, job, mode) for name, job in shapes.SMALL.items() for mode in ("inference", "training")]


@every_backend
@over({f"{job.kernel(mode)}-{shapes.named(job)}": (job, mode) for job, mode in grid})
def test_grid(timer: Timer, case, backend):
    timer.benchmark.group = "grid"
    job, mode = case
    if backend == "reference" and job.flops(mode) > REFERENCE_FLOPS:
        pytest.skip("the reference takes too long")
    timer(job, mode, backend)


@fast_backends
@over({f"{job.kernel(mode)}-{shapes.named(job)}": (job, mode) for job, mode in deep})
def test_deepbench(timer: Timer, case, backend):
    timer.benchmark.group = "deepbench"
    timer(*case, backend)


@fast_backends
@over({f"{job.kernel(mode)}-{name}": (job, mode) for name, job, mode in small})
def test_small(timer: Timer, case, backend):
    timer.benchmark.group = "small"
    timer(*case, backend)
