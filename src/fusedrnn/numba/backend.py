"""The backend protocol (see fusedrnn.backends) over the jitted time loop: allocates memory, hands over addresses, and
keeps alive what lies there. Arguments come checked.
"""

import ctypes
import functools
import logging
import os
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba.core import types

from fusedrnn import backends, checks, threads
from fusedrnn.backends import Direction, Gradients
from fusedrnn.checks import Array
from fusedrnn.numba import activations, gru, lstm, rnn, sequence, team, tile
from fusedrnn.numba.jit import VECTOR_BYTES, Kernel, once

__all__ = ["Packed", "Stream", "Tape", "backward", "compile", "forward", "pack", "sigmoid", "stream", "tanh"]


REALS: Final = {np.dtype(np.float32): (np.float32, types.float32), np.dtype(np.float64): (np.float64, types.float64)}
POINTWISE: Final = {
    "rnn_tanh": (rnn.rnn_tanh_forward, rnn.rnn_tanh_backward),
    "rnn_relu": (rnn.rnn_relu_forward, rnn.rnn_relu_backward),
    "lstm": (lstm.lstm_forward, lstm.lstm_backward),
    "gru": (gru.gru_forward, gru.gru_backward),
    "gru_reset_before": (gru.gru_before_forward, gru.gru_before_backward),
}


_spares: dict[int, Array] = {}
SPARES, SPARE_LEAST, SPARE_MOST = 3, 1 << 18, 40 << 20
"""Blocks kept for the next call, and the bytes of one: fewer and larger than in _core.pyx, for results are not kept."""


def memory(size: int) -> Array:
    """Memory that holds no Python object."""
    if size > 1 << 62:
        raise MemoryError(f"a work area of {size} bytes is more than this machine can address")
    if size >= SPARE_LEAST:
        quarter = max(SPARE_LEAST >> 2, 1 << (size - 1).bit_length() - 3)
        size = -(-size // quarter) * quarter
        for key, block in _spares.copy().items():
            if size <= len(block) <= 2 * size and _spares.pop(key, None) is not None:  # another thread may be faster
                return block
    return np.empty(size, np.uint8)


def spare(block: Array) -> None:
    """Keep memory that is done with, if it is worth it, for whoever comes next."""
    if SPARE_LEAST <= len(block) <= SPARE_MOST:
        _spares[id(block)] = block
        for key, _ in sorted(_spares.copy().items(), key=lambda item: len(item[1]))[:-SPARES]:
            _spares.pop(key, None)


def _forked() -> None:
    """In the child: a free-threaded Python may have given the dictionary's lock to a thread that is not there."""
    global _spares
    _spares = {}


os.register_at_fork(after_in_child=_forked)


_tables: Final = {dtype: np.zeros(2 * tile.FETCHED, np.int64) for dtype in REALS}


def tiles(dtype: np.dtype[Any], widths: Iterable[int]) -> int:
    """The address of the table of a dtype's tiles, those of these widths among them."""
    table = _tables[dtype]
    for V in widths:
        found = _tiles_of(V, dtype)
        np.copyto(table, found, where=found != 0)  # and no other: another thread may be at another width
    return int(table.ctypes.data)


@once
def _tiles_of(V: int, dtype: np.dtype[Any]) -> Array:
    """The table with the tiles of one width alone."""
    name, real = REALS[dtype]
    address = Kernel(tile.tiles_of[V], types.int64(types.NumberClass(real))).call(name)
    return np.array((ctypes.c_int64 * len(_tables[dtype])).from_address(address)[:], np.int64)


@once
def native(function: Any, dtype: np.dtype[Any]) -> int:
    """The native address of what takes an address and a dtype."""
    return Kernel(function, types.void(types.int64, types.NumberClass(REALS[dtype][1]))).native


@once
def _kernels(cell: str, dtype: np.dtype[Any]) -> tuple[int, int, Array]:
    """The address of what a layer is made of (see `lay_out`), the segments of a gate row, and the words there."""
    description, pointwise = sequence.CELL[cell], native(POINTWISE[cell][0], dtype)
    functions = native(tile.product, dtype), pointwise, native(tile.pack_transposed, dtype)
    words = description.ctypes.data, tiles(dtype, ()), *functions, dtype.itemsize, _team()[0]
    found = np.array(words, np.int64)
    return found.ctypes.data, int(description[sequence.SEGMENTS]), found


@once
def _kernels_backward(cell: str, dtype: np.dtype[Any]) -> tuple[int, Array]:
    """The same for a backward run; see `begin_backward`."""
    functions = POINTWISE[cell][1], tile.pack_rows, tile.pack_left
    found = np.array([sequence.work_backward_kernel.address, *(native(f, dtype) for f in functions)], np.int64)
    return found.ctypes.data, found


# What is compiled when a panel of its width is first met.


def _units(size: int, dtype: np.dtype[Any]) -> int:
    return -(-size * dtype.itemsize // VECTOR_BYTES)


@functools.lru_cache(1024)
def _meet(cell: str, dtype: np.dtype[Any], H: int, threads: int) -> None:
    """The tiles of a forward run."""
    tiles(dtype, sequence.widths(sequence.CELL[cell], _units(H, dtype), threads))


@functools.lru_cache(1024)
def _meet_backward(dtype: np.dtype[Any], I: int, H: int, threads: int) -> None:
    """The tiles of a backward run, whose panels are linear."""
    tiles(dtype, tile.widths_for(1, _units(H, dtype), threads) | tile.widths_for(1, _units(I, dtype), 1))


@once
def _team() -> tuple[int, Array, Array]:
    """What `set_team` reads, where it is, and the MEETING."""
    kernels = sequence.work_kernel.address, sequence.carry_out_kernel.address
    meeting = np.zeros(sequence.AT_LINES + 3 * sequence.LINE, np.uint8)
    address = (meeting.ctypes.data + sequence.LINE - 1) // sequence.LINE * sequence.LINE
    q = meeting[address - meeting.ctypes.data :][: sequence.MEETING.itemsize].view(sequence.MEETING)
    q["function"], q["looked"] = sequence.meet_kernel.address, -1
    found = np.array([*team.functions(), *kernels, id(None), address], np.int64)
    return found.ctypes.data, found, q


def _number_of_threads() -> Any:
    core = backends.compiled()
    return threads.get_num_threads if core is None else core.get_num_threads


class Packed:
    """Weights packed for the forward pass: immutable, shared freely between threads."""

    __slots__ = ("_memory", "cell", "dtype", "hidden_size", "input_size", "layer")

    def __init__(self, cell: str, w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None) -> None:
        self.cell, self.dtype, self.input_size, self.hidden_size = cell, w_ih.dtype, w_ih.shape[1], w_hh.shape[1]
        weights = _weights((w_ih, w_hh, b_ih, b_hh))
        kernels, _, _ = _kernels(cell, w_ih.dtype)
        self.layer = memory(sequence.LAYER_BYTES + 3 * sequence.MATRIX_BYTES)
        address = self.layer.ctypes.data
        self._memory = memory(sequence.pack_begin_kernel.call(address, kernels, *map(_id, weights)))
        pieces = 1 + len(self._memory) // sequence.PIECE
        for piece in range(pieces):  # Python looks for signals in between
            sequence.pack_end_kernel.call(address, self._memory.ctypes.data, piece, pieces)


def pack(cell: str, w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None) -> Packed:
    """Pack weights once; see the backend protocol."""
    return Packed(cell, w_ih, w_hh, b_ih, b_hh)


class Tape:
    """What a training forward pass keeps for one backward pass."""

    __slots__ = ("cell", "directions", "frame", "rows", "x", "y")

    def __init__(
        self, frame: Array, x: Array, y: Array, rows: int, cell: str, directions: tuple[Direction, ...]
    ) -> None:
        self.frame: Array | None = frame
        self.x, self.y, self.rows, self.cell, self.directions = x, y, rows, cell, directions


_contiguous = np.ascontiguousarray


def _id(a: Any) -> int:
    return 0 if a is None else id(a)


def _weights(w: Any) -> tuple[Array, Array, Array | None, Array | None]:
    w_ih, w_hh, b_ih, b_hh = w
    return (
        _contiguous(w_ih),
        _contiguous(w_hh),
        None if b_ih is None else _contiguous(b_ih),
        None if b_hh is None else _contiguous(b_hh),
    )


ROOM: Final = 1 << 16
"""Bytes behind a frame for what a run needs; a larger one costs a second call."""


def forward(
    cell: str,
    x: Array,
    directions: tuple[Direction, ...],
    lengths: npt.NDArray[np.int64] | None,
    training: bool,
) -> tuple[Array, Array, Array | None, Tape | None]:
    """One layer, one or two directions; see the backend protocol."""
    T, B, _ = x.shape
    D, dtype = len(directions), x.dtype
    kernels, segments, _ = _kernels(cell, dtype)
    given: list[Any] = []
    reversed_ = 0
    for w, h0, c0, reverse in directions:
        if type(w) is Packed:
            if training or w.cell != cell:
                raise TypeError(f"weights: expected {cell} arrays, got {w.cell} weights packed for inference")
            H = w.hidden_size
            given += (w.layer, None, None, None, None)
        else:
            weights = _weights(w)
            H = weights[1].shape[1]
            given += (None, *weights)
        given += (None if h0 is None else _contiguous(h0), None if c0 is None else _contiguous(c0))
        reversed_ = 2 * reversed_ + reverse
    lstm = cell == "lstm"
    y, h_n = np.empty((T, B, D * H), dtype), np.empty((D, B, H), dtype)
    c_n = np.empty((D, B, H), dtype) if lstm else None
    rows = T * B if lengths is None else sum(lengths.tolist())
    tape_rows = rows * (segments + lstm) if training else 0
    row = (H * dtype.itemsize + 128) * D  # a segment: padded
    plan = (2 * (T if B else 0) + 2 * B + 9) * 8
    frame = memory(sequence.FRAME_BYTES + plan + (B * (1 + lstm) + tape_rows) * row + ROOM)
    objects = (x, y, lengths, h_n, c_n, *given)
    wanted = number_of_threads()
    _meet(cell, dtype, H, wanted)
    needed = sequence.begin_kernel.call(id(frame), kernels, wanted, training, reversed_, D, id(objects))
    if needed:
        _run(frame, needed, wanted)
    if not training:
        spare(frame)
        return y, h_n, c_n, None
    return y, h_n, c_n, Tape(frame, x, y, rows, cell, directions)


def _run(frame: Array, needed: int, wanted: int) -> None:
    """Run what was begun and did not find room behind the frame."""
    while needed > 0:  # once, unless other threads come than the last time
        work = memory(needed)
        needed = sequence.go_kernel.call(id(frame), id(work), wanted)
        spare(work)
    if needed == sequence.NO_ROOM:
        raise MemoryError("x: a step of it is more than this machine can address")
    if needed:
        raise_pending(frame)


def raise_pending(frame: Array) -> None:
    """Raise what a signal handler raised meanwhile."""
    error = frame[sequence.ERROR : sequence.ERROR + 24].view(np.int64)
    ctypes.pythonapi.PyErr_Restore(*(ctypes.c_void_p(int(a)) for a in error))


number_of_threads = _number_of_threads()


def backward(
    tape: Tape, dy: Array | None, dh_n: Array | None, dc_n: Array | None, of_x: bool = True
) -> tuple[Array | None, tuple[Gradients, ...]]:
    """Gradients of everything that went into a training forward pass; see the backend protocol."""
    if tape.frame is None:
        raise RuntimeError("tape: expected one backward pass, got a second")
    frame, tape.frame = tape.frame, None  # its memory is overwritten and then let go
    x, rows, lstm, D = tape.x, tape.rows, tape.cell == "lstm", len(tape.directions)
    T, B, I = x.shape
    H, dtype = tape.y.shape[2] // D, x.dtype
    dy, dh_n, dc_n = (None if a is None else _contiguous(a) for a in (dy, dh_n, dc_n))
    dx = np.empty((T, B, I), dtype) if of_x else None
    make = np.empty if rows else np.zeros
    gradients: list[Any] = []
    objects: list[Any] = [dy, dh_n, dc_n, dx]
    given: Any
    for given, *_ in tape.directions:
        w_ih, w_hh, b_ih, b_hh = given
        GH = len(w_hh)
        g_ih, g_hh = make((GH, I), dtype), make((GH, H), dtype)
        g_b_ih, g_b_hh = np.zeros(GH, dtype), np.zeros(GH, dtype)  # written to even where nobody asks for them
        dh0, dc0 = np.empty((B, H), dtype), np.empty((B, H), dtype) if lstm else None
        objects += (_contiguous(w_ih), _contiguous(w_hh), g_ih, g_hh, g_b_ih, g_b_hh, dh0, dc0)
        gradients.append((g_ih, g_hh, None if b_ih is None else g_b_ih, None if b_hh is None else g_b_hh, dh0, dc0))
    held, wanted, (kernels, _) = tuple(objects), number_of_threads(), _kernels_backward(tape.cell, dtype)
    _meet_backward(dtype, I, H, wanted)
    needed = sequence.begin_backward_kernel.call(id(frame), kernels, wanted, id(held))
    if needed:
        _run(frame, needed, wanted)
    spare(frame)
    return dx, tuple(gradients)


METH_FASTCALL_WITH_NAMES: Final = 0x80 | 0x02


@once
def _step_definition() -> Array:
    """A PyMethodDef."""
    words = np.zeros(4, np.uintp)
    words[:] = id(_STEP) + bytes.__basicsize__ - 1, sequence.step_method_kernel.address, METH_FASTCALL_WITH_NAMES, 0
    return words


_STEP: Final = b"step"  # its characters lie behind the object's head
_new_function = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)(
    ("PyCFunction_NewEx", ctypes.pythonapi)
)


class Stream:
    """A stack of packed layers that takes one time step a call and keeps its state between calls."""

    __slots__ = (
        *("_B", "_H", "_address", "_data", "_dividing", "_divisions"),
        *("_dtype", "_frames", "_inputs", "_layers", "_lstm"),
    )

    def __init__(self, layers: tuple[Packed, ...], batch_size: int) -> None:
        if not layers:
            raise ValueError("layers: expected one or more, got none")
        first, last = layers[0], layers[-1]
        self._layers, self._B, self._inputs, self._H = layers, batch_size, first.input_size, last.hidden_size
        self._dtype = np.dtype(np.float64 if first.dtype.itemsize == 8 else np.float32)  # NumPy's own object
        self._lstm = first.cell == "lstm"
        itemsize = self._dtype.itemsize
        states = sum(batch_size * (p.hidden_size * itemsize + 192) * 3 for p in layers)
        data = np.zeros(1, sequence.STREAM)
        frames = memory(len(layers) * sequence.FRAME_BYTES + (2 * batch_size + 9) * 8 + states)
        q = data[0]
        q["layers"], q["frames"] = len(layers), frames.ctypes.data
        q["B"], q["inputs"], q["H"], q["size"] = batch_size, self._inputs, self._H, itemsize
        q["descr"], q["array"], q["none"], q["name"] = id(self._dtype), id(np.ndarray), id(None), id(_OUT)
        self._data, self._address, self._frames = data, data.ctypes.data, frames
        addresses = np.array([p.layer.ctypes.data for p in layers], np.int64)
        sequence.open_stream_kernel.call(self._address, _team()[0], addresses.ctypes.data)
        self._dividing = threading.Lock()
        self._divisions: list[tuple[Array, list[Array]]] = []  # what the steps to come use, and keep alive
        self._divide()

    def _divide(self) -> None:
        """Divide the steps to come over the present number of threads. Nothing has changed if that fails."""
        wanted = number_of_threads()
        for p in self._layers:
            _meet(p.cell, p.dtype, p.hidden_size, wanted)
        division = np.zeros(sequence.AT_MEMORY // 8 + len(self._layers), np.int64)
        sequence.divide_stream_kernel.call(self._address, wanted, division.ctypes.data)
        need = int(division[:4].view(sequence.DIVISION)[0]["need"])
        if need < 0:
            raise MemoryError("batch_size: a step is more than this machine can address")
        work = [memory(need) for _ in self._layers]
        division[4:] = [a.ctypes.data for a in work]
        with self._dividing:
            self._divisions.append((division, work))  # before it is taken: a signal handler may raise in between
            if not sequence.take_division_kernel.call(self._address, division.ctypes.data):
                raise checks.stream_busy()
            self._divisions = [(division, work)]

    @property
    def step(self) -> Any:
        """A built-in function made of jitted code, `step(x_t, out=None)`: take x_t (B, I), return the last layer's h
        (B, H), written to `out` when given. Small steps take less than a microsecond, and any Python around them more.
        """
        make = functools.partial(np.empty, (self._B, self._H), self._dtype)
        words = self._data, make, self._step_slowly, number_of_threads
        return _new_function(_step_definition().ctypes.data, words, None)

    def _step_slowly(self, x_t: npt.ArrayLike, out: Array | None = None) -> Array:
        """What the built-in function leaves to Python: what `status` says was wrong."""
        status = int(self._data[0]["status"])
        if status in (sequence.BUSY, sequence.HALFWAY):
            raise _refusal(status)
        if status == sequence.DIVIDED_FOR_OTHERS:
            self._divide()
        x = checks.x_t(x_t, (self._B, self._inputs), self._dtype)
        if out is not None:
            checks.out(out, (self._B, self._H), self._dtype)
        plain = np.empty(x.shape, self._dtype)  # of this very dtype object, where a copy may keep one that is equal
        plain[...] = x
        y: Array = self.step(plain)
        if out is None:
            return y
        out[...] = y
        return out

    def get_state(self) -> tuple[Array, Array | None]:
        """Copies of h and c, each (num_layers, B, H); None for c unless LSTM."""
        shape = (len(self._layers), self._B, self._H)
        h, c = np.empty(shape, self._dtype), np.empty(shape, self._dtype) if self._lstm else None
        self._copy_states(h, c, writing=False)
        return h, c

    def _copy_states(self, h: Array | None, c: Array | None, *, writing: bool) -> None:
        status = sequence.stream_state_kernel.call(self._address, _id(h), _id(c), writing)
        if status != sequence.DONE:
            raise _refusal(status)

    def forked(self) -> None:
        """In the child of a fork: a step that was under way has no thread any more, and counts as interrupted."""
        self._dividing = threading.Lock()
        if self._data[0]["busy"]:
            q = self._data[0]
            q["halfway"], q["laid"], q["since"], q["timed"], q["came"], q["busy"] = 1, 0, 0, 0, 0, 0

    def set_state(self, h: Array, c: Array | None) -> None:
        """Go on from h (num_layers, B, H), and c for LSTM."""
        self._copy_states(_contiguous(h), None if c is None else _contiguous(c), writing=True)

    def reset(self) -> None:
        """Go on from zeros."""
        self._copy_states(None, None, writing=True)


Stream._step_slowly.__qualname__ = "Stream.step"  # as its TypeErrors say

_OUT: Final = sys.intern("out")


def stream(layers: tuple[Packed, ...], batch_size: int) -> Stream:
    """A stream over packed layers; see the backend protocol."""
    return Stream(layers, batch_size)


def _refusal(status: int) -> RuntimeError:
    """Why a stream does not do what it was asked for."""
    return checks.stream_busy() if status == sequence.BUSY else checks.stream_halfway()


def _array(function: Any, a: Array) -> Array:
    if a.ndim != 1 or not a.flags.c_contiguous or a.dtype not in REALS:
        raise TypeError(f"a: expected a contiguous 1-D array of float32 or float64, got {a.ndim}-D {a.dtype}")
    out = np.empty_like(a)
    _array_kernel(function, a.dtype).call(a.ctypes.data, out.ctypes.data, len(a), REALS[a.dtype][0])
    return out


@once
def _array_kernel(function: Any, dtype: np.dtype[Any]) -> Kernel:
    word = types.int64
    return Kernel(function, types.void(word, word, word, types.NumberClass(REALS[dtype][1])))


def sigmoid(a: Array) -> Array:
    """The kernels' sigmoid of a contiguous 1-D array."""
    return _array(activations.sigmoid_array, a)


def tanh(a: Array) -> Array:
    """The kernels' tanh of a contiguous 1-D array."""
    return _array(activations.tanh_array, a)


def compile(  # noqa: A001
    cells: Sequence[str] = tuple(sequence.CELL), dtypes: Sequence[npt.DTypeLike] = ("float32", "float64")
) -> None:
    """Compile ahead, with progress in the log "fusedrnn.numba"; later processes find the result on disk.

    Parameters
    ----------
    cells : sequence of {"rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before"}, optional
        All, if not given.
    dtypes : sequence of dtype, default ("float32", "float64")
        Of the layers.

    Raises
    ------
    TypeError, ValueError
        There is no such cell or dtype.

    Examples
    --------
    >>> import fusedrnn.numba  # doctest: +SKIP
    >>> fusedrnn.numba.compile(["lstm"], ["float32"])  # doctest: +SKIP
    """
    for name, given in (("cells", cells), ("dtypes", dtypes)):
        if not isinstance(given, tuple | list):
            raise TypeError(f"{name}: expected a tuple or list, got {given!r}")
    for cell in cells:
        checks.choice("cells", cell, tuple(sequence.CELL))
    found = [checks.dtype(dtype, checks.COMPILED) for dtype in dtypes]
    _team()
    _ = sequence.step_method_kernel.address
    for value in vars(sequence).values():
        if isinstance(value, Kernel) and "address" not in vars(value):
            _ = value.call
    for cell in cells:
        for dtype in found:
            _ = _kernels(cell, np.dtype(dtype)), _kernels_backward(cell, np.dtype(dtype))
            tiles(np.dtype(dtype), tile.tiles_of)
            _log.info("%s %s is ready", cell, dtype)


_log: Final = logging.getLogger("fusedrnn.numba")
