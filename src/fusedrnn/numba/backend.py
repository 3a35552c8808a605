"""The backend protocol (see fusedrnn.backends) over the jitted time loop: allocates memory, hands over addresses, and
keeps alive what lies there. Arguments come checked.
"""

import ctypes
import functools
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba.core import types

from fusedrnn import backends, threads
from fusedrnn.backends import Direction, Gradients
from fusedrnn.checks import Array
from fusedrnn.numba import gru, lstm, rnn, sequence, team, tile
from fusedrnn.numba.jit import Kernel

__all__ = ["Packed", "Tape", "backward", "forward", "kernels", "pack"]


def _tiles(like):
    return tile.all_tiles(like)


REALS: Final = {np.dtype(np.float32): (np.float32, types.float32), np.dtype(np.float64): (np.float64, types.float64)}
POINTWISE: Final = {
    "rnn_tanh": rnn.rnn_tanh,
    "rnn_relu": rnn.rnn_relu,
    "lstm": lstm.lstm,
    "gru": gru.gru,
    "gru_reset_before": gru.gru_reset_before,
}


def memory(size: int) -> tuple[Array, int]:
    """Memory that holds no Python object, and its address."""
    if size > 1 << 62:
        raise MemoryError(f"a work area of {size} bytes is more than this machine can address")
    found = np.empty(size, np.uint8)
    return found, int(found.__array_interface__["data"][0])


@functools.cache
def of_dtype(dtype: np.dtype[Any]) -> tuple[int, int, int]:
    """Addresses of the tiles, the product and the packing of a dtype."""
    name, real = REALS[dtype]
    like = types.NumberClass(real)
    product, pack = (Kernel(f, types.void(types.int64, like)) for f in (tile.product, tile.pack))
    return int(Kernel(_tiles, types.int64(like)).call(name)), product.address, pack.address


@functools.cache
def _kernels(cell: str, dtype: np.dtype[Any]) -> tuple[int, Array]:
    pointwise = Kernel(POINTWISE[cell], types.void(types.int64, types.NumberClass(REALS[dtype][1]))).address
    description = sequence.CELL[cell]
    found = np.array([description.ctypes.data, *of_dtype(dtype), pointwise, dtype.itemsize], np.int64)
    return found.ctypes.data, found


@functools.cache
def _team() -> tuple[int, Array]:
    found = np.array([*team.functions(), sequence.work_kernel.address], np.int64)
    return found.ctypes.data, found


def _number_of_threads() -> Any:
    core = backends.compiled()
    return threads.get_num_threads if core is None else core.get_num_threads


class Packed:
    """Weights packed for the forward pass: immutable, shared freely between threads."""

    __slots__ = ("_memory", "address", "cell", "dtype", "hidden_size", "input_size")

    def __init__(self, cell: str, w_ih: Array, w_hh: Array, b_ih: Array | None, b_hh: Array | None) -> None:
        self.cell, self.dtype, self.input_size, self.hidden_size = cell, w_ih.dtype, w_ih.shape[1], w_hh.shape[1]
        weights = _weights((w_ih, w_hh, b_ih, b_hh))
        kernels, _ = _kernels(cell, w_ih.dtype)
        layer, self.address = memory(sequence.LAYER_BYTES + 3 * sequence.MATRIX_BYTES)
        needed = sequence.pack_begin_kernel.call(self.address, kernels, *map(_id, weights))
        data, address = memory(needed)
        sequence.pack_end_kernel.call(self.address, address)
        self._memory = layer, data


def pack(cell: str, w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None) -> Packed:
    """Pack weights once; see the backend protocol."""
    return Packed(cell, w_ih, w_hh, b_ih, b_hh)


class Tape:
    """What a training forward pass keeps for one backward pass."""

    __slots__ = ("directions", "frame", "has_biases", "kept", "lstm", "rows", "weights", "x", "y")

    directions: int
    frame: tuple[Array, int] | None
    has_biases: tuple[tuple[bool, bool], ...]
    kept: Any
    lstm: bool
    rows: int
    weights: list[tuple[Array, Array]]
    x: Array
    y: Array


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


_NO_WEIGHTS: Final = (0,) * 5


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
    kernels, _ = _kernels(cell, dtype)
    kept: list[Any] = []
    arguments: list[Any] = []
    for w, h0, c0, reverse in directions:
        if type(w) is Packed:
            if training or w.cell != cell:
                raise TypeError(f"weights: expected {cell} arrays, got {w.cell} weights packed for inference")
            H = w.hidden_size
            arguments += (w.address, 0, 0, 0, 0)
            kept.append(w)
        else:
            weights = _weights(w)
            H = weights[1].shape[1]
            arguments.append(0)
            arguments += map(_id, weights)
            kept.append(weights)
        h0, c0 = (None if a is None else _contiguous(a) for a in (h0, c0))
        arguments += (_id(h0), _id(c0), int(reverse))
        kept.append((h0, c0))
    if D == 1:
        arguments += _NO_WEIGHTS
        arguments += (0, 0)
    else:
        arguments.pop()  # the second direction is the reverse one
    lstm = cell == "lstm"
    y, h_n = np.empty((T, B, D * H), dtype), np.empty((D, B, H), dtype)
    c_n = np.empty((D, B, H), dtype) if lstm else None
    by_length, rows = None, T * B
    if lengths is not None:
        by_length, rows = np.argsort(-lengths, kind="stable"), int(lengths.sum())
    row = (H * dtype.itemsize + 128) * D
    gate_rows = (rows * (sequence.CELL[cell][sequence.SEGMENTS] + lstm)) if training else 0
    persistent, persistent_at = memory((2 * (T if B else 0) + 2 * B + 9) * 8 + (B * (1 + lstm) + int(gate_rows)) * row)
    frame, at = memory(sequence.FRAME_BYTES)
    needed = sequence.begin_kernel.call(
        at, kernels, _team()[0], number_of_threads(), training, id(x), id(y), _id(lengths), _id(by_length),
        persistent_at, id(h_n), _id(c_n), *arguments, D,
    )
    _run(at, needed)
    if not training:
        return y, h_n, c_n, None
    tape = Tape()
    tape.directions, tape.frame, tape.kept, tape.x, tape.y = D, (frame, at), persistent, x, y
    tape.lstm, tape.rows = lstm, rows
    tape.weights = [(d[0][0], d[0][1]) for d in directions]
    tape.has_biases = tuple((d[0][2] is not None, d[0][3] is not None) for d in directions)
    return y, h_n, c_n, tape


def _run(at: int, needed: int) -> None:
    """Run what was begun."""
    try:
        if needed < 0:
            raise MemoryError("x: a step of it is more than this machine can address")
        work, address = memory(needed)
    except BaseException:
        sequence.give_up_kernel.call(at)
        raise
    if not sequence.go_kernel.call(at, address):
        raise_pending(at)
    del work


def raise_pending(frame: int) -> None:
    """Raise what a signal handler raised meanwhile."""
    ctypes.pythonapi.PyErr_Restore(*(ctypes.c_void_p.from_address(frame + sequence.ERROR + 8 * i) for i in range(3)))


number_of_threads = _number_of_threads()


def backward(
    tape: Tape, dy: Array | None, dh_n: Array | None, dc_n: Array | None
) -> tuple[Array, tuple[Gradients, ...]]:
    """Gradients of everything that went into a training forward pass; see the backend protocol."""
    if tape.frame is None:
        raise RuntimeError("tape: expected one backward pass, got a second")
    (_frame, at), tape.frame = tape.frame, None  # its memory is overwritten and then let go
    x, D = tape.x, tape.directions
    T, B, I = x.shape
    H, dtype = tape.y.shape[2] // D, x.dtype
    dy, dh_n, dc_n = (None if a is None else _contiguous(a) for a in (dy, dh_n, dc_n))
    rows = tape.rows
    dx = (np.empty if rows == T * B else np.zeros)((T, B, I), dtype)
    make = np.empty if rows else np.zeros
    gradients: list[Any] = []
    kept: list[Any] = []
    arguments: list[int] = []
    for w_ih, w_hh in tape.weights:
        w_ih, w_hh = _contiguous(w_ih), _contiguous(w_hh)
        GH = len(w_hh)
        g = (
            make((GH, I), dtype),
            make((GH, H), dtype),
            np.zeros(GH, dtype),
            np.zeros(GH, dtype),
            np.empty((B, H), dtype),
            np.empty((B, H), dtype) if tape.lstm else None,
        )
        gradients.append(g)
        kept.append((w_ih, w_hh))
        arguments += (id(w_ih), id(w_hh), *map(_id, g))
    if D == 1:
        arguments += (0,) * 8
    needed = sequence.begin_backward_kernel.call(
        at, _team()[0], number_of_threads(), _id(dy), _id(dh_n), _id(dc_n), id(dx), *arguments
    )
    _run(at, needed)
    return dx, tuple(
        (g[0], g[1], g[2] if has_b_ih else None, g[3] if has_b_hh else None, g[4], g[5])
        for g, (has_b_ih, has_b_hh) in zip(gradients, tape.has_biases, strict=True)
    )
