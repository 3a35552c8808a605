"""The functional API: against PyTorch and equations written out, every option, every form an array can come in.

Errors are in test_checks.py; the numbers of each backend, at every size, in test_parity.py.
"""

import concurrent.futures
import dataclasses

import numpy as np
import pytest

import fusedrnn as fr

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
CELLS = tuple(GATES)
T, B, I, H = 6, 4, 3, 5
LENGTHS = [6, 1, 4, 2]
# float64, sums of at most tens of terms of size 1, and PyTorch adds them in another order.
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(params=fr.backends.NAMES)
def backend(request):
    if why := fr.backends.missing(request.param):
        pytest.skip(why)
    return request.param


def problem(cell, seed=0, dtype=np.float64):
    """x, and a dict of all other arrays."""
    rng = np.random.default_rng(seed)
    rows = GATES[cell] * H
    shapes = {"w_ih": (rows, I), "w_hh": (rows, H), "b_ih": (rows,), "b_hh": (rows,), "h0": (B, H)}
    if cell == "lstm":
        shapes["c0"] = (B, H)
    arrays = {name: rng.uniform(-1, 1, shape).astype(dtype) for name, shape in shapes.items()}
    return rng.standard_normal((T, B, I)).astype(dtype), arrays


def forward(cell, x, arrays, **options):
    return getattr(fr, f"{cell}_forward")(x, **arrays, **options)


def backward(cell, tape, *gradients, **options):
    return getattr(fr, f"{cell}_backward")(tape, *gradients, **options)


def upstream(cell, seed=1):
    """dy, dh_n and, for an LSTM, dc_n."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in [(T, B, H), (B, H), (B, H)][: 3 if cell == "lstm" else 2]]


def assert_equal(found, expected):
    """Bit for bit, None included."""
    for f, e in zip(found, expected, strict=True):
        if e is None:
            assert f is None
        else:
            np.testing.assert_array_equal(f, e, strict=True)


# ----------------------------------------------------------------------------------------------- PyTorch's results


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    ("cell", "options"), [("rnn", {}), ("rnn", {"nonlinearity": "relu"}), ("gru", {}), ("lstm", {})]
)
def test_agrees_with_pytorch(cell, options, reverse, lengths, backend):
    torch = pytest.importorskip("torch")
    x, arrays = problem(cell)
    # A bidirectional layer's second direction is the reverse one; the first is left out of the loss.
    module = getattr(torch.nn, cell.upper())(I, H, bidirectional=True, dtype=torch.float64, **options)
    ending = "_l0_reverse" if reverse else "_l0"
    keys = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    parameters = {name: getattr(module, key + ending) for name, key in keys.items()}
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(arrays[name]))
    tx = torch.from_numpy(x).requires_grad_()
    states = {name: torch.from_numpy(arrays[name]).requires_grad_() for name in ("h0", "c0") if name in arrays}
    d = int(reverse)
    both = [torch.stack([torch.zeros_like(s), s] if d else [s, torch.zeros_like(s)]) for s in states.values()]
    given = tx
    if lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(tx, torch.tensor(lengths), enforce_sorted=False)
    ty, tn = module(given, tuple(both) if cell == "lstm" else both[0])
    if lengths is not None:
        ty, _ = torch.nn.utils.rnn.pad_packed_sequence(ty, total_length=T)
    expected = [ty[:, :, d * H :][:, :, :H], *(s[d] for s in (tn if cell == "lstm" else (tn,)))]

    *found, tape = forward(cell, x, arrays, reverse=reverse, lengths=lengths, training=True, backend=backend, **options)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e.detach(), **CLOSE)

    gradients = upstream(cell)
    torch.autograd.backward(expected, [torch.from_numpy(g) for g in gradients])
    g = backward(cell, tape, *gradients)
    np.testing.assert_allclose(g.x, tx.grad, **CLOSE)
    for name, tensor in (parameters | states).items():
        np.testing.assert_allclose(getattr(g, name), tensor.grad, err_msg=name, **CLOSE)


def test_gru_reset_before_is_its_equations(backend):
    x, p = problem("gru")
    y, h_n, _ = forward("gru", x, p, reset_after=False, backend=backend)
    (wr, wz, wn), (ur, uz, un) = np.split(p["w_ih"], 3), np.split(p["w_hh"], 3)
    (br, bz, bn), (cr, cz, cn) = np.split(p["b_ih"], 3), np.split(p["b_hh"], 3)
    h = p["h0"]
    for t in range(T):
        r = 1 / (1 + np.exp(-(x[t] @ wr.T + br + h @ ur.T + cr)))
        z = 1 / (1 + np.exp(-(x[t] @ wz.T + bz + h @ uz.T + cz)))
        n = np.tanh(x[t] @ wn.T + bn + (r * h) @ un.T + cn)
        h = (1 - z) * n + z * h
        np.testing.assert_allclose(y[t], h, **CLOSE)
    np.testing.assert_allclose(h_n, h, **CLOSE)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize(
    ("cell", "options"),
    [("rnn", {}), ("gru", {}), ("gru", {"reset_after": False}), ("gru", {"reverse": True}), ("lstm", {})],
)
def test_gradients_are_the_slopes(cell, options, lengths, backend):
    """Every argument at once, along a random direction, by the four-point difference."""
    x, arrays = problem(cell)
    given = {"x": x, **arrays}
    gradients = upstream(cell)
    rng = np.random.default_rng(2)
    direction = {name: rng.standard_normal(a.shape) for name, a in given.items()}

    def loss(step):
        moved = {name: a + step * direction[name] for name, a in given.items()}
        *results, _ = forward(cell, moved.pop("x"), moved, lengths=lengths, backend=backend, **options)
        return sum(float((r * g).sum()) for r, g in zip(results, gradients, strict=True))

    *_, tape = forward(cell, x, arrays, lengths=lengths, training=True, backend=backend, **options)
    g = backward(cell, tape, *gradients)
    slope = sum(float((getattr(g, name) * d).sum()) for name, d in direction.items())
    e = 1e-4  # the formula's error is of order e**4, and rounding adds some 1e-15 * 100 / e
    expected = (8 * (loss(e) - loss(-e)) - (loss(2 * e) - loss(-2 * e))) / (12 * e)
    assert slope == pytest.approx(expected, rel=1e-8, abs=1e-9)


# ------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize("cell", CELLS)
def test_training_changes_no_result(cell, backend):
    x, arrays = problem(cell)
    *inference, none = forward(cell, x, arrays, backend=backend)
    *training, tape = forward(cell, x, arrays, training=True, backend=backend)
    assert none is None
    assert isinstance(tape, fr.Tape)
    assert_equal(training, inference)


@pytest.mark.parametrize("cell", CELLS)
def test_none_is_zeros(cell, backend):
    x, arrays = problem(cell)
    zeros = {name: a if name in ("w_ih", "w_hh") else np.zeros_like(a) for name, a in arrays.items()}
    *expected, tape = forward(cell, x, zeros, training=True, backend=backend)
    given = backward(cell, tape, *upstream(cell))
    weights = {name: arrays[name] for name in ("w_ih", "w_hh")}
    *found, tape = forward(cell, x, weights, training=True, backend=backend)
    g = backward(cell, tape, *upstream(cell))
    assert_equal(found, expected)
    assert g.b_ih is None
    assert g.b_hh is None
    assert_equal((g.x, g.w_ih, g.w_hh, g.h0, g.c0), (given.x, given.w_ih, given.w_hh, given.h0, given.c0))


@pytest.mark.parametrize(
    ("cell", "missing"), [*((cell, name) for cell in CELLS for name in ("b_ih", "b_hh", "h0")), ("lstm", "c0")]
)
def test_every_optional_array_is_so_by_itself(cell, missing, backend):
    x, arrays = problem(cell)
    zeros = arrays | {missing: np.zeros_like(arrays[missing])}
    *expected, _ = forward(cell, x, zeros, backend=backend)
    *found, tape = forward(cell, x, arrays | {missing: None}, training=True, backend=backend)
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, **CLOSE)
    g = backward(cell, tape, *upstream(cell))
    assert (getattr(g, missing) is None) == missing.startswith("b")


@pytest.mark.parametrize("cell", CELLS)
def test_backward_is_linear_and_none_is_no_gradient(cell, backend):
    x, arrays = problem(cell)
    gradients = upstream(cell)

    def run(*given):
        *_, tape = forward(cell, x, arrays, training=True, backend=backend)
        return backward(cell, tape, *given)

    alone = [run(*(g if i == j else None for j, g in enumerate(gradients))) for i in range(len(gradients))]
    whole = run(*gradients)
    for name in ("x", *arrays):
        total = sum(getattr(part, name) for part in alone)
        np.testing.assert_allclose(getattr(whole, name), total, err_msg=name, **CLOSE)
    for value in run():
        assert value is None or not value.any()


@pytest.mark.parametrize("cell", CELLS)
def test_dx_only_where_it_is_wanted(cell, backend):
    x, arrays = problem(cell)
    of_all, rest = (
        backward(cell, forward(cell, x, arrays, training=True, backend=backend)[-1], *upstream(cell), dx=dx)
        for dx in (np.True_, False)
    )
    assert rest.x is None
    assert of_all.x.shape == x.shape
    assert_equal(rest[1:], of_all[1:])


def test_a_gradient_in_place_of_a_flag(backend):
    x, arrays = problem("gru")
    tape = forward("gru", x, arrays, training=True, backend=backend)[-1]
    with pytest.raises(TypeError, match=r"^dx: expected True or False, got array"):
        backward("gru", tape, dx=np.ones(3))
    backward("gru", tape)  # which the mistake has not spent


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_lengths_are_as_each_sequence_by_itself(cell, reverse, backend):
    x, arrays = problem(cell)
    lengths = [6, 0, 4, 2]
    for b, n in enumerate(lengths):
        x[n:, b] = np.nan
    *found, tape = forward(cell, x, arrays, lengths=lengths, reverse=reverse, training=True, backend=backend)
    gradients = upstream(cell)
    for b, n in enumerate(lengths):
        gradients[0][n:, b] = np.nan
    g = backward(cell, tape, *gradients)
    for b, n in enumerate(lengths):
        one = {name: a[b : b + 1] if name in ("h0", "c0") else a for name, a in arrays.items()}
        *expected, tape = forward(cell, x[:n, b : b + 1], one, reverse=reverse, training=True, backend=backend)
        alone = backward(cell, tape, gradients[0][:n, b : b + 1], *(d[b : b + 1] for d in gradients[1:]))
        np.testing.assert_allclose(found[0][:n, b], expected[0][:, 0], **CLOSE)
        np.testing.assert_allclose(g.x[:n, b], alone.x[:, 0], **CLOSE)
        for f, e in zip(found[1:], expected[1:], strict=True):
            np.testing.assert_allclose(f[b], e[0], **CLOSE)
        np.testing.assert_allclose(g.h0[b], alone.h0[0], **CLOSE)
        assert not found[0][n:, b].any()
        assert not g.x[n:, b].any()
    assert np.isfinite(g.w_ih).all()


@pytest.mark.parametrize("cell", CELLS)
def test_reverse_is_time_turned_round(cell, backend):
    x, arrays = problem(cell)
    y, h_n, *_ = forward(cell, x[::-1], arrays, backend=backend)
    turned, h_turned, *_ = forward(cell, x, arrays, reverse=True, backend=backend)
    assert_equal((turned[::-1], h_turned), (y, h_n))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (0, 0, 3)])
def test_nothing_to_do(cell, shape, backend):
    _, arrays = problem(cell)
    steps, batch, _ = shape
    arrays = {name: a[:batch] if name in ("h0", "c0") else a for name, a in arrays.items()}
    *found, tape = forward(cell, np.empty(shape), arrays, lengths=[0] * batch, training=True, backend=backend)
    assert found[0].shape == (steps, batch, H)
    assert_equal(found[1:], [arrays[name] for name in ("h0", "c0") if name in arrays])
    dh = np.ones((batch, H))
    g = backward(cell, tape, None, dh)
    assert g.x.shape == shape
    np.testing.assert_array_equal(g.h0, dh)
    assert not g.w_hh.any()


# ---------------------------------------------------------------------------------------------- what arrays may be


def misaligned(a):
    buffer = np.zeros(a.nbytes + 1, np.uint8)
    view = buffer[1:].view(a.dtype).reshape(a.shape)
    view[...] = a
    assert not view.flags.aligned
    return view


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def strided(a):
    wide = np.full((*a.shape[:-1], 2 * a.shape[-1]), np.nan, a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


class Arrayish:
    """What NumPy can read and is no array, as a tensor of another library."""

    def __init__(self, a):
        self.a = a

    def __array__(self, dtype=None, copy=None):
        return self.a


FORMS = {
    "fortran": np.asfortranarray,
    "big endian": lambda a: a.astype(">f8"),
    "misaligned": misaligned,
    "read-only": read_only,
    "strided": strided,
    "backwards": lambda a: a[::-1].copy()[::-1],
    "nested lists": lambda a: a.tolist(),
    "subclass": lambda a: a.view(type("Sub", (np.ndarray,), {})),
    "protocol": Arrayish,
    "other dtype object": lambda a: np.ndarray(a.shape, np.dtype("f8", copy=True), a.tobytes()),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_forms_of_arrays(cell, form, backend):
    x, arrays = problem(cell)
    gradients = upstream(cell)
    *expected, tape = forward(cell, x, arrays, training=True, backend=backend)
    expected += backward(cell, tape, *gradients)
    change = FORMS[form]
    *found, tape = forward(cell, change(x), {n: change(a) for n, a in arrays.items()}, training=True, backend=backend)
    found += backward(cell, tape, *map(change, gradients))
    assert all(type(f) is np.ndarray for f in found if f is not None)
    for f, e in zip(found, expected, strict=True):
        if e is not None:
            np.testing.assert_allclose(f, e, **CLOSE)


def test_backends_are_given_aligned_arrays_and_lengths_of_their_own(monkeypatch):
    """Kernels may rely on it, though not every CPU minds, and not every caller changes lengths during a call."""
    found, given, lengths = fr.backends.get("reference"), [], np.array(LENGTHS)

    def spy(cell, x, directions, own, training):
        ((weights, h0, c0, _),) = directions
        given.extend((x, *weights, h0, c0))
        assert not np.shares_memory(own, lengths)
        return found.forward(cell, x, directions, own, training)

    monkeypatch.setitem(fr.backends._loaded, "reference", dataclasses.replace(found, forward=spy))
    x, arrays = problem("lstm")
    x, arrays = misaligned(x), {name: misaligned(a) for name, a in arrays.items()}
    forward("lstm", x, arrays, lengths=lengths, backend="reference")
    layer = fr.LSTM(I, H, dtype=np.float64, backend="reference")
    layer(x, (arrays["h0"][None], arrays["c0"][None]), lengths)
    assert len(given) == 14
    assert all(a.flags.aligned for a in given)


@pytest.mark.parametrize("cell", CELLS)
def test_arguments_are_left_as_they_are(cell, backend):
    x, arrays = problem(cell)
    gradients = upstream(cell)
    before = [a.copy() for a in (x, *arrays.values(), *gradients)]
    *results, tape = forward(cell, x, arrays, lengths=LENGTHS, training=True, backend=backend)
    backward(cell, tape, *gradients)
    assert_equal((x, *arrays.values(), *gradients), before)
    assert not any(np.shares_memory(r, a) for r in results for a in (x, *arrays.values()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cell", CELLS)
def test_dtype_is_kept(cell, dtype, backend):
    x, arrays = problem(cell, dtype=dtype)
    *results, tape = forward(cell, x, arrays, training=True, backend=backend)
    gradients = backward(cell, tape, np.ones_like(results[0]))
    assert {a.dtype for a in (*results, *gradients) if a is not None} == {np.dtype(dtype)}


@pytest.mark.parametrize("dtype", [np.float16, np.longdouble])
def test_the_reference_takes_every_floating_dtype(dtype):
    x, arrays = problem("lstm", dtype=dtype)
    *results, tape = forward("lstm", x, arrays, training=True, backend="reference")
    gradients = fr.lstm_backward(tape, np.ones_like(results[0]))
    assert {a.dtype for a in (*results, *gradients)} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    "lengths", [tuple(LENGTHS), np.array(LENGTHS, np.uint8), np.array(LENGTHS, ">i4"), np.repeat(LENGTHS, 2)[::2]]
)
def test_forms_of_lengths(lengths, backend):
    x, arrays = problem("gru")
    expected = forward("gru", x, arrays, lengths=LENGTHS, backend=backend)
    assert_equal(forward("gru", x, arrays, lengths=lengths, backend=backend), expected)


def test_lengths_are_the_tapes_own(backend):
    x, arrays = problem("lstm")
    lengths = np.array(LENGTHS)
    y, *_, tape = forward("lstm", x, arrays, lengths=lengths, training=True, backend=backend)
    expected = fr.lstm_backward(tape, np.ones_like(y))
    *_, tape = forward("lstm", x, arrays, lengths=lengths, training=True, backend=backend)
    lengths[:] = 99
    assert_equal(fr.lstm_backward(tape, np.ones_like(y)), expected)


# ----------------------------------------------------------------------------------------------------------- tapes


def test_a_tape_serves_one_backward(backend):
    x, arrays = problem("gru")
    *_, tape = forward("gru", x, arrays, training=True, backend=backend)
    assert repr(tape) == "<Tape of gru_forward, ready>"
    fr.gru_backward(tape)
    assert repr(tape) == "<Tape of gru_forward, spent>"
    with pytest.raises(RuntimeError, match=r"^tape: a tape serves one backward"):
        fr.gru_backward(tape)


def test_an_error_does_not_spend_the_tape(backend):
    x, arrays = problem("gru")
    *_, tape = forward("gru", x, arrays, training=True, backend=backend)
    with pytest.raises(ValueError, match="dy"):
        fr.gru_backward(tape, np.ones((1, 1, 1)))
    fr.gru_backward(tape, np.ones((T, B, H)))


def test_of_many_threads_one_gets_the_tape(backend):
    x, arrays = problem("lstm")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            *_, tape = forward("lstm", x, arrays, training=True, backend=backend)
            errors = [f.exception() for f in [pool.submit(fr.lstm_backward, tape) for _ in range(4)]]
            assert [type(e) for e in errors if e is not None] == [RuntimeError] * 3


def test_a_tape_stays_on_its_backend():
    x, arrays = problem("lstm")
    *_, tape = forward("lstm", x, arrays, training=True, backend="reference")
    with fr.use_backend(fr.backends.available()[0]):
        assert fr.lstm_backward(tape, np.ones((T, B, H))).x.shape == x.shape
