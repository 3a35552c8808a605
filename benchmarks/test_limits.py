"""How near the kernels come to what the machine can do, and what raggedness and denormal weights cost.

The goal of each figure stands beside it as `goal`. Nothing fails for missing one: that is for the reader to judge.
"""

from __future__ import annotations

import numpy as np
import pytest
import work
from conftest import Timer
from work import GATES, Work

from fusedrnn import _core

THREE = pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
PASSES = pytest.mark.parametrize("mode", ["forward", "training"])
RUNS = {"forward": work.inference, "training": work.training}


@PASSES
@THREE
@pytest.mark.parametrize("size", [(32, 50, 256, 256), (64, 50, 512, 512), (64, 25, 1024, 1024)], ids=str)
def test_fraction_of_peak(timer: Timer, size, cell, mode):
    """Large products: GFLOP/s over the peak of multiply-adds that never leave the registers."""
    job, make = Work(cell, *size), RUNS[mode]
    timer(job, make(job), make(job, "reference"), job.flops(training=mode == "training"))
    timer.note(goal=0.9)


@THREE
def test_fraction_of_bandwidth(timer: Timer, cell):
    """One sequence: every step streams W_hh from cache, each thread its share; that time over the time taken.

    x W_ih is one product over many steps, which bandwidth does not limit: `fraction_of_roofline` adds its multiply-adds
    at the peak to the time of the streaming, `fraction_of_bandwidth` leaves them out.
    """
    job = Work(cell, 1, 100, 256, 256)
    seconds = timer(job, work.inference(job), work.inference(job, "reference"), job.flops())
    if timer.enabled:
        weights = job.weights["weight_hh_l0"].nbytes
        bandwidth = timer.bandwidth(weights // _core.get_num_threads())
        streaming = job.T * weights / bandwidth
        projection = 2 * job.T * GATES[cell] * job.H * job.I / timer.peak(job.dtype)
        timer.note(
            bandwidth_GBs=bandwidth / 1e9,
            fraction_of_bandwidth=streaming / seconds,
            fraction_of_roofline=(streaming + projection) / seconds,
            goal=0.8,
        )


@PASSES
@THREE
def test_ragged(timer: Timer, cell, mode):
    """Lengths uniform in 1..T: the time over that of the dense batch times the share of valid steps."""
    job, make = Work(cell, 32, 50, 256, 256), RUNS[mode]
    lengths = np.random.default_rng(3).integers(1, job.T, job.B, endpoint=True)
    share = float(lengths.mean() / job.T)
    run, dense = make(job, lengths=lengths), make(job)
    timer(job, run, make(job, "reference", lengths=lengths), round(job.flops(training=mode == "training") * share))
    timer.note(share=share, over_share_of_dense=timer.ratio(run, dense) / share, goal=1.1)


@PASSES
@THREE
def test_denormal_weights(timer: Timer, cell, mode):
    """Weights below the smallest normal number: the time over that with ordinary ones."""
    job, make = Work(cell, 8, 100, 128, 128), RUNS[mode]
    run, ordinary = make(job, scale=1e-39), make(job)
    timer(job, run, make(job, "reference", scale=1e-39), job.flops(training=mode == "training"))
    timer.note(over_ordinary=timer.ratio(run, ordinary), goal=1.2)


@THREE
def test_small_stream_step(timer: Timer, cell):
    """One step of H = 32, B = 1, called from a Python loop: microseconds."""
    job, steps = Work(cell, 1, 1, 32, 32), 1000
    frozen = work.layer(job).freeze().stream()
    step, x_t, out = frozen.step, job.x[0], np.empty((1, job.H), job.dtype)

    def run() -> None:
        for _ in range(steps):
            step(x_t, out=out)

    timer.check(job, work.stream(job), work.stream(job, "reference"))
    timer.benchmark(run)
    if timer.enabled:
        timer.note(microseconds=timer.benchmark.stats["median"] / steps * 1e6, goal=1.0)
