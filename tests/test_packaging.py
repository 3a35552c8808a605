"""What an installation brings and needs, that the README's code runs, and (slow) what sdist and wheel hold.

The distributions are built as a release is: the sdist from this tree, the wheel from the sdist.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import types
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

import fusedrnn as fr

ROOT = Path(__file__).parents[1]
SOURCES = {".c", ".h", ".pyx", ".pxd", ".pxi"}
COMPILED = {".so", ".dylib"}


def python(*arguments: str, executable: Path | str = sys.executable, **options) -> None:
    """Run Python without what this process's environment says about fusedrnn; its output shows when a test fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FUSEDRNN_", "PYTHON"))}
    environment |= options.pop("env", {})
    subprocess.run([str(executable), *arguments], check=True, env=environment, **options)


def test_one_version():
    """The package, its metadata and the changelog name the same version."""
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert fr.__version__ == importlib.metadata.version("fusedrnn") == newest[1]


def test_numpy_is_the_only_requirement():
    requirements = [r for r in importlib.metadata.requires("fusedrnn") if "extra ==" not in r]
    assert [re.match(r"[\w-]+", r)[0] for r in requirements] == ["numpy"]


def test_import_loads_numpy_alone():
    """No optional backend, no oracle: what is neither NumPy nor the standard library is not imported."""
    python(
        "-c",
        "import sys, numpy; before = set(sys.modules)\n"
        "import fusedrnn\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before if 'cython' not in name}\n"
        "foreign = new - {'fusedrnn', 'numpy'} - sys.stdlib_module_names\n"
        "assert not foreign, foreign",
    )


def test_it_is_typed():
    package = Path(fr.__file__).parent
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()


class StandIn:
    """What the README asks of torch, where torch is not installed."""

    class Tensor:
        def __init__(self, values):
            self.numpy = lambda: values

    class LSTM:
        def __init__(self, input_size, hidden_size):
            rng, rows = np.random.default_rng(1), 4 * hidden_size
            shapes = {
                "weight_ih_l0": (rows, input_size),
                "weight_hh_l0": (rows, hidden_size),
                "bias_ih_l0": (rows,),
                "bias_hh_l0": (rows,),
            }
            bound = hidden_size**-0.5
            self.state_dict = {
                name: StandIn.Tensor(rng.uniform(-bound, bound, shape).astype(np.float32))
                for name, shape in shapes.items()
            }.copy


def test_readme_quick_start(monkeypatch):
    """The block runs as it stands, says what the reference says, and its training step makes the error smaller."""
    if importlib.util.find_spec("torch") is None:
        torch = types.ModuleType("torch")
        torch.nn = types.SimpleNamespace(LSTM=StandIn.LSTM)
        monkeypatch.setitem(sys.modules, "torch", torch)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.M)
    assert len(blocks) == 1
    names: dict = {}
    exec(compile(blocks[0], "README.md", "exec"), names)

    weights = [value.numpy() for value in names["net"].state_dict().values()]
    y, *_ = fr.lstm_forward(names["x"], *weights, backend="reference")
    np.testing.assert_allclose(names["y"], y, rtol=0, atol=1e-6)  # |y| < 1: some ulp of float32
    after, _ = names["lstm"](names["x"])
    assert np.square(after).sum() < np.square(y).sum()


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> tuple[Path, Path]:
    """The sdist of this tree and the wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--outdir", str(folder), str(ROOT))
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


def wheel_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.slow
def test_sdist_holds_all_sources_and_nothing_made(distributions):
    with tarfile.open(distributions[0]) as archive:
        members = {Path(*Path(m.name).parts[1:]) for m in archive.getmembers() if m.isfile()}
    made = {"__pycache__", "_build", ".pytest_cache", "fusedrnn.egg-info"}
    tree = {
        path.relative_to(ROOT)
        for folder in ("kernels", "src", "tests", "examples", "docs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in COMPILED and not made & set(path.parts)
    }
    assert tree - {Path("kernels/_core.c")} <= members
    assert {Path(name) for name in ("LICENSE", "Makefile", "README.md", "pyproject.toml", "setup.py")} <= members
    assert not [m for m in members if m.suffix in COMPILED | {".pyc"} or m.name == "_core.c"]


@pytest.mark.slow
def test_wheel_holds_the_package_and_no_sources(distributions):
    files = wheel_files(distributions[1])
    assert not [name for name in files if Path(name).suffix in SOURCES]
    assert {Path(name).parts[0] for name in files} == {"fusedrnn", f"fusedrnn-{fr.__version__}.dist-info"}
    assert {"fusedrnn/py.typed", "fusedrnn/_core.pyi"} <= files.keys()
    assert [name for name in files if name.endswith(".dist-info/licenses/LICENSE")]
    (core,) = (data for name, data in files.items() if Path(name).suffix in COMPILED)
    assert b"libpython" not in core  # a static Python has none


@pytest.mark.slow
def test_wheel_runs_in_an_empty_environment(distributions, tmp_path):
    """Installed with what it asks for and nothing else, away from this tree: a forward and a backward pass."""
    venv.create(tmp_path / "venv", with_pip=True)
    inside = tmp_path / "venv/bin/python"
    python("-m", "pip", "install", "--quiet", str(distributions[1]), executable=inside)
    script = (
        "import numpy as np, fusedrnn as fr\n"
        "x, w_ih, w_hh = np.ones((5, 2, 3), 'f'), np.ones((16, 3), 'f'), np.ones((16, 4), 'f')\n"
        "y, h_n, c_n, tape = fr.lstm_forward(x, w_ih, w_hh, training=True, backend='cython')\n"
        "assert fr.lstm_backward(tape, y).x.shape == x.shape\n"
    )
    python("-I", "-c", script, executable=inside, cwd=tmp_path)
    python("-I", "-m", "fusedrnn", executable=inside, cwd=tmp_path)


@pytest.mark.slow
def test_pure_python_wheel(distributions, tmp_path):
    """FUSEDRNN_NO_EXTENSION=1 builds the same package without the compiled module, for every platform."""
    subprocess.run(["tar", "-xf", distributions[0], "-C", tmp_path], check=True)
    (tree,) = tmp_path.iterdir()
    python("-m", "build", "--wheel", str(tree), env={"FUSEDRNN_NO_EXTENSION": "1"})
    (wheel,) = (tree / "dist").glob("*-py3-none-any.whl")
    names = wheel_files(wheel).keys()
    full = wheel_files(distributions[1]).keys()
    assert {name for name in full if name.startswith("fusedrnn/") and Path(name).suffix not in COMPILED} == {
        name for name in names if name.startswith("fusedrnn/")
    }


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", "[numba]"])
def test_sdist_without_a_compiler(distributions, extra, tmp_path):
    """FUSEDRNN_NO_EXTENSION=1, an empty environment: the default is Numba where it is installed, else the reference."""
    venv.create(tmp_path / "venv", with_pip=True)
    inside = tmp_path / "venv/bin/python"
    environment = {"FUSEDRNN_NO_EXTENSION": "1"}
    python("-m", "pip", "install", "--quiet", f"{distributions[0]}{extra}", executable=inside, env=environment)
    want = "numba" if extra else "reference"
    script = (
        "import fusedrnn as fr, numpy as np\n"
        f"assert fr.backends.get().name == {want!r} == fr.show_config('dicts')['backends']['in use']\n"
        "y, _ = fr.GRU(3, 5, rng=0)(np.ones((4, 2, 3), np.float32))\n"
        "assert y.shape == (4, 2, 5)\n"
    )
    python("-I", "-c", script, executable=inside, cwd=tmp_path)
