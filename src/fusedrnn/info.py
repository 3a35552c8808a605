"""What runs here: versions, backends, instruction set, threads. It reports and changes nothing."""

import importlib.metadata
import os
import platform
from typing import Any, Literal, overload

import numpy as np

from fusedrnn import backends, checks, threads

__all__ = ["show_config", "version"]

VARIABLES = ("FUSEDRNN_BACKEND", "FUSEDRNN_ISA", "FUSEDRNN_NUM_THREADS")


def version() -> str:
    """Look up the version of the installed package.

    Returns
    -------
    str
        The version, or "0+unknown" when run from a source tree that is not installed.
    """
    try:
        return importlib.metadata.version("fusedrnn")
    except importlib.metadata.PackageNotFoundError:  # run from its source tree
        return "0+unknown"


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...  # numpydoc ignore=GL08
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...  # numpydoc ignore=GL08


def show_config(mode: Literal["stdout", "dicts"] = "stdout") -> dict[str, Any] | None:
    """Show versions, backends, instruction sets and threads.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Print them, or return them as a dict.

    Returns
    -------
    dict or None
        None if printed.

    Raises
    ------
    TypeError, ValueError
        `mode` is neither of both.

    Examples
    --------
    >>> import fusedrnn as fr
    >>> sorted(fr.show_config("dicts"))
    ['backends', 'environment', 'threads', 'versions']
    """
    checks.choice("mode", mode, ("stdout", "dicts"))
    config = _config()
    if mode == "dicts":
        return config
    for title, entries in config.items():
        print(f"{title}:")
        for name, value in entries.items():
            print(f"  {name}: {', '.join(value) if isinstance(value, tuple) else value}")
    return None


def _config() -> dict[str, Any]:
    core = backends.compiled()
    cython = (
        {"instruction set": core.isa(), "instruction sets": core.available_isas(), "compiler": core.compiler()}
        if core is not None
        else {}
    )
    return {
        "versions": {
            "fusedrnn": version(),
            "numpy": np.__version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
        },
        "backends": {
            "in use": backends.get().name,
            **{name: backends.missing(name) or "available" for name in backends.NAMES},
            **cython,
            **({"numba version": importlib.metadata.version("numba")} if backends.missing("numba") is None else {}),
        },
        "threads": {"in use": threads.get_num_threads(), "cpus": threads.available_cpus()},
        "environment": {name: os.environ.get(name, "not set") for name in VARIABLES},
    }
