"""fusedrnn beside PyTorch, ONNX Runtime, JAX, Keras, NumPy by hand and onnx's evaluator, the same work in one run.

    python benchmarks/peers.py [inference] [training] [stream] [memory] [--json FILE] [--peers torch,jax] ...

Every contender lives in a process of its own and they are asked in turn, round by round; a ratio is the median over the
rounds of the peer's time over ours, so that above 1 we are ahead. Nobody is timed whose answer differs from ours. What
is not installed, or does not offer something, is reported and left out. `memory` compares the peak memory of a training
step with PyTorch's (Linux). `--spinning 1` has a process beside them all that never rests, as servers and test machines
have. `benchmarks/report.py` turns the results into tables and pictures.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib.metadata
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import shapes

import fusedrnn as fr
from fusedrnn.bench import contenders, machine, race, text
from fusedrnn.bench.work import MODES, Work

SLOW = ("numpy", "onnx")
SLOW_FLOPS = 1e9  # the slow ones are left out of what would take them seconds


@contextlib.contextmanager
def spinning(processes: int) -> Iterator[None]:
    """That many processes that never rest."""
    loop = f"import os\nwhile os.getppid() == {os.getpid()}: pass"
    started = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def memory(job: Work, threads: int) -> dict[str, int]:
    """KiB of a training step at its peak, by contender; every figure from a fresh process."""
    taken = {}
    for contender in race.start(["fusedrnn", "torch"], threads):
        try:
            taken[contender.name] = contender.ask((job, "memory training"))
        except contenders.NotOffered as reason:
            race.report(f"memory {job}: {contenders.TITLES[contender.name]} is left out: {reason}")
        contender.close()
    return taken


def jobs(options: argparse.Namespace, mode: str) -> list[Work]:
    """What is compared in one mode."""
    points = options.points or (shapes.STREAMS if mode == "stream" else shapes.GRID)
    if mode == "stream":
        points = tuple(dict.fromkeys((B, 1, I, H) for B, _, I, H in points))
    return [Work(cell, *point, options.dtype) for cell in options.cells for point in points]


def compare(mode: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One mode's results."""
    if mode == "memory":
        return [
            {
                "mode": mode,
                "cell": job.cell,
                **{n: getattr(job, n) for n in "BTIH"},
                "KiB": memory(job, options.threads),
            }
            for job in jobs(options, mode)
        ]
    backends = [
        f"fusedrnn.{name}" for name in fr.backends.available() if name not in ("reference", fr.backends.get().name)
    ]
    started = race.start(["fusedrnn", *backends, *options.peers], options.threads)
    results = []
    for job in jobs(options, mode):
        quick = [c for c in started if c.name not in SLOW or job.flops("stream") < SLOW_FLOPS]
        result = race.race(race.ready(quick, job, mode), job, mode, options.rounds, options.seconds)
        best = result.best()
        times = ", ".join(f"{contenders.TITLES[n]} {text.duration(result.median(n))}" for n in result.seconds)
        ratio = f"; {contenders.TITLES[best]} / fusedrnn {result.ratio(best):.2f}" if best else ""
        race.report(f"{mode} {job}: {times}{ratio}")
        results.append(result.record())
    for contender in started:
        contender.close()
    return results


def versions(names: list[str]) -> dict[str, str]:
    """Of the peers."""
    found = {}
    for name in dict.fromkeys(contenders.package(name) for name in names if name != "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def point(given: str) -> shapes.Shape:
    """B,T,I,H."""
    B, T, I, H = (int(n) for n in given.split(","))
    return B, T, I, H


def names_of(given: str) -> list[str]:
    """Names, with commas between them."""
    return [name for name in given.split(",") if name]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = (*MODES, "memory")
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"{', '.join(modes)}; default: all")
    parser.add_argument("--dtype", choices=machine.DTYPES, default="float32")
    parser.add_argument("--cells", type=names_of, default=list(shapes.THREE), metavar="CELL,...")
    parser.add_argument("--peers", type=names_of, default=list(contenders.PEERS), metavar="NAME,...")
    parser.add_argument("--points", type=point, nargs="+", metavar="B,T,I,H")
    parser.add_argument("--threads", type=int, default=min(2, fr.get_num_threads()))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--spinning", type=int, default=0, metavar="N", help="processes that never rest, all the while")
    parser.add_argument("--seconds", type=float, default=0.03, help="of each contender in each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    options = parser.parse_args(arguments)
    options.modes = options.modes or list(modes)
    for what, given, known in (
        ("mode", options.modes, modes),
        ("cell", options.cells, shapes.CELLS),
        ("peer", options.peers, contenders.PEERS),
    ):
        if unknown := set(given) - set(known):
            parser.error(f"{what}: expected {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    with spinning(options.spinning):
        results = [result for mode in options.modes for result in compare(mode, options)]
    shown = [a for before, a in zip(["", *arguments], arguments, strict=False) if "--json" not in (before, a)]
    run = {
        "machine_info": machine.describe() | {"threads": options.threads},
        "versions": versions(options.peers),
        "datetime": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}",
        "command": "make bench-peers" + (f" ARGS={shlex.quote(shlex.join(shown))}" if shown else ""),
        "results": results,
    }
    for mode in options.modes:
        ours = [r["ratio"] for r in results if r["mode"] == mode and "ratio" in r]
        peers = [[v for n, v in ratio.items() if not n.startswith("fusedrnn")] for ratio in ours]
        best = [min(values) for values in peers if values]
        if best:
            print(f"{mode}: best peer / fusedrnn {statistics.geometric_mean(best):.2f}, at worst {min(best):.2f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
