"""The reference against mathematics: numbers worked out by hand, differences, complex steps; and PyTorch, if installed.

Every other backend is tested against the reference, so nothing here may rest on another backend, and the gradient
checker itself is checked: it must refuse gradients that are wrong on purpose.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from fusedrnn import reference
from fusedrnn.reference import activations, sequence

pytestmark = pytest.mark.filterwarnings("error")

CELLS = ["rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before"]
SMOOTH = [cell for cell in CELLS if cell != "rnn_relu"]
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}
PARAMETERS = ("w_ih", "w_hh", "b_ih", "b_hh", "h0", "c0")
X = (None, "x")
REVERSE = {"forwards": (False,), "backwards": (True,), "both": (False, True)}
T, B, I, H = 4, 5, 2, 3
LENGTHS = {"dense": None, "ragged": np.array([3, 0, 4, 1, 4])}
# Which of both biases and both states are given; the rest is None.
GIVEN = {
    "all": ("b_ih", "b_hh", "h0", "c0"),
    "b_ih h0": ("b_ih", "h0"),
    "b_hh c0": ("b_hh", "c0"),
    "none": (),
}
MIXES = [mix for n in range(4) for mix in itertools.combinations(("dy", "dh_n", "dc_n"), n)]

# Two ways to the same number through the whole computation: some tens of roundings of numbers of order one on each,
# which largely cancel. The worst seen is 14 eps.
ROUNDING = {np.dtype(t): 40 * np.finfo(t).eps for t in (np.float16, np.float32, np.float64, np.longdouble)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A cell with its arguments. `arrays` is keyed by (direction, name); x has no direction."""

    cell: str
    reverse: tuple
    lengths: np.ndarray | None
    arrays: dict

    def forward(self, replaced=None, training=False):
        arrays = self.arrays | (replaced or {})
        directions = tuple(
            (
                tuple(arrays[d, name] for name in PARAMETERS[:4]),
                arrays[d, "h0"],
                arrays[d, "c0"],
                reverse,
            )
            for d, reverse in enumerate(self.reverse)
        )
        return reference.forward(self.cell, arrays[X], directions, self.lengths, training)

    def outputs(self, replaced=None):
        y, h_n, c_n, _ = self.forward(replaced)
        return {"dy": y, "dh_n": h_n, "dc_n": c_n}

    def backward(self, mix, backward=None):
        """Gradients of sum(dy * y) + sum(dh_n * h_n) + sum(dc_n * c_n) under the keys of `arrays`."""
        *_, tape = self.forward(training=True)
        dx, gradients = (backward or reference.backward)(tape, *(mix.get(name) for name in ("dy", "dh_n", "dc_n")))
        named = {(d, name): g for d, of in enumerate(gradients) for name, g in zip(PARAMETERS, of, strict=True)}
        return {X: dx} | named

    def value(self, key):
        """The array, zeros for a state that is not given."""
        if self.arrays[key] is not None:
            return self.arrays[key]
        return np.zeros((self.arrays[X].shape[1], self.arrays[0, "w_hh"].shape[1]), self.arrays[X].dtype)

    def differentiable(self):
        """What has a gradient: everything but absent biases, and c0 where the cell has no c."""
        states = ("h0", "c0") if self.cell == "lstm" else ("h0",)
        return [key for key, array in self.arrays.items() if array is not None or key[1] in states]


def draw(cell, reverse=(False,), lengths=None, given=GIVEN["all"], dtype=np.float64, sizes=(T, B, I, H), seed=0):
    """A random case; for relu one whose pre-activations all stay clear of the kink, where there is no derivative."""
    time, batch, inputs, hidden = sizes
    rows = GATES[cell] * hidden
    shapes = ((rows, inputs), (rows, hidden), (rows,), (rows,), (batch, hidden), (batch, hidden))
    rng = np.random.default_rng(seed)
    while True:
        arrays = {X: rng.normal(size=(time, batch, inputs)).astype(dtype)}
        for d in range(len(reverse)):
            for name, shape in zip(PARAMETERS, shapes, strict=True):
                absent = name not in ("w_ih", "w_hh", *given) or (name == "c0" and cell != "lstm")
                arrays[d, name] = None if absent else rng.normal(scale=0.7, size=shape).astype(dtype)
        case = Case(cell, reverse, lengths, arrays)
        if cell != "rnn_relu" or distance_from_kink(case) > 0.01:
            return case


def distance_from_kink(case):
    *_, tape = case.forward(training=True)
    distance = math.inf
    for run in tape.runs:
        w, u = run.parameters[:2]
        b, v = sequence.biases(run.parameters)
        p = tape.x[tape.valid] @ w.T + b + run.h_prev[tape.valid] @ u.T + v
        distance = min(distance, np.abs(p).min(initial=math.inf))
    return distance


def upstream(case, seed=1):
    """A random gradient for every output."""
    rng = np.random.default_rng(seed)
    dtype = case.arrays[X].dtype
    return {name: rng.normal(size=o.shape).astype(dtype) for name, o in case.outputs().items() if o is not None}


def four_points(case, key, direction):
    """Derivative of every output along `direction`: (f(-2e) - 8 f(-e) + 8 f(e) - f(2e)) / 12e, wrong by e^4 f^(5) / 30.

    Rounding adds eps / e, so e = eps^(1/5) is best and leaves eps^(4/5).
    """
    value = case.value(key)
    e = np.finfo(value.dtype).eps ** value.dtype.type(0.2)
    weighted = [(-2, 1), (-1, -8), (1, 8), (2, -1)]
    results = [(weight, case.outputs({key: value + k * e * direction})) for k, weight in weighted]
    names = [name for name, output in results[0][1].items() if output is not None]
    return {name: sum(weight * result[name] for weight, result in results) / (12 * e) for name in names}


def complex_step(case, key, direction):
    """Derivative of every output along `direction`: Im f(x + i e) / e. Nothing cancels, so e can be tiny."""
    e = 1e-100
    replaced = {k: None if a is None else a.astype(complex) for k, a in case.arrays.items()}
    replaced[key] = case.value(key) + 1j * e * direction
    return {name: output.imag / e for name, output in case.outputs(replaced).items() if output is not None}


def tolerance(derivative, dtype):
    """The factors cover fifth derivatives and sums of some tens of terms of order one. The worst seen are 600 and 7."""
    eps = np.finfo(dtype).eps
    return 2000 * eps**0.8 if derivative is four_points else 40 * eps


def check_gradients(case, derivative, elementwise=False, backward=None):
    """Compare every gradient for every mix of upstream gradients with `derivative`.

    Along one random direction for each array, or element by element. Outputs are linear in the upstream gradients, so
    one derivative of the outputs serves all mixes.
    """
    above = upstream(case)
    rng = np.random.default_rng(2)
    dtype = case.arrays[X].dtype
    expected = []
    for key in case.differentiable():
        shape = case.value(key).shape
        if elementwise:
            directions = np.eye(math.prod(shape), dtype=dtype).reshape(-1, *shape)
        else:
            directions = rng.normal(size=(1, *shape)).astype(dtype)
            directions /= np.sqrt((directions**2).sum())
        expected += [(key, direction, derivative(case, key, direction)) for direction in directions]
    assert expected
    for mix in MIXES:
        if not set(mix) <= set(above):
            continue
        gradients = case.backward({name: above[name] for name in mix}, backward)
        assert [key for key, g in gradients.items() if g is not None] == case.differentiable()
        for key, direction, outputs in expected:
            got = (gradients[key] * direction).sum()
            want = sum((above[name] * outputs[name]).sum() for name in mix)
            limit = tolerance(derivative, dtype)
            np.testing.assert_allclose(got, want, rtol=limit, atol=limit, err_msg=f"{key}, given {mix}")


class TestGradients:
    @pytest.mark.parametrize("given", GIVEN)
    @pytest.mark.parametrize("lengths", LENGTHS)
    @pytest.mark.parametrize("reverse", REVERSE)
    @pytest.mark.parametrize("cell", CELLS)
    def test_differences_with_every_option(self, cell, reverse, lengths, given):
        case = draw(cell, REVERSE[reverse], LENGTHS[lengths], GIVEN[given], np.longdouble)
        check_gradients(case, four_points)

    @pytest.mark.parametrize("cell", CELLS)
    def test_differences_of_every_element(self, cell):
        case = draw(cell, (True,), np.array([2, 0, 3]), dtype=np.float64, sizes=(3, 3, 2, 2))
        check_gradients(case, four_points, elementwise=True)

    @pytest.mark.parametrize("lengths", LENGTHS)
    @pytest.mark.parametrize("reverse", REVERSE)
    @pytest.mark.parametrize("cell", SMOOTH)
    def test_complex_steps_with_every_option(self, cell, reverse, lengths):
        check_gradients(draw(cell, REVERSE[reverse], LENGTHS[lengths]), complex_step)

    @pytest.mark.parametrize("cell", SMOOTH)
    def test_complex_steps_of_every_element(self, cell):
        case = draw(cell, (False, True), np.array([3, 0, 2]), sizes=(3, 3, 2, 2))
        check_gradients(case, complex_step, elementwise=True)

    @pytest.mark.parametrize("cell", SMOOTH)
    def test_complex_steps_through_a_long_sequence(self, cell):
        check_gradients(draw(cell, sizes=(60, 2, 3, 4)), complex_step)


class TestTheCheckerCanFail:
    """Mutations of backward: each must be refused by check_gradients, which accepts the unchanged one."""

    @staticmethod
    def refused(cell, backward=None):
        case = draw(cell, (False, True), LENGTHS["ragged"])
        try:
            check_gradients(case, four_points, backward=backward)
        except AssertionError:
            return True
        return False

    @staticmethod
    def negate(array, part=slice(None)):
        changed = np.array(array)
        changed[..., part] *= -1
        return changed

    @pytest.mark.parametrize("cell", CELLS)
    def test_accepts_what_is_right(self, cell):
        assert not self.refused(cell)

    @pytest.mark.parametrize("which", ["da", "ds"])
    @pytest.mark.parametrize(("cell", "gate"), [(cell, gate) for cell in CELLS for gate in range(GATES[cell])])
    def test_flipped_sign_of_a_gate(self, monkeypatch, cell, gate, which):
        part = slice(gate * H, (gate + 1) * H)

        def backward(step_cell, step, dstate, u):
            da, ds, dprevious = right(step_cell, step, dstate, u)
            return (self.negate(da, part), ds, dprevious) if which == "da" else (da, self.negate(ds, part), dprevious)

        right = sequence.step_backward
        monkeypatch.setattr(sequence, "step_backward", backward)
        assert self.refused(cell)

    @pytest.mark.parametrize(
        ("cell", "state"),
        [("rnn_tanh", 0), ("rnn_relu", 0), ("lstm", 0), ("lstm", 1), ("gru", 0), ("gru_reset_before", 0)],
    )
    def test_flipped_sign_through_time(self, monkeypatch, cell, state):
        def backward(step_cell, step, dstate, u):
            da, ds, dprevious = right(step_cell, step, dstate, u)
            return da, ds, tuple(-d if s == state else d for s, d in enumerate(dprevious))

        right = sequence.step_backward
        monkeypatch.setattr(sequence, "step_backward", backward)
        assert self.refused(cell)

    @pytest.mark.parametrize("position", range(3))
    def test_flipped_sign_in_an_activation(self, monkeypatch, position):
        module, name = [("lstm", "dtanh"), ("gru", "dsigmoid"), ("rnn", "drelu")][position]
        right = getattr(activations, name)
        monkeypatch.setattr(f"fusedrnn.reference.{module}.{name}", lambda value: -right(value))
        assert self.refused({"lstm": "lstm", "gru": "gru_reset_before", "rnn": "rnn_relu"}[module])

    @pytest.mark.parametrize("cell", CELLS)
    def test_state_of_the_wrong_time_step(self, cell):
        def backward(tape, dy, dh_n, dc_n):
            tape.runs[0].h_prev = np.roll(tape.runs[0].h_prev, -1, axis=0)
            return reference.backward(tape, dy, dh_n, dc_n)

        assert self.refused(cell, backward)

    @pytest.mark.parametrize(
        ("cell", "name"), [(cell, name) for cell in CELLS for name in PARAMETERS if name != "c0" or cell == "lstm"]
    )
    def test_zero_in_place_of_a_gradient(self, cell, name):
        def backward(tape, dy, dh_n, dc_n):
            dx, gradients = reference.backward(tape, dy, dh_n, dc_n)
            gradients[1][PARAMETERS.index(name)][...] = 0
            return dx, gradients

        assert self.refused(cell, backward)


class TestByHand:
    """One unit, one sequence, pre-activations chosen so that all values are fractions.

    sigmoid(ln 2) = 2/3, sigmoid(ln 3) = 3/4, tanh(ln 2) = 3/5, tanh(ln 3) = 4/5.
    Nothing on the expected side comes from the package.
    """

    ln2, ln3 = math.log(2), math.log(3)

    @staticmethod
    def compare(cell, arguments, dy, dh_n, dc_n, y, gradients):
        """Scalars per gate in `arguments` and `gradients`; x, dy, y per time step."""
        gates, time = GATES[cell], len(arguments["x"])
        shapes = {
            "x": (time, 1, 1), "w_ih": (gates, 1), "w_hh": (gates, 1), "b_ih": (gates,), "b_hh": (gates,),
            "h0": (1, 1), "c0": (1, 1),
        }  # fmt: skip
        arrays = {n: np.array(a, float).reshape(shapes[n]) for n, a in arguments.items()}
        case = Case(cell, (False,), None, {X: arrays["x"]} | {(0, n): arrays.get(n) for n in PARAMETERS})
        # Some ten operations on numbers below ten, on both sides.
        exact = {"rtol": 100 * np.finfo(float).eps, "atol": 100 * np.finfo(float).eps}
        np.testing.assert_allclose(case.outputs()["dy"].ravel(), y, **exact)
        mix = {"dy": np.array(dy, float).reshape(time, 1, 1), "dh_n": np.full((1, 1, 1), float(dh_n))}
        if dc_n is not None:
            mix["dc_n"] = np.full((1, 1, 1), float(dc_n))
        got = case.backward(mix)
        assert set(gradients) == set(arguments)
        for name, want in gradients.items():
            g = got[X if name == "x" else (0, name)]
            np.testing.assert_allclose(g, np.reshape(want, shapes[name]), **exact, err_msg=name)

    def test_rnn_tanh(self):
        # Step 1: p = b + v + U h0 = ln 2. Step 2: p = W + U 3/5 + b + v = ln 3.
        u, h0, v = 0.5, 1.0, 0.25
        b = self.ln2 - u * h0 - v
        w = self.ln3 - u * 3 / 5 - b - v
        # dp2 = 1 - 16/25; dh1 = U dp2 = 9/50; dp1 = 9/50 (1 - 9/25).
        dp1, dp2 = 72 / 625, 9 / 25
        self.compare(
            "rnn_tanh",
            {"x": [0, 1], "w_ih": w, "w_hh": u, "b_ih": b, "b_hh": v, "h0": h0},
            dy=[0, 1], dh_n=0, dc_n=None, y=[3 / 5, 4 / 5],
            gradients={
                "x": [w * dp1, w * dp2], "w_ih": 9 / 25, "w_hh": 72 / 625 + 27 / 125,
                "b_ih": 297 / 625, "b_hh": 297 / 625, "h0": 36 / 625,
            },
        )  # fmt: skip

    def test_rnn_relu(self):
        # h: 3; -1 + 3/2 + 3 = 7/2; -8 + 7/4 + 3 < 0, so 0. Back: dp = 0; 2; 1 + U 2 = 2.
        self.compare(
            "rnn_relu",
            {"x": [0, 1, 8], "w_ih": -1, "w_hh": 0.5, "b_ih": 2, "b_hh": 1, "h0": 0},
            dy=[1, 2, 5], dh_n=7, dc_n=None, y=[3, 3.5, 0],
            gradients={"x": [-2, -2, 0], "w_ih": 2, "w_hh": 6, "b_ih": 4, "b_hh": 4, "h0": 1},
        )  # fmt: skip

    def test_lstm(self):
        # i = 3/4, f = 2/3, g = 3/5, o = 3/4; c = 2/3 c0 + 9/20 = ln 2, k = 3/5, h = 9/20.
        x, h0, c0 = 2.0, 0.5, 1.5 * (self.ln2 - 9 / 20)
        w, u, v = np.array([1, -2, 0.5, 3]), np.array([2, 1, -1, -3]), np.array([0.5, 0.25, 1, -1])
        b = np.array([self.ln3, self.ln2, self.ln2, self.ln3]) - w * x - u * h0 - v
        # dh = 8: do = 24/5, dk = 6, dc = 4/25 + 6 * 16/25 = 4, di = 12/5, df = 4 c0, dg = 3.
        dp = np.array([9 / 20, 8 / 9 * c0, 48 / 25, 9 / 10])
        self.compare(
            "lstm",
            {"x": [x], "w_ih": w, "w_hh": u, "b_ih": b, "b_hh": v, "h0": h0, "c0": c0},
            dy=[3], dh_n=5, dc_n=4 / 25, y=[9 / 20],
            gradients={
                "x": [w @ dp], "w_ih": 2 * dp, "w_hh": dp / 2, "b_ih": dp, "b_hh": dp, "h0": u @ dp, "c0": 8 / 3,
            },
        )  # fmt: skip

    def test_gru(self):
        # r = 3/4, z = 2/3, q = 1 * 3 + 1 = 4, n = tanh(a_n + 3) = 3/5; h = 1/3 * 3/5 + 2/3 * 3 = 11/5.
        x, h0 = 2.0, 3.0
        w, u, v = np.array([1, -1, 0.5]), np.array([0.5, -0.5, 1]), np.array([0.25, 0.75, 1])
        b = np.array([self.ln3 - u[0] * h0 - v[0], self.ln2 - u[1] * h0 - v[1], self.ln2 - 3]) - w * x
        # dh = 5: dz = 12, dn = 5/3, dp_n = 16/15, dr = 64/15, dq = 4/5.
        da, ds = np.array([4 / 5, 8 / 3, 16 / 15]), np.array([4 / 5, 8 / 3, 4 / 5])
        self.compare(
            "gru",
            {"x": [x], "w_ih": w, "w_hh": u, "b_ih": b, "b_hh": v, "h0": h0},
            dy=[2], dh_n=3, dc_n=None, y=[11 / 5],
            gradients={
                "x": [w @ da], "w_ih": 2 * da, "w_hh": 3 * ds, "b_ih": da, "b_hh": ds, "h0": 10 / 3 + u @ ds,
            },
        )  # fmt: skip

    def test_gru_reset_before(self):
        # r = 3/4, q = 9/4, s_n = 4/9 * 9/4 + v_n = 1 + v_n, z = 2/3, n = 3/5; h = 11/5.
        x, h0 = 2.0, 3.0
        w, u, v = np.array([1, -1, 0.5]), np.array([0.5, -0.5, 4 / 9]), np.array([0.25, 0.75, 2])
        b = np.array([self.ln3 - u[0] * h0 - v[0], self.ln2 - u[1] * h0 - v[1], self.ln2 - 1 - v[2]]) - w * x
        # dh = 5: dz = 12, dn = 5/3, dp_n = 16/15, dq = 4/9 * 16/15 = 64/135, dr = 64/45, dh0 from q: 16/45.
        dp = np.array([4 / 15, 8 / 3, 16 / 15])
        self.compare(
            "gru_reset_before",
            {"x": [x], "w_ih": w, "w_hh": u, "b_ih": b, "b_hh": v, "h0": h0},
            dy=[2], dh_n=3, dc_n=None, y=[11 / 5],
            gradients={
                "x": [w @ dp], "w_ih": 2 * dp, "w_hh": [4 / 5, 8, 12 / 5], "b_ih": dp, "b_hh": dp,
                "h0": 10 / 3 + 16 / 45 + u[:2] @ dp[:2],
            },
        )  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", [None, [4, 1, 5, 2]])  # PyTorch knows no empty sequences
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["rnn_tanh", "rnn_relu", "lstm", "gru"])
def test_pytorch(cell, bidirectional, lengths, bias):
    torch = pytest.importorskip("torch")
    reverse = (False, True) if bidirectional else (False,)
    given = ("h0", "c0", *(("b_ih", "b_hh") if bias else ()))
    case = draw(cell, reverse, None if lengths is None else np.array(lengths), given, sizes=(5, 4, 3, 6))
    leaves = {k: torch.tensor(a, requires_grad=True) for k, a in case.arrays.items() if a is not None}
    options = {"bias": bias, "bidirectional": bidirectional, "dtype": torch.float64}
    if cell.startswith("rnn"):
        module = torch.nn.RNN(3, 6, nonlinearity=cell.removeprefix("rnn_"), **options)
    else:
        module = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](3, 6, **options)
    long_names = {"w_ih": "weight_ih_l0", "w_hh": "weight_hh_l0", "b_ih": "bias_ih_l0", "b_hh": "bias_hh_l0"}
    parameters = {
        long_names[k[1]] + ("_reverse" if k[0] else ""): leaf
        for k, leaf in leaves.items() if k[1] in long_names
    }  # fmt: skip
    h0 = torch.stack([leaves[d, "h0"] for d in range(len(reverse))])
    state = (h0, torch.stack([leaves[d, "c0"] for d in range(len(reverse))])) if cell == "lstm" else h0

    x = leaves[X]
    if lengths is not None:
        x = torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
    y, state = torch.func.functional_call(module, parameters, (x, state))
    if lengths is not None:
        y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, total_length=5)
    theirs = {"dy": y} | dict(zip(("dh_n", "dc_n"), state if cell == "lstm" else (state,), strict=False))

    ours = case.outputs()
    limit = {"rtol": ROUNDING[np.dtype(float)], "atol": ROUNDING[np.dtype(float)]}
    for name, output in theirs.items():
        np.testing.assert_allclose(ours[name], output.detach().numpy(), **limit, err_msg=name)
    above = upstream(case)
    sum((theirs[name] * torch.tensor(d)).sum() for name, d in above.items()).backward()
    gradients = case.backward(above)
    for key in case.differentiable():
        np.testing.assert_allclose(gradients[key], leaves[key].grad.numpy(), **limit, err_msg=str(key))


@pytest.mark.parametrize("cell", CELLS)
class TestRaggedBatches:
    @pytest.mark.parametrize("reverse", REVERSE)
    def test_each_sequence_is_as_if_alone(self, cell, reverse):
        case = draw(cell, REVERSE[reverse], LENGTHS["ragged"])
        above = upstream(case)
        together, gradients = case.outputs(), case.backward(above)
        summed = {k: 0 for k in case.differentiable() if k[1] in PARAMETERS[:4]}
        limit = {"rtol": ROUNDING[np.dtype(float)], "atol": ROUNDING[np.dtype(float)]}
        for j, length in enumerate(case.lengths):
            only = slice(j, j + 1)
            arrays = {k: a[only] if a is not None and k[1] in ("h0", "c0") else a for k, a in case.arrays.items()}
            alone = Case(cell, case.reverse, None, arrays | {X: case.arrays[X][:length, only]})
            outputs = alone.outputs()
            np.testing.assert_allclose(together["dy"][:length, only], outputs["dy"], **limit)
            assert not together["dy"][length:, j].any()
            for name in ("dh_n", "dc_n"):
                if outputs[name] is not None:
                    np.testing.assert_allclose(together[name][:, only], outputs[name], **limit)
            g = alone.backward(
                {"dy": above["dy"][:length, only]} | {n: d[:, only] for n, d in above.items() if n != "dy"}
            )
            np.testing.assert_allclose(gradients[X][:length, only], g[X], **limit)
            assert not gradients[X][length:, j].any()
            for key in case.differentiable():
                if key in summed:
                    summed[key] = summed[key] + g[key]
                elif key != X:
                    np.testing.assert_allclose(gradients[key][only], g[key], **limit)
        for key, total in summed.items():
            np.testing.assert_allclose(gradients[key], total, **limit)

    def test_backwards_is_forwards_on_each_sequence_turned_round(self, cell):
        case = draw(cell, (True,), LENGTHS["ragged"])
        turned = case.arrays[X].copy()
        for j, length in enumerate(case.lengths):
            turned[:length, j] = turned[:length, j][::-1]
        y, h_n, c_n, _ = case.forward()
        other = Case(cell, (False,), case.lengths, case.arrays | {X: turned})
        y_turned, *states, _ = other.forward()
        for j, length in enumerate(case.lengths):
            np.testing.assert_array_equal(y[:length, j], y_turned[:length, j][::-1])
        np.testing.assert_array_equal(h_n, states[0])
        if c_n is not None:
            np.testing.assert_array_equal(c_n, states[1])

    def test_padding_is_never_read(self, cell):
        case = draw(cell, (False, True), LENGTHS["ragged"])
        padding = np.arange(T)[:, None] >= case.lengths
        above = upstream(case)
        x, dy = case.arrays[X].copy(), above["dy"].copy()
        x[padding] = np.nan
        dy[padding] = np.nan
        dirty = Case(cell, case.reverse, case.lengths, case.arrays | {X: x})
        for clean_output, output in zip(case.forward()[:3], dirty.forward()[:3], strict=True):
            np.testing.assert_array_equal(clean_output, output)
        expected, got = case.backward(above), dirty.backward(above | {"dy": dy})
        for key in case.differentiable():
            np.testing.assert_array_equal(got[key], expected[key], err_msg=str(key))

    def test_empty_sequence_passes_its_state_through(self, cell):
        case = draw(cell, (False, True), np.zeros(B, int))
        y, h_n, c_n, _ = case.forward()
        above = upstream(case)
        gradients = case.backward(above)
        assert not y.any()
        for d in range(2):
            np.testing.assert_array_equal(h_n[d], case.arrays[d, "h0"])
            np.testing.assert_array_equal(gradients[d, "h0"], above["dh_n"][d])
            if cell == "lstm":
                np.testing.assert_array_equal(c_n[d], case.arrays[d, "c0"])
                np.testing.assert_array_equal(gradients[d, "c0"], above["dc_n"][d])
        assert not any(gradients[key].any() for key in case.differentiable() if key[1] not in ("h0", "c0"))

    def test_nan_stays_in_its_sequence(self, cell):
        case = draw(cell, (False, True), LENGTHS["ragged"])
        x = case.arrays[X].copy()
        x[1, 2, 0] = np.nan
        others = [0, 1, 3, 4]
        dirty = Case(cell, case.reverse, case.lengths, case.arrays | {X: x})
        for clean_output, output in zip(case.forward()[:3], dirty.forward()[:3], strict=True):
            if output is not None:
                assert np.isnan(output[:, 2]).any()
                np.testing.assert_array_equal(output[:, others], clean_output[:, others])
        above = upstream(case)
        expected, got = case.backward(above), dirty.backward(above)
        np.testing.assert_array_equal(got[X][:, others], expected[X][:, others])
        assert np.isnan(got[0, "w_ih"]).any()
        for key in case.differentiable():
            if key[1] in ("h0", "c0"):
                np.testing.assert_array_equal(got[key][others], expected[key][others])

    def test_nan_state_of_an_empty_sequence_reaches_no_parameter(self, cell):
        case = draw(cell, (False, True), LENGTHS["ragged"])
        above = upstream(case)
        above["dh_n"][:, 1] = np.nan
        h0 = case.arrays[0, "h0"].copy()
        h0[1] = np.nan
        dirty = Case(cell, case.reverse, case.lengths, case.arrays | {(0, "h0"): h0})
        gradients = dirty.backward(above)
        for key in case.differentiable():
            assert np.isnan(gradients[key]).any() == (key[1] == "h0"), key


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("sizes", [(0, B, I, H), (T, 0, I, H), (0, 0, I, H), (1, 1, 1, 1)])
def test_no_time_steps_and_no_sequences(cell, sizes):
    time, batch, _, hidden = sizes
    for lengths in (None, np.full(batch, time)):
        case = draw(cell, (False, True), lengths, sizes=sizes)
        y, h_n, c_n, _ = case.forward()
        assert y.shape == (time, batch, 2 * hidden)
        assert h_n.shape == (2, batch, hidden)
        assert (c_n is not None) == (cell == "lstm")
        if time == 0:
            np.testing.assert_array_equal(h_n, [case.arrays[d, "h0"] for d in range(2)])
        gradients = case.backward(upstream(case))
        for key in case.differentiable():
            assert gradients[key].shape == case.value(key).shape


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
@pytest.mark.parametrize("cell", CELLS)
def test_every_float_dtype(cell, dtype):
    """Every result has the dtype given, and its accuracy: compared with longdouble."""
    case = draw(cell, (False, True), LENGTHS["ragged"], dtype=np.float16)
    case = dataclasses.replace(case, arrays={k: None if a is None else a.astype(dtype) for k, a in case.arrays.items()})
    precise = {k: None if a is None else a.astype(np.longdouble) for k, a in case.arrays.items()}
    precise = dataclasses.replace(case, arrays=precise)
    above = {name: d.astype(np.float16) for name, d in upstream(case).items()}
    limit = {"rtol": ROUNDING[np.dtype(dtype)], "atol": ROUNDING[np.dtype(dtype)]}
    for output, expected in zip(case.forward()[:3], precise.forward()[:3], strict=True):
        if output is not None:
            assert output.dtype == dtype
            np.testing.assert_allclose(output, expected, **limit)
    gradients = case.backward({name: d.astype(dtype) for name, d in above.items()})
    expected = precise.backward({name: d.astype(np.longdouble) for name, d in above.items()})
    for key in case.differentiable():
        assert gradients[key].dtype == dtype
        np.testing.assert_allclose(gradients[key], expected[key], **limit, err_msg=str(key))


@pytest.mark.parametrize("cell", CELLS)
def test_huge_and_infinite_input_gives_no_warning(cell):
    case = draw(cell, dtype=np.float32)
    stepper = reference.stream((reference.pack(cell, *(case.arrays[0, name] for name in PARAMETERS[:4])),), B)
    for extreme in (1e30, -1e30, np.inf, -np.inf):
        x = np.full_like(case.arrays[X], extreme)
        huge = Case(cell, case.reverse, None, case.arrays | {X: x})
        with np.errstate(all="raise"):
            huge.forward()
            huge.backward(upstream(case))
            stepper.step(x[0])


def test_a_state_that_was_set_in_part_is_an_interrupted_step():
    case = draw("lstm")
    stepper = reference.stream((reference.pack("lstm", *(case.arrays[0, name] for name in PARAMETERS[:4])),), B)
    with pytest.raises(ValueError, match="broadcast"):
        stepper.set_state(np.ones((1, B, H)), np.ones((1, B, H + 1)))
    with pytest.raises(RuntimeError, match="its last step was interrupted"):
        stepper.step(case.arrays[X][0])
    stepper.reset()
    stepper.step(case.arrays[X][0])


class TestActivations:
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_sigmoid_is_relatively_accurate(self, dtype):
        largest = -np.log(np.finfo(dtype).tiny)
        p = np.linspace(-largest, largest, 4001, dtype=dtype)
        wide = p.astype(np.longdouble)
        # One rounding each of exp (at most 2 ulp in NumPy's float loops), sum and quotient.
        np.testing.assert_allclose(activations.sigmoid(p), 1 / (1 + np.exp(-wide)), rtol=4 * np.finfo(dtype).eps)

    def test_ends(self):
        p = np.array([-np.inf, -1e5, -0.0, 0.0, 1e5, np.inf, np.nan])
        with np.errstate(over="raise", invalid="raise", divide="raise"):
            np.testing.assert_array_equal(activations.sigmoid(p), [0, 0, 0.5, 0.5, 1, 1, np.nan])
            np.testing.assert_array_equal(activations.tanh(p), [-1, -1, 0, 0, 1, 1, np.nan])
            np.testing.assert_array_equal(activations.relu(p), [0, 0, 0, 0, 1e5, np.inf, np.nan])
        np.testing.assert_array_equal(activations.drelu(np.array([0, 2, np.nan])), [0, 1, 1])

    @pytest.mark.parametrize("name", ["sigmoid", "tanh"])
    def test_complex_argument_gives_the_derivative(self, name):
        p = np.linspace(-30, 30, 61)
        value = getattr(activations, name)(p + 1e-100j)
        derivative = getattr(activations, "d" + name)(value.real)
        # 1 - tanh^2 and 1 - sigmoid cancel: their error is absolute.
        np.testing.assert_allclose(value.imag / 1e-100, derivative, rtol=0, atol=4 * np.finfo(float).eps)


@pytest.mark.parametrize("cell", CELLS)
class TestPackedAndStream:
    def test_packed_parameters_are_a_read_only_copy(self, cell):
        case = draw(cell)
        parameters = [case.arrays[0, name].copy() for name in PARAMETERS[:4]]
        packed = reference.pack(cell, *parameters)
        assert (packed.cell, packed.input_size, packed.hidden_size, packed.dtype) == (cell, I, H, np.float64)
        for array in parameters:
            array[...] = np.nan
        direction = (packed, case.arrays[0, "h0"], case.arrays[0, "c0"], False)
        y, *_ = reference.forward(cell, case.arrays[X], (direction,), None, False)
        np.testing.assert_array_equal(y, case.outputs()["dy"])
        with pytest.raises(ValueError, match="read-only"):
            packed.parameters[0][...] = 0

    def test_stream_of_two_layers_is_the_sequence(self, cell):
        low, high = draw(cell), draw(cell, sizes=(T, B, H, H), seed=3)
        layers = [reference.pack(cell, *(case.arrays[0, name] for name in PARAMETERS[:4])) for case in (low, high)]
        y_low, h_low, c_low, _ = low.forward()
        high = Case(cell, (False,), None, high.arrays | {X: y_low})
        y, h_high, c_high, _ = high.forward()
        limit = {"rtol": ROUNDING[np.dtype(float)], "atol": ROUNDING[np.dtype(float)]}
        stepper = reference.stream(tuple(layers), B)
        assert not stepper.get_state()[0].any()
        c0 = np.stack([low.arrays[0, "c0"], high.arrays[0, "c0"]]) if cell == "lstm" else None
        stepper.set_state(np.stack([low.arrays[0, "h0"], high.arrays[0, "h0"]]), c0)
        out = np.empty((B, H))
        for t in range(T):
            given = out if t % 2 else None
            h = stepper.step(low.arrays[X][t], given)
            assert given is None or h is out
            np.testing.assert_allclose(h, y[t], **limit)
        h_n, c_n = stepper.get_state()
        np.testing.assert_allclose(h_n, np.concatenate([h_low, h_high]), **limit)
        if cell == "lstm":
            np.testing.assert_allclose(c_n, np.concatenate([c_low, c_high]), **limit)
        else:
            assert c_n is None
        h[...] = np.nan  # what a step returns belongs to the caller
        assert not np.isnan(stepper.get_state()[0]).any()
        stepper.reset()
        assert not stepper.get_state()[0].any()

    def test_step_refuses_what_does_not_fit(self, cell):
        parameters = [draw(cell).arrays[0, name] for name in PARAMETERS[:4]]
        stepper = reference.stream((reference.pack(cell, *parameters),), B)
        x_t, read_only = np.zeros((B, I)), np.zeros((B, H))
        read_only.flags.writeable = False
        with pytest.raises(ValueError, match=r"x_t: expected shape \(5, 2\), got \(5, 3\)"):
            stepper.step(np.zeros((B, I + 1)))
        with pytest.raises(TypeError, match="x_t: expected float64, got float32"):
            stepper.step(x_t.astype(np.float32))
        with pytest.raises(ValueError, match=r"out: expected shape \(5, 3\), got \(5, 2\)"):
            stepper.step(x_t, x_t)
        with pytest.raises(TypeError, match="out: expected float64, got float32"):
            stepper.step(x_t, np.zeros((B, H), np.float32))
        with pytest.raises(TypeError, match="out: expected an ndarray of float64, got list"):
            stepper.step(x_t, [])
        with pytest.raises(ValueError, match="out: expected a writable array"):
            stepper.step(x_t, read_only)
