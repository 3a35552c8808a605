"""Every backend against the golden files: outputs and gradients that PyTorch and ONNX computed (golden/make_golden.py).

They are here where no other library is, so that one opinion not our own always counts.
"""

from pathlib import Path

import numpy as np
import pytest
from cases import CELLS, DTYPES, PARAMETERS, Problem, assert_close, run

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.npz"))


def load(path, dtype):
    """The problem of a golden file in this dtype, and its results under the names of `run`."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    cell = path.stem.split("-")[0]
    directions = tuple(
        (
            tuple(arrays[f"{d}.{name}"] for name in PARAMETERS),
            arrays[f"{d}.h0"],
            arrays.get(f"{d}.c0"),
            bool(reverse),
        )
        for d, reverse in enumerate(arrays["reverse"])
    )
    lengths = arrays.get("lengths")
    p = Problem(cell, arrays["x"], directions, lengths, arrays["dy"], arrays["dh_n"], arrays.get("dc_n")).astype(dtype)
    want = {name: arrays.get(f"out.{name}") for name in ("y", "h_n", "c_n")} | {"x": arrays["grad.x"]}
    names = (*PARAMETERS, "h0", "c0")
    want |= {f"{d}.{name}": arrays.get(f"grad.{d}.{name}") for d in range(len(directions)) for name in names}
    return p, want


def test_all_cells_have_files():
    assert {path.stem.split("-")[0] for path in FILES} == set(CELLS)
    assert len(FILES) == 3 * len(CELLS)
    assert sum(path.stat().st_size for path in FILES) < 300_000


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden(path, dtype, target):
    p, want = load(path, dtype)
    assert_close(run(target.module, p), want, p)
