"""Latency: one step of a stream after another, each timed by itself, from a Python loop."""

from __future__ import annotations

import time

import numpy as np
import shapes
from conftest import Timer, Watch, fast_backends, over

from fusedrnn.bench.work import Work

STEPS, LONGEST, ROUNDS = 1000, 0.05, 5  # steps of a round, or as many as fit into so many seconds
BINS = np.logspace(-7, 0, 141)  # of the histogram: from 0.1 microseconds on, 20 a decade

jobs = [
    Work(cell, *shape, dtype)
    for dtype, points in (("float32", shapes.STREAMS), ("float64", shapes.STREAMS[1:3]))
    for cell in shapes.CELLS
    for shape in points
]


@fast_backends
@over({f"{job.kernel('stream')}-{shapes.named(job)}": job for job in jobs})
def test_stream(timer: Timer, case: Work, backend):
    step = timer.run(case, "stream", backend)
    clock, watch = time.perf_counter_ns, Watch(case, "stream")
    began = clock()
    step()
    steps = int(np.clip(LONGEST * 1e9 / (clock() - began), 10, STEPS))
    taken: list[list[int]] = []

    def loop() -> None:
        times = [0] * steps
        for i in range(steps):
            began = clock()
            step()
            times[i] = clock() - began
        taken.append(times)

    timer.benchmark.pedantic(loop, setup=watch if timer.enabled else None, rounds=ROUNDS if timer.enabled else 1)
    timer.note(case, "stream", backend, steps)
    if timer.enabled:
        timer.note_times(case, "stream", watch, [float(np.median(times)) / 1e9 for times in taken])
        every = np.concatenate(taken) / 1e9
        counts, _ = np.histogram(every, BINS)
        timer.benchmark.extra_info.update(
            p99=float(np.percentile(every, 99)),
            histogram={f"{BINS[i]:.4g}": int(counts[i]) for i in counts.nonzero()[0]},
        )
