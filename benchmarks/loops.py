"""What a core gives a tile at this minute: bare AVX-512 loops, each beside a loop of multiply-adds alone.

    python benchmarks/loops.py [--rounds 41]       needs a CPU with AVX-512, and a C compiler to assemble

A tile of R rows and V vectors is R*V multiply-adds, V loads and R broadcasts a k. Where the core is our own, the two
ports of the multiply-adds are its limit. Where a neighbour's thread runs on it too, instructions and loads are
rationed, and what limits a tile is how many of them stand beside its multiply-adds: empty instructions and loads tell
how many are free. The loops take turns; a fraction is of the first one's speed in the same round, which is what
`python -m fusedrnn probe` calls the peak.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from fusedrnn.bench import text

UNROLL = 4
ROW = 2064  # bytes between two rows of a left operand: no two share a cache set
NEAR, FAR = 32, 512  # k of a panel that stays in L1, and of one that comes from L2
STEPS = 16000  # k of one turn


@dataclasses.dataclass(frozen=True)
class Loop:
    """The instructions of one k, given its number in the unrolled body; `panel` bytes of weights a k."""

    name: str
    fmas: int
    body: Callable[[int], list[str]]
    panel: int = 0
    depth: int = NEAR

    def assembly(self, label: str) -> str:
        """A function of (rounds of the body, weights, left operand, rounds until the panel begins anew)."""
        lines = [f".globl {label}", ".p2align 6", f"{label}:"]
        lines += [f"vxorps %zmm{i}, %zmm{i}, %zmm{i}" for i in range(32)]
        lines += ["mov %rsi, %r8", "mov %rdx, %r9", "mov %rcx, %r10", ".p2align 5", "1:"]
        for k in range(UNROLL):
            lines += self.body(k)
        if self.panel:
            lines += [f"add ${self.panel * UNROLL}, %rsi", f"add ${4 * UNROLL}, %rdx", "dec %r10", "jnz 2f"]
            lines += ["mov %r8, %rsi", "mov %r9, %rdx", "mov %rcx, %r10", "2:"]
        return "\n".join([*lines, "dec %rdi", "jnz 1b", "vzeroupper", "ret", ""])


def fma(to: int, a: int | str, b: int) -> str:
    return f"vfmadd231ps {a if isinstance(a, str) else f'%zmm{a}'}, %zmm{b}, %zmm{to}"


def beside(extra: list[str]) -> Callable[[int], list[str]]:
    """24 multiply-adds with other instructions spread among them."""

    def body(_: int) -> list[str]:
        lines: list[str] = []
        for i in range(24):
            lines.append(fma(i, 24 + i % 4, 28))
            lines += extra[i * len(extra) // 24 : (i + 1) * len(extra) // 24]
        return lines

    return body


def fused(n: int) -> Callable[[int], list[str]]:
    """24 multiply-adds, n of which take an operand from memory."""
    from_memory = [(i + 1) * n // 24 > i * n // 24 for i in range(24)]
    return lambda _: [fma(i, f"{64 * i}(%rsi)" if from_memory[i] else 24 + i % 4, 28) for i in range(24)]


def tile(rows: int, vectors: int, embedded: int = 0) -> Callable[[int], list[str]]:
    """One k of a tile; the last rows with their broadcasts embedded in the multiply-adds."""
    weights = range(rows * vectors, (rows + 1) * vectors)
    free = range((rows + 1) * vectors, 32)

    def body(k: int) -> list[str]:
        lines = [f"vmovups {64 * (k * vectors + v)}(%rsi), %zmm{weights[v]}" for v in range(vectors)]
        for r in range(rows):
            x, sums = f"{4 * k + r * ROW}(%rdx)", range(r * vectors, (r + 1) * vectors)
            if r < rows - embedded:
                lines.append(f"vbroadcastss {x}, %zmm{free[r % len(free)]}")
                lines += [fma(s, w, free[r % len(free)]) for s, w in zip(sums, weights, strict=True)]
            else:
                lines += [fma(s, x + "{1to16}", w) for s, w in zip(sums, weights, strict=True)]
        return lines

    return body


def loads(n: int) -> list[str]:
    return [f"vmovups {64 * i}(%rsi), %zmm{29 + i % 3}" for i in range(n)]


LOOPS = [
    Loop("multiply-adds alone", 24, beside([])),
    *(Loop(f"{n} empty instructions beside", 24, beside(["nop"] * n)) for n in (6, 11, 20)),
    *(Loop(f"{n} loads beside", 24, beside(loads(n))) for n in (10, 20)),
    *(Loop(f"{n} loads fused into them", 24, fused(n)) for n in (6, 12, 18, 24)),
    *(Loop(f"tile {r}x{v}, panel in {at}", r * v, tile(r, v), 64 * v, depth)
      for r, v in ((6, 4), (8, 3), (5, 5)) for at, depth in (("L1", NEAR), ("L2", FAR))),
    *(Loop(f"tile {r}x{v}, {e} broadcasts embedded, L1", r * v, tile(r, v, e), 64 * v)
      for r, v, e in ((6, 4, 2), (12, 2, 8), (14, 2, 14))),
]  # fmt: skip


def assemble(folder: Path) -> ctypes.CDLL:
    """All loops as a shared library."""
    source, library = folder / "loops.s", folder / "loops.so"
    assembly = [loop.assembly(f"loop_{i}") for i, loop in enumerate(LOOPS)]
    source.write_text("\n".join([*assembly, '.section .note.GNU-stack,"",@progbits', ""]), encoding="utf-8")
    subprocess.run([os.environ.get("CC", "cc"), "-shared", "-o", library, source], check=True)
    return ctypes.CDLL(str(library))


def measure(rounds: int) -> list[tuple[float, list[float]]]:
    """GFLOP/s of every loop's median, and its fractions of the first loop, round by round."""
    memory = np.ones((1 << 19) + 64, np.uint8)  # ones: pages of zeros that nobody wrote to would all be the same page
    weights = memory.ctypes.data + -memory.ctypes.data % 64
    left = weights + (1 << 18)
    with tempfile.TemporaryDirectory() as folder:
        library = assemble(Path(folder))
        functions = [library[f"loop_{i}"] for i in range(len(LOOPS))]
        for function in functions:
            function.argtypes, function.restype = [ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long], None
        speeds: list[list[float]] = [[] for _ in LOOPS]
        for _ in range(rounds):
            for loop, function, speed in zip(LOOPS, functions, speeds, strict=True):
                arguments = weights, left, loop.depth // UNROLL
                function(2 * loop.depth // UNROLL, *arguments)
                began = time.perf_counter()
                function(STEPS // UNROLL, *arguments)
                speed.append(STEPS * loop.fmas * 32 / (time.perf_counter() - began) / 1e9)
    return [(statistics.median(s), [a / b for a, b in zip(s, speeds[0], strict=True)]) for s in speeds]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    options = parser.parse_args(arguments)
    rows = [["a k", "GFLOP/s", "fraction", "best"]]
    for loop, (speed, fractions) in zip(LOOPS, measure(options.rounds), strict=True):
        rows.append([loop.name, f"{speed:.0f}", f"{statistics.median(fractions):.2f}", f"{max(fractions):.2f}"])
    print(text.table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
