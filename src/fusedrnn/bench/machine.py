"""What this machine can do: multiply-adds, reading, meeting at a barrier, by dtype, instruction set and threads.

It measures by `fusedrnn._core` and describes; it decides nothing. Other processes only ever make a figure worse, so
every one is the best of some short parts; it is NaN where they leave the threads no CPU at all.
"""

import dataclasses
import functools
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn import backends
from fusedrnn.bench import text

DTYPES = ("float32", "float64")
LEVELS = ("L1", "L2", "L3", "memory")
TRIALS = 20  # the team keeps away for up to 16 ms from CPUs that somebody else took
PAUSE = 0.02
DISTURBED = 3.0  # a machine's speed wanders by a factor of two; what lies further off was measured beside somebody else
best: dict[tuple[Any, ...], float] = {}
"""The best rate of each probe in this process."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one dtype, instruction set and number of threads; what `roofline` is computed from."""

    dtype: str
    isa: str
    threads: int
    flops: float  # operations a second of all threads, a multiply-add being two
    bandwidth: dict[str, float]  # bytes a second of all threads, each reading its own, by level
    caches: dict[str, float]  # bytes of a level that one thread can count on; memory is infinite
    barrier: float  # seconds until all threads have met
    latency: float  # seconds from a multiply-add to the next one of its chain


NOT_PROBED = "the limits are probed by fusedrnn._core, which is not built here"


def core() -> Any:
    """The compiled module; the limits are those of its instruction sets."""
    module = backends.compiled()
    if module is None:
        raise ModuleNotFoundError(NOT_PROBED)
    return module


def is_probed() -> bool:
    """Whether there is a compiled module to probe with."""
    return backends.compiled() is not None


@functools.cache
def caches() -> dict[str, int]:
    """Bytes of a CPU's L1, L2 and L3 (0: it has none); guesses where the system does not say."""
    sizes = {"L1": 32 << 10, "L2": 1 << 20, "L3": 8 << 20}
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    if folder.is_dir():
        found = dict.fromkeys(sizes, 0)
        for index in folder.glob("index*"):
            level, kind, size = (
                (index / name).read_text(encoding="ascii").strip() for name in ("level", "type", "size")
            )
            if kind != "Instruction" and f"L{level}" in found:
                found[f"L{level}"] = int(size.removesuffix("K")) << 10
        return found if found["L1"] else sizes
    if sys.platform == "darwin":
        for level, key in (("L1", "hw.l1dcachesize"), ("L2", "hw.l2cachesize"), ("L3", "hw.l3cachesize")):
            answer = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, check=False).stdout
            sizes[level] = int(answer) if answer.strip().isdigit() else 0
    return sizes


def share(level: str, threads: int) -> float:
    """Bytes of a level that each of so many threads can count on: the last one is shared."""
    if level == "memory":
        return math.inf
    return caches()[level] / (threads if level == "L3" else 1)


def at_level(level: str, threads: int) -> int:
    """Bytes for each of so many threads to read, so that they lie in this level and in no lower one."""
    if level == "memory":
        return max(64 << 20, 2 * max(caches().values()) // threads)
    below = {"L1": 0, "L2": caches()["L1"], "L3": caches()["L2"]}[level]
    return int(max(share(level, threads) / 2, 2 * below))


def patiently(what: tuple[Any, ...], measure: Callable[[], float]) -> float:
    """A rate, probed once the threads are free and again where it is DISTURBED times below the best; NaN in vain."""
    key, rate = (core().isa(), *what), math.nan
    for _ in range(TRIALS):
        try:
            rate = measure()
        except RuntimeError:
            time.sleep(PAUSE)
            continue
        best[key] = max(rate, best.get(key, 0.0))
        if rate * DISTURBED >= best[key]:
            return rate
    return rate


def flops(dtype: str, threads: int, seconds: float = 0.02) -> float:
    """Operations a second."""
    return patiently(("flops", dtype, threads), lambda: float(core().peak(dtype, threads, seconds)))


def bandwidth(level: str, threads: int, seconds: float = 0.02) -> float:
    """Bytes a second; NaN where there is no such level."""
    if level != "memory" and not caches()[level]:
        return math.nan
    size = at_level(level, threads)
    return patiently(("read", level, threads), lambda: float(core().bandwidth(size, threads, seconds)))


def barrier(threads: int, seconds: float = 0.02) -> float:
    """Seconds; none for one thread."""
    if threads == 1:
        return 0.0
    return 1 / patiently(("barrier", threads), lambda: 1 / float(core().barrier_cost(threads, seconds)))


def latency(dtype: str, seconds: float = 0.01) -> float:
    """Seconds."""
    return 1 / patiently(("latency", dtype), lambda: 1 / max(1e-12, float(core().latency(dtype, seconds))))


def probe(dtype: str = "float32", threads: int | None = None, seconds: float = 0.02) -> Limits:
    """All limits, for the instruction set in force."""
    threads = threads or fr.get_num_threads()
    return Limits(
        dtype=dtype,
        isa=core().isa(),
        threads=threads,
        flops=flops(dtype, threads, seconds),
        bandwidth={level: bandwidth(level, threads, seconds) for level in LEVELS},
        caches={level: share(level, threads) for level in LEVELS},
        barrier=barrier(threads, seconds),
        latency=latency(dtype, seconds / 2),
    )


def refresh(limits: Limits, binding: str, seconds: float = 0.002) -> Limits:
    """The same limits, probed again in some 10 `seconds`; L3 and memory, which take longer, only where they bind."""
    n = limits.threads
    again = [level for level in LEVELS if level in ("L1", "L2") or binding.endswith(level)]
    return dataclasses.replace(
        limits,
        flops=flops(limits.dtype, n, seconds),
        bandwidth=limits.bandwidth | {level: bandwidth(level, n, seconds) for level in again},
        barrier=barrier(n, seconds),
        latency=latency(limits.dtype, seconds / 2),
    )


def at_best(limits: Limits) -> Limits:
    """The same limits, the rates the best that any probe of this process found: a single one may have met a bad moment.

    Not so the times: a short one is found as a difference, and its least is noise.
    """

    def rate(before: float, *what: Any) -> float:
        return max(before, best.get((limits.isa, *what), before))

    n = limits.threads
    return dataclasses.replace(
        limits,
        flops=rate(limits.flops, "flops", limits.dtype, n),
        bandwidth={level: rate(before, "read", level, n) for level, before in limits.bandwidth.items()},
    )


def scaled(limits: Limits, threads: int) -> Limits:
    """A prediction for more threads: a core brings its own multiply-adds, L1 and L2, and one more line to a barrier.

    L3 and memory stay as they are, which is the worst case.
    """
    factor = threads / limits.threads
    own = {level: rate * (factor if level in ("L1", "L2") else 1) for level, rate in limits.bandwidth.items()}
    barrier = limits.barrier * (threads - 1) / (limits.threads - 1) if limits.threads > 1 else 0.0
    return dataclasses.replace(limits, threads=threads, flops=limits.flops * factor, bandwidth=own, barrier=barrier)


def cpu() -> str:
    """The CPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def describe() -> dict[str, Any]:
    """The machine and the build: what a result is worth nothing without."""
    module = backends.compiled()
    return {
        "cpu": cpu(),
        "cpus": fr.threads.available_cpus(),
        "caches": caches(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "fusedrnn": fr.__version__,
        "backend": backends.get().name,
        "backends": list(backends.available()),
        "compiler": module.compiler() if module else "none",
        "isa": module.isa() if module else "none",
        "threads": fr.get_num_threads(),
    }


def thread_counts() -> list[int]:
    """1, 2, 4, ... and all CPUs."""
    most = fr.threads.available_cpus()
    return sorted({2**k for k in range(most.bit_length()) if 2**k <= most} | {most})


def tables() -> Iterator[tuple[str, list[list[str]]]]:
    """The probe's tables, a title and rows each, the head first."""
    module = core()
    before = module.isa()
    counts = thread_counts()
    head = [f"{n} thread{'s' * (n > 1)}" for n in counts]
    rows = [["instruction set", "dtype", *head, "chain, ns"]]
    try:
        for isa in module.available_isas():
            module.set_isa(isa)
            for dtype in DTYPES:
                values = [text.number(flops(dtype, n) / 1e9) for n in counts]
                rows.append([isa, dtype, *values, text.number(latency(dtype) * 1e9)])
    finally:
        module.set_isa(before)
    yield "multiply-adds in registers, GFLOP/s; a chain's wait from one to the next", rows
    rows = [["read from", "bytes a thread", *head]]
    for level in LEVELS:
        if level == "memory" or caches()[level]:
            values = [text.number(bandwidth(level, n) / 1e9) for n in counts]
            rows.append([level, text.size(at_level(level, counts[-1])), *values])
    yield "reading, GB/s", rows
    yield "a barrier, ns", [["", *head], ["all have met", *(text.number(barrier(n) * 1e9) for n in counts)]]


def main() -> None:
    """Print the machine and its limits: `python -m fusedrnn probe`."""
    for name, value in describe().items():
        entries = ", ".join(f"{k} {text.size(v)}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name:9} {', '.join(entries) if isinstance(entries, list) else entries}")
    if not is_probed():
        raise SystemExit(NOT_PROBED)
    for title, rows in tables():
        print(f"\n{title}\n\n{text.table(rows)}", flush=True)
    if (os.getloadavg()[0] if hasattr(os, "getloadavg") else 0) > 0.5:
        print("\nOther processes were running: the machine can do at least this.")
