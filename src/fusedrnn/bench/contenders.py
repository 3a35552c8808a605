"""Those that are timed beside each other: this package's backends, and its peers.

A contender is a function (work, mode, threads) -> run; the run returns what fusedrnn's own run of that mode returns. It
imports its library itself, and refuses what the library does not offer with `NotOffered`. Nothing is timed here.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np

import fusedrnn as fr
from fusedrnn.bench.work import LAYERS, MODES, Array, Run, Work


class NotOffered(Exception):
    """A contender has no such thing."""


def plain(job: Work, name: str) -> None:
    """Refuse what is written here for one layer of one direction alone."""
    if job.layers > 1 or job.bidirectional or job.lengths is not None:
        raise NotOffered(f"{name} is set up for one layer, one direction and whole sequences")


def fusedrnn(job: Work, mode: str, threads: int, backend: str | None = None) -> Run:
    """This package."""
    fr.set_num_threads(threads)
    return MODES[mode](job, backend)


def torch(job: Work, mode: str, threads: int, gradients: bool = False) -> Run:
    """PyTorch; inference under `no_grad` unless `gradients`."""
    import torch

    if job.cell == "gru_reset_before":
        raise NotOffered("its GRU resets after the product")
    if gradients and mode != "inference":
        raise NotOffered("only inference is timed with and without no_grad")
    if job.lengths is not None or (mode == "stream" and (job.layers > 1 or job.bidirectional)):
        raise NotOffered("no such thing is set up for it")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(gradients or mode == "training")
    kind, options = LAYERS[job.cell]
    if mode != "stream":
        options = options | {"num_layers": job.layers, "bidirectional": job.bidirectional}
    net = getattr(torch.nn, kind + ("Cell" if mode == "stream" else ""))(job.I, job.H, **options)
    weights = {name: torch.from_numpy(w) for name, w in job.weights.items()}
    if mode == "stream":
        weights = {name.removesuffix("_l0"): w for name, w in weights.items()}
    net = net.to(getattr(torch, job.dtype))
    net.load_state_dict(weights)
    x = torch.from_numpy(job.x)
    if mode == "inference":
        return lambda: net(x)[0].detach()
    if mode == "stream":
        x_t, state = x[0], None

        def step() -> Any:
            nonlocal state
            state = net(x_t, state)
            return state[0] if isinstance(state, tuple) else state

        return step

    dy, x = torch.from_numpy(job.dy), x.requires_grad_()

    def train() -> tuple[Any, ...]:
        net.zero_grad()
        x.grad = None
        net(x)[0].backward(dy)
        return (x.grad, *(p.grad for p in net.parameters()))

    return train


def onnx_model(job: Work, mode: str) -> bytes:
    """The job as an ONNX model: x to y, or x and the state to the next state."""
    from onnx import TensorProto, helper, numpy_helper

    plain(job, "ONNX")
    if mode == "training":
        raise NotOffered("it does not train")
    kind, _ = LAYERS[job.cell]
    order = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}[kind]  # its gates: i, o, f, g; z, r, n

    def gates(name: str) -> Array:
        return np.concatenate([np.split(job.weights[name], len(order))[g] for g in order])[None]

    options: dict[str, Any] = {"hidden_size": job.H}
    if kind == "GRU":
        options["linear_before_reset"] = int(job.cell == "gru")
    if job.cell == "rnn_relu":
        options["activations"] = ["Relu"]
    states = onnx_states(job)
    real = TensorProto.DOUBLE if job.dtype == "float64" else TensorProto.FLOAT
    inputs = ["x", *(states if mode == "stream" else [])]
    outputs = [f"{name}_n" for name in states] if mode == "stream" else ["y"]
    node = helper.make_node(
        kind,
        ["x", "w", "r", "b", *(["", *states] if mode == "stream" else [])],
        ["", *outputs] if mode == "stream" else outputs,
        **options,
    )
    graph = helper.make_graph(
        [node],
        job.cell,
        [helper.make_tensor_value_info(name, real, [None] * 3) for name in inputs],
        [helper.make_tensor_value_info(name, real, None) for name in outputs],
        [
            numpy_helper.from_array(gates("weight_ih_l0"), "w"),
            numpy_helper.from_array(gates("weight_hh_l0"), "r"),
            numpy_helper.from_array(np.concatenate([gates("bias_ih_l0"), gates("bias_hh_l0")], 1), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return bytes(model.SerializeToString())


def onnx_states(job: Work) -> list[str]:
    """The names of its states."""
    return ["h", "c"] if job.cell == "lstm" else ["h"]


def onnx_run(job: Work, mode: str, session: Any) -> Run:
    """A run of a session that has the model."""
    x = job.x
    if mode == "inference":
        return lambda: session.run(None, {"x": x})[0][:, 0]

    states = onnx_states(job)
    feed = {"x": x[:1]} | {name: np.zeros((1, job.B, job.H), job.dtype) for name in states}

    def step() -> Any:
        feed.update(zip(states, session.run(None, feed), strict=True))
        return feed["h"][0]

    return step


def onnxruntime(job: Work, mode: str, threads: int) -> Run:
    """ONNX Runtime."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    model = onnx_model(job, mode)
    return onnx_run(job, mode, onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"]))


def onnx(job: Work, mode: str, threads: int) -> Run:  # noqa: ARG001, NumPy's BLAS has as many as it likes
    """onnx's reference evaluator, in NumPy."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    if job.cell == "rnn_relu":
        raise NotOffered("its evaluator knows no Relu in an RNN")
    return onnx_run(job, mode, ReferenceEvaluator(onnx.load_from_string(onnx_model(job, mode))))


def numpy(job: Work, mode: str, threads: int) -> Run:  # noqa: ARG001, as above
    """NumPy as people write it: the textbook's equations, one product a step."""
    plain(job, "the textbook's loop")
    if mode == "training":
        raise NotOffered("nobody writes the gradients out by hand")
    w, u, b, v = job.weights.values()
    H = job.H

    def sigmoid(a: Array) -> Array:
        return 1 / (1 + np.exp(-a))

    def lstm(x_t: Array, h: Array, c: Array) -> tuple[Array, Array]:
        i, f, g, o = np.split(x_t @ w.T + b + h @ u.T + v, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    def gru(x_t: Array, h: Array, c: Array) -> tuple[Array, Array]:
        p = x_t @ w.T + b
        q = h @ u.T + v
        r = sigmoid(p[:, :H] + q[:, :H])
        z = sigmoid(p[:, H : 2 * H] + q[:, H : 2 * H])
        n = np.tanh(p[:, 2 * H :] + r * q[:, 2 * H :])
        return (1 - z) * n + z * h, c

    def gru_reset_before(x_t: Array, h: Array, c: Array) -> tuple[Array, Array]:
        p = x_t @ w.T + b + v
        r = sigmoid(p[:, :H] + h @ u[:H].T)
        z = sigmoid(p[:, H : 2 * H] + h @ u[H : 2 * H].T)
        n = np.tanh(p[:, 2 * H :] + (r * h) @ u[2 * H :].T)
        return (1 - z) * n + z * h, c

    def rnn_tanh(x_t: Array, h: Array, c: Array) -> tuple[Array, Array]:
        return np.tanh(x_t @ w.T + b + h @ u.T + v), c

    def rnn_relu(x_t: Array, h: Array, c: Array) -> tuple[Array, Array]:
        return np.maximum(x_t @ w.T + b + h @ u.T + v, 0), c

    cells = {"lstm": lstm, "gru": gru, "gru_reset_before": gru_reset_before, "rnn_tanh": rnn_tanh, "rnn_relu": rnn_relu}
    advance = cells[job.cell]
    x = job.x
    h = c = np.zeros((job.B, H), job.dtype)

    def step() -> Array:
        nonlocal h, c
        h, c = advance(x[0], h, c)
        return h

    def sequence() -> Array:
        h = c = np.zeros((job.B, H), job.dtype)
        ys = []
        for x_t in x:
            h, c = advance(x_t, h, c)
            ys.append(h)
        return np.stack(ys)

    return step if mode == "stream" else sequence


def keras(job: Work, mode: str, threads: int) -> Run:
    """Keras on TensorFlow, or on what KERAS_BACKEND says."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras

    plain(job, "Keras")
    if mode != "inference":
        raise NotOffered("only its inference is set up here")
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
    kind, options = LAYERS[job.cell]
    w, u, b, v = job.weights.values()
    more: dict[str, Any] = {"return_sequences": True, "dtype": job.dtype}
    if kind == "LSTM":
        made, bias = keras.layers.LSTM(job.H, **more), b + v
    elif kind == "GRU":  # its gates: z, r, n; n keeps both biases apart where the reset comes after the product
        made = keras.layers.GRU(job.H, reset_after=options.get("reset_after", True), **more)
        w, u, b, v = (np.concatenate([np.split(a, 3)[g] for g in (1, 0, 2)]) for a in (w, u, b, v))
        bias = np.stack([b, v]) if options.get("reset_after", True) else b + v
    else:
        made, bias = keras.layers.SimpleRNN(job.H, activation=options.get("nonlinearity", "tanh"), **more), b + v
    net = keras.Sequential([keras.Input((job.T, job.I), dtype=job.dtype), made])
    made.set_weights([w.T, u.T, bias])
    x = np.ascontiguousarray(job.x.swapaxes(0, 1))
    return lambda: net.predict_on_batch(x).swapaxes(0, 1)


def jax(job: Work, mode: str, threads: int) -> Run:  # noqa: ARG001, its process was confined to so many CPUs
    """JAX, compiled by `jit`: a `scan` over the steps."""
    import jax
    import jax.numpy as jnp

    plain(job, "JAX")
    jax.config.update("jax_enable_x64", job.dtype == "float64")
    H, sigmoid, tanh = job.H, jax.nn.sigmoid, jnp.tanh

    def advance(state: Any, p: Any, w: Any, b: Any) -> Any:
        """The state after a step, from p = x_t W_ih' + b_ih."""
        if job.cell == "lstm":
            h, c = state
            i, f, g, o = jnp.split(p + h @ w.T + b, 4, -1)
            c = sigmoid(f) * c + sigmoid(i) * tanh(g)
            return sigmoid(o) * tanh(c), c
        (h,) = state
        if job.cell == "gru":
            q = h @ w.T + b
            r, z = jnp.split(sigmoid(p[:, : 2 * H] + q[:, : 2 * H]), 2, -1)
            n = tanh(p[:, 2 * H :] + r * q[:, 2 * H :])
            return ((1 - z) * n + z * h,)
        if job.cell == "gru_reset_before":
            r, z = jnp.split(sigmoid(p[:, : 2 * H] + h @ w[: 2 * H].T + b[: 2 * H]), 2, -1)
            n = tanh(p[:, 2 * H :] + (r * h) @ w[2 * H :].T + b[2 * H :])
            return ((1 - z) * n + z * h,)
        activation = tanh if job.cell == "rnn_tanh" else jax.nn.relu
        return (activation(p + h @ w.T + b),)

    def layer(x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        def step(state: Any, p: Any) -> Any:
            state = advance(state, p, w_hh, b_hh)
            return state, state[0]

        return jax.lax.scan(step, zeros, x @ w_ih.T + b_ih)[1]

    zeros = (jnp.zeros((job.B, H), job.dtype),) * (2 if job.cell == "lstm" else 1)
    arguments = [jnp.asarray(a) for a in (job.x, *job.weights.values())]
    if mode == "inference":
        y = jax.jit(layer)
        return lambda: jax.block_until_ready(y(*arguments))
    if mode == "training":
        dy = jnp.asarray(job.dy)
        gradients = jax.jit(jax.grad(lambda *a: (layer(*a) * dy).sum(), argnums=tuple(range(5))))
        return lambda: jax.block_until_ready(gradients(*arguments))

    x_t, (w_ih, w_hh, b_ih, b_hh), state = arguments[0][0], arguments[1:], zeros
    one = jax.jit(lambda state, x_t: advance(state, x_t @ w_ih.T + b_ih, w_hh, b_hh))

    def step() -> Any:
        nonlocal state
        state = jax.block_until_ready(one(state, x_t))
        return state[0]

    return step


CONTENDERS: dict[str, Callable[[Work, str, int], Run]] = {
    "fusedrnn": fusedrnn,
    **{f"fusedrnn.{name}": functools.partial(fusedrnn, backend=name) for name in fr.backends.NAMES},
    "torch": torch,
    "torch.grad": functools.partial(torch, gradients=True),
    "onnxruntime": onnxruntime,
    "jax": jax,
    "keras": keras,
    "numpy": numpy,
    "onnx": onnx,
}
TITLES = {
    "fusedrnn": "fusedrnn",
    **{f"fusedrnn.{name}": f"fusedrnn, {name}" for name in fr.backends.NAMES},
    "torch": "PyTorch",
    "torch.grad": "PyTorch, no no_grad",
    "onnxruntime": "ONNX Runtime",
    "jax": "JAX",
    "keras": "Keras",
    "numpy": "NumPy by hand",
    "onnx": "onnx reference",
}
PEERS = tuple(name for name in CONTENDERS if not name.startswith("fusedrnn"))
FAST = ("torch", "onnxruntime", "jax", "keras")
"""The peers that somebody in a hurry would take."""


def package(name: str) -> str:
    """What has to be installed for a contender."""
    return name.partition(".")[0]
