"""What raggedness and denormal weights cost, beside the same work without, in turns."""

from __future__ import annotations

import dataclasses

import pytest
import shapes
from conftest import Timer, fast_backends

from fusedrnn.bench.work import Work

three = pytest.mark.parametrize("cell", shapes.THREE)
modes = pytest.mark.parametrize("mode", ["inference", "training"])


@fast_backends
@modes
@three
@pytest.mark.parametrize("lengths", ["uniform", "uniform_small", "one_long", "all_short"])
def test_ragged(timer: Timer, lengths, cell, mode, backend):
    """`over_share_of_dense`: the time over that of the dense batch times the share of valid steps.

    `uniform_small`: steps of a few microseconds, where it shows what does not depend on the rows.
    """
    timer.benchmark.group = "ragged"
    kind, small, _ = lengths.partition("_small")
    dense = Work(cell, 16, 100, 64, 64) if small else Work(cell, 32, 50, 256, 256)
    job = dataclasses.replace(dense, lengths=shapes.ragged(kind, dense.B, dense.T))
    share = job.valid / dense.valid
    ratio = timer.ratio(timer(job, mode, backend), timer.run(dense, mode, backend))
    timer.benchmark.extra_info.update(share=share, over_share_of_dense=ratio / share)


@fast_backends
@modes
@three
def test_denormals(timer: Timer, cell, mode, backend):
    """`over_ordinary`: the time with weights below the smallest normal number over that with ordinary ones."""
    timer.benchmark.group = "denormals"
    ordinary = Work(cell, 8, 100, 128, 128)
    run = timer(dataclasses.replace(ordinary, scale=1e-39), mode, backend)
    ratio = timer.ratio(run, timer.run(ordinary, mode, backend))
    timer.benchmark.extra_info.update(over_ordinary=ratio)
