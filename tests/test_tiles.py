"""The C kernels without Python: tiles_check.c, compiled here and run on every instruction set of this CPU.

What it compares, and with what, stands at its head; `make neon` runs the same program under an emulator.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = (
    ROOT / "tests" / "tiles_check.c",
    ROOT / "kernels" / "cpu.c",
    *sorted((ROOT / "kernels" / "isa").glob("*.c")),
)
# The largest tile of each width, one over several panels, and one row's panels side by side: so many accumulators
TILES = {
    "avx512": {"6x4": 24, "8x3": 24, "8x2": 16, "8x1": 8, "1x4_two": 8, "1x3_two": 6, "1x2_four": 8},
    "avx2": {"3x4": 12, "4x3": 12, "4x3_from_3": 12, "6x2": 12, "8x1": 8, "1x4_two": 8, "1x3_two": 6, "1x2_four": 8},
}
# -O1: a few seconds less than what setup.py sets; `make tiles` runs what it sets.
FLAGS = ("-O1", "-std=gnu11", "-ffp-contract=off", "-I", str(ROOT / "kernels"))


def test_tiles(tmp_path: Path):
    """Every table passes, and those that ran are the ones that the compiled module would offer."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if not shutil.which(compiler[0]):
        pytest.skip(f"no C compiler: {compiler[0]} is not on the PATH")

    def compile_one(source: Path) -> str:
        result = tmp_path / f"{source.stem}.o"
        subprocess.run([*compiler, *FLAGS, "-c", str(source), "-o", str(result)], check=True)
        return str(result)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, SOURCES))
    program = tmp_path / "tiles_check"
    subprocess.run([*compiler, *objects, "-lm", "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ran = done.stdout.partition(":")[2].partition(" pass")[0].split()
    assert ran[-1] == "baseline"
    if importlib.util.find_spec("fusedrnn._core"):
        assert tuple(ran) == importlib.import_module("fusedrnn._core").available_isas()


def compilers() -> list[str]:
    """gcc, clang, and their versions on the PATH, each once; no clang before 14: it leaves one row's sums in memory."""
    found = {}
    for folder in map(Path, os.get_exec_path()):
        for path in sorted(folder.glob("gcc*")) + sorted(folder.glob("clang*")):
            if re.fullmatch(r"gcc(-\d+)?|clang(-1[4-9]|-[2-9]\d)?", path.name):
                found.setdefault(path.resolve(), path.name)
    return sorted(found.values())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="what it reads is x86-64's")
@pytest.mark.parametrize("isa", ["avx512", "avx2"])
@pytest.mark.parametrize("compiler", compilers())
def test_accumulators_live_in_registers(compiler: str, isa: str, tmp_path: Path):
    """A tile's loop is as many multiply-adds as it has accumulators, or a multiple of that, and no vector goes to the
    stack. Else its results are right, at a fifth of the speed (by clang 14, where a loop over accumulators was left) or
    half of it (by clang 18 to 22, where a tile fills all registers; by clang 14, where it has one row)."""
    assembly = tmp_path / f"{isa}.s"
    source = ROOT / "kernels" / "isa" / f"{isa}.c"
    subprocess.run([compiler, *FLAGS, "-O3", "-S", str(source), "-o", str(assembly)], check=True)
    functions = re.split(r"^_?(\w+):", assembly.read_text(), flags=re.MULTILINE)  # macOS puts an underscore before
    body = dict(zip(functions[1::2], functions[2::2], strict=True))
    for tile, kind, dtype in itertools.product(TILES[isa], ("", "_fetch", "_segments"), ("f32", "f64")):
        name = f"tile_{tile}{kind}_{dtype}"
        if name not in body:  # two panels of one row are of one kind
            continue
        code = re.sub(r"\s*#.*", "", body[name].partition(".cfi_endproc")[0])
        fused = len(re.findall(r"\bvfmadd", code))
        assert fused, name
        assert fused % TILES[isa][tile] == 0, name
        assert not re.findall(r"\bv(?:mov[au]p[sd]|fmadd\w+)\s.*\(%rsp.*", code), name
    assert {f"tile_{tile}_f32" for tile in TILES[isa]} <= body.keys()
