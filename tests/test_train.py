"""train: gradients against central differences, optimisers against steps by hand and PyTorch's, files, every error."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusedrnn import train

Array = np.ndarray
T, B, C, I, O = 3, 2, 5, 4, 3

linear, embedding = train.Linear(I, O, rng=0), train.Embedding(C, I, rng=0)
x32, logits32 = np.zeros((B, I), np.float32), np.zeros((B, C), np.float32)
masked = np.ma.masked_array([1, 2], [False, True])


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def differences(f: Callable[[], float], a: Array, h: float = 1e-3) -> Array:
    """The gradient of f() in every element of `a`, by four-point central differences: their error is of order h^4."""
    gradient = np.empty_like(a)
    for index in np.ndindex(a.shape):
        value, values = a[index], []
        for step in (-2, -1, 1, 2):
            a[index] = value + step * h
            values.append(f())
        a[index] = value
        gradient[index] = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h)
    return gradient


def assert_gradient(found: Array, f: Callable[[], float], a: Array) -> None:
    assert found.shape == a.shape
    assert found.dtype == a.dtype
    np.testing.assert_allclose(found, differences(f, a), rtol=1e-8, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(I,), (B, I), (T, B, I), (0, B, I)])
def test_linear_gradients(rng: np.random.Generator, shape: tuple[int, ...], bias: bool) -> None:
    layer = train.Linear(I, O, bias, dtype=np.float64, rng=rng)
    x, dy = rng.standard_normal(shape), rng.standard_normal((*shape[:-1], O))
    y, tape = layer.forward(x)
    assert (y == layer(x)).all()
    g = layer.backward(tape, dy)
    assert g.parameters.keys() == layer.parameters.keys() == ({"weight", "bias"} if bias else {"weight"})
    for found, a in [(g.x, x), *((g.parameters[k], layer.parameters[k]) for k in g.parameters)]:
        assert_gradient(found, lambda: float((layer(x) * dy).sum()), a)


@pytest.mark.parametrize("shape", [(), (6,), (T, B), (0, B)])
def test_embedding_gradients(rng: np.random.Generator, shape: tuple[int, ...]) -> None:
    layer = train.Embedding(C, I, dtype=np.float64, rng=rng)
    indices, dy = rng.integers(0, C - 1, shape), rng.standard_normal((*shape, I))  # the last symbol never occurs
    y, tape = layer.forward(indices)
    assert (y == layer(indices)).all()
    assert (y == train.one_hot(indices, C, np.float64) @ layer.parameters["weight"]).all()
    found = layer.backward(tape, dy).parameters["weight"]
    assert_gradient(found, lambda: float((layer(indices) * dy).sum()), layer.parameters["weight"])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_layers_keep_their_dtype(dtype: type) -> None:
    linear, embedding = train.Linear(I, O, dtype=dtype, rng=0), train.Embedding(C, I, dtype=dtype, rng=0)
    x, indices = embedding.forward([[0, 1], [1, 4]])
    y, tape = linear.forward(x)
    g = linear.backward(tape, y)
    read = embedding.backward(indices, g.x)
    assert {a.dtype for a in (x, y, g.x, *g.parameters.values(), *read.parameters.values())} == {np.dtype(dtype)}
    assert train.one_hot(3, C, dtype).dtype == dtype


@pytest.mark.parametrize(
    "shown",
    [
        "Linear(4, 3)",
        "Linear(4, 3, bias=False, dtype=float64)",
        "Embedding(5, 4)",
        "Embedding(5, 4, dtype=float16)",
    ],
)
def test_layers_are_shown_as_they_would_be_called(shown: str) -> None:
    scope = {"Linear": train.Linear, "Embedding": train.Embedding, "float16": np.float16, "float64": np.float64}
    assert repr(eval(shown, scope)) == shown


def test_initial_values_follow_the_seed_and_the_documented_range() -> None:
    a, b, c = (train.Linear(100, 200, rng=seed).parameters["weight"] for seed in (1, 1, 2))
    assert (a == b).all()
    assert (a != c).any()
    assert 0.099 < np.abs(a).max() <= 0.1
    bias = train.Linear(100, 2000, rng=1).parameters["bias"]
    assert 0.099 < np.abs(bias).max() <= 0.1
    assert bias.std() == pytest.approx(0.1 / math.sqrt(3), rel=0.05)
    assert train.Embedding(1000, 100, rng=1).parameters["weight"].std() == pytest.approx(1, abs=0.01)


def test_one_hot() -> None:
    assert train.one_hot([[2], [0]], 3).tolist() == [[[0, 0, 1]], [[1, 0, 0]]]


def test_empty_lists_are_of_integers() -> None:
    layer = train.Embedding(C, I)
    assert train.one_hot([], C).shape == (0, C)
    y, tape = layer.forward([[], []])
    assert y.shape == (2, 0, I)
    assert not layer.backward(tape, y).parameters["weight"].any()
    assert train.softmax_cross_entropy(np.zeros((0, C)), [], reduction="sum")[0] == 0


# ------------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("unit", ["nats", "bits"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(1,), (T, B)])
def test_softmax_cross_entropy_gradient(
    rng: np.random.Generator, shape: tuple[int, ...], masked: bool, reduction: str, unit: str
) -> None:
    logits, targets = rng.standard_normal((*shape, C)), rng.integers(0, C, shape)
    mask = np.arange(math.prod(shape)).reshape(shape) % 3 == 0 if masked else None

    def loss() -> float:
        return train.softmax_cross_entropy(logits, targets, mask, reduction=reduction, unit=unit)[0]

    _, gradient = train.softmax_cross_entropy(logits, targets, mask, reduction=reduction, unit=unit)
    assert_gradient(gradient, loss, logits)


def test_softmax_cross_entropy_by_hand() -> None:
    logits, targets = np.log([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]), [0, 1]
    assert train.softmax_cross_entropy(logits, targets, unit="bits")[0] == pytest.approx((1 + 3) / 2)
    assert train.softmax_cross_entropy(logits, targets, unit="bits", reduction="sum")[0] == pytest.approx(4)
    assert train.softmax_cross_entropy(logits, targets)[0] == pytest.approx(2 * math.log(2))
    assert train.softmax_cross_entropy(logits, targets, [False, True], unit="bits")[0] == pytest.approx(3)
    assert train.softmax_cross_entropy(np.zeros(4), 2, unit="bits")[0] == pytest.approx(2)


def test_what_the_mask_hides_is_not_read() -> None:
    mask = np.array([True, False])
    logits, prediction = np.array([[0.0, 1.0], [np.nan, np.inf]]), np.array([1.0, np.nan])
    loss, gradient = train.softmax_cross_entropy(logits, [1, -1], mask)
    assert loss == pytest.approx(math.log1p(math.exp(-1)))
    assert gradient[1].tolist() == [0, 0]
    loss, gradient = train.mean_squared_error(prediction, np.array([3.0, 0.0]), mask)
    assert loss == 4
    assert gradient.tolist() == [-4, 0]
    loss, gradient = train.binary_cross_entropy(np.array([0, np.nan]), np.array([1.0, 7.0]), mask)
    assert loss == pytest.approx(math.log(2))
    assert gradient.tolist() == [-0.5, 0]


def test_losses_over_nothing() -> None:
    nothing = np.zeros((0, C))
    assert train.softmax_cross_entropy(nothing, np.zeros(0, int), reduction="sum")[0] == 0
    assert train.mean_squared_error(nothing, nothing, reduction="sum")[0] == 0
    for mean in (
        lambda: train.softmax_cross_entropy(nothing, np.zeros(0, int)),
        lambda: train.softmax_cross_entropy(np.zeros((2, C)), [0, 0], False),
        lambda: train.mean_squared_error(nothing, nothing),
        lambda: train.binary_cross_entropy(nothing, nothing),
    ):
        with pytest.raises(ValueError, match="reduction: expected at least one element for a mean, got none"):
            mean()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("masked", [False, True])
def test_mean_squared_error_gradient(rng: np.random.Generator, masked: bool, reduction: str) -> None:
    prediction, target = rng.standard_normal((2, T, B, O))
    mask = (np.arange(T)[:, None] < [1, 3])[..., None] if masked else None

    def loss() -> float:
        return train.mean_squared_error(prediction, target, mask, reduction=reduction)[0]

    _, gradient = train.mean_squared_error(prediction, target, mask, reduction=reduction)
    assert_gradient(gradient, loss, prediction)
    expected = np.square(prediction - target)[np.broadcast_to(True if mask is None else mask, target.shape)]
    assert loss() == pytest.approx(getattr(expected, reduction)())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("masked", [False, True])
def test_binary_cross_entropy_gradient(rng: np.random.Generator, masked: bool, reduction: str) -> None:
    logits, targets = 3 * rng.standard_normal((T, B, O)), rng.random((T, B, O))
    mask = (np.arange(T)[:, None] < [1, 3])[..., None] if masked else None

    def loss() -> float:
        return train.binary_cross_entropy(logits, targets, mask, reduction=reduction)[0]

    _, gradient = train.binary_cross_entropy(logits, targets, mask, reduction=reduction)
    assert_gradient(gradient, loss, logits)
    p = 1 / (1 + np.exp(-logits))
    expected = -targets * np.log(p) - (1 - targets) * np.log(1 - p)
    expected = expected[np.broadcast_to(True if mask is None else mask, targets.shape)]
    assert loss() == pytest.approx(getattr(expected, reduction)())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_binary_cross_entropy_at_the_ends_of_the_range(dtype: type) -> None:
    logits, targets = np.array([6e4, 6e4, -6e4, -6e4, 0], dtype), np.array([0, 1, 0, 1, 0.5], dtype)
    loss, gradient = train.binary_cross_entropy(logits, targets, reduction="sum")
    assert loss == pytest.approx(2 * float(logits[0]) + math.log(2), rel=float(np.finfo(dtype).eps))
    np.testing.assert_array_equal(gradient, np.array([1, 0, 0, -1, 0], dtype), strict=True)
    assert np.isnan(train.binary_cross_entropy(np.array([np.nan], dtype), np.array([1], dtype))[0])


def test_binary_cross_entropy_is_that_of_torch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    logits, targets = 5 * rng.standard_normal((T, O)), rng.integers(0, 2, (T, O)).astype(float)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(targets))
    assert train.binary_cross_entropy(logits, targets)[0] == pytest.approx(float(expected), rel=1e-14)


@pytest.mark.parametrize(("dtype", "error"), [(np.float16, 4e4), (np.float32, 2e30)])
def test_mean_squared_error_of_squares_that_overflow(dtype: type, error: float) -> None:
    prediction = np.full(4, error, dtype)
    loss, gradient = train.mean_squared_error(prediction, np.zeros_like(prediction))
    assert loss == pytest.approx(float(prediction[0]) ** 2)
    np.testing.assert_array_equal(gradient, prediction / 2, strict=True)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_softmax_does_not_overflow(dtype: type) -> None:
    logits = np.array([[60000, 60000, -np.inf], [-60000, 0, 0]], dtype)
    assert train.softmax(logits).tolist() == [[0.5, 0.5, 0], [0, 0.5, 0.5]]
    assert train.softmax(logits[:, None]).tolist() == [[[0.5, 0.5, 0]], [[0, 0.5, 0.5]]]
    assert train.softmax(logits).dtype == dtype
    loss, gradient = train.softmax_cross_entropy(logits, [0, 1], unit="bits")
    assert loss == pytest.approx(1, rel=1e-3)
    assert gradient.dtype == dtype
    loss, _ = train.softmax_cross_entropy(np.zeros((100_000, 2), dtype), np.zeros(100_000, int), reduction="sum")
    assert loss == pytest.approx(100_000 * math.log(2), rel=float(np.finfo(dtype).eps))


# ----------------------------------------------------------------------------------------------------------- clipping


def test_softmax_of_many_classes_in_float16() -> None:
    """Their sum is beyond float16."""
    logits = np.zeros((1, 70_000), np.float16)
    p = train.softmax(logits)
    np.testing.assert_array_equal(p, np.full_like(logits, 1 / 70_000), strict=True)
    loss, dlogits = train.softmax_cross_entropy(logits, [3])
    assert loss == pytest.approx(math.log(70_000))
    assert dlogits.dtype == np.float16
    assert dlogits[0, 3] == -1
    assert (dlogits[0, 4:] == np.float16(1 / 70_000)).all()


def test_softmax_of_a_difference_beyond_its_dtype() -> None:
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(train.softmax(np.float32([3e38, -3e38])), np.float32([1, 0]), strict=True)
        assert train.softmax_cross_entropy(np.float32([[3e38, -3e38]]), [0])[0] == 0


def test_the_other_order_of_bytes(rng: np.random.Generator) -> None:
    """In losses and in parameters, whose gradients are of the machine's own order."""
    a = rng.random(3, np.float32)
    swapped = a.astype(a.dtype.newbyteorder())
    for loss in (train.mean_squared_error, train.binary_cross_entropy):
        found, expected = loss(swapped, a), loss(a, a)
        assert found[0] == expected[0]
        np.testing.assert_array_equal(found[1], expected[1], strict=True)
    parameters = {"a": swapped.copy()}
    expected_parameters = {"a": a.copy()}
    for p in (parameters, expected_parameters):
        train.Adam(p).step({"a": a})
    np.testing.assert_array_equal(parameters["a"], expected_parameters["a"])


@pytest.mark.parametrize("make", [train.Adam, train.RMSprop])
def test_epsilon_is_not_lost_in_float16(make: type[train.Adam]) -> None:
    parameters = {"a": np.ones(3, np.float16)}
    make(parameters).step({"a": np.zeros(3, np.float16)})
    np.testing.assert_array_equal(parameters["a"], np.ones(3, np.float16), strict=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": [["a"] * I] * O}, TypeError, "weight: expected float32, got"),
        ({"weight": np.ones(I, np.float32)}, ValueError, r"weight: expected shape \(3, 4\), got \(4,\)"),
        ({"weight": np.ones((O, I))}, TypeError, "weight: expected float32, got float64"),
        ({"bias": np.ones((B, O), np.float32)}, ValueError, r"bias: expected shape \(3,\), got \(2, 3\)"),
        ({"a": np.ones(O, np.float32)}, ValueError, "parameters: expected the keys weight, bias; unexpected: a"),
    ],
)
def test_parameters_that_were_replaced(change: dict[str, Any], error: type[Exception], message: str) -> None:
    layer, dy = train.Linear(I, O), np.ones((B, O), np.float32)
    layer.parameters |= change
    for call in (lambda: layer(x32), lambda: layer.backward(x32, dy), layer.state_dict):
        with pytest.raises(error, match=message):
            call()
    assert repr(layer) == "Linear(4, 3)"


def test_clip_global_norm() -> None:
    gradients = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]], np.float32)}
    assert train.clip_global_norm(gradients, 5) == 5
    assert gradients["a"].tolist() == [3, 0]
    assert train.clip_global_norm(gradients, 2.5) == 5
    assert gradients["a"].tolist() == [1.5, 0]
    assert gradients["b"].tolist() == [[2]]
    assert train.clip_global_norm({}, 1) == 0
    assert train.clip_global_norm({"a": np.zeros((2, 0))}, 1) == 0


def test_clip_global_norm_of_squares_that_overflow() -> None:
    gradients = {"a": np.full(4, 1e30, np.float32)}
    assert train.clip_global_norm(gradients, 1) == pytest.approx(2e30)
    np.testing.assert_allclose(gradients["a"], 0.5, rtol=1e-6)


def test_clip_global_norm_of_norms_that_overflow_together() -> None:
    gradients = {name: np.full(1, 1.1e154) for name in "ab"}
    assert train.clip_global_norm(gradients, 1) == pytest.approx(1.1e154 * math.sqrt(2))
    np.testing.assert_allclose(gradients["a"], math.sqrt(0.5), rtol=1e-14)


@pytest.mark.parametrize(
    ("dtype", "value", "limit"),
    [
        (np.float64, "1e200", 1),
        (np.float64, "1e308", 1e300),
        (np.float64, "1e-200", 1e-210),
        (np.float64, "1e-160", 1e-161),
        (np.float64, "5e-324", 5e-324),
        (np.float32, "1e38", 1e-6),
        (np.float16, "6e4", 1e-3),
        (np.longdouble, "1e200", 1),
    ],
)
def test_clip_global_norm_at_the_ends_of_the_range(dtype: type, value: str, limit: float) -> None:
    """Neither squares nor the factor limit / norm overflow or vanish."""
    gradients = {"a": np.array([value] * 2 + ["0"]).astype(dtype)}
    before = gradients["a"].copy()
    norm = train.clip_global_norm(gradients, limit)
    assert type(norm) is float
    assert norm == pytest.approx(float(before[0]) * math.sqrt(2), rel=1e-14, abs=5e-324)
    expected = (before.astype(np.longdouble) * np.longdouble(limit) / np.longdouble(norm)).astype(dtype)
    rtol = 2 * max(np.finfo(dtype).eps, np.finfo(float).eps)  # one rounding more, and a factor of float64
    np.testing.assert_allclose(gradients["a"], expected, rtol=rtol, strict=True)


def test_clip_global_norm_has_the_bits_of_the_plain_equation(rng: np.random.Generator) -> None:
    g = rng.standard_normal((7, 9))
    assert train.clip_global_norm({"a": g}, 1e9) == math.sqrt(np.square(g).sum())


@pytest.mark.parametrize("value", [np.finfo(np.float64).max, np.finfo(np.longdouble).max])
def test_clip_global_norm_refuses_what_is_no_float(value: np.floating[Any]) -> None:
    gradients = {"a": np.full(2, value)}
    with pytest.raises(FloatingPointError, match="the norm of 'a' is not finite as a float"):
        train.clip_global_norm(gradients, 1)
    assert (gradients["a"] == value).all()


def test_clip_global_norm_takes_an_array_under_two_keys_once() -> None:
    tied = np.array([3.0, 4.0])
    assert train.clip_global_norm({"in": tied, "out": tied}, 2.5) == 5
    assert tied.tolist() == [1.5, 2]


@pytest.mark.parametrize("clip", [train.clip_global_norm, train.clip_value])
@pytest.mark.parametrize(
    ("gradients", "error", "said"),
    [
        (None, TypeError, "gradients: expected a mapping, got NoneType"),
        ({"a": np.full(2, 9.0), "b": [1.0]}, TypeError, r"gradients\['b'\]: expected an ndarray, got list"),
        ({"a": np.full(2, 9.0), "b": np.arange(3)}, TypeError, r"gradients\['b'\]: expected floating numbers, got int"),
        ({"a": np.full(2, 9.0), "b": np.broadcast_to(9.0, 3)}, ValueError, r"gradients\['b'\]: expected a writable"),
    ],
)
def test_clipping_refuses_before_it_changes(clip: Any, gradients: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        clip(gradients, 1)
    assert gradients is None or gradients["a"].tolist() == [9, 9]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: train.Adam([np.ones(2)]), "parameters: expected a mapping, got list"),
        (lambda: train.SGD({"p": np.ones(2)}, 0.1).step(None), "gradients: expected a mapping, got NoneType"),
        (lambda: train.assign({"p": np.ones(2)}, None), "arrays: expected a mapping, got NoneType"),
        (lambda: train.save_arrays("unwritten.npz", [np.ones(2)]), "arrays: expected a mapping, got list"),
        (lambda: train.Linear(3, 4).backward(None, np.ones(4)), "tape: expected the tape of Linear.forward, got None"),
        (lambda: train.Embedding(3, 4).backward(None, np.ones(4)), "tape: expected the tape of Embedding.forward"),
        (lambda: train.Linear(3, 4)([[1.0], [1.0, 2.0]]), r"x: expected floating numbers, got list \("),
        (lambda: train.Embedding(3, 4)([[1], [1, 2]]), r"indices: expected integers, got list \("),
        (lambda: train.softmax([[1.0], [1.0, 2.0]]), r"logits: expected floating numbers, got list \("),
        (lambda: train.Adam({1: np.ones(2)}), "parameters: expected keys of type str, got 1"),
        (lambda: train.join(rnn={1: np.ones(2)}), "rnn: expected keys of type str, got 1"),
        (lambda: train.softmax_cross_entropy(logits32, [[1], [1, 2]]), r"targets: expected integers, got list \("),
        (lambda: train.softmax_cross_entropy(logits32, masked), "targets: expected integers, got a masked array"),
        (lambda: train.save_arrays("unwritten.npz", {"a": masked}), r"arrays\['a'\]: .* got a masked array"),
        (lambda: train.save_arrays("unwritten.npz", {1: np.ones(2)}), "arrays: expected keys of type str, got 1"),
        (lambda: train.save_arrays(None, {}), "path: expected a path, got NoneType"),
        (lambda: train.load_arrays(b"a.npz"), "path: expected a path, got bytes"),
        (lambda: train.load_arrays(3.5), "path: expected a path, got float"),
        (lambda: train.Linear(3, 4, bias="no"), "bias: expected True or False, got 'no'"),
    ],
)
def test_what_is_no_array_or_mapping(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        call()


def test_assigning_parameters_to_one_another() -> None:
    """No value is read after it was written over; and where one cannot be written to, none is."""
    parameters = {"p": np.zeros(2), "q": np.ones(2)}
    train.assign(parameters, {"p": parameters["q"], "q": parameters["p"]})
    assert parameters["p"].tolist() == [1, 1]
    assert parameters["q"].tolist() == [0, 0]
    parameters["q"].flags.writeable = False
    with pytest.raises(ValueError, match=r"parameters\['q'\]: expected a writable array"):
        train.assign(parameters, {"p": np.full(2, 3.0), "q": np.full(2, 3.0)})
    assert parameters["p"].tolist() == [1, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_clip_global_norm_refuses_what_is_not_finite(value: float) -> None:
    gradients = {"a": np.array([100.0]), "b": np.array([1.0, value])}
    with pytest.raises(FloatingPointError, match="gradients: the norm of 'b' is not finite"):
        train.clip_global_norm(gradients, 1)
    assert gradients["a"] == 100


def test_clip_value() -> None:
    gradients = {"a": np.array([-3.0, 0.5, np.inf, np.nan], np.float32)}
    train.clip_value(gradients, 2)
    np.testing.assert_array_equal(gradients["a"], np.array([-2, 0.5, 2, np.nan], np.float32))


# --------------------------------------------------------------------------------------------------------- optimisers


def steps(make: Callable[..., train.Optimizer], gradients: list[float], **options: float) -> list[float]:
    p = np.array([1.0])
    optimizer, values = make({"p": p}, **options), []
    for g in gradients:
        optimizer.step({"p": np.array([g], np.float64)})
        values.append(float(p[0]))
    assert optimizer.steps == len(gradients)
    return values


def test_sgd_by_hand() -> None:
    assert steps(train.SGD, [2, 4], learning_rate=0.25) == [0.5, -0.5]
    assert steps(train.SGD, [2, 4], learning_rate=0.25, momentum=0.5) == [0.5, -0.75]  # v = 2, 5


def test_rmsprop_by_hand() -> None:
    # s = 0.5 * 4 = 2, then 0.5 * 2 + 0.5 * 1 = 1.5
    first = 1 - 0.1 * 2 / (math.sqrt(2) + 1e-8)
    second = first - 0.1 * 1 / (math.sqrt(1.5) + 1e-8)
    assert steps(train.RMSprop, [2, 1], learning_rate=0.1, decay=0.5) == pytest.approx([first, second], rel=1e-14)


def test_adam_by_hand() -> None:
    # m = 0.2, 0.28; v = 0.004, 0.004996; corrected: 2, 0.28/0.19; 4, 0.004996/0.001999
    first = 1 - 0.1 * 2 / (2 + 1e-8)
    second = first - 0.1 * (0.28 / 0.19) / (math.sqrt(0.004996 / 0.001999) + 1e-8)
    assert steps(train.Adam, [2, 1], learning_rate=0.1) == pytest.approx([first, second], rel=1e-12)
    decayed = 1 - 0.1 * 0.5 - 0.1 * 2 / (2 + 1e-8)
    assert steps(train.Adam, [2], learning_rate=0.1, weight_decay=0.5) == pytest.approx([decayed], rel=1e-14)


@pytest.mark.parametrize(
    ("make", "options", "name", "torch_options"),
    [
        (train.SGD, {"learning_rate": 0.1}, "SGD", {"lr": 0.1}),
        (train.SGD, {"learning_rate": 0.1, "momentum": 0.9}, "SGD", {"lr": 0.1, "momentum": 0.9}),
        (train.RMSprop, {}, "RMSprop", {}),
        (train.RMSprop, {"decay": 0.95}, "RMSprop", {"lr": 0.01, "alpha": 0.95}),
        (train.Adam, {}, "Adam", {}),
        (
            train.Adam,
            {"beta1": 0.8, "beta2": 0.99, "weight_decay": 0.1},
            "AdamW",
            {"betas": (0.8, 0.99), "weight_decay": 0.1},
        ),
    ],
    ids=["sgd", "momentum", "rmsprop", "rmsprop decay", "adam", "adamw"],
)
def test_optimizers_make_the_steps_of_torch(make, options, name, torch_options, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    torch = pytest.importorskip("torch")
    arrays = {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5)}
    tensors = {key: torch.tensor(a.copy(), requires_grad=True) for key, a in arrays.items()}
    ours, theirs = make(arrays, **options), getattr(torch.optim, name)(tensors.values(), **torch_options)
    for _ in range(20):
        gradients = {key: rng.standard_normal(a.shape) for key, a in arrays.items()}
        for key, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[key].copy())
        ours.step(gradients)
        theirs.step()
    for key, a in arrays.items():
        np.testing.assert_allclose(a, tensors[key].detach().numpy(), rtol=1e-12)


def test_state_dicts_of_linear_and_embedding() -> None:
    for layer in (train.Linear(I, O, rng=1), train.Linear(I, O, bias=False, rng=1), train.Embedding(C, I, rng=1)):
        held, state = dict(layer.parameters), layer.state_dict()
        other = {name: np.arange(a.size, dtype=np.float64).reshape(a.shape) for name, a in state.items()}
        layer.load_state_dict(other)
        for name, a in layer.parameters.items():
            assert a is held[name]
            np.testing.assert_array_equal(a, other[name].astype(np.float32), strict=True)
            assert (state[name] != other[name]).any()


def test_linear_and_embedding_load_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    for ours, theirs in (
        (train.Linear(I, O), torch.nn.Linear(I, O, dtype=torch.float64)),
        (train.Embedding(C, I), torch.nn.Embedding(C, I)),
    ):
        ours.load_state_dict(theirs.state_dict())
        for name, a in theirs.state_dict().items():
            np.testing.assert_array_equal(ours.parameters[name], a.float().numpy(), strict=True)


@pytest.mark.parametrize("number", [np.uint8, np.float16, Decimal, Fraction, float])
def test_numbers_of_any_kind(number: Any) -> None:
    gradients = {"a": np.array([-3, -0.5, 0.5], np.float32)}
    train.clip_value(gradients, number(1))
    assert gradients["a"].tolist() == [-1, -0.5, 0.5]
    gradients = {"a": np.array([3e5, 4e5], np.float32)}
    train.clip_global_norm(gradients, number(1))
    np.testing.assert_allclose(gradients["a"], [0.6, 0.8], rtol=1e-6)
    for make, names in (
        (train.SGD, ("momentum",)),
        (train.RMSprop, ("decay",)),
        (train.Adam, ("beta1", "beta2", "weight_decay")),
    ):
        results = []
        for kind in (number, float):
            parameters = {"a": np.ones(3)}
            optimizer = make(parameters, 0.1, **dict.fromkeys(names, kind(0)))
            optimizer.step({"a": np.arange(3.0)})
            assert all(type(getattr(optimizer, name)) is float for name in names)
            results.append(parameters["a"])
        np.testing.assert_array_equal(*results)


def test_a_limit_beyond_the_range_of_a_gradient() -> None:
    gradients = {"a": np.array([-6e4, 1, np.inf], np.float16)}
    train.clip_value(gradients, 1e30)
    np.testing.assert_array_equal(gradients["a"], np.array([-6e4, 1, 65504], np.float16), strict=True)


def test_momentum_may_come_later() -> None:
    parameters = {"a": np.ones(1)}
    optimizer = train.SGD(parameters, 0.5)
    optimizer.momentum = 0.5
    for _ in range(2):
        optimizer.step({"a": np.ones(1)})
    assert parameters["a"].tolist() == [1 - 0.5 - 0.5 * 1.5]


@pytest.mark.parametrize("key", ["a\0b", "\ud800", "x" * 60_001])
def test_keys_that_no_file_can_hold(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.npz"
    train.save_arrays(path, {"x" * 60_000: np.ones(1)})
    with pytest.raises(ValueError, match="arrays: expected keys of up to 60,000 bytes of UTF-8 without NUL, got "):
        train.save_arrays(path, {"a": np.ones(1), key: np.ones(1)})
    assert list(train.load_arrays(path)) == ["x" * 60_000]


OPTIMIZERS = pytest.mark.parametrize("make", [train.SGD, train.RMSprop, train.Adam])


@OPTIMIZERS
def test_optimizers_change_arrays_in_place_and_keep_dtypes(make: type) -> None:
    parameters = {"a": np.ones(3, np.float32), "b": np.ones((2, 2))}
    before = dict(parameters)
    gradients = {key: np.full_like(a, 2) for key, a in parameters.items()}
    make(parameters, learning_rate=0.5).step(gradients)
    for key, a in parameters.items():
        assert a is before[key]
        assert (a < 1).all()
        assert (gradients[key] == 2).all()
    assert parameters["a"].dtype == np.float32


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        (train.SGD({}, 0.1), "SGD(0 arrays, learning_rate=0.1)"),
        (train.SGD({"p": np.ones(1)}, 1, momentum=0.9), "SGD(1 array, learning_rate=1.0, momentum=0.9)"),
        (
            train.RMSprop({}, decay=0.5, epsilon=1e-6),
            "RMSprop(0 arrays, learning_rate=0.01, decay=0.5, epsilon=1e-06)",
        ),
        (
            train.Adam({}, weight_decay=0.1, beta1=0.8),
            "Adam(0 arrays, learning_rate=0.001, beta1=0.8, weight_decay=0.1)",
        ),
    ],
)
def test_optimizers_show_their_numbers(made: train.Optimizer, shown: str) -> None:
    assert repr(made) == shown


@OPTIMIZERS
def test_optimizers_follow_a_changed_learning_rate(make: type) -> None:
    p = np.ones(1)
    optimizer = make({"p": p}, learning_rate=0.5)
    optimizer.step({"p": np.ones(1)})
    after_one = p.copy()
    optimizer.learning_rate = 0
    optimizer.step({"p": np.ones(1)})
    assert p == after_one
    for wrong, error in [("0.1", TypeError), (-1, ValueError), (math.nan, ValueError)]:
        with pytest.raises(error, match="learning_rate: expected a number"):
            optimizer.learning_rate = wrong
    assert optimizer.learning_rate == 0


def test_a_step_that_fails_changes_and_counts_nothing() -> None:
    parameters = {"p": np.ones(1), "q": np.ones(1)}
    optimizer = train.Adam(parameters)
    parameters["q"].flags.writeable = False
    with pytest.raises(ValueError, match=r"parameters\['q'\]: expected a writable array"):
        optimizer.step({"p": np.ones(1), "q": np.ones(1)})
    assert parameters["p"] == 1
    optimizer = train.Adam({"p": parameters["p"]})
    optimizer.beta1 = "0.9"
    with pytest.raises(TypeError):
        optimizer.step({"p": np.ones(1)})
    assert optimizer.steps == 0


MOMENTS = {
    "sgd": (lambda p: train.SGD(p, 0.1), ""),
    "momentum": (lambda p: train.SGD(p, 0.1, 0.9), "v"),
    "rmsprop": (train.RMSprop, "s"),
    "adam": (lambda p: train.Adam(p, weight_decay=0.1), "mv"),
}


@pytest.mark.parametrize("name", MOMENTS)
def test_training_goes_on_from_a_file(name: str, tmp_path, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    """With the bits of a training without a break."""
    make, moments = MOMENTS[name]
    parameters = {"p": rng.standard_normal((3, 4)), "q": rng.standard_normal(5).astype(np.float32)}
    gradients = [{k: rng.standard_normal(p.shape).astype(p.dtype) for k, p in parameters.items()} for _ in range(6)]
    optimizer = make(parameters)
    for g in gradients[:3]:
        optimizer.step(g)
    state = optimizer.state_dict()
    assert list(state) == ["steps", *(f"{moment}.{p}" for moment in moments for p in "pq")]
    train.save_arrays(tmp_path / "break.npz", train.join(parameters=parameters, optimizer=state))
    for g in gradients[3:]:
        optimizer.step(g)
    assert state["steps"] == 3  # a copy, as are the moments: those of the file and of `state` agree

    loaded = train.load_arrays(tmp_path / "break.npz")
    after = {key: loaded[f"parameters.{key}"] for key in parameters}
    resumed = make(after)
    resumed.load_state_dict({key: loaded[f"optimizer.{key}"] for key in state})
    assert all(np.array_equal(a, state[key]) for key, a in resumed.state_dict().items())
    for g in gradients[3:]:
        resumed.step(g)
    assert resumed.steps == optimizer.steps == 6
    for key, p in parameters.items():
        np.testing.assert_array_equal(after[key], p, strict=True)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"steps": np.array(-1)}, ValueError, r"state_dict\['steps'\]: expected a number from 0 .* got -1"),
        ({"steps": 1.0}, TypeError, r"state_dict\['steps'\]: expected int64, got float64"),
        ({"steps": np.ones(1, int)}, ValueError, r"state_dict\['steps'\]: expected shape \(\), got \(1,\)"),
        ({"v.p": np.ones(3)}, ValueError, r"state_dict\['v.p'\]: expected shape \(2,\), got \(3,\)"),
        ({"v.p": np.ones(2, np.float32)}, TypeError, r"state_dict\['v.p'\]: expected float64, got float32"),
        ({"s.p": np.ones(2)}, ValueError, "state_dict: expected the keys steps, m.p, v.p; unexpected: s.p"),
    ],
)
def test_a_state_unlike_the_optimizers_changes_nothing(change: Any, error: type[Exception], message: str) -> None:
    optimizer = train.Adam({"p": np.ones(2)})
    good = {"steps": np.array(7), "m.p": np.ones(2), "v.p": np.ones(2)}
    with pytest.raises(error, match=f"^{message}"):
        optimizer.load_state_dict(good | change)
    with pytest.raises(TypeError, match="state_dict: expected a mapping, got NoneType"):
        optimizer.load_state_dict(None)
    assert not any(a.any() for a in optimizer.state_dict().values())
    optimizer.load_state_dict(good)
    assert optimizer.steps == 7


# -------------------------------------------------------------------------------------------------------------- dicts


def test_join_keeps_the_arrays_themselves() -> None:
    a, b = np.zeros(1), np.zeros(2)
    joined = train.join(rnn={"w": a}, head={"w": b})
    assert list(joined) == ["rnn.w", "head.w"]
    assert joined["rnn.w"] is a
    assert joined["head.w"] is b
    for part, got in [(None, "NoneType"), ([1], "list")]:
        with pytest.raises(TypeError, match=f"head: expected a mapping, got {got}"):
            train.join(head=part)


def test_save_and_load(tmp_path, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    arrays = {
        "rnn.weight_ih_l0": rng.standard_normal((3, 4)).astype(np.float32),
        "file": np.asfortranarray(rng.standard_normal((2, 3))),
        "allow_pickle": np.array(3),
        "a.npy.npy": np.array(4),
        "empty": np.zeros((0, 2), ">f8"),
    }
    paths = tmp_path / "weights.npz", tmp_path / "no suffix"
    paths[0].write_bytes(b"what was there before")
    for path in paths:
        train.save_arrays(path, arrays)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    loaded = train.load_arrays(str(paths[1]))
    assert list(loaded) == list(arrays)
    for key, a in arrays.items():
        np.testing.assert_array_equal(loaded[key], a, strict=True)
    with np.load(paths[0]) as archive:
        assert archive.files == list(arrays)
    with zipfile.ZipFile(paths[0]) as archive:  # nothing of the time of writing: the same bytes whenever
        assert {member.date_time for member in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    np.savez(tmp_path / "numpy.npz", a=arrays["file"])
    np.testing.assert_array_equal(train.load_arrays(tmp_path / "numpy.npz")["a"], arrays["file"])


def test_assign() -> None:
    parameters = {"a": np.zeros(2, np.float32)}
    a = parameters["a"]
    train.assign(parameters, {"a": np.array([1, 2], np.float32)})
    assert a.tolist() == [1, 2]
    assert parameters["a"] is a


def test_load_refuses_what_is_no_npz(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "a.npz"
    with pytest.raises(FileNotFoundError):
        train.load_arrays(path)
    path.write_bytes(b"PK no zip")
    with pytest.raises(ValueError, match=r"path: expected an .npz file, got .*a\.npz"):
        train.load_arrays(path)
    with pytest.raises(ValueError, match=r"arrays\['a'\]: expected numbers, got Python objects"):
        train.save_arrays(tmp_path / "b.npz", {"a": np.array([None])})
    assert not (tmp_path / "b.npz").exists()
    np.savez(path, a=np.array([None]))
    with pytest.raises(ValueError, match=r"^path: .* allow_pickle=False"):
        train.load_arrays(path)
    for content in (b"junk", b"", b"\x93NUMPY"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a", content)
        with pytest.raises(ValueError, match=r"^path: expected an .npz file, got .*a\.npz \("):
            train.load_arrays(path)


@pytest.mark.parametrize("save", [train.save_arrays, lambda path, arrays: np.savez_compressed(path, **arrays)])
def test_load_refuses_damaged_files(save: Callable[..., None], tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Wherever a bit is flipped or the end cut off. 10 kB are more than zipfile reads and compares at once."""
    path, arrays = tmp_path / "a.npz", {"a": np.random.default_rng(0).standard_normal(1250), "b": np.arange(3)}
    save(path, arrays)
    intact = path.read_bytes()
    for i in (*range(200), *range(200, len(intact), 97), *range(len(intact) - 150, len(intact))):
        path.write_bytes(intact[:i] + bytes([intact[i] ^ 1]) + intact[i + 1 :])
        try:
            loaded = train.load_arrays(path)
        except ValueError as error:
            assert str(error).startswith(f"path: expected an .npz file, got {path} (")  # noqa: PT017
        else:
            assert loaded.keys() == arrays.keys()
            assert all(np.array_equal(a, arrays[key]) for key, a in loaded.items())
    for i in range(0, len(intact), 97):
        path.write_bytes(intact[:i])
        with pytest.raises(ValueError, match=r"^path: expected an \.npz file"):
            train.load_arrays(path)


def test_load_refuses_a_list_of_arrays_that_is_too_short(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """An entry whose comment, by a damaged length, takes in the entry that follows."""
    path = tmp_path / "a.npz"
    train.save_arrays(path, {"a": np.arange(50.0), "b": np.ones(4, "f4")})
    intact = path.read_bytes()
    first, second = (i for i in range(len(intact)) if intact.startswith(b"PK\1\2", i))
    end = intact.index(b"PK\5\6")
    path.write_bytes(intact[: first + 32] + (end - second).to_bytes(2, "little") + intact[first + 34 :])
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["a.npy"]
    with pytest.raises(ValueError, match=r"^path: expected an .npz file, got .* \(1 of 2 arrays are listed\)"):
        train.load_arrays(path)


def test_load_refuses_an_array_shorter_than_its_member(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """As a flipped digit of the shape makes one, before the checksum would be compared."""
    path = tmp_path / "a.npz"
    train.save_arrays(path, {"a": np.zeros(9000)})
    path.write_bytes(path.read_bytes().replace(b"(9000,)", b"(8000,)"))
    with pytest.raises(ValueError, match=r"^path: expected an .npz file, got .* \(a.npy goes on after its array\)"):
        train.load_arrays(path)


# ---------------------------------------------------------------------------------------------------------- bad input


def read_only() -> Array:
    a = np.zeros(1)
    a.flags.writeable = False
    return a


BAD_INPUT = [
    (lambda: train.Linear(0, 1), ValueError, "input_size: expected at least 1, got 0"),
    (lambda: train.Linear(1, -1), ValueError, "output_size: expected at least 1, got -1"),
    (lambda: train.Linear(1.5, 1), TypeError, "input_size: expected an integer, got float"),
    (lambda: train.Linear(1, 1, dtype=int), TypeError, "dtype: expected a floating dtype, got int64"),
    (lambda: train.Linear(1, 1, rng="seed"), TypeError, "rng: expected a numpy.random.Generator, a seed or None"),
    (lambda: linear(np.zeros(I)), TypeError, "x: expected float32, got float64"),
    (lambda: linear(np.float32(1)), ValueError, r"x: expected shape \(4,\), got \(\)"),
    (lambda: linear(np.zeros((B, 5), np.float32)), ValueError, r"x: expected shape \(2, 4\), got \(2, 5\)"),
    (lambda: linear.backward(x32, np.zeros((B, O))), TypeError, "dy: expected float32, got float64"),
    (lambda: linear.backward(x32, x32), ValueError, r"dy: expected shape \(2, 3\), got \(2, 4\)"),
    (lambda: linear.backward(x32[:, None], x32[:, :O]), ValueError, r"dy: expected shape \(2, 1, 3\), got \(2, 3\)"),
    (lambda: linear.backward(np.zeros((B, 7), np.float32), x32), ValueError, r"tape: .* \(2, 4\), got \(2, 7\)"),
    (lambda: linear.backward(np.zeros((B, I)), x32), TypeError, "tape: expected float32, got float64"),
    (lambda: train.Linear(2**40, 2**40), ValueError, "input_size, output_size: shape .* more than can be addressed"),
    (lambda: train.Linear(2**30, 2**30), ValueError, "input_size, output_size: shape .* more than can be addressed"),
    (lambda: train.Embedding(2**62, 4), ValueError, r"count, size: shape \(4611686018427387904, 4\) needs"),
    (lambda: train.Embedding(0, 1), ValueError, "count: expected at least 1, got 0"),
    (lambda: train.Embedding(1, 0), ValueError, "size: expected at least 1, got 0"),
    (lambda: embedding([0.0]), TypeError, "indices: expected integers, got float64"),
    (lambda: embedding([True]), TypeError, "indices: expected integers, got bool"),
    (lambda: embedding([1, 5]), ValueError, "indices: expected values from 0 to 4, got values from 1 to 5"),
    (lambda: embedding(-1), ValueError, "indices: expected values from 0 to 4, got values from -1 to -1"),
    (lambda: embedding.backward(np.zeros(3, int), x32), ValueError, r"dy: expected shape \(3, 4\), got \(2, 4\)"),
    (lambda: embedding.backward(np.zeros(3, int), [[0] * 4] * 3), TypeError, "dy: expected float32, got int64"),
    (lambda: embedding.backward(np.array([9]), x32[:1]), ValueError, "tape: expected values from 0 to 4, got values"),
    (lambda: embedding.backward(np.array([1.0]), x32[:1]), TypeError, "tape: expected integers, got float64"),
    (lambda: embedding(np.zeros(0)), TypeError, "indices: expected integers, got float64"),
    (lambda: train.one_hot([1], 2**62), ValueError, r"count: shape \(1, 4611686018427387904\) needs"),
    (lambda: train.one_hot([], 2**62), ValueError, r"count: shape \(0, 4611686018427387904\) needs"),
    (lambda: train.one_hot(2, 2), ValueError, "indices: expected values from 0 to 1, got values from 2 to 2"),
    (lambda: train.one_hot(0, 0), ValueError, "count: expected at least 1, got 0"),
    (lambda: train.one_hot(0, 1, int), TypeError, "dtype: expected a floating dtype, got int64"),
    (lambda: train.softmax([1]), TypeError, "logits: expected floating numbers, got int64"),
    (lambda: train.softmax(np.zeros((2, 0))), ValueError, r"logits: expected shape .* got \(2, 0\)"),
    (lambda: train.softmax(1.0), ValueError, r"logits: expected shape \(..., C\) with C >= 1, got \(\)"),
    (lambda: train.softmax_cross_entropy([[1]], [0]), TypeError, "logits: expected floating numbers, got int64"),
    (
        lambda: train.softmax_cross_entropy(logits32, [0]),
        ValueError,
        r"targets: expected shape \(2,\) .* got \(1,\)",
    ),
    (lambda: train.softmax_cross_entropy(logits32, [0, 5]), ValueError, "targets: expected values from 0 to 4"),
    (lambda: train.softmax_cross_entropy(logits32, [0.0, 1]), TypeError, "targets: expected integers, got float64"),
    (lambda: train.softmax_cross_entropy(logits32, [0, 1], [1, 0]), TypeError, "mask: expected bool, got int64"),
    (lambda: train.softmax_cross_entropy(logits32, [0, 1], np.uint8([1, 0])), TypeError, "mask: .* got uint8"),
    (
        lambda: train.softmax_cross_entropy(logits32, [0, 1], [True] * 3),
        ValueError,
        r"mask: expected a shape that broadcasts to \(2,\), got \(3,\)",
    ),
    (
        lambda: train.softmax_cross_entropy(logits32, [0, 1], reduction="none"),
        ValueError,
        "reduction: expected 'mean' or 'sum', got 'none'",
    ),
    (
        lambda: train.softmax_cross_entropy(logits32, [0, 1], unit="dits"),
        ValueError,
        "unit: expected 'nats' or 'bits', got 'dits'",
    ),
    (lambda: train.binary_cross_entropy([1], [1.0]), TypeError, "logits: expected floating numbers, got int64"),
    (lambda: train.binary_cross_entropy([1.0], [1]), TypeError, "targets: expected float64, got int64"),
    (lambda: train.binary_cross_entropy([1.0], [[1.0]]), ValueError, r"targets: expected shape \(1,\), got \(1, 1\)"),
    (
        lambda: train.binary_cross_entropy([1.0] * 3, [1.5, np.nan, 0]),
        ValueError,
        "targets: expected values from 0 to 1, got 2 others",
    ),
    (lambda: train.save_arrays("a\0b", {}), ValueError, r"path: expected a path, got 'a\\x00b' with a NUL character"),
    (lambda: train.load_arrays("a\0b"), ValueError, r"path: expected a path, got 'a\\x00b' with a NUL character"),
    (lambda: linear.load_state_dict([]), TypeError, "state_dict: expected a mapping, got list"),
    (
        lambda: linear.load_state_dict({"head.weight": np.ones((O, I))}),
        ValueError,
        "state_dict: expected the keys weight, bias; missing: weight, bias; unexpected: head.weight",
    ),
    (
        lambda: linear.load_state_dict({"weight": np.ones((I, O)), "bias": np.ones(O)}),
        ValueError,
        rf"weight: expected shape \({O}, {I}\), got \({I}, {O}\)",
    ),
    (lambda: train.mean_squared_error([1], [1.0]), TypeError, "prediction: expected floating numbers, got int64"),
    (lambda: train.mean_squared_error([1.0], [1]), TypeError, "target: expected float64, got int64"),
    (lambda: train.mean_squared_error([1.0], [[1.0]]), ValueError, r"target: expected shape \(1,\), got \(1, 1\)"),
    (lambda: train.clip_global_norm({}, 0), ValueError, "limit: expected a number greater than 0, got 0"),
    (lambda: train.clip_global_norm({}, math.nan), ValueError, "limit: expected a finite number, got nan"),
    (lambda: train.clip_value({}, -1), ValueError, "limit: expected a number greater than 0, got -1"),
    (lambda: train.SGD({}, -1), ValueError, "learning_rate: expected .* got -1"),
    (lambda: train.SGD({}, 1, momentum=1), ValueError, "momentum: expected a number less than 1, got 1"),
    (lambda: train.SGD({"p": [1.0]}, 1), TypeError, r"parameters\['p'\]: expected an ndarray, got list"),
    (lambda: train.SGD({"p": np.array(1)}, 1), TypeError, r"parameters\['p'\]: expected floating .* got int64"),
    (lambda: train.SGD({"p": read_only()}, 1), ValueError, r"parameters\['p'\]: expected a writable array"),
    (lambda: train.RMSprop({}, decay=-0.5), ValueError, "decay: expected a number from 0 to 1, got -0.5"),
    (lambda: train.RMSprop({}, epsilon=0), ValueError, "epsilon: expected a number greater than 0, got 0"),
    (lambda: train.Adam({}, beta1=1), ValueError, "beta1: expected a number less than 1, got 1"),
    (lambda: train.Adam({}, beta2="1"), TypeError, "beta2: expected a number, got str"),
    (lambda: train.Adam({}, epsilon=0), ValueError, "epsilon: expected a number greater than 0, got 0"),
    (lambda: train.Adam({}, weight_decay=-1), ValueError, "weight_decay: expected .* got -1"),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), BAD_INPUT, ids=[f"{n} {message}" for n, (*_, message) in enumerate(BAD_INPUT)]
)
def test_bad_input(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^{message}"):
        call()


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"p": np.ones(2)}, ValueError, "expected the keys p, q; missing: q"),
        ({"p": np.ones(2), "q": np.ones(1), "r": 1}, ValueError, "expected the keys p, q; unexpected: r"),
        ({"p": np.ones(2), "q": np.ones(2)}, ValueError, r"\['q'\]: expected shape \(1,\), got \(2,\)"),
        ({"p": np.ones(2), "q": np.ones(1, np.float32)}, TypeError, r"\['q'\]: expected float64, got float32"),
    ],
)
def test_arrays_unlike_the_parameters_change_nothing(given, error, message: str) -> None:  # type: ignore[no-untyped-def]
    parameters = {"p": np.zeros(2), "q": np.zeros(1)}
    optimizer = train.SGD(parameters, 1)
    with pytest.raises(error, match=f"^gradients(: )?{message}"):
        optimizer.step(given)
    with pytest.raises(error, match=f"^arrays(: )?{message}"):
        train.assign(parameters, given)
    assert optimizer.steps == 0
    assert not any(a.any() for a in parameters.values())


def test_an_optimizer_is_made_of_a_subclass() -> None:
    with pytest.raises(NotImplementedError):
        train.Optimizer({"p": np.zeros(1)}, 1).step({"p": np.zeros(1)})
