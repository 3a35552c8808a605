"""The backends by name, fastest first, and which one runs: the only place that imports one.

A backend is a module of four functions, `pack`, `forward`, `backward` and `stream`, whose arguments were checked
before. It is imported when first asked for. One that is not installed is left out of the default choice; one that is
there and fails to import is an error, never a silent fallback. FUSEDRNN_BACKEND names the default of the process.
"""

import importlib
import importlib.util
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from fusedrnn import checks
from fusedrnn.checks import Array

__all__ = [
    "NAMES",
    "Backend",
    "Direction",
    "Gradients",
    "Packed",
    "Stepper",
    "Weights",
    "available",
    "compiled",
    "get",
    "missing",
    "use_backend",
]

NAMES: Final = ("cython", "numba", "reference")
"""Every backend's name, fastest first."""

_MODULES: Final = {"cython": "fusedrnn._core", "numba": "fusedrnn.numba", "reference": "fusedrnn.reference"}
_NEEDS: Final = {"cython": "fusedrnn._core", "numba": "numba", "reference": "fusedrnn.reference"}
"""What is missing where a backend is not installed."""

Weights: TypeAlias = tuple[Array, Array, Array | None, Array | None]
"""w_ih (G*H, I), w_hh (G*H, H), b_ih (G*H,) or None, b_hh (G*H,) or None."""


class Packed(Protocol):
    """The weights of one direction in a backend's own layout: an immutable copy."""

    @property
    def cell(self) -> str:
        """The cell they are for."""

    @property
    def input_size(self) -> int:
        """I."""

    @property
    def hidden_size(self) -> int:
        """H."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Their one dtype."""


Direction: TypeAlias = tuple[Weights | Packed, Array | None, Array | None, bool]
"""Weights, h0 (B, H) or None, c0 (B, H) or None, reverse."""

Gradients: TypeAlias = tuple[Array, Array, Array | None, Array | None, Array, Array | None]
"""Of one direction's w_ih, w_hh, b_ih, b_hh, h0, c0."""


class Stepper(Protocol):
    """Stacked layers that keep their state (layers, B, H) between steps."""

    def step(self, x_t: npt.ArrayLike, out: Array | None = None) -> Array:
        """One time step of x_t (B, I): the last layer's h (B, H), written to `out` if given."""

    def get_state(self) -> tuple[Array, Array | None]:
        """Copies of the hidden and the cell state; None for the latter unless the cell has one."""

    def set_state(self, h: Array, c: Array | None, /) -> None:
        """Copy the state in."""

    def reset(self) -> None:
        """Set the state to zero."""

    def forked(self) -> None:
        """In the child of a fork: a step that was under way has no thread any more, and counts as interrupted."""


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend: its name, the dtypes it takes, its module, and the four functions of the protocol.

    T time steps, B batch, I input size, H hidden size, G gates, D directions. The cells are "rnn_tanh", "rnn_relu",
    "lstm", "gru" and "gru_reset_before". Arrays are aligned, in native byte order and of one dtype, with any strides;
    none of them is written to. Results are new arrays.

    ``pack(cell, w_ih, w_hh, b_ih, b_hh)``
        An immutable copy of one direction's weights, which threads may share.
    ``forward(cell, x, directions, lengths, training)``
        x (T, B, I); one or two directions, the second one reverse; lengths int64 (B,), contiguous, or None.
        Returns y (T, B, D*H), contiguous and 0 past a sequence's length, h_n (D, B, H), c_n (D, B, H) or None unless
        LSTM, and the tape, None unless training: any object, which may keep x, y and the weights by reference.
    ``backward(tape, dy, dh_n, dc_n, of_x)``
        Gradients of the results, shaped as these; None is zeros. Called once a tape, which it may overwrite.
        Returns dx (T, B, I), summed over the directions, or None unless of_x, and the gradients of each direction.
    ``stream(layers, batch_size)``
        A stepper over packed layers, the lowest first; its `step` checks its own arguments.
    """

    name: str
    dtypes: checks.Dtypes
    module: Any
    pack: Callable[[str, Array, Array, Array | None, Array | None], Packed]
    forward: Callable[
        [str, Array, tuple[Direction, ...], npt.NDArray[np.int64] | None, bool], tuple[Array, Array, Array | None, Any]
    ]
    backward: Callable[
        [Any, Array | None, Array | None, Array | None, bool], tuple[Array | None, tuple[Gradients, ...]]
    ]
    stream: Callable[[tuple[Packed, ...], int], Stepper]


class _Choice(threading.local):
    backend: Backend | None = None


_loaded: dict[str, Backend] = {}
_thread = _Choice()  # what this thread chose for itself
_process: Backend | None = None  # what the main thread chose for all
_default: Backend | None = None  # what holds where nobody has chosen, once it was asked for

if _wanted := os.environ.get("FUSEDRNN_BACKEND"):
    checks.choice("FUSEDRNN_BACKEND", _wanted, NAMES)


def get(name: str | None = None) -> Backend:
    """Find a backend.

    Parameters
    ----------
    name : {"cython", "numba", "reference"}, optional
        None is the one chosen by `use_backend`, or by FUSEDRNN_BACKEND, or else the fastest that is installed.

    Returns
    -------
    Backend
        Loaded.

    Raises
    ------
    ValueError, TypeError
        No backend has this name.
    ImportError
        The backend is not installed.
    """
    if name is None:
        return _thread.backend or _process or _default or _find_default()
    return (_loaded.get(name) if type(name) is str else None) or _load(checks.choice("backend", name, NAMES))


def available() -> tuple[str, ...]:
    """Name the backends that can run here.

    Returns
    -------
    tuple of str
        Fastest first.

    Examples
    --------
    >>> import fusedrnn as fr
    >>> "reference" in fr.backends.available()
    True
    """
    return tuple(name for name in NAMES if missing(name) is None)


def missing(name: str) -> str | None:
    """Say why a backend cannot run here.

    Parameters
    ----------
    name : {"cython", "numba", "reference"}
        The backend.

    Returns
    -------
    str or None
        None if it can. Of Numba, slow to import: if it is installed and not told to leave code uncompiled.
    """
    if checks.choice("backend", name, NAMES) == "numba" and name not in _loaded and _numba_is_there():
        return "NUMBA_DISABLE_JIT is set" if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0") else None
    try:
        get(name)
    except ModuleNotFoundError as error:
        if error.name != _NEEDS[name]:
            raise
        return str(error)
    return None


def _numba_is_there() -> bool:
    try:
        return os.name == "posix" and importlib.util.find_spec("numba") is not None
    except ValueError:  # sys.modules says that it is not
        return False


def compiled() -> Any:
    """Find the compiled module, which keeps the thread count and the instruction set.

    Returns
    -------
    module or None
        None if it is not installed.
    """
    return get("cython").module if missing("cython") is None else None


def _load(name: str) -> Backend:
    try:
        module = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as error:
        if error.name != _NEEDS[name]:  # it is there, and something that it needs is not
            raise
        raise ModuleNotFoundError(f"backend {name!r} is not installed: {error}", name=error.name) from error
    dtypes = checks.FLOATING if name == "reference" else checks.COMPILED
    backend = Backend(name, dtypes, module, module.pack, module.forward, module.backward, module.stream)
    return _loaded.setdefault(name, backend)


def _find_default() -> Backend:
    global _default
    _default = get(_wanted or next(name for name in NAMES if missing(name) is None))
    return _default


class use_backend:
    """Choose the backend for every call that names none: from now on, or for the length of a ``with`` block.

    In the main thread the choice holds for every thread that has made none of its own; in any other thread it holds
    for that thread alone, so that threads never change each other's choice.

    Parameters
    ----------
    name : {"cython", "numba", "reference"}
        The backend.

    Raises
    ------
    ValueError, TypeError
        No backend has this name.
    ImportError
        The backend is not installed.

    Examples
    --------
    >>> import fusedrnn as fr
    >>> with fr.use_backend("reference"):
    ...     fr.backends.get().name
    'reference'
    """

    def __init__(self, name: str) -> None:
        self._backend = get(checks.choice("name", name, NAMES))
        self._before: list[tuple[bool, Backend | None, Backend | None]] = []  # of each choice not yet undone
        self._choose()
        self._entered = False

    def _choose(self) -> None:
        global _process
        if threading.current_thread() is threading.main_thread():
            self._before.append((True, _process, _thread.backend))
            _process = self._backend
            _thread.backend = None  # set where this thread was not the main one, in the process that it was forked from
        else:
            self._before.append((False, None, _thread.backend))
            _thread.backend = self._backend

    def __enter__(self) -> None:
        """Enter the block; the choice is made already, but where it is entered once more."""
        if self._entered:
            self._choose()
        self._entered = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Go back to the backend in use before."""
        global _process
        main, process, thread = self._before.pop()
        if main:
            _process = process
        if thread or not main:
            _thread.backend = thread
