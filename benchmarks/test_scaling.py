"""How time and peak memory grow with T, B and H, and how time shrinks with threads; with the exponents that fit.

`growth` is the slope of log time over log size: 1 is proportional. For more threads than there are CPUs the model's
prediction stands beside the measured points, under a name of its own.
"""

from __future__ import annotations

import sys

import numpy as np
import pytest
import shapes
from conftest import Timer, Watch, fast_backends

import fusedrnn as fr
from fusedrnn.bench import machine, race, roofline, work
from fusedrnn.bench.work import Work

ROUNDS, SECONDS = 3, 0.03
MEASURED = 3  # of the largest, whose memory is measured: the smallest take less than a page more than nothing
PREDICTED = (4, 8, 16, 32)

cases = pytest.mark.parametrize(("cell", "mode"), [("lstm", "inference"), ("lstm", "training"), ("gru", "training")])


def exponent(sizes: list[float], values: list[float]) -> float:
    """The slope of the line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def measured(timer: Timer, job: Work, mode: str, backend: str, threads: int | None = None) -> tuple[float, float]:
    """Seconds and the fraction of the limit of one point."""
    run, watch, seconds = timer.run(job, mode, backend), Watch(job, mode, threads), []
    for _ in range(ROUNDS):
        watch()
        seconds.append(work.once(run, SECONDS, 1))
    return float(np.median(seconds)), watch.fractions(seconds).get("fraction", float("nan"))


def memory(job: Work, mode: str, backend: str) -> float:
    """KiB at the peak of one run, in a fresh process."""
    (process,) = race.start([f"fusedrnn.{backend}"], fr.get_num_threads())
    try:
        return float(process.ask((job, f"memory {mode}")))
    finally:
        process.close()


@fast_backends
@cases
@pytest.mark.parametrize("axis", shapes.AXES)
def test_size(timer: Timer, axis, cell, mode, backend):
    timer.benchmark.group = "scaling"
    values = shapes.AXES[axis][1]
    jobs = [shapes.grown(axis, cell, value) for value in values]
    timer(jobs[-1], mode, backend)
    if not timer.enabled:
        return
    points = [measured(timer, job, mode, backend) for job in jobs]
    found = {"axis": axis, "values": values, "times": [p[0] for p in points], "of_limit": [p[1] for p in points]}
    found["growth"] = exponent(values[1:], found["times"][1:])
    # Of one backend: another one may have to compile for seconds in each of these processes.
    if sys.platform == "linux" and cell == "lstm" and backend == fr.backends.get().name:
        found["KiB"] = {n: memory(job, mode, backend) for n, job in list(zip(values, jobs, strict=True))[-MEASURED:]}
        found["memory_growth"] = exponent(list(found["KiB"]), [max(4.0, kib) for kib in found["KiB"].values()])
    timer.benchmark.extra_info.update(found)


@fast_backends
@cases
def test_threads(timer: Timer, cell, mode, backend):
    timer.benchmark.group = "scaling"
    job, before = Work(cell, *shapes.THREADED), fr.get_num_threads()
    timer(job, mode, backend)
    if not timer.enabled:
        return
    values, points = machine.thread_counts(), []
    try:
        for n in values:
            fr.set_num_threads(n)
            points.append(measured(timer, job, mode, backend, n))
    finally:
        fr.set_num_threads(before)
    found = {"axis": "threads", "values": values, "times": [p[0] for p in points], "of_limit": [p[1] for p in points]}
    if len(values) > 1:
        found["growth"] = exponent(values, found["times"])
    if machine.is_probed():
        limits, more = machine.probe(job.dtype, values[-1]), [n for n in PREDICTED if n > values[-1]]
        at_best = roofline.bound(job, mode, limits).seconds / found["times"][-1]
        bounds = [roofline.bound(job, mode, machine.scaled(limits, n)).seconds for n in more]
        found["predicted"] = {"values": more, "times": [bound / at_best for bound in bounds]}
    timer.benchmark.extra_info.update(found)
