"""Two builds side by side in one run, in turns, so that what the machine does to one it does to the other.

    python benchmarks/paired.py BASE NEW        exit status 1 where NEW is slower

BASE and NEW are folders in which a built fusedrnn lies. Each job runs in a process of either build, in turns (base new
new base); the median ratio of the turns is one measurement. Where a process's memory happens to lie makes it faster or
slower by a few per cent for as long as it lives: so there are several such pairs of processes, and the noise is the
scatter between them. More are started until a slowdown by 20 % is either found or excluded.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from compare import Change, error, report

ROOT = Path(__file__).parents[1]
CAUGHT = math.log(1.2)
LEAST, MOST, TURNS, SECONDS = 5, 15, 6, 0.02  # pairs of processes, turns of a pair, seconds of a turn

JOBS: tuple[tuple[dict[str, Any], str], ...] = tuple(
    ({"cell": cell, "B": B, "T": T, "I": I, "H": H}, mode)
    for cell in ("rnn_tanh", "gru", "lstm")
    for mode, (B, T, I, H) in (
        ("stream", (1, 1, 128, 128)),
        ("inference", (1, 50, 128, 128)),
        ("inference", (32, 10, 256, 256)),
        ("training", (32, 10, 256, 256)),
    )
)


def load_work() -> ModuleType:
    """This checkout's work.py, whatever fusedrnn is imported: it uses public names alone."""
    spec = importlib.util.spec_from_file_location("work", ROOT / "src/fusedrnn/bench/work.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["work"] = module
    spec.loader.exec_module(module)
    return module


def serve() -> None:
    """A worker: a job and mode make a run and check it, seconds time it; one JSON value a line, either way."""
    work, run = load_work(), None
    for line in sys.stdin:
        request = json.loads(line)
        if isinstance(request, float):
            answer = work.once(run, request)
        else:
            job, mode = work.Work(**request[0]), request[1]
            run = work.MODES[mode](job)
            work.assert_right(job, work.arrays(run()), work.arrays(work.MODES[mode](job, "reference")()))
            work.rest()
            answer = work.fr.__file__
        print(json.dumps(answer), flush=True)


class Worker:
    """A process of one build."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(self.folder)},
        )

    def ask(self, request: Any) -> Any:
        """Its answer."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.folder}: the process died")
        return json.loads(answer)

    def prepare(self, job: dict[str, Any], mode: str) -> None:
        """Make and check the run."""
        if not Path(self.ask([job, mode])).is_relative_to(self.folder):
            raise SystemExit(f"{self.folder}: another fusedrnn was imported")

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def measure(base: Worker, new: Worker, job: dict[str, Any], mode: str) -> float:
    """Log of the speed of new over that of base."""
    for worker in (base, new):
        worker.prepare(job, mode)
        worker.ask(SECONDS)
    logs = []
    for turn in range(TURNS):
        order = (base, new) if turn % 2 else (new, base)
        seconds = {worker: worker.ask(SECONDS) for worker in order}
        logs.append(math.log(seconds[base] / seconds[new]))
    return statistics.median(logs)


def settled(change: Change) -> bool:
    """Whether a slowdown by 20 % has been found or excluded."""
    return change.slower or -change.change + 2 * change.noise < CAUGHT


def compare(base: Path, new: Path, jobs: Any = JOBS, most: int = MOST) -> list[Change]:
    """The change of every job."""
    values: list[list[float]] = [[] for _ in jobs]
    open_jobs = list(range(len(jobs)))
    for pair in range(most):
        workers = Worker(base), Worker(new)
        try:
            for i in open_jobs:
                values[i].append(measure(*workers, *jobs[i]))
        finally:
            for worker in workers:
                worker.close()
        if pair + 1 >= LEAST:
            open_jobs = [i for i in open_jobs if not settled(changed(jobs[i], values[i]))]
        if not open_jobs:
            break
    return [changed(job, found) for job, found in zip(jobs, values, strict=True)]


def changed(job: tuple[dict[str, Any], str], values: list[float]) -> Change:
    """What a job's measurements say together."""
    name = " ".join([job[0]["cell"], job[1], *(f"{size}{job[0][size]}" for size in "BTIH")])
    return Change(name, statistics.median(values), error(values))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(arguments)
    found = compare(options.base, options.new)
    table, slower = report(found, {})
    print(table)
    if noisy := [change.name for change in found if not settled(change)]:
        print(f"too noisy to tell: {', '.join(noisy)}")
    return int(slower)


if __name__ == "__main__":
    if sys.argv[1:] == ["--serve"]:
        serve()
    else:
        sys.exit(main(sys.argv[1:]))
