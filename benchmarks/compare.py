"""What got slower from one `make bench` to another, by the fraction of the limit that binds.

    python benchmarks/compare.py BASE.json NEW.json        exit status 1 where something got slower

A fraction is a time in units of what the machine could do at that moment, so that runs of different machines can be
held together, as far as the model knows what differs. A benchmark counts as slower when the median of its fractions
fell by more than FLOOR, and by more than CERTAIN times the noise. The noise has two parts: how its rounds scatter,
within both runs, and how all the benchmarks scatter from one run to the other, since most of them did not change. A
shared machine slows down for a second now and then, in one run as in the other: what seems to have got faster tells how
far that reaches. What changed them all alike is no scatter: the median of all is held against FLOOR by itself.

Where the limit itself moved, against the other limits of its kind, by more than MOVED, the two fractions do not tell
of the same machine: while a neighbour empties the second-level cache, its bandwidth is the third level's, and a kernel
that reaches 0.4 of the one reaches all of the other. Such benchmarks are counted and not judged.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fusedrnn.bench import text

FLOOR = 0.09  # in logarithms: a slowdown by 20 % is 0.18, and lies as far above as no slowdown at all lies below
CERTAIN = 4.0  # standard errors: of a thousand benchmarks that did not change, none is named by chance

MOVED = math.log(1.5)


def spread(values: Sequence[float]) -> float:
    """A standard deviation that outliers do not move: 1.48 times the median distance from the median."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values)


def reach(values: Sequence[float]) -> float:
    """The standard deviation of a normal distribution that would scatter as far upwards: a hundredth lies beyond."""
    middle = statistics.median(values)
    above = sorted(value - middle for value in values if value > middle)
    return above[int(0.99 * len(above))] / 2.576 if above else 0.0


def scatter(values: Sequence[float]) -> float:
    """How far changes lie apart that have no reason but the machine."""
    return max(spread(values), reach(values)) if len(values) > 2 else 0.0


def error(values: Sequence[float]) -> float:
    """Standard error of the median; infinite for a single value, which tells nothing about its noise.

    1.2533 is the normal distribution's. A few values tell little about their own scatter: t instead of z, roughly.
    """
    n = len(values)
    return 1.2533 * spread(values) / math.sqrt(n) * (1 + 2 / (n - 1)) if n > 1 else math.inf


@dataclasses.dataclass(frozen=True)
class Change:
    """One benchmark's change, in logarithms: below zero it got slower."""

    name: str
    change: float
    noise: float

    @property
    def slower(self) -> bool:
        """By more than the noise explains."""
        return -self.change > max(FLOOR, CERTAIN * self.noise)

    @property
    def faster(self) -> bool:
        """The same, the other way."""
        return self.change > max(FLOOR, CERTAIN * self.noise)

    @property
    def percent(self) -> float:
        """Change of the speed."""
        return 100 * math.expm1(self.change)


def changes(base: dict[str, list[float]], new: dict[str, list[float]]) -> list[Change]:
    """Of the benchmarks in both runs, by their fractions."""
    logs = {name: ([math.log(f) for f in base[name]], [math.log(f) for f in new[name]]) for name in base if name in new}
    moved = {name: statistics.median(after) - statistics.median(before) for name, (before, after) in logs.items()}
    between = scatter(list(moved.values()))
    return [
        Change(name, moved[name], math.hypot(error(before), error(after), between))
        for name, (before, after) in logs.items()
    ]


def together(found: Sequence[Change], name: str = "all together") -> Change:
    """The median of some, with its own noise."""
    values = [change.change for change in found]
    return Change(name, statistics.median(values), error(values))


def by_kernel(found: Sequence[Change], kernels: dict[str, str]) -> list[Change]:
    """Each kernel over all its shapes: sharper than any one of them, but they ran in the same minute of the machine."""
    groups: dict[str, list[Change]] = {}
    for change in found:
        groups.setdefault(kernels.get(change.name, change.name), []).append(change)
    medians = [together(changes, f"{kernel}, {len(changes)} shapes") for kernel, changes in groups.items()]
    between = scatter([median.change for median in medians])
    return [
        dataclasses.replace(median, noise=math.hypot(median.noise, between))
        for median, changes in zip(medians, groups.values(), strict=True)
        if len(changes) > 2
    ]


def read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The run, and what every benchmark says of itself."""
    run = json.loads(path.read_text(encoding="utf-8"))
    tracked = (b for b in run["benchmarks"] if b["extra_info"].get("backend") != "reference")  # says what is right
    return run, {b["name"]: b["extra_info"] for b in tracked if "fractions" in b["extra_info"]}


def disturbed(base: dict[str, dict[str, Any]], new: dict[str, dict[str, Any]]) -> set[str]:
    """Benchmarks whose limit moved by more than the median of those that the same limit binds."""
    moved: dict[tuple[str, str], dict[str, float]] = {}
    for name in (n for n in base.keys() & new.keys() if "bound" in base[n] and "bound" in new[n]):
        kind = base[name]["limit"], new[name]["limit"]
        moved.setdefault(kind, {})[name] = math.log(new[name]["bound"] / base[name]["bound"])
    return {
        name
        for group in moved.values()
        for name, by in group.items()
        if abs(by - statistics.median(group.values())) > MOVED
    }


def about(run: dict[str, Any]) -> str:
    """Where and what."""
    machine, commit = run["machine_info"], run.get("commit_info", {})
    changed = " and changes" if commit.get("dirty") else ""
    return (
        f"{commit.get('id', '?')[:10]}{changed}, {run.get('datetime', '?')[:16]}, {machine['cpu']}, "
        f"{machine['threads']} threads, {machine['isa']}, {machine['compiler']}"
    )


def report(found: Sequence[Change], kernels: dict[str, str]) -> tuple[str, bool]:
    """A table of what changed, and whether anything got slower."""
    everything = together(found)
    named = sorted((c for c in (*found, *by_kernel(found, kernels)) if c.slower or c.faster), key=lambda c: c.change)
    rows = [["benchmark", "speed", "noise", ""]]
    for c in (*named, everything):
        verdict = "SLOWER" if c.slower else "faster" if c.faster else ""
        rows.append([c.name, f"{c.percent:+.1f} %", f"±{100 * c.noise:.1f} %", verdict])
    summary = f"{len(found)} benchmarks: {sum(c.slower for c in found)} slower, {sum(c.faster for c in found)} faster."
    return f"{text.table(rows)}\n\n{summary}", any(c.slower for c in (*named, everything))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("new", type=Path)
    options = parser.parse_args(arguments)
    for path in (options.base, options.new):
        if not path.is_file():
            parser.error(f"{path}: expected a file of make bench, found none")
    (before, base), (after, new) = read(options.base), read(options.new)
    unlike = disturbed(base, new)
    fractions = [{n: info["fractions"] for n, info in run.items() if n not in unlike} for run in (base, new)]
    if not (found := changes(*fractions)):
        raise SystemExit("the two runs have no benchmark in common")
    print(f"base: {about(before)}\nnew:  {about(after)}\n")
    for name, missing in (("base", set(new) - set(base)), ("new", set(base) - set(new))):
        if missing:
            print(f"{len(missing)} benchmarks are not in {name}")
    if unlike:
        print(f"{len(unlike)} benchmarks are not judged: their limit moved by more than {math.exp(MOVED):.1f}")
    table, slower = report(found, {name: f"{info['kernel']} {info['backend']}" for name, info in new.items()})
    print(table)
    return int(slower)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
