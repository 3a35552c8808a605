"""The argument errors of cells, layers and streams, in one place: what is asked of an argument, and what is said when
it is not so. What only training asks for is in train.py.

A check returns the argument as the backends want it: an aligned array in native byte order, of any strides. An array
that is so already passes after a few comparisons and is returned itself, never a copy; sentences are composed only to
be raised. No check reads the values of floating-point arrays: NaN and infinity are data.
"""

import math
import operator
import sys
from collections.abc import Collection, Mapping
from typing import Any, Final, NoReturn, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
"""A floating-point array; its dtype is known at run time only."""

Shape: TypeAlias = tuple[int, ...]
Dtypes: TypeAlias = tuple[np.dtype[Any], ...]

FLOAT32: Final[np.dtype[Any]] = np.dtype(np.float32)
FLOAT64: Final[np.dtype[Any]] = np.dtype(np.float64)
COMPILED: Final[Dtypes] = (FLOAT32, FLOAT64)
"""The dtypes of compiled backends, and what a message says is expected."""
FLOATING: Final[Dtypes] = (FLOAT32, FLOAT64, np.dtype(np.float16), np.dtype(np.longdouble))
"""The dtypes of the reference."""

FAR: Final = 1 << 40
"""See `memory`."""

T = TypeVar("T")

INT64: Final = np.dtype(np.int64)
ndarray: Final = np.ndarray  # a global of this module: found faster than np.ndarray


# ------------------------------------------------------------------------------------------------------------- arrays


def array(name: str, value: npt.ArrayLike, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """`value` with exactly this shape and dtype."""
    if type(value) is ndarray and value.dtype == dtype and value.shape == shape and value.flags.aligned:
        return value
    found = _floating(name, value, (dtype,), str(dtype))
    if found.shape != shape:
        raise ValueError(f"{name}: expected shape {_shape(shape)}, got {_shape(found.shape)}")
    return found


def sequence(value: npt.ArrayLike, dtypes: Dtypes) -> Array:
    """`x` as (T, B, I) of one of these dtypes."""
    if not (type(value) is ndarray and value.dtype in dtypes and value.flags.aligned):
        value = _floating("x", value, dtypes)
    if value.ndim != 3:
        raise ValueError(f"x: expected shape (T, B, I), got {_shape(value.shape)}")
    return value


def features(value: npt.ArrayLike, rank: int, axes: str, width: int, dtype: np.dtype[Any]) -> Array:
    """`x` of this rank, `width` features in its last axis after `axes` ("T, B", "B, T" or "B"), or unbatched: no B."""
    if not (type(value) is ndarray and value.dtype == dtype and value.flags.aligned):
        value = _floating("x", value, (dtype,), f"{dtype} as the parameters")
    if value.shape[-1:] == (width,) and (value.ndim == rank or value.ndim == rank - 1):
        return value
    unbatched = f"({width},)" if rank == 2 else f"(T, {width})"
    raise ValueError(f"x: expected shape ({axes}, {width}) or, unbatched, {unbatched}, got {_shape(value.shape)}")


def input_weight(value: npt.ArrayLike, gates: int, x: Array, dtype: np.dtype[Any]) -> tuple[Array, int]:
    """`w_ih` (G*H, I) for `x` (T, B, I) of this dtype, and its G*H."""
    if not (type(value) is ndarray and value.dtype == dtype and value.flags.aligned):
        value = _floating("w_ih", value, (dtype,), f"{dtype} as x")
    if value.ndim == 2:
        rows, input_size = value.shape
        if rows and input_size == x.shape[2] and not rows % gates and input_size:
            return value, rows
    gate_rows(value, gates)
    raise ValueError(f"x: expected shape (T, B, {input_size}) as w_ih has {input_size} columns, got {_shape(x.shape)}")


def gate_rows(w_ih: Array, gates: int) -> int:
    """The G*H of `w_ih`."""
    if w_ih.ndim == 2 and w_ih.size and not len(w_ih) % gates:
        return len(w_ih)
    letters = "(H, I)" if gates == 1 else f"({gates}*H, I)"
    raise ValueError(f"w_ih: expected shape {letters} with H >= 1 and I >= 1, got {_shape(w_ih.shape)}")


def memory(x: Array, hidden_size: int, directions: int) -> None:
    """No array of a call on `x` (T, B, I) exceeds what memory can be addressed; called before anything is allocated.

    Callers pass by calls that are far from it, where a bound that they have at hand is below FAR:
    ``((T + 1) * (B + 1) + G * H) * (G * H + I)``, or more.
    """
    steps, batch, input_size = x.shape
    # A bound on what any backend keeps: 8 vectors of H a direction and time step, and panels padded to 64 units. The
    # ones and twos are for states, and for what is kept of each step of an empty batch or each sequence of no steps.
    sequences = (steps + 2) * (batch + 1) * (input_size + 8 * directions * hidden_size)
    panels = 8 * (hidden_size + 64) * (input_size + hidden_size + 64)
    if (needed := (sequences + panels) * x.itemsize) > sys.maxsize:
        raise ValueError(
            f"x: shape {_shape(x.shape)} with hidden size {hidden_size} may need {needed} bytes, "
            f"more than can be addressed ({sys.maxsize})"
        )


def addressable(name: str, shape: Shape, dtype: np.dtype[Any]) -> None:
    """An array still to be made, of this shape, does not exceed what memory can be addressed."""
    if (needed := math.prod(max(n, 1) for n in shape) * dtype.itemsize) > sys.maxsize:  # as NumPy counts
        raise ValueError(
            f"{name}: shape {_shape(shape)} needs {needed} bytes, more than can be addressed ({sys.maxsize})"
        )


def lengths(value: npt.ArrayLike, steps: int, batch: int) -> npt.NDArray[np.int64]:
    """`lengths` as an int64 copy (B,): who changes the array between forward and backward changes nothing here."""
    if not (type(value) is ndarray and value.dtype == INT64):
        found = readable("lengths", value, "integers")
        unread = not found.size and not isinstance(value, ndarray)  # an empty list, which NumPy reads as float64
        if found.dtype.kind not in "iu" and not unread:
            raise TypeError(f"lengths: expected integers, got {found.dtype}")
        value = found
    if value.shape != (batch,):
        raise ValueError(f"lengths: expected shape ({batch},) as x has {batch} sequences, got {_shape(value.shape)}")
    found = value.astype(INT64, "C")
    numbers = found.tolist()  # out of a cold cache a comparison of arrays takes ten times as long
    if numbers and not 0 <= min(numbers) <= max(numbers) <= steps:  # what wrapped around is negative
        first = next(i for i, n in enumerate(numbers) if not 0 <= n <= steps)
        raise ValueError(f"lengths: expected values from 0 to T = {steps}, got {value[first]} at index {first}")
    return found


def no_lengths() -> NoReturn:
    """An unbatched sequence is valid from end to end."""
    raise ValueError("lengths: expected None for an unbatched x, got lengths")


def state(
    name: str, parts: tuple[str, ...], value: Any, shape: Shape, dtype: np.dtype[Any]
) -> tuple[Array | None, Array | None]:
    """A state, or its gradient, of these parts (h, or h and c), each an array of this shape or None."""
    if len(parts) == 1:
        return (None if value is None else array(parts[0], value, shape, dtype)), None
    # An array is refused: unpacking it would take its first axis for the pair.
    if isinstance(value, tuple | list) and len(value) == 2:
        h, c = value
        return (
            None if h is None else array(parts[0], h, shape, dtype),
            None if c is None else array(parts[1], c, shape, dtype),
        )
    if value is None:
        return None, None
    got = f"{len(value)} parts" if isinstance(value, tuple | list) else type(value).__name__
    raise TypeError(f"{name}: expected a pair ({', '.join(parts)}), got {got}")


def loaded(name: str, value: npt.ArrayLike, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """A parameter to load: of this shape and of any floating dtype; a copy, cast to the layer's."""
    found = _floating(name, value, FLOATING, "a floating dtype")
    if found.shape != shape:
        raise ValueError(f"{name}: expected shape {_shape(shape)}, got {_shape(found.shape)}")
    with np.errstate(over="ignore"):
        cast = found.astype(dtype)
    if (lost := np.isinf(cast) & np.isfinite(found)).any():
        raise ValueError(f"{name}: expected values that {dtype} can hold, got {found[lost][0]}")
    return cast


def compiled(name: str, value: npt.ArrayLike) -> Array:
    """`value` as an array of a dtype that compiled backends take."""
    return _floating(name, value, COMPILED)


def _floating(name: str, value: npt.ArrayLike, dtypes: Dtypes, expected: str = "float32 or float64") -> Array:
    """`value` as an aligned array in native byte order, of one of these dtypes; shapes are still to be checked."""
    found = readable(name, value, expected)
    dtype = _native(found.dtype)
    if dtype not in dtypes:
        raise TypeError(f"{name}: expected {expected}, got {dtype}")
    return np.require(found, dtype, "A")


def readable(name: str, value: npt.ArrayLike, expected: str) -> Array:
    """`value` as an array of whatever shape and dtype, but no masked one: the mask would be lost."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected {expected}, got a masked array")
    return _read(name, value, expected)


def _read(name: str, value: Any, expected: str) -> Array:
    """NumPy's reading of an array-like; None and what else is no array at all are named by their type."""
    try:
        found = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a tensor that requires its gradient
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__} ({error})") from error
    if found.dtype.kind == "O":
        single = "None" if value is None else type(value).__name__
        raise TypeError(f"{name}: expected {expected}, got {'an array of objects' if found.ndim else single}")
    return found


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    native: np.dtype[Any] = dtype.newbyteorder("=")
    return native


def _shape(shape: Shape) -> str:
    return str(tuple(map(int, shape)))


# ------------------------------------------------------------------------------------------------------------ scalars


def size(name: str, value: Any, most: int = sys.maxsize) -> int:
    """A count, from 1 to `most`."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {type(value).__name__}") from None
    if 1 <= found <= most:
        return found
    least = most == sys.maxsize and found < 1
    raise ValueError(f"{name}: expected {'at least 1' if least else f'from 1 to {most}'}, got {found}")


def size_text(name: str, value: str, most: int) -> int:
    """A count in an environment variable."""
    if value.isascii() and value.isdecimal() and len(value) < 20 and 1 <= int(value) <= most:
        return int(value)
    raise ValueError(f"{name}: expected an integer from 1 to {most}, got {value!r}")


def flag(name: str, value: Any) -> bool:
    """A truth value, and no other thing that happens to be true."""
    if value is True or value is False:
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    raise TypeError(f"{name}: expected True or False, got {value!r}")


def number(name: str, value: Any, low: float = -sys.float_info.max, high: float = sys.float_info.max) -> float:
    """A finite real number between `low` and `high`, both taken in."""
    if isinstance(value, bool | np.bool_ | str | bytes):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        found = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}") from None
    except OverflowError:
        found = math.inf if value > 0 else -math.inf
    if low <= found <= high:
        return found
    bounds = "a finite number" if low == -sys.float_info.max else f"a number from {low:g} to {high:g}"
    raise ValueError(f"{name}: expected {bounds}, got {found}")


def choice(name: str, value: Any, options: Collection[str]) -> str:
    """One of a few words."""
    if isinstance(value, str):
        if value in options:
            return value
        raise ValueError(f"{name}: expected {_either(options)}, got {value!r}")
    raise TypeError(f"{name}: expected {_either(options)}, got {type(value).__name__}")


def dtype(value: Any, dtypes: Dtypes, expected: str = "float32 or float64") -> np.dtype[Any]:
    """The dtype of a layer, in native byte order."""
    try:
        found = None if value is None else np.dtype(value)  # np.dtype(None) is float64
    except (TypeError, ValueError, SyntaxError):  # NumPy evaluates some strings
        found = None
    if found is None or (native := _native(found)) not in dtypes:
        raise TypeError(f"dtype: expected {expected}, got {repr(value) if found is None else found}")
    return native


def generator(value: Any) -> np.random.Generator:
    """`rng`: a Generator itself, or one made of a seed."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        return np.random.default_rng(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"rng: expected a numpy.random.Generator, a seed or None, got {value!r}") from error


def _either(options: Collection[str]) -> str:
    *most, last = map(repr, options)
    return f"{', '.join(most)} or {last}" if most else last


# ----------------------------------------------------------------------------------------------- tapes and parameters


def keys(name: str, given: Any, expected: Collection[str]) -> Mapping[str, Any]:
    """Parameters with exactly these names."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{name}: expected a mapping, got {type(given).__name__}")
    missing = [key for key in expected if key not in given]
    unexpected = [key for key in given if key not in expected]
    if missing or unexpected:
        front = _front(given, missing) if missing and len(missing) == len(expected) else ""
        lacks = f"; missing: {_some(missing)}" if missing else ""
        besides = f"; unexpected: {_some(unexpected)}" if unexpected else ""
        got = f", got them with {front} in front" if front else lacks + besides
        wanted = f"the keys {_some(expected)}" if expected else "no keys"
        raise ValueError(f"{name}: expected {wanted}{got}")
    return given


def _front(given: Mapping[Any, Any], missing: list[str]) -> str:
    """What stands in front of each of the keys, one or more, in a larger model; all such, or nothing."""
    first = str(missing[0])
    fronts = [str(key).removesuffix(first) for key in given if str(key).endswith(first)]
    return " and ".join(repr(front) for front in fronts if all(f"{front}{key}" in given for key in missing))


def _some(keys: Collection[Any]) -> str:
    """As many as can be read."""
    most = 12
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join([str(key) for key in keys][:most]) + rest


def tape(value: Any, type_: type[T], maker: object) -> T:
    """`tape` is one at all; `maker` should have made it."""
    if isinstance(value, type_):
        return value
    got = "None (was the forward pass one for training?)" if value is None else type(value).__name__
    raise TypeError(f"tape: expected the tape of {maker}, got {got}")


def tape_maker(found: object, maker: object) -> None:
    """The tape was made by this function or layer, and by no other."""
    if found != maker:
        other = "another " if repr(found) == repr(maker) else ""
        raise ValueError(f"tape: expected the tape of {maker}, got the tape of {other}{found}")


def tape_spent() -> RuntimeError:
    """The tape has been overwritten by its backward."""
    return RuntimeError("tape: a tape serves one backward, and this one has had it; run forward again")


def x_t(value: npt.ArrayLike, shape: Shape, dtype: np.dtype[Any]) -> Array:
    """The input of a stream's step, of this shape and dtype in either byte order, of any strides and alignment."""
    found = readable("x_t", value, str(dtype))
    if found.shape == shape[1:] and shape[0] == 1:
        raise ValueError(f"x_t: expected shape {_shape(shape)}, got {_shape(found.shape)}, for which say x_t[None]")
    _exactly("x_t", found, shape, dtype)
    return found


def out(value: Any, shape: Shape, dtype: np.dtype[Any]) -> None:
    """`out` is such an array to write to, and no masked one: its mask would stay."""
    if not isinstance(value, ndarray) or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"out: expected an ndarray of {dtype}, got {type(value).__name__}")
    _exactly("out", value, shape, dtype)
    if not value.flags.writeable:
        raise ValueError("out: expected a writable array, got a read-only one")


def _exactly(name: str, value: Array, shape: Shape, dtype: np.dtype[Any]) -> None:
    if _native(value.dtype) != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {_shape(shape)}, got {_shape(value.shape)}")


def stream_halfway() -> RuntimeError:
    """Some layers of a stream are a step ahead of the others."""
    return RuntimeError("stream: its last step was interrupted; set its state or reset() it")


def stream_busy() -> RuntimeError:
    """The state of a stream is in use."""
    return RuntimeError(
        "stream: a step is under way, in another thread or below a signal handler; give each a stream of its own"
    )


def no_stream(layer: object) -> NoReturn:
    """A backward direction cannot be run step by step."""
    raise ValueError(
        f"stream: {layer} reads each sequence from its end too, so no step has a result before all are there"
    )


def instance(name: str, value: Any, type_: type[T]) -> T:
    """A layer or cell."""
    if isinstance(value, type_):
        return value
    raise TypeError(f"{name}: expected a layer or cell, got {type(value).__name__}")


def forget_gate(module: object, lstm: bool, bias: bool) -> None:
    """`module` has a forget gate, and the gate a bias."""
    if not lstm:
        raise TypeError(f"module: expected an LSTM or LSTMCell, got {module}")
    if not bias:
        raise ValueError(f"module: expected biases, got {module}")
