"""Cells: against PyTorch, and against the layer whose single step they are. Errors are in test_checks.py."""

import copy
import itertools
import pickle

import numpy as np
import pytest

import fusedrnn as fr

CELLS = ("RNN", "GRU", "LSTM")
T, B, I, H = 6, 4, 3, 5
CLOSE = {"rtol": 1e-10, "atol": 1e-12}  # float64, one step


@pytest.fixture(params=fr.backends.NAMES)
def backend(request):
    if why := fr.backends.missing(request.param):
        pytest.skip(why)
    return request.param


def make(cell, **options):
    return getattr(fr, f"{cell}Cell")(I, H, **{"dtype": np.float64, "rng": 0} | options)


def parts(state):
    return list(state) if isinstance(state, tuple) else [state]


def whole(cell, arrays):
    return tuple(arrays) if cell == "LSTM" else arrays[0]


def arguments(cell, batch=(B,), seed=1):
    """x, a state, and a gradient of a state."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((2, 2, *batch, H))
    return rng.standard_normal((*batch, I)), whole(cell, list(states[0])), whole(cell, list(states[1]))


@pytest.mark.parametrize("batch", [(B,), ()], ids=["batch", "unbatched"])
@pytest.mark.parametrize(
    ("cell", "options"),
    [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("GRU", {}), ("LSTM", {}), ("LSTM", {"bias": False})],
)
def test_agrees_with_pytorch(cell, options, batch, backend):
    torch = pytest.importorskip("torch")
    module = getattr(torch.nn, f"{cell}Cell")(I, H, dtype=torch.float64, **options)
    own = make(cell, backend=backend, **options)
    assert list(own.state_dict()) == list(module.state_dict())
    own.load_state_dict(module.state_dict())
    x, state, gradient = arguments(cell, batch)

    tx = torch.from_numpy(x).requires_grad_()
    ts = [torch.from_numpy(s).requires_grad_() for s in parts(state)]
    expected = parts(module(tx, whole(cell, ts)))
    torch.autograd.backward(expected, [torch.from_numpy(g) for g in parts(gradient)])

    inferred = own(x, state)
    found, tape = own.forward(x, state)
    g = own.backward(tape, gradient)
    for f, i, e in zip(parts(found), parts(inferred), expected, strict=True):
        np.testing.assert_allclose(f, e.detach(), **CLOSE)
        np.testing.assert_array_equal(f, i)
    np.testing.assert_allclose(g.x, tx.grad, **CLOSE)
    for f, e in zip(parts(g.state), ts, strict=True):
        np.testing.assert_allclose(f, e.grad, **CLOSE)
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(g.parameters[name], parameter.grad, err_msg=name, **CLOSE)


@pytest.mark.parametrize("options", [{}, {"bias": False}])
@pytest.mark.parametrize("cell", CELLS)
def test_repr_is_pytorchs(cell, options):
    torch = pytest.importorskip("torch")
    found = repr(getattr(fr, f"{cell}Cell")(3, 4, **options))
    assert found == repr(getattr(torch.nn, f"{cell}Cell")(3, 4, **options))


def test_repr_shows_what_differs():
    assert repr(fr.RNNCell(3, 4, True, "relu")) == "RNNCell(3, 4, nonlinearity='relu')"
    assert repr(fr.GRUCell(3, 4, reset_after=False, dtype="f8")) == "GRUCell(3, 4, reset_after=False, dtype='float64')"


@pytest.mark.parametrize(
    ("cell", "options"),
    [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("GRU", {}), ("GRU", {"reset_after": False}), ("LSTM", {})],
)
def test_a_loop_over_a_cell_is_a_layer(cell, options, backend):
    """Forward, and backward through the loop by hand."""
    own = make(cell, backend=backend, **options)
    layer = getattr(fr, cell)(I, H, dtype=np.float64, backend=backend, **options)
    layer.load_state_dict({f"{name}_l0": value for name, value in own.parameters.items()})
    rng = np.random.default_rng(1)
    x, dy = rng.standard_normal((T, B, I)), rng.standard_normal((T, B, H))
    y, last, tape = layer.forward(x)
    expected = layer.backward(tape, dy)

    state, tapes = None, []
    for t in range(T):
        state, tape = own.forward(x[t], state)
        tapes.append(tape)
        np.testing.assert_allclose(parts(state)[0], y[t], **CLOSE)
    for f, e in zip(parts(state), parts(last), strict=True):
        np.testing.assert_allclose(f, e[0], **CLOSE)
    gradient, total = whole(cell, [np.zeros((B, H))] * 2), dict.fromkeys(own.parameters, 0)
    for t in reversed(range(T)):
        gradient = whole(cell, [parts(gradient)[0] + dy[t], *parts(gradient)[1:]])
        g = own.backward(tapes[t], gradient)
        gradient = g.state
        total = {name: total[name] + value for name, value in g.parameters.items()}
        np.testing.assert_allclose(g.x, expected.x[t], **CLOSE)
    for name, value in total.items():
        np.testing.assert_allclose(value, expected.parameters[f"{name}_l0"], err_msg=name, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_none_is_zeros(cell, backend):
    own = make(cell, backend=backend)
    x, state, gradient = arguments(cell)
    zeros = whole(cell, [np.zeros((B, H))] * 2)
    for f, e in zip(parts(own(x)), parts(own(x, zeros)), strict=True):
        np.testing.assert_array_equal(f, e)
    assert not own.backward(own.forward(x, state)[1]).x.any()
    if cell == "LSTM":
        of_h = own.backward(own.forward(x, state)[1], (gradient[0], None)).x
        of_c = own.backward(own.forward(x, state)[1], [None, gradient[1]]).x
        both = own.backward(own.forward(x, state)[1], gradient).x
        np.testing.assert_allclose(of_h + of_c, both, **CLOSE)


@pytest.mark.parametrize("cell", CELLS)
def test_an_empty_batch(cell, backend):
    own = make(cell, backend=backend)
    assert all(s.shape == (0, H) for s in parts(own(np.empty((0, I)))))


def test_a_tape_serves_one_backward_of_its_own_cell(backend):
    own, twin = make("GRU", backend=backend), make("GRU", backend=backend)
    _, tape = own.forward(np.ones((B, I)))
    with pytest.raises(ValueError, match="another GRUCell"):
        twin.backward(tape)
    own.backward(tape)
    with pytest.raises(RuntimeError, match=r"^tape: a tape serves one backward"):
        own.backward(tape)


@pytest.mark.parametrize("batch", [(B,), ()], ids=["batch", "unbatched"])
@pytest.mark.parametrize("cell", CELLS)
def test_dx_only_where_it_is_wanted(cell, batch, backend):
    own, (x, state, gradient) = make(cell, backend=backend), arguments(cell, batch)
    of_all, rest = (own.backward(own.forward(x, state)[1], gradient, dx=dx) for dx in (True, False))
    assert of_all.x.shape == x.shape
    assert rest.x is None
    for found, want in zip(parts(rest.state), parts(of_all.state), strict=True):
        np.testing.assert_array_equal(found, want)
    for name, want in of_all.parameters.items():
        np.testing.assert_array_equal(rest.parameters[name], want)
    with pytest.raises(TypeError, match=r"^dx: expected True or False, got 0"):
        own.backward(own.forward(x, state)[1], gradient, dx=0)


def test_a_tape_stays_on_its_backend():
    own, x = make("LSTM"), np.ones((B, I))
    for name, other in itertools.permutations(fr.backends.available(), 2):
        own.backend = name
        want, found = own.forward(x)[-1], own.forward(x)[-1]
        want = own.backward(want, (np.ones((B, H)), None)).x
        own.backend = other
        assert np.array_equal(own.backward(found, (np.ones((B, H)), None)).x, want)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(duplicate, backend):
    own = make("LSTM", backend=backend)
    twin = duplicate(own)
    x, state, _ = arguments("LSTM")
    expected = own(x, state)
    for value in own.parameters.values():
        value[...] = 0
    for f, e in zip(twin(x, state), expected, strict=True):
        np.testing.assert_array_equal(f, e)
