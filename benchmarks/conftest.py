"""How everything here is timed: checked first, then in rounds that begin with a probe of the machine's limits.

The speed of a shared machine wanders by a factor of two within minutes. A round's time is therefore held against the
limits of the same moment, and what is kept and compared is the fraction. Nothing fails for being slow.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import fusedrnn as fr
from fusedrnn.bench import machine, roofline, work
from fusedrnn.bench.work import MODES, Run, Work

LOOP = 5e-3  # seconds of one round of a short run
ROUNDS = {7: 0.02, 5: 0.1, 3: float("inf")}  # so many rounds for runs of up to so many seconds


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:  # noqa: ARG001
    machine_info["fusedrnn"] = machine.describe()
    if machine.is_probed():
        limits = [machine.at_best(first_limits(dtype, fr.get_num_threads())) for dtype in machine.DTYPES]
        machine_info["fusedrnn"]["limits"] = {found.dtype: dataclasses.asdict(found) for found in limits}


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:  # noqa: ARG001
    """Keep what is compared and drawn; the times of single rounds are in the fractions already."""
    for entry in output_json["benchmarks"]:
        entry["stats"] = {name: entry["stats"][name] for name in ("min", "median", "iqr", "rounds")}
        for name in ("options", "params", "fullname"):
            entry.pop(name, None)
    output_json["machine_info"] = output_json["machine_info"]["fusedrnn"]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The fractions of the limits, which pytest-benchmark's table has no column for."""
    session = getattr(config, "_benchmarksession", None)
    groups: dict[str, list[float]] = {}
    for bench in session.benchmarks if session else ():
        if "fraction" in bench.extra_info:
            groups.setdefault(f"{bench.group}, {bench.extra_info['backend']}", []).append(bench.extra_info["fraction"])
    if groups:
        terminalreporter.section("fraction of the limit that binds: median, smallest, number")
    for name, found in groups.items():
        terminalreporter.write_line(f"{name:40} {statistics.median(found):.3f} {min(found):.3f} {len(found):4}")


@functools.lru_cache(maxsize=1)  # backends are the innermost parameter
def expected(job: Work, mode: str, backend: str) -> list[np.ndarray]:
    return work.arrays(MODES[mode](job, backend)())


@functools.cache
def first_limits(dtype: str, threads: int) -> machine.Limits:
    return machine.probe(dtype, threads)


class Watch:
    """The roofline of one job, moment by moment."""

    def __init__(self, job: Work, mode: str, threads: int | None = None) -> None:
        self.job, self.mode = job, mode
        self.limits = first_limits(job.dtype, threads or fr.get_num_threads()) if machine.is_probed() else None
        self.bounds: list[roofline.Bound] = []

    def __call__(self) -> None:
        """Look now."""
        if self.limits:
            binding = self.bounds[-1].limit if self.bounds else roofline.bound(self.job, self.mode, self.limits).limit
            self.limits = machine.refresh(self.limits, binding)
            self.bounds.append(roofline.bound(self.job, self.mode, self.limits))

    def fractions(self, seconds: list[float]) -> dict[str, Any]:
        """What a result says about itself; nothing where there is nothing to probe with."""
        pairs = [(b, t) for b, t in zip(self.bounds, seconds, strict=bool(self.bounds)) if b.seconds == b.seconds]
        if not pairs:
            return {}
        fractions = [b.seconds / t for b, t in pairs]
        return {
            "limit": statistics.mode(b.limit for b, _ in pairs),
            "bound": statistics.median(b.seconds for b, _ in pairs),
            "fraction": statistics.median(fractions),
            "fractions": [float(f"{f:.5g}") for f in fractions],
        }


class Timer:
    """Checks a job, times it with pytest-benchmark, and keeps figures about it in `extra_info`."""

    def __init__(self, benchmark: BenchmarkFixture) -> None:
        self.benchmark = benchmark
        self.enabled = benchmark.enabled  # not with --benchmark-disable: then a job is checked, and that is all

    def run(self, job: Work, mode: str, backend: str) -> Run:
        """A run that gave the right answer, and everything at rest."""
        run = MODES[mode](job, backend)
        oracle = "reference" if backend != "reference" else fr.backends.available()[0]
        work.assert_right(job, work.arrays(run()), expected(job, mode, oracle))
        if self.enabled:
            work.rest()
        return run

    def __call__(self, job: Work, mode: str, backend: str) -> Run:
        """Check and time; returns the run for further comparisons."""
        run = self.run(job, mode, backend)
        watch = Watch(job, mode)
        once = work.once(run, 0.0, 1)
        times = 1 if once > LOOP else max(1, int(LOOP / work.once(run, LOOP)))

        def loop() -> None:
            for _ in range(times):
                run()

        def look() -> None:
            if backend == "reference":
                work.rest()  # NumPy's BLAS
            watch()
            run()  # the probe has read through the caches: what the run had there has to come back

        rounds = next(n for n, most in ROUNDS.items() if once < most) if self.enabled else 1
        self.benchmark.pedantic(loop, setup=look if self.enabled else None, rounds=rounds)
        self.note(job, mode, backend, times)
        if self.enabled:
            seconds = [t / times for t in self.benchmark.stats.stats.data]
            self.note_times(job, mode, watch, seconds)
        return run

    def note(self, job: Work, mode: str, backend: str, times: int = 1) -> None:
        """What it is."""
        sizes = {name: getattr(job, name) for name in "BTIH"}
        about = {"kernel": job.kernel(mode), "cell": job.cell, "mode": mode, "dtype": job.dtype, "backend": backend}
        self.benchmark.extra_info.update(about, **sizes, runs_a_round=times)

    def note_times(self, job: Work, mode: str, watch: Watch, seconds: list[float]) -> None:
        """How fast it is."""
        middle, flops = statistics.median(seconds), job.flops(mode)
        self.benchmark.extra_info.update(
            seconds=middle, flops=flops, GFLOPS=flops / middle / 1e9, **watch.fractions(seconds)
        )

    def ratio(self, run: Run, base: Run, seconds: float = 0.02, rounds: int = 5) -> float:
        """Time of one run in units of the other: they take turns, so that both meet the same machine."""
        if not self.enabled:
            return float("nan")
        return statistics.median(work.once(run, seconds) / work.once(base, seconds) for _ in range(rounds))


@pytest.fixture
def timer(benchmark: BenchmarkFixture, request: pytest.FixtureRequest) -> Timer:
    benchmark.group = request.node.path.stem.removeprefix("test_")
    return Timer(benchmark)


# The decorator on top is the innermost loop: the backends of a case share what they are held against.
FAST = tuple(name for name in fr.backends.available() if name != "reference")
every_backend = pytest.mark.parametrize("backend", fr.backends.available())
fast_backends = pytest.mark.parametrize("backend", FAST or ("reference",))


def over(jobs: dict[str, Any]) -> Callable[[Any], Any]:
    """Parametrise a benchmark over named cases."""
    return pytest.mark.parametrize("case", jobs.values(), ids=jobs.keys())
