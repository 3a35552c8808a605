"""Cells for users' own jitted code: one time step, or a whole sequence, of an RNN, LSTM or GRU inside an ``@njit``
function or a ``prange``. They allocate nothing, start no thread, need no GIL and give the bits of the layers.

Weights are packed once, by `lstm_weights` and its like, from PyTorch's layout; what comes back is a named tuple of
arrays, which Numba takes as an argument. To hold many sets of weights, stack each field and index it in jitted code:
``LSTMWeights(stack.x[n], stack.h[n], stack.bias[n])``. Scratch is on the stack: for each of up to six sequences about
as much as five rows of H numbers.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import overload

from fusedrnn import checks
from fusedrnn.checks import Array
from fusedrnn.numba.gru import gru_before_forward, gru_forward
from fusedrnn.numba.jit import VECTOR_BYTES, emitted, inlined, inner, public
from fusedrnn.numba.lstm import lstm_forward
from fusedrnn.numba.machine import at, clear, copy, flush_denormals, fp_restore, get, put, stack
from fusedrnn.numba.rnn import rnn_relu_forward, rnn_tanh_forward
from fusedrnn.numba.tile import HALVES, PANEL, POINTWISE, POINTWISE_BYTES, PRODUCT, PRODUCT_BYTES, product, table_of
from fusedrnn.numba.vec import itemsize, lanes

__all__ = [
    "GRUResetBeforeWeights",
    "GRUWeights",
    "LSTMWeights",
    "RNNWeights",
    "gru_sequence",
    "gru_step",
    "gru_weights",
    "lstm_sequence",
    "lstm_step",
    "lstm_weights",
    "rnn_sequence",
    "rnn_step",
    "rnn_weights",
]

ROWS = 6
SCRATCH = 128 * 1024  # bytes of them that may lie on the stack, of which some threads have 512 KB
ROW_BYTES = ROWS * 8


class LSTMWeights(NamedTuple):
    """Packed weights of an LSTM cell: panels of W_ih and of W_hh (panels, K, 4, L), and the bias row."""

    x: Array
    h: Array
    bias: Array


class GRUWeights(NamedTuple):
    """Packed weights of a GRU cell (PyTorch's form): panels (panels, K, 3, L), and the bias row."""

    x: Array
    h: Array
    bias: Array


class GRUResetBeforeWeights(NamedTuple):
    """The same of the form that resets before the product: of W_hh, h has the gates r and z, (panels, K, 2, L), and n
    has gate n, (panels, K, 4, L)."""

    x: Array
    h: Array
    n: Array
    bias: Array


class RNNWeights(NamedTuple):
    """Packed weights of an RNN cell: panels (panels, K, 4, L), the bias row, and whether it is relu (0 or 1)."""

    x: Array
    h: Array
    bias: Array
    relu: int


def _panels(w: Array, gates: tuple[int, ...], H: int) -> Array:
    """Rows of w (G*H, K), gate by gate, as panels (panels, K, width, L); a single gate fills PANEL vectors."""
    L, K = VECTOR_BYTES // w.itemsize, w.shape[1]
    each = L if len(gates) > 1 else PANEL * L
    n = -(-H // each)
    full = np.zeros((len(gates), n * each, K), w.dtype)
    for v, g in enumerate(gates):
        full[v, :H] = w[g * H : (g + 1) * H]
    if len(gates) > 1:
        return np.ascontiguousarray(full.reshape(len(gates), n, L, K).transpose(1, 3, 0, 2))
    return np.ascontiguousarray(full.reshape(n, PANEL, L, K).transpose(0, 3, 1, 2))


@inlined
def bias_stride(H, size):
    """Whole panels, in elements, in every instruction set."""
    return (H * size + 255) // 256 * 256 // size


def _weights(
    gates: int, segments: int, x: tuple[int, ...], h: tuple[int, ...], of_x: Any, of_h: Any, given: tuple[Any, ...]
) -> tuple[Array, Array, Array]:
    """Panels of W_ih and W_hh, and the bias row [segments][stride]."""
    w_ih = checks.compiled("w_ih", given[0])
    rows, dtype = checks.gate_rows(w_ih, gates), w_ih.dtype
    H = rows // gates
    w_hh = checks.array("w_hh", given[1], (rows, H), dtype)
    b_ih, b_hh = (
        None if b is None else checks.array(name, b, (rows,), dtype)
        for name, b in zip(("b_ih", "b_hh"), given[2:], strict=True)
    )
    bias = np.zeros((segments, bias_stride.py_func(H, w_ih.itemsize)), w_ih.dtype)
    for b, of in ((b_ih, of_x), (b_hh, of_h)):
        if b is not None:
            for g in range(gates):
                bias[of[g], :H] += b[g * H : (g + 1) * H]
    return _panels(w_ih, x, H), _panels(w_hh, h, H), bias


def lstm_weights(w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None) -> LSTMWeights:
    """Pack the weights of an LSTM cell for `lstm_step` and `lstm_sequence`.

    Parameters
    ----------
    w_ih : ndarray, shape (4*H, I)
        Gates i, f, g, o, as in PyTorch; float32 or float64, which all arrays share.
    w_hh : ndarray, shape (4*H, H)
        The same of the state.
    b_ih, b_hh : ndarray, shape (4*H,), optional
        Zeros if None.

    Returns
    -------
    LSTMWeights
        A copy, in the layout of this CPU's registers.

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not fit.
    """
    order = (0, 1, 2, 3)
    return LSTMWeights(*_weights(4, 4, order, order, order, order, (w_ih, w_hh, b_ih, b_hh)))


def gru_weights(
    w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None, reset_after: bool = True
) -> GRUWeights | GRUResetBeforeWeights:
    """Pack the weights of a GRU cell for `gru_step` and `gru_sequence`.

    Parameters
    ----------
    w_ih : ndarray, shape (3*H, I)
        Gates r, z, n, as in PyTorch; float32 or float64, which all arrays share.
    w_hh : ndarray, shape (3*H, H)
        The same of the state.
    b_ih, b_hh : ndarray, shape (3*H,), optional
        Zeros if None.
    reset_after : bool, default True
        PyTorch's form, n = tanh(W_n x + b + r * (U_n h + c)), or else n = tanh(W_n x + b + U_n (r * h) + c).

    Returns
    -------
    GRUWeights or GRUResetBeforeWeights
        A copy, in the layout of this CPU's registers; its type tells jitted code the form.

    Raises
    ------
    TypeError, ValueError
        A dtype or a shape does not fit.
    """
    given, x, of_x = (w_ih, w_hh, b_ih, b_hh), (2, 0, 1), (1, 2, 0)
    if checks.flag("reset_after", reset_after):
        return GRUWeights(*_weights(3, 4, x, (0, 1, 2), of_x, (1, 2, 3), given))
    of_inputs, of_state, bias = _weights(3, 4, x, (0, 1), of_x, of_x, given)
    w_hh = np.asarray(w_hh)
    return GRUResetBeforeWeights(of_inputs, of_state, _panels(w_hh, (2,), w_hh.shape[1]), bias)


def rnn_weights(
    w_ih: Array, w_hh: Array, b_ih: Array | None = None, b_hh: Array | None = None, nonlinearity: str = "tanh"
) -> RNNWeights:
    """Pack the weights of an RNN cell for `rnn_step` and `rnn_sequence`.

    Parameters
    ----------
    w_ih : ndarray, shape (H, I)
        Float32 or float64, which all arrays share.
    w_hh : ndarray, shape (H, H)
        The same of the state.
    b_ih, b_hh : ndarray, shape (H,), optional
        Zeros if None.
    nonlinearity : {"tanh", "relu"}, default "tanh"
        The function of the cell.

    Returns
    -------
    RNNWeights
        A copy, in the layout of this CPU's registers.

    Raises
    ------
    TypeError, ValueError
        A dtype, a shape or the nonlinearity does not fit.
    """
    relu = checks.choice("nonlinearity", nonlinearity, ("tanh", "relu")) == "relu"
    return RNNWeights(*_weights(1, 1, (0,), (0,), (0,), (0,), (w_ih, w_hh, b_ih, b_hh)), int(relu))


@emitted
def address(typing: Any, array: Any) -> Any:
    """Of an array's first element."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = cgutils.create_struct_proxy(signature.args[0])(context, builder, values[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), codegen


@emitted
def fields(typing: Any, weights: Any) -> Any:
    """Of each array of packed weights the address and the shape, of a number itself: all integers. An array is counted
    in and out wherever it is named, which took a third of a small step."""
    kinds = [types.UniTuple(types.int64, 1 + f.ndim) if isinstance(f, types.Array) else types.int64 for f in weights]

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        found = []
        for i, (field, kind) in enumerate(zip(weights, kinds, strict=True)):
            value = builder.extract_value(values[0], i)
            if isinstance(field, types.Array):
                array = cgutils.create_struct_proxy(field)(context, builder, value)
                shape = cgutils.unpack_tuple(builder, array.shape, field.ndim)
                value = context.make_tuple(builder, kind, [builder.ptrtoint(array.data, ir.IntType(64)), *shape])
            else:
                value = context.cast(builder, value, field, kind)
            found.append(value)
        return context.make_tuple(builder, signature.return_type, found)

    return types.Tuple(kinds)(weights), codegen


@emitted
def scratch(typing: Any, size: Any) -> Any:
    """Address of some bytes on the stack, 64-byte aligned, for as long as the function runs."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        block = builder.alloca(ir.IntType(8), values[0])
        block.align = 64
        return builder.ptrtoint(block, ir.IntType(64))

    return types.int64(types.int64), codegen


def step_of(pointwise, widths, segments, h_segment, plain, two_states, bias=2):  # type: ignore[no-untyped-def]
    """Make a cell's step over rows: step(w, x, x_step, h, h_step, c, c_step, rows, H, like), all but w, what `fields`
    gives, and `like` integers: addresses, bytes from a row to the next. widths: of the panels it meets. plain: as in
    `describe`. bias: which of w it is."""
    table = table_of(widths, fetch=False)

    @inner
    def step(w, x, x_step, h, h_step, c, c_step, rows, H, like):
        size, L = itemsize(like), lanes(like)
        of_bias, _, stride = w[bias]
        gate_bytes = segments * stride * size
        most = max(1, min(ROWS, SCRATCH // (gate_bytes + stride * size)))
        gates = scratch(min(rows, most) * (gate_bytes + stride * size))
        cells = gates + min(rows, most) * gate_bytes
        a_x, a_h, out, a_c = stack(ROW_BYTES), stack(ROW_BYTES), stack(ROW_BYTES), stack(ROW_BYTES)
        p, q = stack(PRODUCT_BYTES), stack(POINTWISE_BYTES)
        before = flush_denormals()
        for row0 in range(0, rows, most):
            n = min(rows - row0, most)
            for i in range(n):
                gate = gates + i * gate_bytes
                put(a_x, i, x + (row0 + i) * x_step)
                put(a_h, i, h + (row0 + i) * h_step)
                put(out, i, gate)
                put(a_c, i, cells + i * stride * size)
                if two_states:
                    copy(cells + i * stride * size, c + (row0 + i) * c_step, H * size)
                if plain >= 0:
                    copy(gate + plain * stride * size, of_bias + plain * stride * size, stride * size)
            clear(p, PRODUCT_BYTES)
            g = at(p, PRODUCT)
            g.tiles = table(like)
            g.rows, g.segments, g.a_step = n, 1, 1
            g.out, g.init = out, of_bias
            multiply(p, like, a_x, w[0], 0, stride if segments > 1 else L)
            g.init, g.accumulate = 0, 1
            multiply(p, like, a_h, w[1], h_segment * stride, stride if segments > 1 else L)
            clear(q, POINTWISE_BYTES)
            e = at(q, POINTWISE)
            e.rows, e.last, e.stride = n, H, stride
            e.gates, e.h_prev, e.h, e.c_prev, e.c = out, a_h, a_h, a_c, a_c
            pointwise(p, q, like, w)
            if two_states:
                for i in range(n):
                    copy(c + (row0 + i) * c_step, cells + i * stride * size, H * size)
        fp_restore(before)

    return step


@inner
def multiply(p, like, a, w, out_offset, out_step):
    """The product of rows a and packed weights w: out_step elements from a vector of a panel to the next."""
    g, L = at(p, PRODUCT), lanes(like)
    data, panels, depth, width, _ = w
    g.a, g.depth, g.w, g.width = a, depth, data, width
    g.vectors = g.last = panels * width
    g.out_offset, g.out_step, g.out_panel = out_offset, out_step, width * L if out_step == L else L
    product(p, like)


@inner
def lstm_pointwise(p, q, like, w):
    lstm_forward(q, like)


@inner
def gru_pointwise(p, q, like, w):
    gru_forward(q, like)


@inner
def gru_reset_before_pointwise(p, q, like, w):
    gru_before_forward(q, like)
    g, e = at(p, PRODUCT), at(q, POINTWISE)
    a = stack(ROW_BYTES)
    for i in range(g.rows):
        put(a, i, get(g.out, i) + 3 * e.stride * itemsize(like))
    multiply(p, like, a, w[2], 0, lanes(like))  # C5
    e.stage = 1
    gru_before_forward(q, like)


@inner
def rnn_pointwise(p, q, like, w):
    if w[3]:
        rnn_relu_forward(q, like)
    else:
        rnn_tanh_forward(q, like)


LINEAR = (*HALVES, PANEL)
lstm_rows = step_of(lstm_pointwise, LINEAR, 4, 0, -1, True)
gru_rows = step_of(gru_pointwise, (3,), 4, 1, 3, False)
gru_before_rows = step_of(gru_reset_before_pointwise, (2, 3, *LINEAR), 4, 1, -1, False, bias=3)
rnn_rows = step_of(rnn_pointwise, LINEAR, 1, 0, -1, False)


# What does not fit is refused: by its type when a call is compiled, which takes no time where it fits; by its shape
# when it runs, in plain comparisons. (A message with numbers in it costs 70 ns a step.)


def _misfit(kinds, given, weights, x, h, c, y):  # type: ignore[no-untyped-def]
    """What is wrong with the types of a call's arguments, or nothing. given: which of c and y there are."""
    packer = f"{kinds[0].__name__[:-7].lower()}_weights"
    if getattr(weights, "instance_class", None) not in kinds:
        return f"weights: expected what {packer}() packed, got {weights}"
    panels = weights[0]
    for name, field in zip(weights.fields, weights, strict=True):
        if name == "relu":
            fits = isinstance(field, types.Integer | types.Boolean)
        else:
            found = isinstance(field, types.Array) and (field.ndim, field.dtype, field.layout)
            fits = found and found == (2 if name == "bias" else 4, panels.dtype, "C")
        if not fits:
            return f"weights: expected contiguous fields of one dtype, as {packer}() packed them, got {weights}"
    arrays = {"x": x, "h": h} | ({"c": c} if "c" in given else {}) | ({"y": y} if "y" in given else {})
    for name, a in arrays.items():
        if not isinstance(a, types.Array):
            return f"{name}: expected an array, got {a}"
    if h.ndim not in (1, 2) or not h.mutable:
        return f"h: expected an array (H,) or (B, H) that can be written to, got {h}"
    if h.dtype != panels.dtype:
        return f"h: expected {panels.dtype} as the weights, got {h.dtype}"
    steps = "y" in given
    if (x.ndim, x.dtype) != (h.ndim + steps, h.dtype):
        return f"x: expected {h.ndim + steps} axes of {h.dtype} as h, got {x.ndim} of {x.dtype}"
    for name in given:
        a, axes = arrays[name], h.ndim + (name == "y")
        if (a.ndim, a.dtype, a.mutable) != (axes, h.dtype, True):
            return f"{name}: expected {axes} axes of {h.dtype} as h, to be written to, got {a}"
    return ""


def checked(given, by_kind):  # type: ignore[no-untyped-def]
    """Of a function f(weights, x, h, c, y) for each kind of weights, one that jitted code calls; given: "", "c", "y" or
    "cy", which of these two are arrays."""

    def call(weights, x, h, c, y):  # type: ignore[no-untyped-def]
        raise NotImplementedError

    @overload(call, jit_options={"forceinline": True})  # type: ignore[untyped-decorator]
    def _call(weights, x, h, c, y):  # type: ignore[no-untyped-def]
        said = _misfit(tuple(by_kind), given, weights, x, h, c, y)

        def refuse(weights, x, h, c, y):  # type: ignore[no-untyped-def]
            raise ValueError(said)

        return refuse if said else by_kind[weights.instance_class]

    return call


@inlined
def scattered(a):
    """Whether the numbers of a row are no neighbours."""
    return a.shape[-1] > 1 and a.strides[-1] != a.itemsize and a.size > 0


@inlined
def rows_of(h):
    return h.shape[0] if h.ndim == 2 else 1


@inlined
def check(x, h):
    """Refuse what would be read or written in the wrong place."""
    if h.ndim == 2 and x.shape[0] != h.shape[0]:
        raise ValueError("x: expected a batch as large as that of h")
    if scattered(x) or scattered(h):
        raise ValueError("x, h: expected contiguous rows")


@inlined
def check_c(c, h):
    """Refuse a state that is not as h."""
    if c.shape != h.shape or scattered(c):
        raise ValueError("c: expected the shape of h, and contiguous rows")
    if address(c) == address(h) and h.size:
        raise ValueError("c: expected an array of its own, got h")


@inlined
def check_steps(x, h, y):
    """Refuse results that are not as many steps as x has, each as h."""
    if y.shape[0] != x.shape[0] or y.shape[1:] != h.shape:
        raise ValueError("y: expected as many steps as x has, each of the shape of h")


@inner
def check_weights(of_x, of_h, bias, I, H, like, segments, width_x, width_h):
    """Refuse weights of other sizes. width_x, width_h: vectors of a panel."""
    L, inputs, units = lanes(like), of_x[2], of_h[2]
    if inputs != I:
        raise ValueError("x: expected as many numbers in its last axis as the weights have inputs")
    if units != H:
        raise ValueError("h: expected as many numbers in its last axis as the weights have units")
    if of_x[4] != L:
        raise ValueError("weights: expected panels of this CPU's vectors")
    each = L if segments > 1 else PANEL * L
    panels = (H + each - 1) // each
    if (
        of_x[1:] != (panels, I, width_x, L)
        or of_h[1:] != (panels, H, width_h, L)
        or bias[1:] != (segments, bias_stride(H, itemsize(like)))
    ):
        raise ValueError("weights: expected fields of one cell, as they were packed together")


@inner
def check_n(n, H, like):
    """Refuse the panels of gate n likewise."""
    L = lanes(like)
    if n[1:] != ((H + PANEL * L - 1) // (PANEL * L), H, PANEL, L):
        raise ValueError("weights: expected fields of one cell, as they were packed together")


def lstm_one(weights, x, h, c, y):  # type: ignore[no-untyped-def]
    w, like, H = fields(weights), h.dtype, h.shape[-1]
    check(x, h)
    check_weights(w[0], w[1], w[2], x.shape[-1], H, like, 4, 4, 4)
    check_c(c, h)
    lstm_rows(w, address(x), x.strides[0], address(h), h.strides[0], address(c), c.strides[0], rows_of(h), H, like)


def gru_one(weights, x, h, c, y):  # type: ignore[no-untyped-def]
    w, like, H = fields(weights), h.dtype, h.shape[-1]
    check(x, h)
    check_weights(w[0], w[1], w[2], x.shape[-1], H, like, 4, 3, 3)
    gru_rows(w, address(x), x.strides[0], address(h), h.strides[0], 0, 0, rows_of(h), H, like)


def gru_before_one(weights, x, h, c, y):  # type: ignore[no-untyped-def]
    w, like, H = fields(weights), h.dtype, h.shape[-1]
    check(x, h)
    check_weights(w[0], w[1], w[3], x.shape[-1], H, like, 4, 3, 2)
    check_n(w[2], H, like)
    gru_before_rows(w, address(x), x.strides[0], address(h), h.strides[0], 0, 0, rows_of(h), H, like)


def rnn_one(weights, x, h, c, y):  # type: ignore[no-untyped-def]
    w, like, H = fields(weights), h.dtype, h.shape[-1]
    check(x, h)
    check_weights(w[0], w[1], w[2], x.shape[-1], H, like, 1, PANEL, PANEL)
    rnn_rows(w, address(x), x.strides[0], address(h), h.strides[0], 0, 0, rows_of(h), H, like)


def over_time(step):  # type: ignore[no-untyped-def]
    """A function of whole sequences."""

    def steps(weights, x, h, c, y):  # type: ignore[no-untyped-def]
        check_steps(x, h, y)
        for t in range(len(x)):
            step(weights, x[t], h, c, None)
            y[t] = h

    return steps


one_lstm = checked("c", {LSTMWeights: lstm_one})
one_gru = checked("", {GRUWeights: gru_one, GRUResetBeforeWeights: gru_before_one})
one_rnn = checked("", {RNNWeights: rnn_one})
all_lstm = checked("cy", {LSTMWeights: over_time(one_lstm)})
all_gru = checked("y", dict.fromkeys((GRUWeights, GRUResetBeforeWeights), over_time(one_gru)))
all_rnn = checked("y", {RNNWeights: over_time(one_rnn)})


@public
def lstm_step(weights, x, h, c):
    """One time step of an LSTM, for use in jitted code: h and c become the new state.

    Parameters
    ----------
    weights : LSTMWeights
        Of `lstm_weights`.
    x : array, shape (I,) or (B, I)
        Input of the step, of the weights' dtype, rows contiguous.
    h, c : array, shape (H,) or (B, H)
        State, changed in place; rows contiguous.

    Raises
    ------
    ValueError
        A shape or dtype does not fit, rows are not contiguous, or a state is read-only.
    """
    one_lstm(weights, x, h, c, None)


@public
def lstm_sequence(weights, x, h, c, y):
    """A whole sequence of an LSTM, for use in jitted code: y takes every h; h and c become the last state.

    Parameters
    ----------
    weights : LSTMWeights
        Of `lstm_weights`.
    x : array, shape (T, I) or (T, B, I)
        Inputs, of the weights' dtype, rows contiguous.
    h, c : array, shape (H,) or (B, H)
        State, changed in place; rows contiguous.
    y : array, shape (T, H) or (T, B, H)
        Is written.

    Raises
    ------
    ValueError
        A shape or dtype does not fit, rows are not contiguous, or a state is read-only.
    """
    all_lstm(weights, x, h, c, y)


@public
def gru_step(weights, x, h):
    """One time step of a GRU (the form is the weights'), for use in jitted code: h becomes the new state.

    Parameters
    ----------
    weights : GRUWeights or GRUResetBeforeWeights
        Of `gru_weights`.
    x : array, shape (I,) or (B, I)
        Input of the step, of the weights' dtype, rows contiguous.
    h : array, shape (H,) or (B, H)
        State, changed in place; rows contiguous.

    Raises
    ------
    ValueError
        A shape or dtype does not fit, rows are not contiguous, or a state is read-only.
    """
    one_gru(weights, x, h, None, None)


@public
def gru_sequence(weights, x, h, y):
    """A sequence of a GRU (the form is the weights'), for use in jitted code: y takes every h, h becomes the last.

    Parameters
    ----------
    weights : GRUWeights or GRUResetBeforeWeights
        Of `gru_weights`.
    x : array, shape (T, I) or (T, B, I)
        Inputs, of the weights' dtype, rows contiguous.
    h : array, shape (H,) or (B, H)
        State, changed in place; rows contiguous.
    y : array, shape (T, H) or (T, B, H)
        Is written.

    Raises
    ------
    ValueError
        A shape or dtype does not fit, rows are not contiguous, or a state is read-only.
    """
    all_gru(weights, x, h, None, y)


@public
def rnn_step(weights, x, h):
    """One time step of an RNN, for use in jitted code: h becomes the new state.

    Parameters
    ----------
    weights : RNNWeights
        Of `rnn_weights`.
    x : array, shape (I,) or (B, I)
        Input of the step, of the weights' dtype, rows contiguous.
    h : array, shape (H,) or (B, H)
        State, changed in place; rows contiguous.

    Raises
    ------
    ValueError
        A shape or dtype does not fit, rows are not contiguous, or a state is read-only.
    """
    one_rnn(weights, x, h, None, None)


@public
def rnn_sequence(weights, x, h, y):
    """A whole sequence of an RNN, for use in jitted code: y takes every h; h becomes the last.

    Parameters
    ----------
    weights : RNNWeights
        Of `rnn_weights`.
    x : array, shape (T, I) or (T, B, I)
        Inputs, of the weights' dtype, rows contiguous.
    h : array, shape (H,) or (B, H)
        State, changed in place; rows contiguous.
    y : array, shape (T, H) or (T, B, H)
        Is written.

    Raises
    ------
    ValueError
        A shape or dtype does not fit, rows are not contiguous, or a state is read-only.
    """
    all_rnn(weights, x, h, None, y)
