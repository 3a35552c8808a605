"""What every benchmark records: the machine and the build once, GFLOP/s and the fraction of the FMA peak for each.

Nothing here fails for being slow. The commit and the CPU are recorded by pytest-benchmark itself.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from work import Run, Work, assert_right

import fusedrnn
from fusedrnn import _core

FIGURES = pytest.StashKey[dict[str, dict[str, Any]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = {}


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:  # noqa: ARG001
    machine_info["fusedrnn"] = {
        "version": fusedrnn.__version__,
        "numpy": np.__version__,
        "compiler": _core.compiler(),
        "isa": _core.isa(),
        "threads": _core.get_num_threads(),
        "cpus": _core.available_cpus(),
    }


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The figures, which pytest-benchmark's own table has no columns for."""
    if figures := config.stash[FIGURES]:
        terminalreporter.section(f"figures: {_core.isa()}, {_core.get_num_threads()} threads, {_core.compiler()}")
    for name, entries in figures.items():
        shown = ", ".join(f"{key} {value:.4g}" for key, value in entries.items())
        terminalreporter.write_line(f"{name}: {shown}")


class Timer:
    """Checks a run, times it with pytest-benchmark, and notes figures about it in `extra_info` and the summary."""

    def __init__(self, benchmark: BenchmarkFixture, figures: dict[str, Any]) -> None:
        self.benchmark = benchmark
        self.figures = figures
        self.enabled = benchmark.enabled  # not with --benchmark-disable: then a run is checked, and that is all

    def __call__(self, work: Work, run: Run, reference: Run, flops: int) -> float:
        """Seconds of one run (the median), after a check against the reference and between two probes of the peak."""
        self.check(work, run, reference)
        before = self.peak(work.dtype)
        self.benchmark(run)
        if not self.enabled:
            return float("nan")
        seconds = float(self.benchmark.stats["median"])
        peak = (before + self.peak(work.dtype)) / 2
        self.note(GFLOPS=flops / seconds / 1e9, peak_GFLOPS=peak / 1e9, fraction_of_peak=flops / seconds / peak)
        return seconds

    def check(self, work: Work, run: Run, reference: Run) -> None:
        assert_right(work, run, reference)
        time.sleep(0.1)  # the threads of NumPy's BLAS spin for a while before they sleep

    def peak(self, dtype: str) -> float:
        """Floating-point operations a second that all threads reach with multiply-adds in registers."""
        return self.probe(_core.peak, dtype)

    def bandwidth(self, size: int) -> float:
        """Bytes a second at which all threads read, each `size` bytes of its own."""
        return self.probe(_core.bandwidth, size)

    def probe(self, measure: Callable[[Any, int], float], argument: Any) -> float:
        """The machine with all threads; NaN where other processes keep them from their CPUs."""
        for _ in range(3 if self.enabled else 0):
            try:
                return measure(argument, _core.get_num_threads())
            except RuntimeError:  # not all threads are free
                time.sleep(0.1)
        return float("nan")

    def note(self, **figures: Any) -> None:
        """Keep what could be measured."""
        if self.enabled:
            figures = {name: value for name, value in figures.items() if not math.isnan(value)}
            self.benchmark.extra_info.update(figures)
            self.figures.update(figures)

    def ratio(self, run: Run, base: Run, seconds: float = 0.02, rounds: int = 9) -> float:
        """Time of one run in units of the other: they take turns, so that both meet the same machine."""
        if not self.enabled:
            return float("nan")
        ratios = []
        for _ in range(rounds):
            slow, fast = once(run, seconds), once(base, seconds)
            ratios.append(slow / fast)
        return statistics.median(ratios)


def once(run: Callable[[], Any], seconds: float) -> float:
    """Seconds of one run: the median of as many as fit into `seconds`, three at least."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@pytest.fixture
def timer(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Timer:
    return Timer(benchmark, request.config.stash[FIGURES].setdefault(request.node.name, {}))
