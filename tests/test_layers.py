"""Layers: against PyTorch in every arrangement, parameters in and out, initialisation, dropout, copies.

Errors are in test_checks.py, frozen layers in test_frozen.py.
"""

import copy
import dataclasses
import itertools
import pickle
import warnings
import weakref

import numpy as np
import pytest

import fusedrnn as fr
import fusedrnn.module

CELLS = ("RNN", "GRU", "LSTM")
T, B, I, H = 6, 4, 3, 5
LENGTHS = [6, 1, 4, 2]
CLOSE = {"rtol": 1e-9, "atol": 1e-12}  # float64, three layers


@pytest.fixture(params=fr.backends.NAMES)
def backend(request):
    if why := fr.backends.missing(request.param):
        pytest.skip(why)
    return request.param


def make(cell, *args, **options):
    """A float64 layer of I and H."""
    return getattr(fr, cell)(I, H, *args, **{"dtype": np.float64, "rng": 0} | options)


def parts(state):
    """A state as a list of arrays."""
    return list(state) if isinstance(state, tuple) else [state]


def whole(cell, arrays):
    """Arrays as a state."""
    return tuple(arrays) if cell == "LSTM" else arrays[0]


def random_state(cell, layer, rng, batch=(B,)):
    rows = layer.num_layers * (2 if layer.bidirectional else 1)
    return whole(cell, [rng.standard_normal((rows, *batch, H)) for _ in range(2 if cell == "LSTM" else 1)])


def assert_same(found, expected):
    for f, e in zip(parts(found), parts(expected), strict=True):
        np.testing.assert_array_equal(f, e, strict=True)


def spied(monkeypatch, backend):
    """What the backend's forward is called with and what it returns, from now on."""
    found, calls = fr.backends.get(backend), []

    def forward(*args):
        calls.append((args, found.forward(*args)))
        return calls[-1][1]

    monkeypatch.setitem(fr.backends._loaded, backend, dataclasses.replace(found, forward=forward))
    return calls


# --------------------------------------------------------------------------------------------------- PyTorch's results


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-major", "batch-first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize(
    ("cell", "own"),
    [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("GRU", {}), ("GRU", {"bias": False}), ("LSTM", {})],
)
def test_agrees_with_pytorch(cell, own, num_layers, bidirectional, batch_first, lengths, backend):
    torch = pytest.importorskip("torch")
    options = {"num_layers": num_layers, "bidirectional": bidirectional, "batch_first": batch_first} | own
    module = getattr(torch.nn, cell)(I, H, dtype=torch.float64, **options)
    layer = make(cell, backend=backend, **options)
    layer.load_state_dict(module.state_dict())
    rng = np.random.default_rng(1)
    x = rng.standard_normal((B, T, I) if batch_first else (T, B, I))
    state = random_state(cell, layer, rng)

    tx = torch.from_numpy(x).requires_grad_()
    ts = [torch.from_numpy(s).requires_grad_() for s in parts(state)]
    given = tx
    if lengths is not None:
        given = torch.nn.utils.rnn.pack_padded_sequence(tx, lengths, batch_first, enforce_sorted=False)
    ty, tn = module(given, whole(cell, ts))
    if lengths is not None:
        ty, _ = torch.nn.utils.rnn.pad_packed_sequence(ty, batch_first, total_length=T)
    expected = [ty, *parts(tn)]

    inferred = layer(x, state, lengths)
    y, last, tape = layer.forward(x, state, lengths)
    for f, i, e in zip([y, *parts(last)], [inferred[0], *parts(inferred[1])], expected, strict=True):
        np.testing.assert_allclose(f, e.detach(), **CLOSE)
        np.testing.assert_array_equal(f, i)

    gradients = [rng.standard_normal(e.shape) for e in expected]
    torch.autograd.backward(expected, [torch.from_numpy(g) for g in gradients])
    g = layer.backward(tape, gradients[0], whole(cell, gradients[1:]))
    np.testing.assert_allclose(g.x, tx.grad, **CLOSE)
    for f, e in zip(parts(g.state), ts, strict=True):
        np.testing.assert_allclose(f, e.grad, **CLOSE)
    assert list(g.parameters) == [name for name, _ in module.named_parameters()]
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(g.parameters[name], parameter.grad, err_msg=name, **CLOSE)


@pytest.mark.parametrize("cell", CELLS)
def test_state_dict_goes_to_pytorch_and_back(cell):
    torch = pytest.importorskip("torch")
    options = {"num_layers": 2, "bidirectional": True}
    layer = getattr(fr, cell)(I, H, **options, rng=0)
    module = getattr(torch.nn, cell)(I, H, **options)
    assert list(layer.state_dict()) == list(module.state_dict())
    module.load_state_dict({name: torch.from_numpy(a) for name, a in layer.state_dict().items()})
    other = getattr(fr, cell)(I, H, **options, rng=1)
    other.load_state_dict(module.state_dict())
    for name, a in layer.parameters.items():
        np.testing.assert_array_equal(other.parameters[name], a, strict=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_layers": 2},
        {"bias": False},
        {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.5, "bidirectional": True},
    ],
)
@pytest.mark.parametrize("cell", CELLS)
def test_repr_is_pytorchs(cell, options):
    torch = pytest.importorskip("torch")
    assert repr(getattr(fr, cell)(3, 4, **options)) == repr(getattr(torch.nn, cell)(3, 4, **options))


def test_repr_shows_what_pytorch_has_not():
    assert repr(fr.RNN(3, 4, nonlinearity="relu", dtype="f8")) == "RNN(3, 4, nonlinearity='relu', dtype='float64')"
    shown = "GRU(3, 4, reset_after=False, backend='reference')"
    assert repr(fr.GRU(3, 4, reset_after=False, backend="reference")) == shown
    assert repr(eval(shown, {"GRU": fr.GRU})) == shown


# ------------------------------------------------------------------------------------------------------------- calls


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-major", "batch-first"])
@pytest.mark.parametrize("cell", CELLS)
def test_unbatched_is_a_batch_of_one(cell, batch_first, bidirectional, backend):
    layer = make(cell, 2, bidirectional=bidirectional, batch_first=batch_first, backend=backend)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((T, I))
    state = random_state(cell, layer, rng, batch=())
    batch = np.expand_dims(x, 0 if batch_first else 1), whole(cell, [s[:, None] for s in parts(state)])

    def squeezed(y, s):
        return y.squeeze(0 if batch_first else 1), whole(cell, [a[:, 0] for a in parts(s)])

    y, last = squeezed(*layer(*batch))
    assert_same(layer(x, state)[0], y)
    assert_same(layer(x, state)[1], last)
    y, last, tape = layer.forward(x, state)
    g = layer.backward(tape, y, last)
    *_, tape = layer.forward(*batch)
    of_batch = layer.backward(
        tape, np.expand_dims(y, 0 if batch_first else 1), whole(cell, [s[:, None] for s in parts(last)])
    )
    for found, expected in zip((g.x, *parts(g.state)), (of_batch.x, *parts(of_batch.state)), strict=True):
        np.testing.assert_array_equal(found, expected.reshape(found.shape))
    for name, value in g.parameters.items():
        np.testing.assert_array_equal(value, of_batch.parameters[name])


def test_batch_first_is_a_view(monkeypatch):
    layer = make("GRU", batch_first=True, backend="reference")
    calls = spied(monkeypatch, "reference")
    x = np.ones((B, T, I))
    y, _ = layer(x)
    (_, seen, *_), _ = calls[0]
    assert np.shares_memory(seen, x)
    assert y.swapaxes(0, 1).flags.c_contiguous
    assert y.base is not None


@pytest.mark.parametrize("cell", CELLS)
def test_no_state_is_zeros(cell, backend):
    layer = make(cell, 2, backend=backend)
    x = np.random.default_rng(1).standard_normal((T, B, I))
    zeros = whole(cell, [np.zeros((2, B, H))] * 2)
    assert_same(layer(x)[0], layer(x, zeros)[0])
    if cell == "LSTM":
        assert_same(layer(x)[0], layer(x, (None, zeros[1]))[0])
        assert_same(layer(x)[0], layer(x, [zeros[0], None])[0])


@pytest.mark.parametrize("cell", CELLS)
def test_the_state_carries_on(cell, backend):
    layer = make(cell, 2, backend=backend)
    x = np.random.default_rng(1).standard_normal((T, B, I))
    y, last = layer(x)
    first, state = layer(x[:2])
    second, state = layer(x[2:], state)
    np.testing.assert_allclose(np.concatenate([first, second]), y, **CLOSE)
    for f, e in zip(parts(state), parts(last), strict=True):
        np.testing.assert_allclose(f, e, **CLOSE)


@pytest.mark.parametrize("cell", CELLS)
def test_backward_takes_any_of_its_gradients(cell, backend):
    layer = make(cell, 2, bidirectional=True, backend=backend)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((T, B, I))
    dy, dstate = rng.standard_normal((T, B, 2 * H)), random_state(cell, layer, rng)

    def run(*given):
        return layer.backward(layer.forward(x)[2], *given)

    both, of_y, of_state, of_none = run(dy, dstate), run(dy), run(None, dstate), run()
    np.testing.assert_allclose(of_y.x + of_state.x, both.x, **CLOSE)
    for name, value in both.parameters.items():
        np.testing.assert_allclose(of_y.parameters[name] + of_state.parameters[name], value, err_msg=name, **CLOSE)
    assert not of_none.x.any()
    if cell == "LSTM":
        halves = run(None, (dstate[0], None)), run(None, (None, dstate[1]))
        np.testing.assert_allclose(halves[0].x + halves[1].x, of_state.x, **CLOSE)


@pytest.mark.parametrize("options", [{}, {"num_layers": 3, "dropout": 0.5}, {"bidirectional": True}], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_dx_only_where_it_is_wanted(cell, options, backend):
    x = np.random.default_rng(2).standard_normal((T, B, I))
    of_all, rest = (
        layer.backward(layer.forward(x, lengths=LENGTHS)[2], np.ones((T, B, D * H)), dx=dx)
        for dx in (True, False)
        for layer in [make(cell, backend=backend, **options)]
        for D in [1 + layer.bidirectional]
    )
    assert of_all.x.shape == x.shape
    assert rest.x is None
    assert_same(rest.state, of_all.state)
    for name, want in of_all.parameters.items():
        np.testing.assert_array_equal(rest.parameters[name], want)
    layer = make(cell, backend=backend)
    with pytest.raises(TypeError, match=r"^dx: expected True or False, got None"):
        layer.backward(layer.forward(x)[2], dx=None)


@pytest.mark.parametrize(("steps", "batch"), [(0, 2), (3, 0), (0, 0)])
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_to_do(cell, steps, batch, backend):
    layer = make(cell, 2, bidirectional=True, dropout=0.5, backend=backend)
    x, state = np.empty((steps, batch, I)), random_state(cell, layer, np.random.default_rng(1), (batch,))
    y, last = layer(x, state, [0] * batch)
    assert y.shape == (steps, batch, 2 * H)
    assert_same(last, state)
    *_, tape = layer.forward(x, state)
    g = layer.backward(tape, y, state)
    assert g.x.shape == x.shape
    if not steps:
        assert_same(g.state, state)
    assert not any(value.any() for value in g.parameters.values())


def test_inference_keeps_no_tape(backend, monkeypatch):
    calls = spied(monkeypatch, backend)
    layer = make("LSTM", 2, bidirectional=True, backend=backend)
    layer(np.ones((T, B, I)))
    layer.freeze()(np.ones((T, B, I)))
    fr.LSTMCell(I, H, backend=backend)(np.ones((B, I), np.float32))
    assert [(training, tape) for (*_, training), (*_, tape) in calls] == [(False, None)] * 5


def test_a_tape_serves_one_backward_of_its_own_layer(backend):
    layer, twin = make("GRU", backend=backend), make("GRU", backend=backend)
    *_, tape = layer.forward(np.ones((T, B, I)))
    with pytest.raises(ValueError, match="another GRU"):
        twin.backward(tape)
    layer.backward(tape)
    with pytest.raises(RuntimeError, match=r"^tape: a tape serves one backward"):
        layer.backward(tape)


def test_a_tape_stays_on_its_backend():
    layer, x = make("LSTM", 2, bidirectional=True), np.ones((T, B, I))
    for name, other in itertools.permutations(fr.backends.available(), 2):
        layer.backend = name
        want, found = layer.forward(x)[-1], layer.forward(x)[-1]
        want = layer.backward(want, np.ones((T, B, 2 * H))).x
        layer.backend = other
        assert_same(layer.backward(found, np.ones((T, B, 2 * H))).x, want)


def test_backward_gives_the_memory_back_layer_by_layer(monkeypatch):
    found, tapes, alive = fr.backends.get("reference"), [], []

    def forward(*args):
        answer = found.forward(*args)
        tapes.append(weakref.ref(answer[-1]))
        return answer

    def backward(*args):
        alive.append(sum(tape() is not None for tape in tapes))
        return found.backward(*args)

    monkeypatch.setitem(
        fr.backends._loaded, "reference", dataclasses.replace(found, forward=forward, backward=backward)
    )
    layer = make("LSTM", 3, bidirectional=True, dropout=0.5, backend="reference")
    layer.backward(layer.forward(np.ones((T, B, I)))[-1])
    assert alive == [3, 2, 1]


# -------------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("cell", [*CELLS, "RNNCell", "GRUCell", "LSTMCell"])
def test_parameters_are_drawn_as_in_pytorch(cell):
    options = {} if cell.endswith("Cell") else {"num_layers": 2, "bidirectional": True}
    layer = getattr(fr, cell)(30, 100, **options, rng=0)
    for value in layer.parameters.values():
        assert value.dtype == np.float32
        assert np.abs(value).max() <= 0.1  # 1 / sqrt(H)
    values = np.concatenate([value.ravel() for value in layer.parameters.values()])
    assert np.abs(values).max() > 0.0999
    assert abs(values.mean()) < 1e-3
    assert values.std() == pytest.approx(0.1 / np.sqrt(3), rel=0.01)


def test_rng_makes_the_parameters():
    one, same, other = (fr.LSTM(I, H, rng=seed) for seed in (0, np.random.default_rng(0), 1))
    assert_same(tuple(one.parameters.values()), tuple(same.parameters.values()))
    assert (one.parameters["bias_ih_l0"] != other.parameters["bias_ih_l0"]).all()
    held = dict(one.parameters)  # as an optimiser has them
    one.reset_parameters()
    assert all(one.parameters[name] is array for name, array in held.items())
    assert (one.parameters["bias_ih_l0"] != same.parameters["bias_ih_l0"]).all()
    shared = np.random.default_rng(0)  # goes on where the layer before has left it
    assert fr.LSTM(I, H, rng=shared).rng is fr.GRUCell(I, H, rng=shared).rng is shared


@pytest.mark.parametrize("bias", [True, False])
def test_names_and_shapes(bias):
    layer = fr.GRU(I, H, 2, bias, bidirectional=True)
    shapes = {}
    for ending, width in (("l0", I), ("l0_reverse", I), ("l1", 2 * H), ("l1_reverse", 2 * H)):
        shapes |= {f"weight_ih_{ending}": (3 * H, width), f"weight_hh_{ending}": (3 * H, H)}
        if bias:
            shapes |= {f"bias_ih_{ending}": (3 * H,), f"bias_hh_{ending}": (3 * H,)}
    assert {name: value.shape for name, value in layer.parameters.items()} == shapes
    assert list(layer.state_dict()) == list(shapes)


def test_state_dict_is_a_copy_and_loading_is_in_place():
    layer = make("LSTM")
    saved, arrays = layer.state_dict(), dict(layer.parameters)
    for value in layer.parameters.values():
        value[...] = 0
    assert all(value.any() for value in saved.values())
    layer.load_state_dict(saved)
    for name, value in layer.parameters.items():
        assert value is arrays[name]
        np.testing.assert_array_equal(value, saved[name])


def test_loading_casts():
    layer = fr.RNN(I, H)
    layer.load_state_dict({name: value.astype(">f8").tolist() for name, value in layer.state_dict().items()})
    assert {value.dtype for value in layer.parameters.values()} == {np.dtype(np.float32)}
    layer.load_state_dict({name: np.full(value.shape, np.inf) for name, value in layer.state_dict().items()})
    assert all((value == np.inf).all() for value in layer.parameters.values())


def test_loading_is_all_or_nothing():
    layer = make("GRU", 2)
    before = layer.state_dict()
    bad = {name: value + 1 for name, value in before.items()}
    bad["bias_hh_l1"] = bad["bias_hh_l1"][1:]
    with pytest.raises(ValueError, match="bias_hh_l1"):
        layer.load_state_dict(bad)
    assert_same(tuple(layer.parameters.values()), tuple(before.values()))


def test_parameters_may_be_changed_and_replaced(backend):
    layer, other = make("LSTM", backend=backend), make("LSTM", rng=1, backend=backend)
    x = np.ones((T, B, I))
    for name, value in other.parameters.items():
        if name.startswith("weight"):
            layer.parameters[name][...] = value
        else:
            layer.parameters[name] = value
    assert_same(layer(x)[0], other(x)[0])


def test_options_go_to_the_right_cell(backend):
    x = np.random.default_rng(1).standard_normal((T, B, I))
    for options, other in (({"reset_after": False}, {}), ({"nonlinearity": "relu"}, {})):
        cell = "GRU" if "reset_after" in options else "RNN"
        layer = make(cell, backend=backend, **options)
        forward = getattr(fr, f"{cell.lower()}_forward")
        found = layer(x)
        expected = forward(x, *layer.parameters.values(), backend=backend, **options)
        assert_same((found[0], found[1][0]), expected[:2])
        assert (forward(x, *layer.parameters.values(), backend=backend, **other)[0] != found[0]).any()


def test_positional_arguments_are_pytorchs():
    layer = fr.RNN(I, H, 2, "relu", False, True, 0.5, True)
    shown = "(3, 5, num_layers=2, bias=False, batch_first=True, dropout=0.5, bidirectional=True"
    assert repr(layer) == f"RNN{shown}, nonlinearity='relu')"
    for make in (fr.GRU, fr.LSTM):
        assert repr(make(I, H, 2, False, True, 0.5, True)) == f"{make.__name__}{shown})"


def test_flags_may_be_numpys():
    layer = fr.GRU(I, H, 1, np.False_, np.True_, bidirectional=np.True_, reset_after=np.False_)
    assert repr(layer) == "GRU(3, 5, bias=False, batch_first=True, bidirectional=True, reset_after=False)"


# ----------------------------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_is_between_layers_in_training(cell, backend):
    """The loss is that of a layer whose masks are drawn alike: a copy, whose generator is in the same state."""
    layer = make(cell, 3, dropout=0.3, bidirectional=True, backend=backend)
    rng = np.random.default_rng(1)
    x, direction = rng.standard_normal((2, T, B, I))
    dy = rng.standard_normal((T, B, 2 * H))

    def loss(step):
        return float((copy.deepcopy(layer).forward(x + step * direction)[0] * dy).sum())

    start = copy.deepcopy(layer)
    y, _, tape = start.forward(x)
    start.dropout = 0  # comes after this tape
    slope = float((start.backward(tape, dy).x * direction).sum())
    e = 1e-4
    expected = (8 * (loss(e) - loss(-e)) - (loss(2 * e) - loss(-2 * e))) / (12 * e)
    assert slope == pytest.approx(expected, rel=1e-8, abs=1e-9)
    assert (y != layer(x)[0]).any()
    assert_same(layer(x)[0], layer(x)[0])


def test_dropout_keeps_the_mean_and_drops_its_share():
    layer = fr.RNN(1, 100, 2, "relu", dropout=0.25, rng=0, backend="reference")
    for name, value in layer.parameters.items():
        value[...] = np.eye(100) if name == "weight_ih_l1" else name == "bias_ih_l0"
    y, _, _ = layer.forward(np.zeros((50, 20, 1), np.float32))
    assert set(np.unique(y)) == {0, np.float32(1 / 0.75)}
    assert (y == 0).mean() == pytest.approx(0.25, abs=0.005)  # 10^5 draws: three standard deviations are 0.004


def test_all_dropped():
    layer = make("GRU", 2, dropout=1, backend="reference")
    x = np.ones((T, B, I))
    y, _, tape = layer.forward(x)
    assert_same(y, layer.forward(2 * x)[0])
    assert_same(y, layer.forward(np.nan * x)[0])
    assert not layer.backward(tape, np.ones_like(y)).x.any()


def test_every_mask_is_drawn_anew():
    """In every layer and in every call: what two layers of identities hand on is a quarter."""
    layer = fr.RNN(1, 100, 3, "relu", dropout=0.5, rng=0, backend="reference")
    for name, value in layer.parameters.items():
        value[...] = np.eye(100) if name in ("weight_ih_l1", "weight_ih_l2") else name == "bias_ih_l0"
    one, other = (layer.forward(np.zeros((50, 20, 1), np.float32))[0] for _ in range(2))
    for y, share in ((one, 0.25), (one * other, 0.0625)):
        assert (y > 0).mean() == pytest.approx(share, abs=0.005)  # 10^5 draws: three standard deviations are 0.004


def test_dropout_of_one_layer_warns():
    with pytest.warns(UserWarning, match="dropout acts between layers, and num_layers is 1") as caught:
        fr.GRU(I, H, dropout=0.5)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fr.GRU(I, H, 2, dropout=0.5)


def test_dropout_may_be_changed():
    layer = make("GRU", 2, dropout=0.5, backend="reference")
    x = np.ones((T, B, I))
    layer.dropout = 0
    assert_same(layer.forward(x)[0], layer(x)[0])
    for wrong, error in ((1.5, ValueError), (np.nan, ValueError), ("0.5", TypeError), (None, TypeError)):
        with pytest.raises(error, match="dropout: expected a number"):
            layer.dropout = wrong
    assert layer.dropout == 0


@pytest.mark.parametrize("cell", CELLS)
def test_parameters_may_be_views_of_one_vector(cell):
    """Whoever changes the vector changes the layer, in the next call already."""
    layer, other = make(cell, 2), make(cell, 2)
    flat, at = np.zeros(sum(p.size for p in layer.parameters.values())), 0
    for name, p in layer.parameters.items():
        layer.parameters[name] = flat[at : at + p.size].reshape(p.shape)
        at += p.size
    x = np.random.default_rng(0).standard_normal((3, 2, I))
    assert not layer(x)[0].any()
    flat[:] = np.concatenate([p.ravel() for p in other.parameters.values()])
    assert np.array_equal(layer(x)[0], other(x)[0])
    assert other(x)[0].any()


@pytest.mark.parametrize("cell", CELLS)
def test_options_are_fixed(cell):
    """They would come too late: parameters and the order of axes are decided."""
    layer = make(cell, 2)
    for name in ("cell", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "dtype"):
        with pytest.raises(AttributeError, match=f"{name}: fixed when this {cell} was made"):
            setattr(layer, name, getattr(layer, name))
    for kind, name in ((fr.RNN, "nonlinearity"), (fr.RNNCell, "nonlinearity"), (fr.GRU, "reset_after")):
        with pytest.raises(AttributeError, match=f"{name}: fixed when this {kind.__name__} was made"):
            setattr(kind(I, H), name, None)
        with pytest.raises(AttributeError, match=f"{name}: fixed when this {kind.__name__} was made"):
            delattr(kind(I, H), name)
    for name in layer.parameters:
        with pytest.raises(AttributeError, match=rf"{name}: a parameter, not an attribute; .* parameters\['{name}'\]"):
            setattr(layer, name, None)
    layer.note = layer.backend = None  # others are free
    del layer.note


def test_a_source_of_random_numbers_may_be_a_seed():
    layer = fr.GRU(I, H, 2, dropout=0.5, rng=0)
    layer.rng = 1
    layer.reset_parameters()
    expected = fr.GRU(I, H, 2, rng=1)
    for key, value in expected.parameters.items():
        assert_same(layer.parameters[key], value)
    assert_same(layer.rng.random(), expected.rng.random())
    layer.rng = source = np.random.default_rng(2)
    assert layer.rng is source
    with pytest.raises(TypeError, match=r"rng: expected a numpy.random.Generator, a seed or None, got 'two'"):
        layer.rng = "two"
    assert layer.rng is source


@pytest.mark.parametrize("at_once", [1, 7, 40])
def test_parameters_drawn_in_pieces_are_the_same_numbers(at_once, monkeypatch):
    expected = fr.LSTM(3, 5, 2, rng=0)
    fr.init.glorot(expected)
    monkeypatch.setattr(fusedrnn.module, "AT_ONCE", at_once)
    layer = fr.LSTM(3, 5, 2, rng=0)
    fr.init.glorot(layer)
    for key, value in expected.parameters.items():
        assert_same(layer.parameters[key], value)


# ------------------------------------------------------------------------------------------------------------ copies


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))], ids=["deepcopy", "pickle"]
)
@pytest.mark.parametrize("cell", CELLS)
def test_copies_are_independent(cell, duplicate, backend):
    layer = make(cell, 2, bidirectional=True, dropout=0.5, backend=backend)
    twin = duplicate(layer)
    x = np.random.default_rng(1).standard_normal((T, B, I))
    expected = layer(x)[0].copy()
    assert_same(twin(x)[0], expected)
    assert_same(twin.forward(x)[0], layer.forward(x)[0])  # the generators go on alike
    for value in layer.parameters.values():
        value[...] = 0
    assert_same(twin(x)[0], expected)
    assert repr(twin) == repr(layer)


def test_a_shallow_copy_shares_the_parameters():
    layer = make("GRU")
    assert copy.copy(layer).parameters is layer.parameters


# ---------------------------------------------------------------------------------------------------- initialisation


@pytest.mark.parametrize("cell", CELLS)
def test_glorot(cell):
    layer = getattr(fr, cell)(30, 50, 2, bidirectional=True, rng=0)
    before = layer.state_dict()
    fr.init.glorot(layer)
    fans_of = {"weight_ih_l0": 30 + 50, "weight_ih_l1": 2 * 50 + 50}
    for name, fans in (fans_of | {f"{name}_reverse": fans for name, fans in fans_of.items()}).items():
        value, k = layer.parameters[name], np.sqrt(6 / fans)
        assert 0.99 * k < np.abs(value).max() <= k
        assert value.std() == pytest.approx(k / np.sqrt(3), rel=0.05)
    for name, value in layer.parameters.items():
        assert (value == before[name]).all() != name.startswith("weight_ih")


@pytest.mark.parametrize("cell", CELLS)
def test_orthogonal(cell):
    layer = getattr(fr, cell)(I, 20, bidirectional=True, rng=0)
    before = layer.state_dict()
    fr.init.orthogonal(layer, gain=2.0)
    for name, value in layer.parameters.items():
        if name.startswith("weight_hh"):
            for gate in value.reshape(-1, 20, 20):
                np.testing.assert_allclose(gate @ gate.T, 4 * np.eye(20), atol=1e-5)
        else:
            np.testing.assert_array_equal(value, before[name])


def test_orthogonal_is_drawn_uniformly():
    """The Q of a Gaussian matrix's decomposition whose R has a positive diagonal: signs of LAPACK's are no chance."""
    layer, rng = fr.LSTM(I, 20), np.random.default_rng(1)
    fr.init.orthogonal(layer, rng=1)
    for gate in layer.parameters["weight_hh_l0"].reshape(4, 20, 20):
        r = gate.T @ rng.standard_normal((20, 20))
        np.testing.assert_allclose(r, np.triu(r), atol=1e-5)
        assert (np.diagonal(r) > 0).all()


@pytest.mark.parametrize(
    ("make_one", "options"), [(fr.LSTM, {"num_layers": 2, "bidirectional": True}), (fr.LSTMCell, {})]
)
def test_forget_bias(make_one, options):
    module = make_one(I, H, **options, rng=0)
    before = module.state_dict()
    fr.init.forget_bias(module, 1.5)
    for name, value in module.parameters.items():
        expected = before[name].copy()
        if name.startswith("bias"):
            expected[H : 2 * H] = 1.5 if "ih" in name else 0
        np.testing.assert_array_equal(value, expected)


def test_zero_biases():
    layer = fr.GRU(I, H, 2, bidirectional=True, rng=0)
    fr.init.zero_biases(layer)
    assert all(value.any() != name.startswith("bias") for name, value in layer.parameters.items())


@pytest.mark.parametrize("initialise", [fr.init.glorot, fr.init.orthogonal])
def test_initialisers_draw_from_what_they_are_given(initialise):
    layers = [fr.LSTM(I, H, rng=0) for _ in range(4)]
    for layer, rng in zip(layers, (None, None, 1, np.random.default_rng(1)), strict=True):
        initialise(layer, rng)
    one, two, three, four = (tuple(layer.parameters.values()) for layer in layers)
    assert_same(one, two)
    assert_same(three, four)
    assert any((a != b).any() for a, b in zip(one, three, strict=True))
