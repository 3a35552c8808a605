"""Fixtures: `target` is every (backend, instruction set) that can be forced by name, `compiled` those with kernels.

What this CPU cannot run is a reported skip. What the build lacks (no compiled module at all) is a reported skip too,
but a failure where CI=true.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

X86 = platform.machine().lower() in ("x86_64", "amd64")
ISAS = ("avx512", "avx2", "baseline") if X86 else ("neon", "baseline")


@dataclasses.dataclass(frozen=True)
class Target:
    """A backend under its public name, the instruction set it is held to (None: it has no choice), and its module."""

    backend: str
    isa: str | None
    module: Any = None

    @property
    def exact(self) -> bool:
        """Whether its results are promised bit for bit; the reference leaves the order of its sums to BLAS."""
        return self.backend != "reference"

    def __str__(self) -> str:
        return self.backend if self.isa is None else f"{self.backend}:{self.isa}"


REFERENCE = (Target("reference", None),)
COMPILED = (*(Target("cython", isa) for isa in ISAS), Target("numba", None))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Slow tests run only when asked for, by a marker expression or by name."""
    if config.option.markexpr or any("::" in arg for arg in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in set(slow)]


@pytest.hookimpl(trylast=True)  # the innermost loop, so that all targets of a case can share its oracle
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name, targets in (("target", COMPILED + REFERENCE), ("compiled", COMPILED)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, targets, indirect=True, ids=str)


def load_core() -> ModuleType:
    """The compiled module; a skip or, in CI, a failure where it was not built."""
    try:
        return importlib.import_module("fusedrnn._core")
    except ModuleNotFoundError as error:  # one that is there and broken is an error
        if os.environ.get("CI") == "true":
            pytest.fail(f"fusedrnn._core is not built: {error}", pytrace=False)
        pytest.skip(f"fusedrnn._core is not built: {error}")


def force(target: Target) -> Iterator[Target]:
    if target.backend == "numba":
        pytest.importorskip("numba")
        module = importlib.import_module("fusedrnn.numba")
        threads = module.get_num_threads()
        yield dataclasses.replace(target, module=module)
        module.set_num_threads(threads)
        return
    if target.backend != "cython":
        yield dataclasses.replace(target, module=importlib.import_module(f"fusedrnn.{target.backend}"))
        return
    core = load_core()
    if target.isa not in core.available_isas():
        pytest.skip(f"this CPU does not run {target.isa}")
    isa, threads = core.isa(), core.get_num_threads()
    core.set_isa(target.isa)
    assert core.isa() == target.isa
    try:
        yield dataclasses.replace(target, module=core)
    finally:
        core.set_isa(isa)
        core.set_num_threads(threads)


@pytest.fixture
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    yield from force(request.param)


@pytest.fixture
def compiled(request: pytest.FixtureRequest) -> Iterator[Target]:
    yield from force(request.param)


@pytest.fixture
def core() -> ModuleType:
    """The compiled module with the instruction set it chose itself."""
    return load_core()
