"""show_config, ``python -m fusedrnn``, the version, and the number of threads."""

import importlib.metadata
import os
import subprocess
import sys

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn import __main__ as command
from fusedrnn.bench import machine, quick

WITHOUT = "import sys; sys.modules['fusedrnn._core'] = sys.modules['numba'] = None; import fusedrnn as fr; "


def python(*arguments, **environment):
    env = {name: value for name, value in os.environ.items() if not name.startswith("FUSEDRNN_")}
    return subprocess.run([sys.executable, *arguments], env=env | environment, capture_output=True, text=True)


def test_config_as_dicts():
    config = fr.show_config("dicts")
    assert config["versions"]["fusedrnn"] == fr.__version__
    assert config["versions"]["numpy"] == np.__version__
    assert config["backends"]["in use"] == fr.backends.get().name
    for name in fr.backends.NAMES:
        assert config["backends"][name] == (fr.backends.missing(name) or "available")
    assert config["threads"]["in use"] == fr.get_num_threads()
    assert set(config["environment"]) == {"FUSEDRNN_BACKEND", "FUSEDRNN_ISA", "FUSEDRNN_NUM_THREADS"}
    if "numba" in fr.backends.available():
        assert config["backends"]["numba version"] == importlib.metadata.version("numba")


def test_config_of_the_compiled_module(core):
    found = fr.show_config("dicts")["backends"]
    assert found["instruction set"] == core.isa()
    assert found["instruction sets"] == core.available_isas()
    assert found["compiler"] == core.compiler()


def test_config_is_printed(capsys):
    assert fr.show_config() is None
    printed = capsys.readouterr().out
    for title, entries in fr.show_config("dicts").items():
        assert f"{title}:\n" in printed
        for name, value in entries.items():
            assert f"  {name}: {', '.join(value) if isinstance(value, tuple) else value}\n" in printed


def test_python_m_fusedrnn():
    result = python("-m", "fusedrnn", FUSEDRNN_BACKEND="reference", FUSEDRNN_NUM_THREADS="1")
    assert result.returncode == 0
    assert not result.stderr
    shown = "  in use: reference", "  in use: 1", "  FUSEDRNN_NUM_THREADS: 1", "  FUSEDRNN_ISA: not set"
    for line in (*shown, f"  fusedrnn: {fr.__version__}"):
        assert line in result.stdout.splitlines()


def test_commands(monkeypatch):
    called = []
    monkeypatch.setattr(command, "show_config", lambda: called.append("config"))
    monkeypatch.setattr(machine, "main", lambda: called.append("probe"))
    monkeypatch.setattr(quick, "main", lambda arguments: called.append(arguments))
    for arguments in ([], ["config"], ["probe"], ["bench", "--peers=", "--threads=1"]):
        command.main(arguments)
    assert called == ["config", "config", "probe", ["--peers=", "--threads=1"]]


def test_cpus_are_counted_once(monkeypatch):
    """Without the compiled module every call asks for its threads."""
    counts = iter([5])
    monkeypatch.setattr(fr.backends, "compiled", lambda: None)
    monkeypatch.setattr(fr.threads, "_number", None)
    monkeypatch.setattr(fr.threads, "available_cpus", lambda: next(counts))
    assert fr.get_num_threads() == fr.get_num_threads() == 5


def test_no_more_threads_than_a_team_has(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(1000), raising=False)
    monkeypatch.setattr(fr.threads, "_quota", lambda: float("inf"))
    assert fr.threads.available_cpus() == fr.threads.MOST == 256


def test_config_without_the_compiled_module():
    result = python("-c", WITHOUT + "fr.show_config()")
    assert "  in use: reference\n  cython: backend 'cython' is not installed: " in result.stdout
    assert "\n  numba: backend 'numba' is not installed: " in result.stdout
    assert "numba version" not in result.stdout


def test_public_names():
    assert set(fr.__all__) <= set(dir(fr))
    assert all(getattr(fr, name).__doc__ for name in fr.__all__)


@pytest.fixture
def threads():
    before = fr.get_num_threads()
    yield
    fr.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_number_of_threads():
    for n in (1, 2, np.int8(3), 256):
        fr.set_num_threads(n)
        assert fr.get_num_threads() == n


@pytest.mark.parametrize("before", ["", WITHOUT], ids=["as built", "not compiled"])
def test_number_of_threads_at_the_start(before):
    code = (
        before
        + "import fusedrnn as fr; print(fr.get_num_threads()); fr.set_num_threads(2); print(fr.get_num_threads())"
    )
    cpus = str(fr.threads.available_cpus())
    assert python("-c", code).stdout.split() == [cpus, "2"]
    assert python("-c", code, FUSEDRNN_NUM_THREADS="3").stdout.split() == ["3", "2"]
    for wrong in ("0", "-1", "two", "1.5", "257", "9" * 5000, "\u0663"):
        result = python("-c", code, FUSEDRNN_NUM_THREADS=wrong)
        assert result.returncode == 1
        said = "ValueError: FUSEDRNN_NUM_THREADS: expected an integer from 1 to 256, got"
        assert any(f"{said} {shown}" in result.stderr for shown in (repr(wrong), ascii(wrong)))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_number_of_threads_respects_affinity():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    assert python("-c", code + "import fusedrnn as fr; print(fr.get_num_threads())").stdout == "1\n"


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 8),
        ("0::/", {"cpu.max": "1000 100000"}, 1),
        ("0::/", {"cpu.max": "1600000 100000"}, 8),
        ("0::/a/b", {"cpu.max": "500000 100000", "a/cpu.max": "300000 100000", "a/b/cpu.max": "max 100000"}, 3),
        ("3:cpu,cpuacct:/a\n0::/", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "25000"}, 2),
        ("3:cpu:/a", {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 8),
        ("3:cpu:/gone", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),  # seen from within
        ("3:cpuset:/a", {"cpuset/a/cpu.max": "100000 100000"}, 8),
        ("0::/", {"cpu.max": "100000 0"}, 8),
        ("0::/", {"cpu.max": "?"}, 8),
        ("?", {"cpu.max": "100000 100000"}, 8),
        (None, {"cpu.max": "100000 100000"}, 8),
    ],
)
def test_number_of_threads_respects_control_groups(monkeypatch, tmp_path, groups, files, cpus):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(fr.threads, "OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(fr.threads, "CGROUPS", tmp_path / "all")
    for name, text in files.items():
        (tmp_path / "all" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / name).write_text(text + "\n")
    if groups is not None:
        (tmp_path / "own").write_text(groups + "\n")
    assert fr.threads.available_cpus() == cpus


@pytest.mark.parametrize(
    ("found", "size"),
    [("512K", 512 << 10), ("1280K", 1280 << 10), ("12288K", 2 << 20), ("0K", 1 << 20), ("", 1 << 20), (None, 1 << 20)],
)
def test_own_cache(found, size, tmp_path, monkeypatch):
    monkeypatch.setattr(fr.threads, "CACHES", tmp_path)
    for index, level, text in ((0, "1", "32K"), (2, "2", found), (3, "3", "32768K")):
        if text is not None:
            (tmp_path / f"index{index}").mkdir()
            (tmp_path / f"index{index}" / "level").write_text(level + "\n")
            (tmp_path / f"index{index}" / "size").write_text(text + "\n")
    assert fr.threads.own_cache() == size


@pytest.mark.parametrize("arguments", [("config", "junk"), ("probe", "--junk"), ("junk",)])
def test_arguments_that_no_command_takes(arguments):
    result = python("-m", "fusedrnn", *arguments)
    assert result.returncode == 2
    assert "usage: python -m fusedrnn" in result.stderr


def test_a_terminal_that_has_few_characters():
    result = python("-m", "fusedrnn", "bench", "--peers=", "--seconds=0.001", PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert "of the limit" in result.stdout


@pytest.mark.parametrize("command", ["", "config", "probe", "bench"])
def test_help(command):
    assert python("-m", "fusedrnn", *command.split(), "--help").stdout.startswith("usage: python -m fusedrnn")
