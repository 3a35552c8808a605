"""The C kernels without Python: tiles_check.c, compiled here and run on every instruction set of this CPU.

What it compares, and with what, stands at its head; `make neon` runs the same program under an emulator.
"""

from __future__ import annotations

import importlib
import importlib.util
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


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="what it reads is x86-64's")
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_accumulators_live_in_registers(compiler: str, tmp_path: Path):
    """A tile's loop is as many multiply-adds as it has accumulators, or a multiple of that: a compiler that leaves a
    loop over them, as clang 14 did, keeps them in memory, at a fifth of the speed and with the right results."""
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} on the PATH")
    assembly = tmp_path / "avx512.s"
    source = ROOT / "kernels" / "isa" / "avx512.c"
    subprocess.run([compiler, *FLAGS, "-O3", "-S", str(source), "-o", str(assembly)], check=True)
    functions = re.split(r"^_?(\w+):", assembly.read_text(), flags=re.MULTILINE)  # macOS puts an underscore before
    body = dict(zip(functions[1::2], functions[2::2], strict=True))
    for name in ("tile_6x4_f32", "tile_6x4_segments_f64", "tile_8x3_fetch_f32"):
        fused = len(re.findall(r"^\s*vfmadd\w+\s", body[name], flags=re.MULTILINE))
        assert fused, name
        assert fused % 24 == 0, name
