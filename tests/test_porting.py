"""The code of docs/porting.md runs, and what it brings over computes what the other library does.

Weights are drawn in the other library's layout; nothing here knows how they are turned, that is the page's to say.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from cases import FUNCTIONS, tolerance

import fusedrnn as fr

PAGE = Path(__file__).parents[1] / "docs/porting.md"
T, B, I, H = 6, 4, 28, 64  # I and H are the page's
LENGTHS = np.array([6, 0, 3, 5], np.int32)
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def rng(monkeypatch):
    """Every test draws the same numbers, whichever ran before it."""
    monkeypatch.setitem(globals(), "RNG", np.random.default_rng(0))


def names_of(section: str) -> dict:
    """What the code of a section leaves behind, the page's imports before it."""
    head, *sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)
    (text,) = (text for text in sections if text.startswith(section + "\n"))
    names: dict = {}
    for block in re.findall(r"^```python\n(.*?)^```", head + text, re.DOTALL | re.M):
        exec(compile(block, PAGE.name, "exec"), names)
    return names


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


def weights(*shape: int) -> np.ndarray:
    return RNG.uniform(-0.2, 0.2, shape).astype(np.float32)


def close(got, want):
    """As near as two libraries come to each other in float32, both of them rounding."""
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=2 * tolerance(np.float32, I + H, T) * max(1, np.abs(want).max()))


# NumPy ---------------------------------------------------------------------------------------------------------------


def test_a_loop():
    names = names_of("A loop in NumPy")
    x, w, u, b = (names[name].astype(np.float64) for name in "xwub")
    close(names["y"], names["loop"](x, w, u, b))


@pytest.mark.parametrize("reset_after", [False, True])
def test_a_gru_whose_z_takes_the_new_state(reset_after):
    """Its gates are z, r, n, and it has both biases in either form."""
    names = names_of("A loop in NumPy")
    sigmoid, rows = names["sigmoid"], names["rows"]
    x, arrays = normal(T, B, I), [weights(I, 3 * H), weights(H, 3 * H), weights(3 * H), weights(3 * H)]
    w, u, b, v = (a.astype(np.float64) for a in arrays)
    h, want = np.zeros((B, H)), []
    for x_t in x.astype(np.float64):
        a, s = x_t @ w + b, h @ u + v
        z, r = (sigmoid((a + s)[:, k * H : (k + 1) * H]) for k in range(2))
        of_h = r * s[:, 2 * H :] if reset_after else (r * h) @ u[:, 2 * H :] + v[2 * H :]
        h = (1 - z) * h + z * np.tanh(a[:, 2 * H :] + of_h)
        want.append(h)
    turned = [rows(np.concatenate((-a[..., :H], a[..., H:]), axis=-1), "zrn", "rzn") for a in arrays]
    close(fr.gru_forward(x, *turned, reset_after=reset_after)[0], np.stack(want))


# PyTorch -------------------------------------------------------------------------------------------------------------


def test_torch():
    torch = pytest.importorskip("torch", exc_type=ImportError)
    names = names_of("PyTorch")
    x, lengths, h_n = names["x"], names["lengths"], names["h_n"]
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.from_numpy(x), lengths, enforce_sorted=False)
    with torch.no_grad():
        y, (h, c) = names["net"]["rnn"](packed)
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=len(x))
        h_t = names["cell"](torch.from_numpy(x[0]))
    for got, want in ((names["y"], y), (h_n, h), (names["c_n"], c)):
        close(got, want)
    close(names["gru"](x[:1])[0][0], h_t)
    for b, n in enumerate(lengths):
        assert (names["vectors"][b, :H] == names["y"][n - 1, b, :H]).all()
        assert (names["vectors"][b, H:] == names["y"][0, b, H:]).all()
    assert not names["y"][-1, 1].any()
    tensors = {name: v.bfloat16() for name, v in names["cell"].state_dict().items()}
    with pytest.raises(TypeError):
        fr.GRUCell(I, H).load_state_dict(tensors)
    fr.GRUCell(I, H).load_state_dict({name: v.float().cpu() for name, v in tensors.items()})


def test_dtypes():
    layer = fr.GRU(I, H)
    layer.load_state_dict(fr.GRU(I, H, dtype=np.float64).state_dict())
    assert layer.parameters["weight_ih_l0"].dtype == np.float32
    with pytest.raises(TypeError):
        layer(np.zeros((T, B, I)))


def test_a_subclass_changes_training_alone():
    class Louder(fr.GRU):
        def forward(self, x, state=None, lengths=None):
            return super().forward(2 * x, state, lengths)

    layer, x = Louder(I, H, rng=0), normal(T, B, I)
    plain = fr.GRU(I, H, rng=0)
    want = plain(x)[0]
    assert (layer(x)[0] == want).all()
    assert (layer.freeze()(x)[0] == want).all()
    assert (layer.forward(x)[0] == plain(2 * x)[0]).all()


# ONNX ----------------------------------------------------------------------------------------------------------------

NODES = {
    "lstm": ("LSTM", 4, {}),
    "gru": ("GRU", 3, {"linear_before_reset": 1}),
    "gru_reset_before": ("GRU", 3, {}),
    "rnn_tanh": ("RNN", 1, {}),
    "rnn_relu": ("RNN", 1, {"activations": ["Relu"]}),
}


def onnx_model(cell: str, direction: str, bias: bool, layout: int):
    """A graph of one node: x, lens and the initial state in, Y and the final state out."""
    helper = pytest.importorskip("onnx.helper", exc_type=ImportError)
    from onnx import TensorProto, numpy_helper

    kind, gates, options = NODES[cell]
    D = 1 + (direction == "bidirectional")
    options = {name: value * D if name == "activations" else value for name, value in options.items()}
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    outputs = ["Y", *(f"Y_{name}" for name in states)]
    inputs = ["X"] if layout else ["X", "lens", *states]  # onnx's own evaluator, for layout 1, knows no lengths
    slots = ["X", "W", "R", "B" if bias else ""] + (inputs[1:] or [])
    if layout:
        options["layout"] = 1
    arrays = {"W": weights(D, gates * H, I), "R": weights(D, gates * H, H)}
    if bias:
        arrays["B"] = weights(D, 2 * gates * H)
    types = {"lens": TensorProto.INT32}
    graph = helper.make_graph(
        [helper.make_node(kind, slots, outputs, hidden_size=H, direction=direction, **options)],
        cell,
        [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


def arrays_of(model):
    from onnx import numpy_helper

    return {a.name: numpy_helper.to_array(a) for a in model.graph.initializer}


@pytest.fixture
def onnx_page(tmp_path, monkeypatch):
    """The page's names; the file that it loads holds an LSTM."""
    onnx = pytest.importorskip("onnx", exc_type=ImportError)
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx_model("lstm", "bidirectional", True, layout=0), "model.onnx")
    return names_of("ONNX")


def test_onnx_file(onnx_page):
    (layer,) = onnx_page["layers"]
    assert repr(layer) == f"LSTM({I}, {H}, bidirectional=True)"


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "none"])
@pytest.mark.parametrize("direction", ["forward", "bidirectional", "reverse"])
@pytest.mark.parametrize("cell", NODES)
def test_onnx(cell, direction, bias, onnx_page):
    runtime = pytest.importorskip("onnxruntime", exc_type=ImportError)
    model = onnx_model(cell, direction, bias, layout=0)
    node, D = model.graph.node[0], 1 + (direction == "bidirectional")
    state = tuple(normal(D, B, H) for _ in range(2 if cell == "lstm" else 1))
    x = normal(T, B, I)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    want_y, *want_state = session.run(None, {"X": x, "lens": LENGTHS} | dict(zip("hc", state, strict=False)))

    arrays = arrays_of(model)
    if direction == "reverse":
        with pytest.raises(ValueError, match="only a function"):
            onnx_page["from_onnx"](node, arrays)
        function, options = FUNCTIONS[cell]
        values = onnx_page["onnx_parameters"](node, arrays).values()
        initial = {f"{name}0": a[0] for name, a in zip("hc", state, strict=False)}
        y, *found, _ = getattr(fr, f"{function}_forward")(
            x, *values, **initial, lengths=LENGTHS, reverse=True, **options
        )
        found = [a[None] for a in found]
    else:
        y, found = onnx_page["from_onnx"](node, arrays)(x, state if cell == "lstm" else state[0], lengths=LENGTHS)
        found = found if cell == "lstm" else (found,)
    close(y.reshape(T, B, D, H).swapaxes(1, 2), want_y)
    for got, want, initial in zip(found, want_state, state, strict=True):
        assert (got[:, LENGTHS == 0] == initial[:, LENGTHS == 0]).all()
        assert (want[:, LENGTHS == 0] == 0).all()
        close(got[:, LENGTHS > 0], want[:, LENGTHS > 0])


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_onnx_layout(cell, onnx_page):
    """ONNX Runtime has no layout 1; onnx's own evaluator has."""
    model, x = onnx_model(cell, "forward", True, layout=1), normal(B, T, I)
    layer = onnx_page["from_onnx"](model.graph.node[0], arrays_of(model))
    evaluator = pytest.importorskip("onnx.reference", exc_type=ImportError).ReferenceEvaluator(model)
    want_y, want_h, *_ = evaluator.run(None, {"X": x})
    y, state = layer(x)
    close(y.reshape(B, T, 1, H), want_y)
    close((state[0] if cell == "lstm" else state).swapaxes(0, 1), want_h)


@pytest.mark.parametrize(
    "attribute",
    [{"clip": 3.0}, {"input_forget": 1}, {"activations": ["HardSigmoid", "Tanh", "Tanh"]}, {"peepholes": "P"}],
    ids=lambda attribute: next(iter(attribute)),
)
def test_onnx_refused(attribute, onnx_page):
    model = onnx_model("lstm", "forward", True, layout=0)
    node = model.graph.node[0]
    for name, value in attribute.items():
        if name == "peepholes":
            node.input.append(value)
        else:
            node.attribute.append(pytest.importorskip("onnx.helper").make_attribute(name, value))
    with pytest.raises(ValueError, match="are not offered"):
        onnx_page["from_onnx"](node, arrays_of(model))


# Keras ---------------------------------------------------------------------------------------------------------------

LAYERS = {
    "lstm": ("LSTM", {}, {}),
    "gru": ("GRU", {}, {}),
    "gru_reset_before": ("GRU", {"reset_after": False}, {"reset_after": False}),
    "rnn_tanh": ("SimpleRNN", {}, {}),
    "rnn_relu": ("SimpleRNN", {"activation": "relu"}, {"nonlinearity": "relu"}),
}


@pytest.fixture
def keras_page(monkeypatch):
    pytest.importorskip("jax", exc_type=ImportError)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    pytest.importorskip("keras", exc_type=ImportError)
    return names_of("Keras")


old_array = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras, of NumPy 2


def draw(layer):
    """Build it, and draw all weights: Keras begins with biases of zero."""
    layer.build((None, None, I))
    layer.set_weights([weights(*w.shape) for w in layer.get_weights()])
    return layer


@old_array
def test_keras_block(keras_page):
    x = normal(B, T, I)
    close(keras_page["ours"](x)[0], keras_page["theirs"](x))


@old_array
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "none"])
@pytest.mark.parametrize("cell", LAYERS)
def test_keras(cell, bias, keras_page):
    """One direction, the other, both: with a mask, whole outputs and last ones."""
    layers, parameters_of = keras_page["keras"].layers, keras_page["keras_parameters"]
    kind, options, ours = LAYERS[cell]
    name = kind.removeprefix("Simple")
    x, mask = normal(B, T, I), np.arange(T) < np.maximum(LENGTHS, 1)[:, None]  # Keras repeats what was before
    lengths = mask.sum(axis=1)
    make = functools.partial(getattr(layers, kind), H, use_bias=bias, **options)

    one = draw(make(return_sequences=True))
    two = draw(layers.Bidirectional(make(return_sequences=True)))
    for theirs, found in (
        (one, parameters_of(one)),
        (two, parameters_of(two.forward_layer) + parameters_of(two.backward_layer)),
    ):
        layer = getattr(fr, name)(I, H, batch_first=True, bias=bias, bidirectional=theirs is two, **ours)
        layer.load_state_dict(dict(zip(layer.parameters, found, strict=True)))
        y, state = layer(x, lengths=lengths)
        want = np.asarray(theirs(x, mask=mask))
        close(y[mask], want[mask])
        assert not y[~mask].any()
        last = draw(layers.Bidirectional(make()) if theirs is two else make())
        last.set_weights(theirs.get_weights())
        close(np.concatenate(state[0] if cell == "lstm" else state, axis=-1), last(x, mask=mask))
    assert (np.asarray(one(x, mask=mask))[2, 3:] == np.asarray(one(x, mask=mask))[2, 2]).all()

    backwards = draw(make(return_sequences=True, go_backwards=True))
    y = getattr(fr, f"{name.lower()}_forward")(x.swapaxes(0, 1), *parameters_of(backwards), reverse=True, **ours)[0]
    close(y[::-1].swapaxes(0, 1), backwards(x))


@old_array
def test_keras_pads_on_the_left_unless_told(keras_page):
    pad = keras_page["keras"].utils.pad_sequences
    assert pad([[1], [2, 3]]).tolist() == [[0, 1], [2, 3]]
    assert pad([[1], [2, 3]], padding="post").tolist() == [[1, 0], [2, 3]]


@old_array
def test_keras_padded_on_the_left(keras_page):
    """As the page says: the padding is moved behind, then the states are Keras's."""
    x, lengths = normal(B, T, I), np.maximum(LENGTHS, 1)
    mask = np.arange(T) >= T - lengths[:, None]
    theirs = draw(keras_page["keras"].layers.GRU(H))
    moved = np.stack([np.roll(a, n - len(a), axis=0) for a, n in zip(x, lengths, strict=True)])
    layer = fr.GRU(I, H, batch_first=True)
    layer.load_state_dict(dict(zip(layer.parameters, keras_page["keras_parameters"](theirs), strict=True)))
    close(layer(moved, lengths=lengths)[1][-1], theirs(x, mask=mask))


@old_array
def test_keras_layers_that_cannot_be_ported(keras_page):
    layers = keras_page["keras"].layers
    for theirs in (
        layers.LSTM(H, recurrent_activation="hard_sigmoid"),
        layers.GRU(H, activation="relu"),
        layers.SimpleRNN(H, activation="sigmoid"),
        layers.RNN(layers.GRUCell(H)),
    ):
        draw(theirs)
        with pytest.raises(ValueError, match="cannot be ported"):
            keras_page["keras_parameters"](theirs)


# Flax ----------------------------------------------------------------------------------------------------------------

FLAX = {  # the cell here, and which gates have a bias on the side of x, and of h
    "LSTMCell": ("lstm", "", "ifgo"),
    "OptimizedLSTMCell": ("lstm", "", "ifgo"),
    "GRUCell": ("gru", "rzn", "n"),
    "SimpleCell": ("rnn", [""], ""),
}


def flax_loop(cell, p, x):
    """What flax.linen's documentation says that a cell does."""

    def sigmoid(a):
        return 1 / (1 + np.exp(-a))

    def on(side, gate, a):
        return a @ p[side + gate]["kernel"] + p[side + gate].get("bias", 0)

    h, c = np.zeros((2, B, H), np.float32)
    y = []
    for x_t in x:
        if cell == "lstm":
            i, f, o = (sigmoid(on("i", gate, x_t) + on("h", gate, h)) for gate in "ifo")
            c = f * c + i * np.tanh(on("i", "g", x_t) + on("h", "g", h))
            h = o * np.tanh(c)
        elif cell == "gru":
            r, z = (sigmoid(on("i", gate, x_t) + on("h", gate, h)) for gate in "rz")
            h = (1 - z) * np.tanh(on("i", "n", x_t) + r * on("h", "n", h)) + z * h
        else:
            h = np.tanh(on("i", "", x_t) + on("h", "", h))
        y.append(h)
    return np.stack(y)


@pytest.mark.parametrize("name", FLAX)
def test_flax(name):
    cell, of_x, of_h = FLAX[name]
    p = {}
    for side, size, biased in (("i", I, of_x), ("h", H, of_h)):
        for gate in {"lstm": "ifgo", "gru": "rzn", "rnn": [""]}[cell]:
            p[side + gate] = {"kernel": weights(size, H)} | ({"bias": weights(H)} if gate in [*biased] else {})
    layer = getattr(fr, cell.upper())(I, H)
    layer.load_state_dict(dict(zip(layer.parameters, names_of("Flax")["flax_parameters"](p), strict=True)))
    x = normal(T, B, I)
    y, _ = layer(x)
    close(y, flax_loop(cell, p, x))
    if importlib.util.find_spec("flax"):
        linen = importlib.import_module("flax.linen")
        rnn = linen.RNN(getattr(linen, name)(H), time_major=True)
        close(y, rnn.apply({"params": {"cell": p}}, x))


# Here ----------------------------------------------------------------------------------------------------------------


def test_stream():
    names = names_of("A stream of one sequence")
    y, _ = names["layer"](names["sequence"])
    # the reference promises no bits: 8 ulp of 1
    np.testing.assert_allclose(np.stack(names["outputs"]), y[5:], atol=1e-6)
    left = names["stream"]
    h, c = names["layer"](names["x_t"][None, names["stay"]])[1]
    assert left.batch_size == 2
    np.testing.assert_allclose(left.state[0], h, atol=1e-6)
    np.testing.assert_allclose(left.state[1], c, atol=1e-6)


def test_checkpoints(tmp_path, monkeypatch):
    """What was written and what was pickled train on with the same bits, dropout masks included."""
    monkeypatch.chdir(tmp_path)
    names, x, trained = names_of("Checkpoints"), normal(T, B, I), []
    read = fr.GRU(I, H, num_layers=2, dropout=0.1)
    optimizer = fr.train.Adam(read.parameters, 1e-3)
    read.load_state_dict(fr.train.load_arrays("layer.npz"))
    optimizer.load_state_dict(fr.train.load_arrays("optimizer.npz"))
    read.rng.bit_generator.state = json.loads(Path("rng.json").read_text())
    for layer, adam in ((read, optimizer), (names["layer"], names["optimizer"])):
        for _ in range(2):
            y, _, tape = layer.forward(x)
            adam.step(layer.backward(tape, y).parameters)
        trained.append(layer.state_dict())
    for name, a in trained[0].items():
        assert (a == trained[1][name]).all(), name
        assert (a != fr.train.load_arrays("layer.npz")[name]).any(), name
