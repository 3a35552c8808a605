"""What has to be paid before the first result: importing, the first call of a process, packing the weights."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Timer, every_backend, fast_backends

import fusedrnn as fr
from fusedrnn.bench import work
from fusedrnn.bench.work import Work

ROUNDS, PATIENCE = 5, 3.0  # rounds, where one takes no longer than so many seconds
SOURCE = Path(fr.__file__).parents[1]

IMPORT = "import numpy, time; began = time.perf_counter(); import fusedrnn; print(time.perf_counter() - began)"
FIRST = """
import time
from fusedrnn.bench.work import MODES, Work
run = MODES[{mode!r}](Work({cell!r}, 1, 10, 32, 32), {backend!r})
began = time.perf_counter(); run(); first = time.perf_counter() - began
began = time.perf_counter(); run(); print(first - (time.perf_counter() - began))
"""


def fresh(code: str) -> float:
    """What a process of its own prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")])}
    answer = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return float(answer.stdout)


def timed(timer: Timer, code: str, **about: str) -> None:
    """Seconds of what the process says, which is less than it lives."""
    first, times = [fresh(code)], []
    rounds = 1 if not timer.enabled or first[0] > PATIENCE else ROUNDS
    timer.benchmark.pedantic(lambda: times.append(first.pop() if first else fresh(code)), rounds=rounds)
    timer.benchmark.extra_info.update(about, seconds=statistics.median(times))


def test_import(timer: Timer):
    """After NumPy, which is there anyway."""
    timed(timer, IMPORT)


@every_backend
@pytest.mark.parametrize("mode", ["inference", "training", "stream"])
def test_first_call(timer: Timer, mode, backend):
    """By how much a process's first call of a small LSTM is longer than its second."""
    timed(timer, FIRST.format(mode=mode, cell="lstm", backend=backend), backend=backend, mode=mode)


@fast_backends
@pytest.mark.parametrize("H", [64, 256, 1024])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_pack(timer: Timer, cell, H, backend):
    """`freeze()`: the weights into panels. What it gives is checked by running it."""
    job = Work(cell, 1, 2, H, H)
    timer.run(job, "inference", backend)
    timer.benchmark.pedantic(work.layer(job, backend).freeze, rounds=20 if timer.enabled else 1)
    if timer.enabled:
        timer.benchmark.extra_info.update(
            cell=cell,
            H=H,
            backend=backend,
            seconds=timer.benchmark.stats["median"],
            bytes=sum(w.nbytes for w in job.weights.values()),
        )
