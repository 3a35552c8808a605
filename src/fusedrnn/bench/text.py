"""Tables, numbers and progress in plain text. No colours and no terminal library: it looks the same in a file."""

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def number(value: float) -> str:
    """Three digits; a dash for NaN."""
    if not math.isfinite(value):
        return "–"
    rounded = abs(float(f"{value:.2e}"))
    digits = 2 - math.floor(math.log10(rounded)) if rounded else 2
    return f"{value:.{max(0, digits)}f}"


def size(count: float) -> str:
    """Bytes, in the largest unit that fits."""
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= factor:
            return f"{number(count / factor)} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds, in a unit that needs three digits."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= factor:
            return f"{number(seconds / factor)} {unit}"
    return f"{number(seconds / 1e-9)} ns"


def bar(fraction: float, width: int = 10) -> str:
    """A bar of blocks."""
    full = round(min(1.0, max(0.0, fraction)) * width) if math.isfinite(fraction) else 0
    return "█" * full + "·" * (width - full)


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns under a rule; the first row is the head, the first column is set to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(cell.rjust(w) if i else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in (lines[0], "  ".join("─" * w for w in widths), *lines[1:]))


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def progress(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Hand the items on; on a terminal, a bar that wipes itself away shows how many are done."""
    shown = sys.stderr.isatty()
    for done, item in enumerate(items):
        if shown:
            print(f"\r{label} {bar(done / total, 30)} {done}/{total}", end="", file=sys.stderr, flush=True)
        yield item
    if shown:
        print("\r\033[K", end="", file=sys.stderr, flush=True)
