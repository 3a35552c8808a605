"""Contenders side by side: a process each, because idle threads of one would spin in the way of the next, and turns.

Nobody is timed whose answer differs from ours. What is missing or refused is reported and left out.
"""

import dataclasses
import importlib
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fusedrnn.bench import contenders, machine, roofline, work
from fusedrnn.bench.contenders import CONTENDERS, TITLES, NotOffered
from fusedrnn.bench.work import Run, Work

CONFINED = ("jax", "keras", "numpy", "onnx")  # take a thread for each CPU that they may run on; the others are told


def report(message: str) -> None:
    """To the standard error."""
    print(message, file=sys.stderr, flush=True)


def resident(field: str) -> int:
    """KiB, from /proc: VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_memory(run: Run) -> int:
    """KiB that one run takes at its peak over what was there before."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again from VmRSS
    base = resident("VmRSS")
    answer = run()
    peak = resident("VmHWM")
    del answer  # gradients are part of the step
    return peak - base


def serve(name: str, threads: int, pipe: Any) -> None:
    """Answer the parent until it sends None.

    (job, mode) makes a run and returns its first result; seconds time the run; "limits" probes the machine for its job.
    (job, "memory inference") and (job, "memory training") return KiB.
    """
    try:
        if name in CONFINED and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        importlib.import_module(contenders.package(name))
        pipe.send(None)
    except ImportError as error:
        pipe.send(str(error))
        return
    run: Run | None = None
    limits: machine.Limits | None = None
    bound = roofline.Bound(0.0, "")
    job, mode = Work("lstm", 1, 1, 1, 1), "inference"
    while (request := pipe.recv()) is not None:
        try:
            if isinstance(request, float):
                assert run is not None
                seconds = work.once(run, request)
                work.rest()  # before the next one's turn
                pipe.send(seconds)
            elif request == "limits":
                limits = machine.refresh(limits, bound.limit) if limits else machine.probe(job.dtype, threads)
                bound = roofline.bound(job, mode, limits)
                pipe.send(bound)
            else:
                run = limits = None  # the memory of the last one goes first
                job, mode = request
                memory, _, kind = mode.rpartition(" ")
                if memory:
                    small = dataclasses.replace(job, B=2, T=2, I=8, H=8, lengths=None)
                    CONTENDERS[name](small, kind, threads)()  # threads and code are there before it counts
                    pipe.send(peak_memory(CONTENDERS[name](job, kind, threads)))
                else:
                    run = CONTENDERS[name](job, mode, threads)
                    answer = work.arrays(run())
                    run()
                    work.rest()
                    pipe.send(answer)
        except Exception as error:  # reported by the parent; the next job may work
            reason = str(error) if isinstance(error, NotOffered) else f"{type(error).__name__}: {error}"
            pipe.send(NotOffered(reason.partition("\n")[0][:200]))


class Contender:
    """The parent's end of one contender's process."""

    def __init__(self, name: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, threads, theirs), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self.missing = self.pipe.recv()
        except EOFError:
            self.missing = "its process died"

    def ask(self, request: Any) -> Any:
        """The answer; NotOffered is raised, also for a process that died."""
        try:
            self.pipe.send(request)
            answer = self.pipe.recv()
        except (EOFError, BrokenPipeError):
            answer = NotOffered("its process died")
        if isinstance(answer, NotOffered):
            raise answer
        return answer

    def close(self) -> None:
        """End its process."""
        if self.process.is_alive():
            self.pipe.send(None)
        self.process.join()


def start(names: Sequence[str], threads: int, tell: Callable[[str], None] = report) -> list[Contender]:
    """Those that are there; the first must be."""
    started = [Contender(name, threads) for name in names]
    for contender in started:
        if contender.missing:
            tell(f"{TITLES[contender.name]} is left out: {contender.missing}")
            contender.process.join()
    if started[0].missing:
        raise SystemExit("nothing to compare with")
    return [contender for contender in started if not contender.missing]


def ready(started: list[Contender], job: Work, mode: str, tell: Callable[[str], None] = report) -> list[Contender]:
    """Those that do this job, once all agree with the first, which is us."""
    agreed, ours = [], None
    for contender in started:
        try:
            answer = contender.ask((job, mode))
        except NotOffered as reason:
            if contender is started[0]:
                raise SystemExit(f"{mode} {job}: {reason}") from None
            tell(f"{mode} {job}: {TITLES[contender.name]} is left out: {reason}")
            continue
        ours = ours or answer
        if (off := work.difference(answer, ours)) > job.tolerance:
            raise SystemExit(f"{mode} {job}: {TITLES[contender.name]} and fusedrnn differ by {off:.3g}")
        agreed.append(contender)
    work.rest()  # from the comparison
    return agreed


@dataclasses.dataclass(frozen=True)
class Result:
    """One job: everybody's seconds, round by round, and the roofline's, probed before each turn of the first."""

    job: Work
    mode: str
    seconds: dict[str, list[float]]
    bounds: list[float]
    limit: str

    def median(self, name: str) -> float:
        """Seconds of one contender."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str) -> float:
        """A contender's time over ours, the median over the rounds."""
        ours = self.seconds[next(iter(self.seconds))]
        return statistics.median(t / own for t, own in zip(self.seconds[name], ours, strict=True))

    def best(self) -> str | None:
        """The fastest peer."""
        peers = [name for name in self.seconds if not name.startswith("fusedrnn")]
        return min(peers, key=self.ratio) if peers else None

    def fraction(self, name: str) -> float:
        """Of the limit, the median over the rounds; NaN where nothing could be probed."""
        found = [b / t for b, t in zip(self.bounds, self.seconds[name], strict=bool(self.bounds)) if b == b]
        return statistics.median(found) if found else float("nan")

    def record(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            **dataclasses.asdict(self.job),
            "mode": self.mode,
            "flops": self.job.flops(self.mode),
            "limit": self.limit,
            "seconds": {name: self.median(name) for name in self.seconds},
            "fraction": {name: self.fraction(name) for name in self.seconds},
            "ratio": {name: self.ratio(name) for name in self.seconds},
        }


def race(
    agreed: list[Contender],
    job: Work,
    mode: str,
    rounds: int,
    seconds: float,
    tell: Callable[[str], None] = report,
) -> Result:
    """Time them; every round begins with another one, and the machine is probed in the process of the first.

    One whose process dies meanwhile is left out.
    """
    times: dict[str, list[float]] = {contender.name: [] for contender in agreed}
    bounds, limits = [], []
    for r in range(rounds):
        shift = r % len(agreed)
        for contender in agreed[shift:] + agreed[:shift]:
            if contender.name not in times:
                continue
            try:
                if contender is agreed[0] and machine.is_probed():
                    bound = contender.ask("limits")
                    bounds.append(bound.seconds)
                    limits.append(bound.limit)
                times[contender.name].append(contender.ask(seconds))
            except NotOffered as reason:
                if contender is agreed[0]:
                    raise SystemExit(f"{mode} {job}: {reason}") from None
                tell(f"{mode} {job}: {TITLES[contender.name]} is left out: {reason}")
                del times[contender.name]
    return Result(job, mode, times, bounds, statistics.mode(limits) if limits else "")
