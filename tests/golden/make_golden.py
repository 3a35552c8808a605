"""Writes the golden files: inputs, weights, outputs and gradients as other people's code computes them.

    python tests/golden/make_golden.py        (needs torch and onnx; rewrites the .npz files beside it)

PyTorch's own modules for the RNN, the LSTM and the GRU; for the GRU that resets before its product, which PyTorch
lacks, ONNX's reference evaluator (linear_before_reset=0), which checks the equations that PyTorch then differentiates.
Inputs are float32 numbers, all computing is in float64: a float32 backend gets the same inputs and is off by its own
rounding alone. Nothing here imports fusedrnn.
"""

import argparse
import io
import math
import zipfile
from pathlib import Path

import numpy as np
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

HERE = Path(__file__).parent
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}
NAMES = ("w_ih", "w_hh", "b_ih", "b_hh")
CONFIGURATIONS = {  # T, B, I, H, directions, lengths
    "plain": (6, 3, 5, 9, (False,), None),
    "both": (5, 4, 3, 11, (False, True), (5, 1, 3, 5)),
    "reverse": (4, 2, 18, 5, (True,), (2, 4)),
}


def draw(cell, name):
    """Inputs by name, every number a float32; gradients of the outputs too."""
    T, B, I, H, directions, lengths = CONFIGURATIONS[name]
    rng = np.random.default_rng([list(GATES).index(cell), list(CONFIGURATIONS).index(name)])
    G, D = GATES[cell], len(directions)

    def uniform(limit, *shape):
        return rng.uniform(-limit, limit, shape).astype(np.float32)

    arrays = {"reverse": np.array(directions), "x": uniform(2, T, B, I)}
    if lengths is not None:
        arrays["lengths"] = np.array(lengths)
    for d in range(D):
        arrays |= {
            f"{d}.w_ih": uniform(math.sqrt(3 / I), G * H, I),
            f"{d}.w_hh": uniform(math.sqrt(3 / H), G * H, H),
            f"{d}.b_ih": uniform(0.5, G * H),
            f"{d}.b_hh": uniform(0.5, G * H),
            f"{d}.h0": uniform(1, B, H),
        }
        if cell == "lstm":
            arrays[f"{d}.c0"] = uniform(1, B, H)
    for output, shape in (("y", (T, B, D * H)), ("h_n", (D, B, H)), ("c_n", (D, B, H))):
        if output != "c_n" or cell == "lstm":
            arrays[f"d{output}"] = uniform(1, *shape)
    return arrays


def parameters(leaves, d):
    return [leaves[f"{d}.{name}"] for name in NAMES]


def with_module(cell, leaves, x, reverse, d):
    """One direction of PyTorch's own module over sequences without padding."""
    w_ih, w_hh, *_ = parameters(leaves, d)
    options = {"nonlinearity": cell.removeprefix("rnn_")} if cell.startswith("rnn") else {}
    kind = {"rnn_tanh": torch.nn.RNN, "rnn_relu": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell]
    module = kind(w_ih.shape[1], w_hh.shape[1], dtype=torch.float64, **options)
    state = (leaves["h0"][None], leaves["c0"][None]) if cell == "lstm" else leaves["h0"][None]
    named = dict(zip(("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"), parameters(leaves, d), strict=True))
    y, final = torch.func.functional_call(module, named, (x.flip(0) if reverse else x, state))
    h_n, c_n = final if cell == "lstm" else (final, None)
    return (y.flip(0) if reverse else y), h_n[0], None if c_n is None else c_n[0]


def with_equations(leaves, x, reverse, d):
    """A GRU that resets before its product: Cho et al. 2014, in Keras reset_after=False."""
    w, u, b, v = (p.chunk(3) for p in parameters(leaves, d))
    h, found = leaves["h0"], []
    for x_t in x.flip(0) if reverse else x:
        r = torch.sigmoid(x_t @ w[0].T + b[0] + h @ u[0].T + v[0])
        z = torch.sigmoid(x_t @ w[1].T + b[1] + h @ u[1].T + v[1])
        n = torch.tanh(x_t @ w[2].T + b[2] + (r * h) @ u[2].T + v[2])
        h = (1 - z) * n + z * h
        found.append(h)
    y = torch.stack(found) if found else x.new_zeros(0, *h.shape)
    check_with_onnx(x.flip(0) if reverse else x, leaves["h0"], parameters(leaves, d), y)
    return (y.flip(0) if reverse else y), h, None


def check_with_onnx(x, h0, weights, y):
    """ONNX's reference evaluator says the same; its gates are in the order z, r, h."""

    def zrh(p):
        r, z, n = np.split(p.detach().numpy(), 3)
        return np.concatenate([z, r, n])

    w_ih, w_hh, b_ih, b_hh = map(zrh, weights)
    H = w_hh.shape[1]
    inputs = {"X": x.detach().numpy(), "W": w_ih[None], "R": w_hh[None], "B": np.concatenate([b_ih, b_hh])[None]}
    inputs["H"] = h0.detach().numpy()[None]
    node = helper.make_node("GRU", ["X", "W", "R", "B", "", "H"], ["Y"], hidden_size=H, linear_before_reset=0)
    infos = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, a.shape) for name, a in inputs.items()]
    out = helper.make_tensor_value_info("Y", TensorProto.DOUBLE, None)
    model = helper.make_model(helper.make_graph([node], "gru", infos, [out]))
    found = ReferenceEvaluator(model).run(None, inputs)[0][:, 0]
    assert np.allclose(found, y.detach().numpy(), rtol=0, atol=1e-14)


def compute(cell, arrays):
    """Outputs and gradients by name, sequence by sequence so that no padding takes part."""
    leaves = {
        name: torch.tensor(a, dtype=torch.float64, requires_grad=True)
        for name, a in arrays.items()
        if a.dtype == np.float32 and not name.startswith("d")
    }
    T, B, _ = arrays["x"].shape
    H = arrays["0.w_hh"].shape[1]
    lengths = arrays.get("lengths", np.full(B, T))
    outputs = {
        name[1:]: torch.zeros(a.shape, dtype=torch.float64) for name, a in arrays.items() if name.startswith("d")
    }
    for d, reverse in enumerate(arrays["reverse"]):
        for b, length in enumerate(lengths):
            local = dict(leaves) | {
                name: leaves[f"{d}.{name}"][b : b + 1] for name in ("h0", "c0") if f"{d}.{name}" in leaves
            }
            x = leaves["x"][:length, b : b + 1]
            if cell == "gru_reset_before":
                y, h_n, c_n = with_equations(local, x, reverse, d)
            else:
                y, h_n, c_n = with_module(cell, local, x, reverse, d)
            outputs["y"][:length, b, d * H : (d + 1) * H] = y[:, 0]
            outputs["h_n"][d, b] = h_n[0]
            if c_n is not None:
                outputs["c_n"][d, b] = c_n[0]
    loss = sum((torch.tensor(arrays[f"d{name}"], dtype=torch.float64) * a).sum() for name, a in outputs.items())
    loss.backward()
    found = {f"out.{name}": a.detach().numpy() for name, a in outputs.items()}
    return found | {f"grad.{name}": a.grad.numpy() for name, a in leaves.items()}


def save(path, arrays):
    """An .npz whose bytes depend on the arrays alone (numpy.savez writes the time of day)."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, a in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, a)
            archive.writestr(
                zipfile.ZipInfo(f"{name}.npy", (2020, 1, 1, 0, 0, 0)), buffer.getvalue(), zipfile.ZIP_DEFLATED
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--cell", choices=GATES, help="this one alone; another PyTorch changes last digits of all")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for cell in [options.cell] if options.cell else GATES:
        for name in CONFIGURATIONS:
            arrays = draw(cell, name)
            save(options.out / f"{cell}-{name}.npz", arrays | compute(cell, arrays))


if __name__ == "__main__":
    main()
