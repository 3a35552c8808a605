"""Every memory layout an array can reach us in, from one generator.

`layouts(a)` yields (name, view): `view` has the shape and values of `a`, except for the layouts with a zero stride,
which repeat a's first slice. Compare therefore with `plain(view)`, not with `a`. Memory around a view is filled with
NaN, so that a read outside it shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np

Array = np.ndarray


def plain(view: Array) -> Array:
    """The same values in the most ordinary layout: a new, C-contiguous, aligned, native, writeable array."""
    return np.array(view, dtype=view.dtype.newbyteorder("="), order="C", subok=False)


def _embedded(a: Array, step: tuple[int, ...], order: str = "C") -> Array:
    """`a` inside a larger array, every `step`-th element of it along each axis (negative: backwards)."""
    shape = tuple(n * abs(s) + 2 for n, s in zip(a.shape, step, strict=True))
    base = np.empty(shape, a.dtype, order=order)  # type: ignore[call-overload]
    base.fill(_poison(a.dtype))
    index = []
    for n, s in zip(a.shape, step, strict=True):
        first = 1 if s > 0 else 1 + (n - 1) * -s
        stop = first + n * s
        index.append(slice(first, None if stop < 0 else stop, s) if n else slice(0, 0))
    view = base[tuple(index)]
    view[...] = a
    return view


def _poison(dtype: np.dtype) -> float | int:
    return np.nan if dtype.kind == "f" else np.iinfo(dtype).min


def fortran(a: Array) -> Array:
    return np.asfortranarray(a).copy(order="F")


def misaligned(a: Array) -> Array:
    raw = np.zeros(a.nbytes + 1, np.uint8)
    view = raw[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def field(a: Array) -> Array:
    """One field of a packed record: strides are no multiple of the item size."""
    record = np.zeros(a.shape, [("before", np.uint8), ("value", a.dtype), ("after", np.uint16)])
    record["value"] = a
    return record["value"]


def big_endian(a: Array) -> Array:
    return a.astype(a.dtype.newbyteorder(">"))


def read_only(a: Array) -> Array:
    b = a.copy()
    b.flags.writeable = False
    return b


def every_second(a: Array) -> Array:
    return _embedded(a, (2,) * a.ndim)


def backwards(a: Array) -> Array:
    return _embedded(a, (-1,) * a.ndim)


def mixed(a: Array) -> Array:
    """Everything at once that a copy has to undo: big-endian, misaligned, backwards, read-only."""
    b = misaligned(big_endian(a[(slice(None, None, -1),) * a.ndim]))[(slice(None, None, -1),) * a.ndim]
    b.flags.writeable = False
    return b


class _Subclass(np.ndarray):
    """Multiplies elementwise like any array, but is not one exactly."""


def subclass(a: Array) -> Array:
    return a.copy().view(_Subclass)


WHOLE: tuple[Callable[[Array], Array], ...] = (
    plain,
    fortran,
    misaligned,
    field,
    big_endian,
    read_only,
    every_second,
    backwards,
    mixed,
    subclass,
)


def layouts(a: Array) -> Iterator[tuple[str, Array]]:
    """Whole layouts, each order of the axes, and each axis stepped, backwards and with a zero stride."""
    for layout in WHOLE:
        yield layout.__name__, layout(a)
    for axes in itertools.islice(itertools.permutations(range(a.ndim)), 1, None):
        yield f"axes{axes}", np.ascontiguousarray(a.transpose(axes)).transpose(np.argsort(axes))
    for axis in range(a.ndim):
        for step in (3, -1, -2):
            yield f"step{step} on axis {axis}", _embedded(a, tuple(step if i == axis else 1 for i in range(a.ndim)))
        if a.shape[axis]:
            first = a.take([0], axis=axis)
            yield f"stride 0 on axis {axis}", np.broadcast_to(first, a.shape)
    if a.size:
        yield "stride 0 everywhere", np.broadcast_to(a.flat[0], a.shape)
