"""Bad input on every public function: the kind of error and the whole sentence."""

import copy
import pickle
import re
import sys

import numpy as np
import pytest

import fusedrnn as fr

T, B, I, H = 6, 4, 3, 5
F4, F8 = np.float32, np.float64
MOST = sys.maxsize


def zeros(*shape, dtype=F8):
    return np.zeros(shape, dtype)


def huge(*shape, dtype=F8):
    """An array that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def fails(error, sentence, function, *args, **options):
    with pytest.raises(error, match=rf"\A{re.escape(sentence)}\Z") as caught:
        function(*args, **options)
    assert type(caught.value) is error


# ----------------------------------------------------------------------------------------------- functional, forward

FORWARD = {"rnn": fr.rnn_forward, "gru": fr.gru_forward, "lstm": fr.lstm_forward}
BACKWARD = {"rnn": fr.rnn_backward, "gru": fr.gru_backward, "lstm": fr.lstm_backward}
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def arguments(cell):
    rows = GATES[cell] * H
    given = {
        "x": zeros(T, B, I),
        "w_ih": zeros(rows, I),
        "w_hh": zeros(rows, H),
        "b_ih": zeros(rows),
        "b_hh": zeros(rows),
    }
    given["h0"] = zeros(B, H)
    if cell == "lstm":
        given["c0"] = zeros(B, H)
    return given


BAD_FORWARD = [
    # name, value, error, sentence
    ("x", zeros(B, I), ValueError, "x: expected shape (T, B, I), got (4, 3)"),
    ("x", zeros(T, B, I, 1), ValueError, "x: expected shape (T, B, I), got (6, 4, 3, 1)"),
    ("x", 0.0, ValueError, "x: expected shape (T, B, I), got ()"),
    ("x", zeros(T, B, 4), ValueError, "x: expected shape (T, B, 3) as w_ih has 3 columns, got (6, 4, 4)"),
    ("x", zeros(T, B, I, dtype=np.int64), TypeError, "x: expected float32 or float64, got int64"),
    ("x", zeros(T, B, I, dtype=">i2"), TypeError, "x: expected float32 or float64, got int16"),
    ("x", zeros(T, B, I, dtype=complex), TypeError, "x: expected float32 or float64, got complex128"),
    ("x", zeros(T, B, I, dtype=bool), TypeError, "x: expected float32 or float64, got bool"),
    ("x", zeros(T, B, I, dtype=object), TypeError, "x: expected float32 or float64, got an array of objects"),
    ("x", None, TypeError, "x: expected float32 or float64, got None"),
    ("x", "text", TypeError, "x: expected float32 or float64, got <U4"),
    ("x", {}, TypeError, "x: expected float32 or float64, got dict"),
    ("x", np.ma.zeros((T, B, I)), TypeError, "x: expected float32 or float64, got a masked array"),
    ("w_ih", zeros(T, B, I, dtype=F4), TypeError, "w_ih: expected float64 as x, got float32"),
    ("w_ih", None, TypeError, "w_ih: expected float64 as x, got None"),
    ("w_hh", zeros(H, dtype=F4), TypeError, "w_hh: expected float64, got float32"),
    ("w_hh", None, TypeError, "w_hh: expected float64, got None"),
    ("b_ih", zeros(H, dtype=F4), TypeError, "b_ih: expected float64, got float32"),
    ("b_hh", zeros(H, dtype=int), TypeError, "b_hh: expected float64, got int64"),
    ("h0", zeros(B, H, dtype=F4), TypeError, "h0: expected float64, got float32"),
    ("h0", zeros(1, B, H), ValueError, "h0: expected shape (4, 5), got (1, 4, 5)"),
    ("h0", zeros(H), ValueError, "h0: expected shape (4, 5), got (5,)"),
    ("h0", zeros(B + 1, H), ValueError, "h0: expected shape (4, 5), got (5, 5)"),
    ("h0", zeros(B, H - 1), ValueError, "h0: expected shape (4, 5), got (4, 4)"),
    ("lengths", [1, 2, 3], ValueError, "lengths: expected shape (4,) as x has 4 sequences, got (3,)"),
    ("lengths", [[1, 2, 3, 4]], ValueError, "lengths: expected shape (4,) as x has 4 sequences, got (1, 4)"),
    ("lengths", 3, ValueError, "lengths: expected shape (4,) as x has 4 sequences, got ()"),
    ("lengths", [], ValueError, "lengths: expected shape (4,) as x has 4 sequences, got (0,)"),
    ("lengths", [6, 0, -1, 7], ValueError, "lengths: expected values from 0 to T = 6, got -1 at index 2"),
    ("lengths", [6, 0, 1, 7], ValueError, "lengths: expected values from 0 to T = 6, got 7 at index 3"),
    (
        "lengths",
        np.array([0, 2**64 - 1, 1, 1], np.uint64),
        ValueError,
        "lengths: expected values from 0 to T = 6, got 18446744073709551615 at index 1",
    ),
    ("lengths", [1.0, 2.0, 3.0, 4.0], TypeError, "lengths: expected integers, got float64"),
    ("lengths", zeros(0), TypeError, "lengths: expected integers, got float64"),
    ("lengths", [True] * 4, TypeError, "lengths: expected integers, got bool"),
    ("lengths", [2**70] * 4, TypeError, "lengths: expected integers, got an array of objects"),
    ("lengths", [None] * 4, TypeError, "lengths: expected integers, got an array of objects"),
    ("lengths", "1234", TypeError, "lengths: expected integers, got <U4"),
    ("reverse", "yes", TypeError, "reverse: expected True or False, got 'yes'"),
    ("reverse", 1, TypeError, "reverse: expected True or False, got 1"),
    ("training", None, TypeError, "training: expected True or False, got None"),
    ("backend", "fast", ValueError, "backend: expected 'cython', 'numba' or 'reference', got 'fast'"),
    ("backend", 3, TypeError, "backend: expected 'cython', 'numba' or 'reference', got int"),
    ("backend", ["cython"], TypeError, "backend: expected 'cython', 'numba' or 'reference', got list"),
]


@pytest.mark.parametrize("backend", fr.backends.available())
@pytest.mark.parametrize(("name", "value", "error", "sentence"), BAD_FORWARD)
@pytest.mark.parametrize("cell", FORWARD)
def test_forward(cell, name, value, error, sentence, backend):
    fails(error, sentence, FORWARD[cell], **{"backend": backend} | arguments(cell) | {name: value})


@pytest.mark.parametrize("cell", FORWARD)
def test_forward_shapes_of_parameters(cell):
    rows, letters = GATES[cell] * H, "(H, I)" if cell == "rnn" else f"({GATES[cell]}*H, I)"
    expected = f"w_ih: expected shape {letters} with H >= 1 and I >= 1, got "
    for shape in ((rows,), (0, I), (rows, 0), (1, rows, I), *([(rows + 1, I)] if cell != "rnn" else [])):
        shown = str(shape)
        fails(ValueError, expected + shown, FORWARD[cell], **arguments(cell) | {"w_ih": zeros(*shape)})
    both_empty = {"x": zeros(T, B, 0), "w_ih": zeros(rows, 0)}
    fails(ValueError, expected + f"({rows}, 0)", FORWARD[cell], **arguments(cell) | both_empty)
    for name, shape, wrong in (
        ("w_hh", (rows, H), [(rows, H - 1), (rows + 1, H), (rows,), (1, rows, H)]),
        ("b_ih", (rows,), [(rows - 1,), (1, rows), ()]),
        ("b_hh", (rows,), [(rows - 1,), (1, rows), ()]),
    ):
        for found in wrong:
            sentence = f"{name}: expected shape {shape}, got {found}"
            fails(ValueError, sentence, FORWARD[cell], **arguments(cell) | {name: zeros(*found)})


def test_forward_of_one_cell():
    given = arguments("lstm")
    fails(ValueError, "c0: expected shape (4, 5), got (4, 6)", fr.lstm_forward, **given | {"c0": zeros(B, 6)})
    fails(TypeError, "c0: expected float64, got float32", fr.lstm_forward, **given | {"c0": zeros(B, H, dtype=F4)})
    given = arguments("rnn")
    sentence = "nonlinearity: expected 'tanh' or 'relu', got "
    fails(ValueError, sentence + "'gelu'", fr.rnn_forward, **given, nonlinearity="gelu")
    fails(TypeError, sentence + "NoneType", fr.rnn_forward, **given, nonlinearity=None)
    fails(TypeError, sentence + "list", fr.rnn_forward, **given, nonlinearity=["tanh"])
    given = arguments("gru")
    fails(TypeError, "reset_after: expected True or False, got 'no'", fr.gru_forward, **given, reset_after="no")


def test_other_arguments():
    given = arguments("lstm")
    masked = np.ma.masked_array([1, 2, 3, 0], [0, 1, 0, 0])
    fails(TypeError, "lengths: expected integers, got a masked array", fr.lstm_forward, **given, lengths=masked)
    for n, shown in ((10**400, "inf"), (-(10**400), "-inf")):
        fails(ValueError, f"dropout: expected a number from 0 to 1, got {shown}", fr.LSTM, I, H, 2, dropout=n)
    fails(TypeError, "rng: expected a numpy.random.Generator, a seed or None, got True", fr.LSTM, I, H, rng=True)
    layer = fr.LSTM(I, H)
    sentence = "x: expected float32 as the parameters, got float64"
    fails(TypeError, sentence, layer, zeros(T, B, I))
    layer.parameters = None
    fails(TypeError, "parameters: expected a mapping, got NoneType", layer, zeros(T, B, I, dtype=F4))
    fails(TypeError, "backend: expected 'cython', 'numba' or 'reference', got NoneType", fr.backends.missing, None)


def test_what_another_library_does_not_hand_over():
    """A tensor that requires its gradient raises a RuntimeError."""

    class Tensor:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("detach it")

    sentence = "x: expected float32 or float64, got Tensor (detach it)"
    fails(TypeError, sentence, fr.lstm_forward, **arguments("lstm") | {"x": Tensor()})


def test_a_tape_is_opaque():
    """What backward relies on cannot be changed, and no copy would share the backend's memory."""
    *_, tape = fr.lstm_forward(**arguments("lstm"), training=True)
    for name in ("shape", "dtype", "maker"):
        with pytest.raises(AttributeError):
            setattr(tape, name, None)
    for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
        fails(TypeError, "a tape cannot be copied or pickled: run forward again", duplicate, tape)


@pytest.mark.parametrize("backend", fr.backends.available())
def test_out_of_a_stream(backend):
    stream = fr.LSTM(I, H, backend=backend).freeze().stream(B)
    x = zeros(B, I, dtype=F4)
    for wrong in (np.ma.masked_all((B, H), F4), [[0.0] * H] * B):
        sentence = f"out: expected an ndarray of float32, got {type(wrong).__name__}"
        fails(TypeError, sentence, stream.step, x, out=wrong)


@pytest.mark.skipif("cython" not in fr.backends.available(), reason="the compiled backend is not installed")
@pytest.mark.parametrize("dtype", [np.float16, np.longdouble])
def test_compiled_backends_take_two_dtypes(dtype):
    if np.dtype(dtype) == np.float64:
        pytest.skip("a longdouble is a float64 here")
    name = np.dtype(dtype).name
    given = {n: a.astype(dtype) for n, a in arguments("lstm").items()}
    fails(TypeError, f"x: expected float32 or float64, got {name}", fr.lstm_forward, **given, backend="cython")
    sentence = f"dtype: expected float32 or float64, got {name}"
    fails(TypeError, sentence, fr.LSTM, I, H, dtype=dtype, backend="cython")
    layer, cell = (make(I, H, dtype=dtype, backend="reference") for make in (fr.LSTM, fr.LSTMCell))
    layer.backend = cell.backend = "cython"
    for function in (layer, layer.forward, lambda _: layer.freeze(), cell, cell.forward):
        fails(TypeError, sentence, function, zeros(1, I, dtype=dtype))


# ---------------------------------------------------------------------------------------------- functional, backward


@pytest.mark.parametrize("cell", BACKWARD)
def test_backward(cell):
    *_, tape = FORWARD[cell](**arguments(cell), training=True)
    of = BACKWARD[cell]
    fails(ValueError, "dy: expected shape (6, 4, 5), got (6, 4, 4)", of, tape, zeros(T, B, 4))
    fails(ValueError, "dy: expected shape (6, 4, 5), got (4, 5)", of, tape, zeros(B, H))
    fails(TypeError, "dy: expected float64, got float32", of, tape, zeros(T, B, H, dtype=F4))
    fails(TypeError, "dy: expected float64, got int64", of, tape, 1)
    fails(ValueError, "dh_n: expected shape (4, 5), got (1, 4, 5)", of, tape, None, zeros(1, B, H))
    fails(TypeError, "dh_n: expected float64, got object", of, tape, dh_n=object())
    if cell == "lstm":
        fails(ValueError, "dc_n: expected shape (4, 5), got (5, 4)", of, tape, dc_n=zeros(H, B))
    own = f"tape: expected the tape of {cell}_forward, got "
    fails(TypeError, own + "None (was the forward pass one for training?)", of, None)
    fails(TypeError, own + "ndarray", of, zeros(T, B, H))
    for other in set(FORWARD) - {cell}:
        *_, others = FORWARD[other](**arguments(other), training=True)
        fails(ValueError, own + f"the tape of {other}_forward", of, others)
    of(tape)
    spent = "tape: a tape serves one backward, and this one has had it; run forward again"
    fails(RuntimeError, spent, of, tape)


# ----------------------------------------------------------------------------------------------------- constructors

CONSTRUCTORS = [fr.RNN, fr.GRU, fr.LSTM, fr.RNNCell, fr.GRUCell, fr.LSTMCell]
LAYERS = CONSTRUCTORS[:3]
BAD_OPTIONS = [
    ("input_size", 0, ValueError, "input_size: expected at least 1, got 0"),
    ("input_size", 1.0, TypeError, "input_size: expected an integer, got float"),
    ("input_size", None, TypeError, "input_size: expected an integer, got NoneType"),
    ("hidden_size", -1, ValueError, "hidden_size: expected at least 1, got -1"),
    ("hidden_size", 10**30, ValueError, f"hidden_size: expected from 1 to {sys.maxsize}, got {10**30}"),
    ("hidden_size", "5", TypeError, "hidden_size: expected an integer, got str"),
    ("hidden_size", True, TypeError, "hidden_size: expected an integer, got bool"),
    ("bias", 1, TypeError, "bias: expected True or False, got 1"),
    ("dtype", int, TypeError, "dtype: expected float32 or float64, got int64"),
    ("dtype", None, TypeError, "dtype: expected float32 or float64, got None"),
    ("dtype", "single-ish", TypeError, "dtype: expected float32 or float64, got 'single-ish'"),
    ("dtype", complex, TypeError, "dtype: expected float32 or float64, got complex128"),
    ("dtype", "(2,3", TypeError, "dtype: expected float32 or float64, got '(2,3'"),
    ("dtype", ("f4", -1), TypeError, "dtype: expected float32 or float64, got ('f4', -1)"),
    ("rng", "seed", TypeError, "rng: expected a numpy.random.Generator, a seed or None, got 'seed'"),
    ("rng", -1, ValueError, "rng: expected a numpy.random.Generator, a seed or None, got -1"),
    ("rng", 0.5, TypeError, "rng: expected a numpy.random.Generator, a seed or None, got 0.5"),
    ("backend", "fast", ValueError, "backend: expected 'cython', 'numba' or 'reference', got 'fast'"),
    ("backend", 3, TypeError, "backend: expected 'cython', 'numba' or 'reference', got int"),
]
BAD_LAYER_OPTIONS = [
    ("num_layers", 0, ValueError, "num_layers: expected from 1 to 65536, got 0"),
    ("num_layers", 1 << 40, ValueError, "num_layers: expected from 1 to 65536, got 1099511627776"),
    ("num_layers", 1.5, TypeError, "num_layers: expected an integer, got float"),
    ("batch_first", "yes", TypeError, "batch_first: expected True or False, got 'yes'"),
    ("bidirectional", 2, TypeError, "bidirectional: expected True or False, got 2"),
    ("dropout", -0.1, ValueError, "dropout: expected a number from 0 to 1, got -0.1"),
    ("dropout", 1.5, ValueError, "dropout: expected a number from 0 to 1, got 1.5"),
    ("dropout", float("nan"), ValueError, "dropout: expected a number from 0 to 1, got nan"),
    ("dropout", "half", TypeError, "dropout: expected a number, got str"),
    ("dropout", True, TypeError, "dropout: expected a number, got bool"),
    ("dropout", None, TypeError, "dropout: expected a number, got NoneType"),
    ("dropout", np.True_, TypeError, "dropout: expected a number, got bool"),
    ("dropout", b"0.5", TypeError, "dropout: expected a number, got bytes"),
]


@pytest.mark.parametrize(("name", "value", "error", "sentence"), BAD_OPTIONS)
@pytest.mark.parametrize("make", CONSTRUCTORS)
def test_constructors(make, name, value, error, sentence):
    fails(error, sentence, make, **{"input_size": I, "hidden_size": H} | {name: value})


@pytest.mark.parametrize(("name", "value", "error", "sentence"), BAD_LAYER_OPTIONS)
@pytest.mark.parametrize("make", LAYERS)
def test_constructors_of_layers(make, name, value, error, sentence):
    fails(error, sentence, make, I, H, **{name: value})


def test_constructors_of_one_cell():
    for make in (fr.RNN, fr.RNNCell):
        sentence = "nonlinearity: expected 'tanh' or 'relu', got "
        fails(ValueError, sentence + "'sigmoid'", make, I, H, nonlinearity="sigmoid")
        fails(TypeError, sentence + "bool", make, I, H, nonlinearity=False)
    for make in (fr.GRU, fr.GRUCell):
        fails(TypeError, "reset_after: expected True or False, got 0", make, I, H, reset_after=0)


# ---------------------------------------------------------------------------------------------------------- layers


def layer(make=fr.LSTM, **options):
    return make(I, H, 2, bidirectional=True, dtype=F8, rng=0, **options)


def calls(own):
    """All that take x, state and lengths."""
    return own, own.forward, own.freeze()


@pytest.mark.parametrize("make", LAYERS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_x_of_layers(make, batch_first):
    axes = "B, T" if batch_first else "T, B"
    for call in calls(layer(make, batch_first=batch_first)):
        sentence = f"x: expected shape ({axes}, 3) or, unbatched, (T, 3), got "
        for shape in ((T, B, 4), (3,), (T, 4), (1, T, B, I), (), (0, 0, 0)):
            fails(ValueError, sentence + str(shape), call, zeros(*shape))
        fails(TypeError, "x: expected float64 as the parameters, got float32", call, zeros(T, B, I, dtype=F4))
        fails(TypeError, "x: expected float64 as the parameters, got int64", call, [[[1, 2, 3]]])
        fails(TypeError, "x: expected float64 as the parameters, got None", call, None)


@pytest.mark.parametrize("make", LAYERS)
def test_lengths_of_layers(make):
    for call in calls(layer(make)):
        sentence = "lengths: expected values from 0 to T = 6, got 7 at index 0"
        fails(ValueError, sentence, call, zeros(T, B, I), None, [7, 1, 1, 1])
        sentence = "lengths: expected shape (4,) as x has 4 sequences, got (6,)"
        fails(ValueError, sentence, call, zeros(T, B, I), lengths=[1] * T)
        fails(TypeError, "lengths: expected integers, got float64", call, zeros(T, B, I), lengths=[1.0] * B)
        sentence = "lengths: expected None for an unbatched x, got lengths"
        fails(ValueError, sentence, call, zeros(T, I), lengths=[T])
    for call in calls(layer(make, batch_first=True)):
        fails(
            ValueError,
            "lengths: expected values from 0 to T = 6, got 7 at index 3",
            call,
            zeros(B, T, I),
            None,
            [1, 1, 1, 7],
        )


@pytest.mark.parametrize("make", LAYERS)
def test_state_of_layers(make):
    pair = make is fr.LSTM
    for call in calls(layer(make)):
        for shape in ((B, H), (2, B, H), (4, B + 1, H), (4, H)):
            state = zeros(*shape)
            sentence = f"h0: expected shape (4, 4, 5), got {shape}"
            fails(ValueError, sentence, call, zeros(T, B, I), (state, None) if pair else state)
        state = zeros(4, B, H, dtype=F4)
        fails(TypeError, "h0: expected float64, got float32", call, zeros(T, B, I), (state, None) if pair else state)
        state = zeros(4, B, H)
        sentence = "h0: expected shape (4, 5), got (4, 4, 5)"
        fails(ValueError, sentence, call, zeros(T, I), (state, None) if pair else state)
        if pair:
            fails(ValueError, "c0: expected shape (4, 4, 5), got (4, 5)", call, zeros(T, B, I), (None, zeros(4, H)))
            sentence = "state: expected a pair (h0, c0), got "
            fails(TypeError, sentence + "ndarray", call, zeros(T, B, I), zeros(2, 4, B, H))
            fails(TypeError, sentence + "3 parts", call, zeros(T, B, I), (state, state, state))
            fails(TypeError, sentence + "str", call, zeros(T, B, I), "hc")
        else:
            for n in (1, 2):
                sentence = f"h0: expected shape (4, 4, 5), got ({n}, 4, 4, 5)"
                fails(ValueError, sentence, call, zeros(T, B, I), (state,) * n)


@pytest.mark.parametrize("make", LAYERS)
def test_backward_of_layers(make):
    pair, own = make is fr.LSTM, layer(make)
    *_, tape = own.forward(zeros(T, B, I))
    of = own.backward
    fails(ValueError, "dy: expected shape (6, 4, 10), got (6, 4, 5)", of, tape, zeros(T, B, H))
    fails(TypeError, "dy: expected float64, got float32", of, tape, zeros(T, B, 2 * H, dtype=F4))
    wrong = zeros(2, B, H)
    fails(ValueError, "dh_n: expected shape (4, 4, 5), got (2, 4, 5)", of, tape, None, (wrong, None) if pair else wrong)
    if pair:
        fails(ValueError, "dc_n: expected shape (4, 4, 5), got (2, 4, 5)", of, tape, dstate=(None, wrong))
        fails(TypeError, "dstate: expected a pair (dh_n, dc_n), got ndarray", of, tape, dstate=zeros(2, 4, B, H))
    sentence = f"tape: expected the tape of {own}, got "
    fails(TypeError, sentence + "None (was the forward pass one for training?)", of, None)
    fails(TypeError, sentence + "ndarray", of, zeros(1))
    fails(ValueError, sentence + f"the tape of another {own}", of, layer(make).forward(zeros(T, B, I))[-1])
    fails(
        ValueError, sentence + "the tape of lstm_forward", of, fr.lstm_forward(**arguments("lstm"), training=True)[-1]
    )
    sentence = f"tape: expected the tape of lstm_forward, got the tape of {own}"
    fails(ValueError, sentence, fr.lstm_backward, tape)
    of(tape)
    fails(RuntimeError, "tape: a tape serves one backward, and this one has had it; run forward again", of, tape)
    *_, tape = own.forward(zeros(T, I))
    fails(ValueError, "dy: expected shape (6, 10), got (6, 1, 10)", of, tape, zeros(T, 1, 2 * H))
    own = layer(make, batch_first=True)
    *_, tape = own.forward(zeros(B, T, I))
    fails(ValueError, "dy: expected shape (4, 6, 10), got (6, 4, 10)", own.backward, tape, zeros(T, B, 2 * H))


KEYS = "weight_ih_l0, weight_hh_l0, bias_ih_l0, bias_hh_l0"


def test_state_dict():
    own = fr.GRU(I, H)
    good = own.state_dict()
    load = own.load_state_dict
    fails(TypeError, "state_dict: expected a mapping, got list", load, list(good.items()))
    fails(TypeError, "state_dict: expected a mapping, got NoneType", load, None)
    expected = f"state_dict: expected the keys {KEYS}"
    lacking = {name: value for name, value in good.items() if not name.startswith("bias")}
    fails(ValueError, expected + "; missing: bias_ih_l0, bias_hh_l0", load, lacking)
    fails(ValueError, expected + "; unexpected: weight_hr_l0, 7", load, good | {"weight_hr_l0": zeros(1), 7: zeros(1)})
    cells = {name.removesuffix("_l0"): value for name, value in good.items()}
    sentence = expected + f"; missing: {KEYS}; unexpected: {KEYS.replace('_l0', '')}"
    fails(ValueError, sentence, load, cells)
    model = {f"rnn.gru.{name}": value for name, value in good.items()} | {"head.weight": zeros(1)}
    fails(ValueError, expected + ", got them with 'rnn.gru.' in front", load, model)
    model |= {f"encoder.{name}": value for name, value in good.items()}
    fails(ValueError, expected + ", got them with 'rnn.gru.' and 'encoder.' in front", load, model)
    fails(ValueError, "arrays: expected no keys; unexpected: a", fr.train.assign, {}, {"a": zeros(1)})
    many = [
        f"{name}{end}" for k in range(3) for end in (f"_l{k}", f"_l{k}_reverse") for name in ("weight_ih", "weight_hh")
    ]
    some = ", ".join(many) + " and 4 more"
    deep = fr.RNN(I, H, 4, bias=False, bidirectional=True)
    fails(ValueError, f"state_dict: expected the keys {some}; missing: {some}", deep.load_state_dict, {})
    large = good | {"bias_hh_l0": np.full(15, 1e300)}
    fails(ValueError, "bias_hh_l0: expected values that float32 can hold, got 1e+300", load, large)
    load(good | {"bias_hh_l0": np.full(15, np.inf)})
    sentence = "weight_hh_l0: expected shape (15, 5), got (5, 15)"
    fails(ValueError, sentence, load, good | {"weight_hh_l0": zeros(5, 15)})
    sentence = "bias_ih_l0: expected a floating dtype, got "
    fails(TypeError, sentence + "int64", load, good | {"bias_ih_l0": zeros(15, dtype=int)})
    fails(TypeError, sentence + "None", load, good | {"bias_ih_l0": None})


@pytest.mark.parametrize("make", [fr.GRU, fr.GRUCell])
def test_replaced_parameters(make):
    """They are checked in every call."""
    own = make(I, H)
    x = zeros(B, I, dtype=F4)
    names = list(own.parameters)
    functions = [own, own.forward, lambda _: own.state_dict()] + ([lambda _: own.freeze()] if make is fr.GRU else [])
    for value, error, sentence in (
        (zeros(15), TypeError, f"{names[2]}: expected float32, got float64"),
        (zeros(14, dtype=F4), ValueError, f"{names[2]}: expected shape (15,), got (14,)"),
        (None, TypeError, f"{names[2]}: expected float32, got None"),
    ):
        own.parameters[names[2]] = value
        for function in functions:
            fails(error, sentence, function, x)
    del own.parameters[names[2]]
    for function in functions:
        fails(ValueError, f"parameters: expected the keys {', '.join(names)}; missing: {names[2]}", function, x)
    own.parameters |= {names[2]: zeros(15, dtype=F4), "new": 0}
    for function in functions:
        fails(ValueError, f"parameters: expected the keys {', '.join(names)}; unexpected: new", function, x)


# ------------------------------------------------------------------------------------------------------------ cells


@pytest.mark.parametrize("make", CONSTRUCTORS[3:])
def test_cells(make):
    pair, own = make is fr.LSTMCell, make(I, H, dtype=F8)
    for call in (own, own.forward):
        sentence = "x: expected shape (B, 3) or, unbatched, (3,), got "
        for shape in ((B, 4), (4,), (1, B, I), ()):
            fails(ValueError, sentence + str(shape), call, zeros(*shape))
        fails(TypeError, "x: expected float64 as the parameters, got float32", call, zeros(B, I, dtype=F4))
        wrong = zeros(B + 1, H)
        fails(ValueError, "h: expected shape (4, 5), got (5, 5)", call, zeros(B, I), (wrong, None) if pair else wrong)
        fails(ValueError, "h: expected shape (5,), got (5, 5)", call, zeros(I), (wrong, None) if pair else wrong)
        if pair:
            fails(ValueError, "c: expected shape (4, 5), got (5, 5)", call, zeros(B, I), (None, wrong))
            fails(TypeError, "state: expected a pair (h, c), got ndarray", call, zeros(2, I), zeros(2, H))
    _, tape = own.forward(zeros(B, I))
    fails(ValueError, "dh: expected shape (4, 5), got (5, 5)", own.backward, tape, (wrong, None) if pair else wrong)
    if pair:
        fails(ValueError, "dc: expected shape (4, 5), got (5, 5)", own.backward, tape, (None, wrong))
        fails(TypeError, "dstate: expected a pair (dh, dc), got ndarray", own.backward, tape, zeros(2, H))
    sentence = f"tape: expected the tape of {own}, got "
    fails(TypeError, sentence + "None (was the forward pass one for training?)", own.backward, None)
    fails(ValueError, sentence + f"the tape of another {own}", own.backward, make(I, H, dtype=F8).forward(zeros(I))[1])
    own.backward(tape)
    fails(
        RuntimeError, "tape: a tape serves one backward, and this one has had it; run forward again", own.backward, tape
    )


# ---------------------------------------------------------------------------------------------------------- streams


@pytest.mark.parametrize("backend", fr.backends.available())
@pytest.mark.parametrize("make", LAYERS)
def test_streams(make, backend):
    own = make(I, H, 2, dtype=F8, backend=backend)
    fast = own.freeze()
    fails(ValueError, "batch_size: expected at least 1, got 0", fast.stream, 0)
    fails(TypeError, "batch_size: expected an integer, got float", fast.stream, batch_size=1.0)
    sentence = (
        f"batch_size: shape (10, {2**60}, 8) needs {10 * 8 * 8 * 2**60} bytes, more than can be addressed ({MOST})"
    )
    fails(ValueError, sentence, fast.stream, 2**60)
    both = layer(make, backend=backend)
    sentence = f"stream: {both} reads each sequence from its end too, so no step has a result before all are there"
    fails(ValueError, sentence, both.freeze().stream)

    stream = fast.stream(B)
    step = stream.step
    fails(ValueError, "x_t: expected shape (4, 3), got (3,)", step, zeros(I))
    alone = own.freeze().stream(1).step
    fails(ValueError, "x_t: expected shape (1, 3), got (3,), for which say x_t[None]", alone, zeros(I))
    fails(ValueError, "x_t: expected shape (4, 3), got (1, 4, 3)", step, zeros(1, B, I))
    fails(ValueError, "x_t: expected shape (4, 3), got (4, 3, 2)", step, zeros(B, I, 2))
    fails(TypeError, "x_t: expected float64, got float32", step, zeros(B, I, dtype=F4))
    fails(TypeError, "x_t: expected float64, got int64", step, [[1, 2, 3]] * B)
    fails(ValueError, "out: expected shape (4, 5), got (5, 4)", step, zeros(B, I), zeros(H, B))
    fails(ValueError, "out: expected shape (4, 5), got (4, 5, 2)", step, zeros(B, I), zeros(B, H, 2))
    fails(TypeError, "out: expected float64, got float32", step, zeros(B, I), out=zeros(B, H, dtype=F4))
    with pytest.raises(TypeError, match="unexpected keyword argument 'into'"):
        step(zeros(B, I), into=zeros(B, H))
    with pytest.raises(TypeError, match=r"^out: expected an .*array.*, got list$"):
        step(zeros(B, I), out=[])
    out = zeros(B, H)
    out.flags.writeable = False
    fails(ValueError, "out: expected a writable array, got a read-only one", step, zeros(B, I), out)

    def set_state(state):
        stream.state = state

    pair = make is fr.LSTM
    for wrong in (zeros(B, H), zeros(1, B, H), zeros(2, 1, H)):
        sentence = f"h: expected shape (2, 4, 5), got {wrong.shape}"
        fails(ValueError, sentence, set_state, (wrong, wrong) if pair else wrong)
    if pair:
        fails(TypeError, "state: expected a pair (h, c), got ndarray", set_state, zeros(2, B, H))
        fails(TypeError, "c: expected float64, got float32", set_state, (zeros(2, B, H), zeros(2, B, H, dtype=F4)))


# -------------------------------------------------------------------------------------------------- sizes that overflow


@pytest.mark.parametrize("backend", fr.backends.available())
@pytest.mark.parametrize("cell", FORWARD)
@pytest.mark.parametrize("training", [False, True])
def test_sizes_of_a_call(cell, training, backend):
    """x that takes no memory, and a result that no memory can hold: said before anything is allocated."""
    rows = GATES[cell] * H
    options = {"w_ih": zeros(rows, I), "w_hh": zeros(rows, H), "training": training, "backend": backend}
    for x in (huge(2**55, 2, I), huge(2, 2**55, I), huge(2**30, 2**25, I), zeros(2**58, 0, I), zeros(0, 2**58, I)):
        needed = ((x.shape[0] + 2) * (x.shape[1] + 1) * (I + 8 * H) + 8 * (H + 64) * (I + H + 64)) * 8
        sentence = f"x: shape {x.shape} with hidden size 5 may need {needed} bytes, more than can be addressed ({MOST})"
        fails(ValueError, sentence, FORWARD[cell], x, **options)
    many = 3 * 2**27  # as many as an array of weights can have
    tall = {"w_ih": huge(GATES[cell] * many, I), "w_hh": huge(GATES[cell] * many, many), "backend": backend}
    needed = ((T + 2) * (B + 1) * (I + 8 * many) + 8 * (many + 64) * (I + many + 64)) * 8
    sentence = (
        f"x: shape (6, 4, 3) with hidden size {many} may need {needed} bytes, more than can be addressed ({MOST})"
    )
    fails(ValueError, sentence, FORWARD[cell], zeros(T, B, I), training=training, **tall)
    wide = {"w_ih": huge(rows, 2**55), "w_hh": zeros(rows, H), "training": training, "backend": backend}
    needed = (2 * (B + 1) * (2**55 + 8 * H) + 8 * (H + 64) * (2**55 + H + 64)) * 8
    sentence = (
        f"x: shape (0, 4, {2**55}) with hidden size 5 may need {needed} bytes, more than can be addressed ({MOST})"
    )
    fails(ValueError, sentence, FORWARD[cell], huge(0, B, 2**55), **wide)


@pytest.mark.parametrize("backend", fr.backends.available())
def test_sizes_of_layers(backend):
    own = fr.LSTM(I, H, bidirectional=True, dtype=F8, backend=backend)
    x = huge(2**54, 2, I)
    needed = ((2**54 + 2) * 3 * (I + 16 * H) + 8 * (H + 64) * (I + H + 64)) * 8
    sentence = f"x: shape {x.shape} with hidden size 5 may need {needed} bytes, more than can be addressed ({MOST})"
    for call in calls(own):
        fails(ValueError, sentence, call, x)
    cell = fr.GRUCell(I, H, dtype=F8, backend=backend)
    needed = (3 * (2**57 + 1) * (I + 8 * H) + 8 * (H + 64) * (I + H + 64)) * 8
    sentence = (
        f"x: shape (1, {2**57}, 3) with hidden size 5 may need {needed} bytes, more than can be addressed ({MOST})"
    )
    fails(ValueError, sentence, cell, huge(2**57, I))


def test_sizes_of_parameters():
    sentence = (
        f"weight_ih_l0: shape ({4 * 2**40}, {2**40}) needs {16 * 2**80} bytes, more than can be addressed ({MOST})"
    )
    fails(ValueError, sentence, fr.LSTM, 2**40, 2**40)
    sentence = f"weight_hh: shape ({2**40}, {2**40}) needs {4 * 2**80} bytes, more than can be addressed ({MOST})"
    fails(ValueError, sentence, fr.RNNCell, 1, 2**40)


# ------------------------------------------------------------------------------------------------------------ the rest


def test_loading_what_is_there_already():
    """The parameters of one direction into the other: no value is read after it was written over."""
    layer = fr.GRU(3, 4, bidirectional=True, rng=0)
    before, arrays = layer.state_dict(), dict(layer.parameters)
    swapped = {k: k.removesuffix("_reverse") if k.endswith("_reverse") else f"{k}_reverse" for k in before}
    layer.load_state_dict({k: layer.parameters[swapped[k]] for k in before})
    for k, value in layer.parameters.items():
        assert value is arrays[k]
        assert np.array_equal(value, before[swapped[k]])


@pytest.mark.parametrize(
    "put",
    [lambda a: a.tolist(), lambda a: a.astype(">f8"), lambda a: np.broadcast_to(a[:1], a.shape)],
    ids=["list", "byte order", "read-only"],
)
def test_loading_over_what_cannot_be_changed(put):
    """What a call reads, though it is no array that can be written to, is replaced."""
    layer = fr.LSTM(3, 4, dtype=np.float64, rng=0)
    ones = {k: np.ones_like(v) for k, v in layer.parameters.items()}
    layer.parameters["bias_ih_l0"] = put(layer.parameters["bias_ih_l0"])
    layer(np.zeros((2, 1, 3)))
    layer.load_state_dict(ones)
    assert all(np.array_equal(layer.parameters[k], ones[k]) for k in ones)
    layer.parameters["bias_ih_l0"] = put(layer.parameters["bias_ih_l0"])
    fr.init.zero_biases(layer)
    assert not layer.parameters["bias_ih_l0"].any()


@pytest.mark.parametrize("backend", fr.backends.available())
def test_input_of_a_stream_that_is_no_array(backend):
    step = fr.LSTM(3, 4, rng=0, backend=backend).freeze().stream(batch_size=2).step
    fails(TypeError, "x_t: expected float32, got None", step, None)
    with pytest.raises(TypeError, match=r"x_t: expected float32, got list \(setting an array"):
        step([[1.0, 2.0, 3.0], [1.0]])
    fails(TypeError, "x_t: expected float32, got a masked array", step, np.ma.zeros((2, 3), np.float32))
    fails(TypeError, "x_t: expected float32, got int64", step, [[1, 2, 3], [4, 5, 6]])
    assert step([np.zeros(3, np.float32)] * 2).shape == (2, 4)


def test_use_backend():
    fails(ValueError, "name: expected 'cython', 'numba' or 'reference', got 'fast'", fr.use_backend, "fast")
    fails(TypeError, "name: expected 'cython', 'numba' or 'reference', got NoneType", fr.use_backend, None)
    fails(ValueError, "backend: expected 'cython', 'numba' or 'reference', got 'fast'", fr.backends.get, "fast")
    fails(ValueError, "backend: expected 'cython', 'numba' or 'reference', got 'fast'", fr.backends.missing, "fast")


def test_threads():
    for n in (0, -1, 257):
        fails(ValueError, f"n: expected from 1 to 256, got {n}", fr.set_num_threads, n)
    fails(TypeError, "n: expected an integer, got float", fr.set_num_threads, 1.0)
    fails(TypeError, "n: expected an integer, got NoneType", fr.set_num_threads, None)
    fails(TypeError, "n: expected an integer, got bool", fr.set_num_threads, True)


def test_show_config():
    fails(ValueError, "mode: expected 'stdout' or 'dicts', got 'yaml'", fr.show_config, "yaml")
    fails(TypeError, "mode: expected 'stdout' or 'dicts', got NoneType", fr.show_config, None)


def test_initialisers():
    for initialise in (fr.init.glorot, fr.init.orthogonal, fr.init.zero_biases, fr.init.forget_bias):
        fails(TypeError, "module: expected a layer or cell, got dict", initialise, {})
    own = fr.LSTM(I, H)
    for initialise in (fr.init.glorot, fr.init.orthogonal):
        sentence = "rng: expected a numpy.random.Generator, a seed or None, got 'seed'"
        fails(TypeError, sentence, initialise, own, "seed")
    fails(TypeError, "gain: expected a number, got str", fr.init.orthogonal, own, gain="2")
    fails(ValueError, "gain: expected a finite number, got inf", fr.init.orthogonal, own, gain=np.inf)
    fails(TypeError, "module: expected an LSTM or LSTMCell, got GRU(3, 5)", fr.init.forget_bias, fr.GRU(I, H))
    bare = fr.LSTMCell(I, H, bias=False)
    fails(ValueError, "module: expected biases, got LSTMCell(3, 5, bias=False)", fr.init.forget_bias, bare)
    fails(ValueError, "value: expected a finite number, got nan", fr.init.forget_bias, own, float("nan"))
    fails(TypeError, "value: expected a number, got complex", fr.init.forget_bias, own, 1j)
