"""What training needs beyond the cells: layers around them, losses, clipping, optimisers, files.

Plain NumPy on arrays and on dicts of arrays, with the keys and the arrays of ``layer.parameters``. A layer's `forward`
returns its output and a tape, its `backward` the gradients; a loss returns its value together with its gradient;
an optimiser changes the parameters in place. Nothing here records a graph, loads data, mixes dtypes or reads pickles.

`Linear` is NumPy's product, whose threads (OpenBLAS's) spin for a tenth of a second afterwards, in the way of the next
call of a recurrent layer. With ``OPENBLAS_THREAD_TIMEOUT=18`` in the environment before NumPy is imported, they sleep
after 0.1 ms.

Letters: C classes, I input size, O output size; ``...`` is any number of leading axes, such as T, B.

Examples
--------
One number for each sequence of a ragged batch, from the last states of both directions; here, the mean of the sequence:

>>> import numpy as np
>>> import fusedrnn as fr
>>> from fusedrnn.train import Adam, Linear, clip_global_norm, join, mean_squared_error
>>> rng = np.random.default_rng(0)
>>> lengths = np.array([9, 2, 5, 7])
>>> x = rng.standard_normal((9, 4, 1), np.float32) * (np.arange(9)[:, None] < lengths)[..., None]
>>> target = x.sum(axis=0) / lengths[:, None].astype(np.float32)
>>> lstm, head = fr.LSTM(1, 8, bidirectional=True, rng=rng), Linear(16, 1, rng=rng)
>>> optimizer = Adam(join(lstm=lstm.parameters, head=head.parameters), learning_rate=0.01)
>>> for _ in range(100):
...     _, (h_n, _), tape = lstm.forward(x, lengths=lengths)
...     prediction, head_tape = head.forward(np.concatenate([h_n[-2], h_n[-1]], axis=1))
...     loss, dprediction = mean_squared_error(prediction, target)
...     dhead = head.backward(head_tape, dprediction)
...     dh_n = np.zeros_like(h_n)
...     dh_n[-2], dh_n[-1] = np.split(dhead.x, 2, axis=1)
...     dlstm = lstm.backward(tape, dstate=(dh_n, None))
...     gradients = join(lstm=dlstm.parameters, head=dhead.parameters)
...     norm = clip_global_norm(gradients, 1.0)
...     optimizer.step(gradients)
>>> loss < 0.001
True
>>> optimizer
Adam(10 arrays, learning_rate=0.01)
"""

from __future__ import annotations

import inspect
import math
import zipfile
from collections.abc import Mapping
from os import SEEK_END, PathLike
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from fusedrnn import checks
from fusedrnn.checks import Array

__all__ = [
    "SGD",
    "Adam",
    "Embedding",
    "EmbeddingGradients",
    "Linear",
    "LinearGradients",
    "Optimizer",
    "RMSprop",
    "assign",
    "binary_cross_entropy",
    "clip_global_norm",
    "clip_value",
    "join",
    "load_arrays",
    "mean_squared_error",
    "one_hot",
    "save_arrays",
    "softmax",
    "softmax_cross_entropy",
]

T = TypeVar("T")
Arrays: TypeAlias = dict[str, Array]
Rng: TypeAlias = np.random.Generator | int | None
Reduction: TypeAlias = Literal["mean", "sum"]
Unit: TypeAlias = Literal["nats", "bits"]


# ---------------------------------------------------------------------------------------------------------------------
# Layers around the cells
# ---------------------------------------------------------------------------------------------------------------------


class _Layer:
    """What `Linear` and `Embedding` share with the layers of cells."""

    def __init__(self, parameters: Arrays) -> None:
        self.parameters = parameters
        self._shapes = {name: p.shape for name, p in parameters.items()}
        self._dtype = parameters["weight"].dtype

    def _checked(self) -> list[Array]:
        """The parameters in order; the caller of a layer may have replaced any of them."""
        given = checks.keys("parameters", self.parameters, self._shapes)
        return [checks.array(name, given[name], shape, self._dtype) for name, shape in self._shapes.items()]

    def state_dict(self) -> Arrays:
        """Copy the parameters.

        Returns
        -------
        dict of str to ndarray
            Of the names that PyTorch's layer of this kind has.
        """
        return {name: p.copy() for name, p in zip(self._shapes, self._checked(), strict=True)}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy parameters in: all of them, or in case of an error none.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            Exactly the keys and shapes of `state_dict`, as arrays or detached PyTorch tensors of a floating dtype that
            NumPy has; cast to the parameters'.

        Raises
        ------
        TypeError
            If it is no mapping, or a value is no floating-point array.
        ValueError
            If a key is missing or unexpected, a shape is wrong, or a number too large for the parameters' dtype.
        """
        given = checks.keys("state_dict", state_dict, self._shapes)
        self._checked()
        assign(self.parameters, {n: checks.loaded(n, given[n], s, self._dtype) for n, s in self._shapes.items()})


class LinearGradients(NamedTuple):
    """What `Linear.backward` returns: `x` (..., I) and `parameters`, a dict with the layer's keys."""

    x: Array
    parameters: Arrays


class Linear(_Layer):
    """Affine map of the last axis: ``y = x W^T + b``.

    Parameters
    ----------
    input_size, output_size : int
        I and O, at least 1.
    bias : bool
        Whether b is added and learnt.
    dtype : dtype
        Floating dtype of the parameters, the only one that x may have.
    rng : numpy.random.Generator, int or None
        Source, or seed of the source, of the initial values: uniform in ±1/sqrt(I), as ``torch.nn.Linear``.

    Attributes
    ----------
    parameters : dict of str to ndarray
        "weight" (O, I) and "bias" (O,), the arrays that the layer uses: changing them in place changes the layer.

    Raises
    ------
    ValueError
        If a size is less than 1, or memory cannot be addressed for both.
    TypeError
        If `dtype` is not a floating dtype, or `bias` not a bool.
    """

    def __init__(
        self, input_size: int, output_size: int, bias: bool = True, *, dtype: DTypeLike = np.float32, rng: Rng = None
    ) -> None:
        input_size, output_size = checks.size("input_size", input_size), checks.size("output_size", output_size)
        dtype, rng = checks.dtype(dtype, checks.FLOATING, "a floating dtype"), checks.generator(rng)
        checks.addressable("input_size, output_size", (output_size, input_size), _wide(dtype))  # drawn in float64
        bound = 1 / math.sqrt(input_size)
        parameters = {"weight": rng.uniform(-bound, bound, (output_size, input_size)).astype(dtype)}
        if checks.flag("bias", bias):
            parameters["bias"] = rng.uniform(-bound, bound, output_size).astype(dtype)
        super().__init__(parameters)

    def __repr__(self) -> str:
        """As it would be called, options at their default left out."""
        return _called(self, *self._shapes["weight"][::-1], bias="bias" in self._shapes, dtype=self._dtype)

    def __call__(self, x: ArrayLike) -> Array:
        """Return y (..., O) for x (..., I); see `forward` for the errors."""
        return self.forward(x)[0]

    def forward(self, x: ArrayLike) -> tuple[Array, Array]:
        """Return the output and the tape for `backward`.

        Parameters
        ----------
        x : ndarray (..., I)
            Of the layer's dtype. The tape keeps it by reference: do not change it before `backward`.

        Returns
        -------
        y : ndarray (..., O)
        tape : ndarray
            For `backward` alone.

        Raises
        ------
        ValueError
            If the last axis of `x` is not I, or a parameter that was replaced has another shape.
        TypeError
            If the dtype of `x`, or of such a parameter, is not the layer's.
        """
        weight, *bias = self._checked()
        x = _floating("x", x)
        x = checks.array("x", x, (*x.shape[:-1], weight.shape[1]), weight.dtype)
        # One product of all rows: NumPy makes one for each leading index, which took 1.5 times as long.
        y = x.reshape(-1, weight.shape[1]) @ weight.T
        if bias:
            y += bias[0]
        return y.reshape(*x.shape[:-1], weight.shape[0]), x

    def backward(self, tape: Array, dy: ArrayLike) -> LinearGradients:
        """Return the gradients of x and of the parameters: ``dx = dy W``, ``dW = sum dy^T x``, ``db = sum dy``.

        Parameters
        ----------
        tape : ndarray
            From `forward`. The weights must still be those of that call.
        dy : ndarray (..., O)
            Gradient of y, of the layer's dtype.

        Returns
        -------
        LinearGradients

        Raises
        ------
        ValueError
            If `dy` has not the shape of y, or `tape` not that of an x.
        TypeError
            If the dtype of `dy` or `tape` is not the layer's.
        """
        weight, tape = self._checked()[0], checks.tape(tape, np.ndarray, "Linear.forward")
        tape = checks.array("tape", tape, (*tape.shape[:-1], weight.shape[1]), weight.dtype)
        dy = checks.array("dy", dy, (*tape.shape[:-1], weight.shape[0]), weight.dtype)
        dy_rows, x_rows = dy.reshape(-1, weight.shape[0]), tape.reshape(-1, weight.shape[1])
        gradients = {"weight": dy_rows.T @ x_rows}
        if "bias" in self._shapes:
            gradients["bias"] = dy_rows.sum(axis=0)
        return LinearGradients((dy_rows @ weight).reshape(tape.shape), gradients)


class EmbeddingGradients(NamedTuple):
    """What `Embedding.backward` returns: `parameters`, a dict with the layer's keys. Indices have no gradient."""

    parameters: Arrays


class Embedding(_Layer):
    """A learnt vector for each of C symbols: ``y = W[indices]``.

    Parameters
    ----------
    count, size : int
        C and I, at least 1.
    dtype : dtype
        Floating dtype of the parameters.
    rng : numpy.random.Generator, int or None
        Source, or seed of the source, of the initial values: standard normal, as ``torch.nn.Embedding``.

    Attributes
    ----------
    parameters : dict of str to ndarray
        "weight" (C, I), the array that the layer uses.

    Raises
    ------
    ValueError
        If a size is less than 1, or memory cannot be addressed for both.
    TypeError
        If `dtype` is not a floating dtype.
    """

    def __init__(self, count: int, size: int, *, dtype: DTypeLike = np.float32, rng: Rng = None) -> None:
        count, size = checks.size("count", count), checks.size("size", size)
        dtype, rng = checks.dtype(dtype, checks.FLOATING, "a floating dtype"), checks.generator(rng)
        checks.addressable("count, size", (count, size), _wide(dtype))  # drawn in float64
        super().__init__({"weight": rng.standard_normal((count, size)).astype(dtype)})

    def __repr__(self) -> str:
        """As it would be called, options at their default left out."""
        return _called(self, *self._shapes["weight"], dtype=self._dtype)

    def __call__(self, indices: ArrayLike) -> Array:
        """Return y (..., I) for indices (...); see `forward` for the errors."""
        return self.forward(indices)[0]

    def forward(self, indices: ArrayLike) -> tuple[Array, Array]:
        """Return the vectors of `indices` and the tape for `backward`.

        Parameters
        ----------
        indices : ndarray (...) of integers
            In 0..C-1. The tape keeps them by reference: do not change them before `backward`.

        Returns
        -------
        y : ndarray (..., I)
            A new array of the layer's dtype.
        tape : ndarray
            For `backward` alone.

        Raises
        ------
        ValueError
            If an index is not in 0..C-1.
        TypeError
            If `indices` are not integers.
        """
        (weight,) = self._checked()
        indices = _indices("indices", indices, len(weight))
        return weight[indices], indices

    def backward(self, tape: Array, dy: ArrayLike) -> EmbeddingGradients:
        """Return the gradient of the weights: each row is the sum of `dy` over the places that read it.

        Parameters
        ----------
        tape : ndarray
            From `forward`.
        dy : ndarray (..., I)
            Gradient of y, of the layer's dtype.

        Returns
        -------
        EmbeddingGradients

        Raises
        ------
        ValueError
            If `dy` has not the shape of y, or `tape` holds what is no index.
        TypeError
            If the dtype of `dy` is not the layer's, or `tape` not of integers.
        """
        (weight,), tape = self._checked(), checks.tape(tape, np.ndarray, "Embedding.forward")
        tape = _indices("tape", tape, len(weight))
        dy = checks.array("dy", dy, (*tape.shape, weight.shape[1]), weight.dtype)
        # Sums over runs of equal indices: a fifth of the time of np.add.at for 2048 rows of 64.
        order = np.argsort(tape, axis=None, kind="stable")
        symbols, starts = np.unique(tape.ravel()[order], return_index=True)
        gradient = np.zeros_like(weight)
        gradient[symbols] = np.add.reduceat(dy.reshape(-1, weight.shape[1])[order], starts, axis=0)
        return EmbeddingGradients({"weight": gradient})


def one_hot(indices: ArrayLike, count: int, dtype: DTypeLike = np.float32) -> Array:
    """Return vectors that are 1 at their index and 0 elsewhere.

    Parameters
    ----------
    indices : ndarray (...) of integers
        In 0..C-1.
    count : int
        C, at least 1.
    dtype : dtype
        Floating dtype of the result.

    Returns
    -------
    ndarray (..., C)

    Raises
    ------
    ValueError
        If `count` is less than 1, memory cannot be addressed for so many, or an index is not in 0..C-1.
    TypeError
        If `indices` are not integers or `dtype` is not a floating dtype.
    """
    count = checks.size("count", count)
    indices, dtype = _indices("indices", indices, count), checks.dtype(dtype, checks.FLOATING, "a floating dtype")
    checks.addressable("count", (*indices.shape, count), dtype)
    result = np.zeros((*indices.shape, count), dtype)
    np.put_along_axis(result, indices[..., None], 1, axis=-1)
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Losses: each returns its value and its gradient
# ---------------------------------------------------------------------------------------------------------------------


def softmax(logits: ArrayLike) -> Array:
    """Return ``exp(logits) / sum(exp(logits))`` along the last axis, without overflow.

    Parameters
    ----------
    logits : ndarray (..., C)
        Floating. ``-inf`` gives probability 0.

    Returns
    -------
    ndarray (..., C)
        New, of the same dtype.

    Raises
    ------
    ValueError
        If `logits` has no last axis or it is empty.
    TypeError
        If `logits` is not floating.
    """
    logits = _logits(logits)
    with np.errstate(over="ignore"):  # a difference beyond the dtype's range is -inf, its exponential 0
        p: Array = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= _sum(p)
    return p


def _sum(p: Array) -> Array:
    """Sums along the last axis, in float32 at least: those of many classes are beyond float16."""
    total: Array = p.sum(axis=-1, keepdims=True, dtype=np.result_type(p, np.float32))
    return total


def softmax_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    mask: ArrayLike | None = None,
    *,
    reduction: Reduction = "mean",
    unit: Unit = "nats",
) -> tuple[float, Array]:
    """Return the cross-entropy ``-log softmax(logits)[target]`` and its gradient.

    The gradient is ``softmax(logits) - one_hot(target)`` times the weight of one target in the loss
    (Goodfellow, Bengio, Courville: Deep Learning, 2016, section 6.2.2.3).

    Parameters
    ----------
    logits : ndarray (..., C)
        Floating.
    targets : ndarray (...) of integers
        The right class, in 0..C-1.
    mask : ndarray (...) of bool, optional
        Where it is False, target and logits are not read and the gradient is 0. For a ragged batch (T, B):
        ``np.arange(T)[:, None] < lengths``.
    reduction : {"mean", "sum"}
        Over the targets that count.
    unit : {"nats", "bits"}
        The logarithm: natural or to base 2. The gradient is that of the number returned, so that it is
        1/ln 2 = 1.44 times larger in bits.

    Returns
    -------
    loss : float
    dlogits : ndarray (..., C)
        New, of the dtype of `logits`.

    Raises
    ------
    ValueError
        If shapes do not agree, a target that counts is not in 0..C-1, the mean is over nothing, or an option is not
        one of the above.
    TypeError
        If `logits` is not floating, `targets` not of integers, or `mask` not of bool.
    """
    logits, targets = _logits(logits), _integers("targets", targets)
    if targets.shape != logits.shape[:-1]:
        raise ValueError(f"targets: expected shape {logits.shape[:-1]} as logits, got {targets.shape}")
    counted = _mask(mask, targets.shape)
    chosen = _indices("targets", targets[counted], logits.shape[-1])
    checks.choice("unit", unit, ("nats", "bits"))
    scale = _scale(reduction, chosen.size) / (math.log(2) if unit == "bits" else 1)

    rows = np.arange(chosen.size)
    shifted = logits[counted]
    with np.errstate(over="ignore"):
        shifted -= shifted.max(axis=-1, keepdims=True)
    p = np.exp(shifted)
    total = _sum(p)
    loss = (np.log(total[:, 0]) - shifted[rows, chosen]).sum(dtype=np.float64)

    p *= scale / total
    p[rows, chosen] -= scale
    dlogits = np.zeros_like(logits)
    dlogits[counted] = p
    return float(loss) * scale, dlogits


def binary_cross_entropy(
    logits: ArrayLike, targets: ArrayLike, mask: ArrayLike | None = None, *, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """Return the cross-entropy ``-t log sigmoid(z) - (1 - t) log(1 - sigmoid(z))`` of logits z, and its gradient.

    The loss is computed as ``max(z, 0) - t z + log(1 + exp(-|z|))``, which neither overflows nor takes the logarithm of
    0; the gradient is ``sigmoid(z) - t`` (Goodfellow, Bengio, Courville: Deep Learning, 2016, section 6.2.2.2).

    Parameters
    ----------
    logits, targets : ndarray (...)
        Floating, of one shape and dtype; targets are the probabilities of "yes", in 0..1.
    mask : ndarray of bool, optional
        Broadcast against `logits`. Where it is False, nothing is read and the gradient is 0. For a ragged batch
        (T, B, O): ``(np.arange(T)[:, None] < lengths)[..., None]``.
    reduction : {"mean", "sum"}
        Over the elements that count.

    Returns
    -------
    loss : float
        In nats.
    dlogits : ndarray (...)
        New, of the dtype of `logits`.

    Raises
    ------
    ValueError
        If shapes do not agree, a target that counts is not in 0..1, the mean is over nothing, or `reduction` is
        unknown.
    TypeError
        If `logits` is not floating, `targets` of another dtype, or `mask` not of bool.
    """
    logits = _floating("logits", logits)
    targets = checks.array("targets", targets, logits.shape, logits.dtype)
    counted = _mask(mask, logits.shape)
    z, t = logits[counted], targets[counted]
    if wrong := t[~((t >= 0) & (t <= 1))].size:
        raise ValueError(f"targets: expected values from 0 to 1, got {wrong} others")
    scale = _scale(reduction, z.size)
    small = np.exp(-np.abs(z))
    loss = np.maximum(z, 0) - t * z + np.log1p(small)
    dlogits = np.zeros_like(logits)
    dlogits[counted] = scale * (np.where(z >= 0, 1, small) / (1 + small) - t)
    return float(loss.sum(dtype=_wide(loss))) * scale, dlogits


def mean_squared_error(
    prediction: ArrayLike, target: ArrayLike, mask: ArrayLike | None = None, *, reduction: Reduction = "mean"
) -> tuple[float, Array]:
    """Return the squared error ``(prediction - target)^2`` and its gradient ``2 (prediction - target)``.

    Parameters
    ----------
    prediction, target : ndarray (...)
        Floating, of one shape and dtype.
    mask : ndarray of bool, optional
        Broadcast against `prediction`. Where it is False, nothing is read and the gradient is 0. For a ragged batch
        (T, B, O): ``(np.arange(T)[:, None] < lengths)[..., None]``.
    reduction : {"mean", "sum"}
        Over the elements that count.

    Returns
    -------
    loss : float
    dprediction : ndarray (...)
        New, of the dtype of `prediction`.

    Raises
    ------
    ValueError
        If shapes do not agree, the mean is over nothing, or `reduction` is unknown.
    TypeError
        If `prediction` is not floating, `target` of another dtype, or `mask` not of bool.
    """
    prediction = _floating("prediction", prediction)
    target = checks.array("target", target, prediction.shape, prediction.dtype)
    counted = _mask(mask, prediction.shape)
    error = prediction[counted] - target[counted]
    scale = _scale(reduction, error.size)
    dprediction = np.zeros_like(prediction)
    dprediction[counted] = 2 * scale * error
    return float(np.square(error, dtype=_wide(error)).sum()) * scale, dprediction


# ---------------------------------------------------------------------------------------------------------------------
# Gradients
# ---------------------------------------------------------------------------------------------------------------------


def clip_global_norm(gradients: Mapping[str, Array], limit: float) -> float:
    """Scale all gradients in place by one factor, so that their common norm is at most `limit`.

    Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks, 2013, algorithm 1. The factor is
    ``limit / norm``; that of PyTorch's ``clip_grad_norm_`` is ``limit / (norm + 1e-6)``.

    Parameters
    ----------
    gradients : dict of str to ndarray
        Changed in place, if the norm is over `limit`. One array under two keys, as of tied weights, counts once and is
        scaled once; two views of one memory are two arrays.
    limit : float
        Greater than 0.

    Returns
    -------
    float
        The norm before clipping: the root of the sum of all squares, computed in float64 at least.

    Raises
    ------
    ValueError
        If `limit` is not a number greater than 0, or a gradient is read-only. Nothing is changed then.
    TypeError
        If a gradient is not a floating ndarray. Nothing is changed then.
    FloatingPointError
        If the norm is NaN or infinite, or too large for a float. Nothing is changed then.
    """
    limit = _positive("limit", limit)
    _writable("gradients", gradients)
    distinct = dict({id(g): (name, g) for name, g in gradients.items()}.values())
    norms = {name: _norm(g) for name, g in distinct.items()}
    norm = math.hypot(*norms.values())
    if not math.isfinite(norm):
        name = next((name for name, part in norms.items() if not math.isfinite(part)), "all together")
        raise FloatingPointError(f"gradients: the norm of {name!r} is not finite as a float")
    if norm > limit:
        for g in distinct.values():
            g[...] = np.multiply(g, limit / norm, dtype=_wide(g))  # the factor may vanish in a narrower dtype
    return norm


def _norm(g: Array) -> float:
    """Return the root of the sum of squares. Where these overflow or vanish, all are scaled by the largest element."""
    wide = _wide(g)
    with np.errstate(over="ignore"):
        squares = np.square(g, dtype=wide).sum()
    if 1e-200 < squares < 1e300:  # so for all float32 but 0; a square that vanishes beside these does not count
        return math.sqrt(squares)
    largest = np.abs(g).max(initial=0)
    if not 0 < largest < np.inf:
        return float(largest)
    return float(largest) * math.sqrt(np.square(np.divide(g, largest, dtype=wide)).sum())


def clip_value(gradients: Mapping[str, Array], limit: float) -> None:
    """Limit every element of all gradients in place to -limit..limit. NaN stays NaN.

    Parameters
    ----------
    gradients : dict of str to ndarray
        Changed in place.
    limit : float
        Greater than 0.

    Raises
    ------
    ValueError
        If `limit` is not a number greater than 0, or a gradient is read-only. Nothing is changed then.
    TypeError
        If a gradient is not a floating ndarray. Nothing is changed then.
    """
    limit = _positive("limit", limit)
    _writable("gradients", gradients)
    for g in gradients.values():
        most = min(limit, float(np.finfo(g.dtype).max))
        np.clip(g, -most, most, out=g)


# ---------------------------------------------------------------------------------------------------------------------
# Optimisers. Letters: p parameter, g gradient, t number of the step, from 1
# ---------------------------------------------------------------------------------------------------------------------


class Optimizer:
    """What all optimisers share: they hold a dict of parameters and change its arrays in place.

    Parameters
    ----------
    parameters : dict of str to ndarray
        Writable floating arrays, kept by reference. Where ``layer.parameters[name] = array`` puts another array in the
        place of one, the optimiser goes on changing the old one: assign to ``layer.parameters[name][...]``.
    learning_rate : float
        At least 0.

    Attributes
    ----------
    parameters : dict of str to ndarray
    steps : int
        How many steps were made.

    Raises
    ------
    ValueError
        If a number is out of its range, or a parameter is read-only.
    TypeError
        If a parameter is not a floating ndarray or its key is no str, or a number is none.
    """

    def __init__(self, parameters: Mapping[str, Array], learning_rate: float) -> None:
        self.learning_rate = learning_rate
        _writable("parameters", _named("parameters", parameters))
        self.parameters = dict(parameters)
        self.steps = 0
        self._moments: Arrays = {}

    def __repr__(self) -> str:
        """How many arrays, the learning rate, and the options that are not at their default."""
        count, own = len(self.parameters), list(inspect.signature(type(self)).parameters)[2:]
        options = {name: getattr(self, name) for name in own if hasattr(self, name)}
        return _called(self, f"{count} array{'s' * (count != 1)}", f"learning_rate={self.learning_rate}", **options)

    @property
    def learning_rate(self) -> float:
        """At least 0; it may be changed between steps.

        Returns
        -------
        float
        """
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:  # numpydoc ignore=GL08
        self._learning_rate = checks.number("learning_rate", value, 0)

    def step(self, gradients: Mapping[str, ArrayLike]) -> None:
        """Change every parameter in place.

        Parameters
        ----------
        gradients : dict of str to ndarray
            One for each parameter, of its key, shape and dtype. Not changed.

        Raises
        ------
        ValueError
            If keys or a shape differ from those of the parameters, or one of these has become read-only. Nothing is
            changed then.
        TypeError
            If a dtype differs. Nothing is changed then.
        """
        checked = _like("gradients", gradients, self.parameters)
        _writable("parameters", self.parameters)
        for name, p in self.parameters.items():
            self._update(name, p, checked[name])
        self.steps += 1

    def state_dict(self) -> Arrays:
        """Copy what the steps so far have left behind, for `save_arrays`.

        Training goes on from it, and from the parameters, with the bits of a training without a break. The options,
        such as the learning rate, are not in it.

        Returns
        -------
        dict of str to ndarray
            "steps" () of int64, and each moment of each parameter, of its shape and dtype, such as "m.weight_ih_l0".
        """
        return {"steps": np.array(self.steps, np.int64)} | {name: a.copy() for name, a in self._moments.items()}

    def load_state_dict(self, state_dict: Mapping[str, ArrayLike]) -> None:
        """Copy a state in: all of it, or in case of an error nothing.

        Parameters
        ----------
        state_dict : dict of str to ndarray
            Exactly the keys, shapes and dtypes of `state_dict`.

        Raises
        ------
        ValueError
            If keys or a shape differ, or the number of steps is negative.
        TypeError
            If it is no mapping, or a dtype differs.
        """
        found = _like("state_dict", state_dict, self.state_dict())
        checks.number("state_dict['steps']", found["steps"], 0)
        for name, moment in self._moments.items():
            moment[...] = found[name]
        self.steps = int(found["steps"])

    def _update(self, name: str, p: Array, g: Array) -> None:
        raise NotImplementedError

    def _zeros(self) -> Arrays:
        return {name: np.zeros_like(p) for name, p in self.parameters.items()}


class SGD(Optimizer):
    """Gradient descent with momentum: ``v = momentum v + g``, ``p = p - learning_rate v``.

    Polyak: Some methods of speeding up the convergence of iteration methods, 1964; in the form of ``torch.optim.SGD``,
    where the learning rate stands outside v.

    Parameters
    ----------
    parameters : dict of str to ndarray
        Changed in place by `step`.
    learning_rate : float
        At least 0.
    momentum : float
        In [0, 1).
    """

    def __init__(self, parameters: Mapping[str, Array], learning_rate: float, momentum: float = 0.0) -> None:
        super().__init__(parameters, learning_rate)
        self.momentum = _fraction("momentum", momentum)
        if momentum:
            self._moments = join(v=self._zeros())

    def _update(self, name: str, p: Array, g: Array) -> None:
        if self.momentum:
            if (key := f"v.{name}") not in self._moments:  # momentum was 0 before
                self._moments[key] = np.zeros_like(p)
            v = self._moments[key]
            v *= self.momentum
            v += g
            g = v
        p -= self.learning_rate * g


class RMSprop(Optimizer):
    """``s = decay s + (1 - decay) g^2``, ``p = p - learning_rate g / (sqrt(s) + epsilon)``.

    Tieleman, Hinton: Neural networks for machine learning, lecture 6.5, 2012; epsilon as in ``torch.optim.RMSprop``.

    Parameters
    ----------
    parameters : dict of str to ndarray
        Changed in place by `step`.
    learning_rate : float
        At least 0.
    decay : float
        In [0, 1).
    epsilon : float
        Greater than 0.
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        learning_rate: float = 1e-2,
        decay: float = 0.99,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(parameters, learning_rate)
        self.decay, self.epsilon = _fraction("decay", decay), _positive("epsilon", epsilon)
        self._moments = join(s=self._zeros())

    def _update(self, name: str, p: Array, g: Array) -> None:
        s = self._moments[f"s.{name}"]
        s *= self.decay
        s += (1 - self.decay) * np.square(g)
        p -= self.learning_rate * g / (_root(s) + self.epsilon)


class Adam(Optimizer):
    """Steps by the bias-corrected mean m of g over the root of the bias-corrected mean v of g^2.

    ``m = beta1 m + (1 - beta1) g``, ``v = beta2 v + (1 - beta2) g^2``,
    ``p = p - learning_rate (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + epsilon) + weight_decay p)``.

    Kingma, Ba: Adam, a method for stochastic optimization, 2015, algorithm 1. Weight decay is decoupled from the
    gradient: Loshchilov, Hutter: Decoupled weight decay regularization, 2019, algorithm 2, but times the learning rate,
    as in ``torch.optim.AdamW``.

    Parameters
    ----------
    parameters : dict of str to ndarray
        Changed in place by `step`.
    learning_rate : float
        At least 0.
    beta1, beta2 : float
        In [0, 1).
    epsilon : float
        Greater than 0.
    weight_decay : float
        At least 0.
    """

    def __init__(
        self,
        parameters: Mapping[str, Array],
        learning_rate: float = 1e-3,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, learning_rate)
        self.beta1, self.beta2 = _fraction("beta1", beta1), _fraction("beta2", beta2)
        self.epsilon, self.weight_decay = _positive("epsilon", epsilon), checks.number("weight_decay", weight_decay, 0)
        self._moments = join(m=self._zeros(), v=self._zeros())

    def _update(self, name: str, p: Array, g: Array) -> None:
        m, v, t = self._moments[f"m.{name}"], self._moments[f"v.{name}"], self.steps + 1
        m *= self.beta1
        m += (1 - self.beta1) * g
        v *= self.beta2
        v += (1 - self.beta2) * np.square(g)
        p *= 1 - self.learning_rate * self.weight_decay
        rate = self.learning_rate / (1 - self.beta1**t)
        p -= rate * m / (_root(v / (1 - self.beta2**t)) + self.epsilon)


def _root(v: Array) -> Array:
    """Square roots, in float32 at least: what is added to them would be nothing in float16."""
    root: Array = np.sqrt(v, dtype=np.result_type(v, np.float32))
    return root


# ---------------------------------------------------------------------------------------------------------------------
# Dicts of arrays
# ---------------------------------------------------------------------------------------------------------------------


def join(**parts: Mapping[str, Array]) -> Arrays:
    """Return one dict of the same arrays, each key led by its part's name and a dot.

    Parameters
    ----------
    **parts : dict of str to ndarray
        Such as ``rnn=lstm.parameters, head=linear.parameters``.

    Returns
    -------
    dict of str to ndarray
        Such as ``{"rnn.weight_ih_l0": ..., "head.weight": ...}``, the arrays themselves and not copies.

    Raises
    ------
    TypeError
        If a part is no mapping, or one of its keys no str.
    """
    return {f"{part}.{name}": a for part, arrays in parts.items() for name, a in _named(part, arrays).items()}


def assign(parameters: Mapping[str, Array], arrays: Mapping[str, ArrayLike]) -> None:
    """Copy the values of `arrays` into `parameters`.

    Parameters
    ----------
    parameters : dict of str to ndarray
        Changed in place.
    arrays : dict of str to ndarray
        Of the same keys, shapes and dtypes.

    Raises
    ------
    ValueError
        If keys or a shape differ, or a parameter is read-only. Nothing is changed then.
    TypeError
        If a dtype differs, or a parameter is not a floating ndarray. Nothing is changed then.
    """
    _writable("parameters", parameters)
    # Copies, for they may be these parameters themselves, under other names.
    checked = {name: a.copy() for name, a in _like("arrays", arrays, parameters).items()}
    for name, p in parameters.items():
        p[...] = checked[name]


def save_arrays(path: str | PathLike[str], arrays: Mapping[str, ArrayLike]) -> None:
    """Write a dict of arrays to a .npz file, which `load_arrays` and ``numpy.load`` read.

    Unlike ``numpy.savez`` it takes every key that a file can hold (also "file"), writes to exactly `path`, and refuses
    to pickle.

    Parameters
    ----------
    path : str or path-like
        Written anew.
    arrays : dict of str to ndarray
        The same arrays always give the same bytes.

    Raises
    ------
    ValueError
        If an array holds Python objects, or a key a NUL character, a surrogate, or more than 60,000 bytes. No file is
        written then.
    TypeError
        If `path` is none, `arrays` is no mapping, a key is no str, or a value is no array or a masked one.
    OSError
        If the file cannot be written.
    """
    path = _path(path)
    converted = {
        name: a if type(a) is np.ndarray else checks.readable(f"arrays[{name!r}]", a, "an array")
        for name, a in _named("arrays", arrays).items()
    }
    for name, a in converted.items():
        held = name.encode(errors="replace")
        if "\0" in name or len(held) > 60_000 or held.decode() != name:
            raise ValueError(f"arrays: expected keys of up to 60,000 bytes of UTF-8 without NUL, got {name[:80]!r}")
        if a.dtype.hasobject:
            raise ValueError(f"arrays[{name!r}]: expected numbers, got Python objects")
    with zipfile.ZipFile(path, "w") as archive:
        for name, a in converted.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, a, allow_pickle=False)


def load_arrays(path: str | PathLike[str]) -> Arrays:
    """Read the dict of arrays that `save_arrays` or ``numpy.savez`` wrote.

    Parameters
    ----------
    path : str or path-like
        An .npz file without pickled objects.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    ValueError
        If the file is no .npz file, is damaged, or holds pickled objects or anything but arrays.
    TypeError
        If `path` is none.
    OSError
        If the file cannot be opened.
    """
    arrays: Arrays = {}
    path = _path(path)
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                _count(file, archive)
                for name in archive.namelist():
                    with archive.open(name) as member:
                        arrays[name.removesuffix(".npy")] = np.lib.format.read_array(member, allow_pickle=False)
                        if member.read(1):  # only at its end is the checksum of a member compared
                            raise ValueError(f"{name} goes on after its array")
        except MemoryError:
            raise
        except Exception as error:  # damaged bytes make zipfile, zlib and NumPy raise a dozen types
            raise ValueError(f"path: expected an .npz file, got {path} ({error})") from error
    return arrays


def _count(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """As many members as the end of the archive says: damage to one entry of the list may take in those that follow."""
    file.seek(-len(archive.comment) - 12, SEEK_END)
    said, found = int.from_bytes(file.read(2), "little"), len(archive.namelist())
    if said not in (found, 0xFFFF):  # which says that it is said elsewhere
        raise ValueError(f"{found} of {said} arrays are listed")


def _called(made: object, *given: object, **options: object) -> str:
    """Return `made` as it would be called; options at their default are left out."""
    defaults = inspect.signature(type(made)).parameters
    shown = [f"{name}={value}" for name, value in options.items() if value != defaults[name].default]
    return f"{type(made).__name__}({', '.join([*map(str, given), *shown])})"


# ---------------------------------------------------------------------------------------------------------------------
# Checks
# ---------------------------------------------------------------------------------------------------------------------


def _path(value: str | PathLike[str]) -> Path:
    try:
        path = Path(value)
    except TypeError:
        raise TypeError(f"path: expected a path, got {type(value).__name__}") from None
    if "\0" in str(path):
        raise ValueError(f"path: expected a path, got {str(path)!r} with a NUL character")
    return path


def _mapping(name: str, value: Mapping[str, T]) -> Mapping[str, T]:
    if isinstance(value, Mapping):
        return value
    raise TypeError(f"{name}: expected a mapping, got {type(value).__name__}")


def _named(name: str, value: Mapping[str, T]) -> Mapping[str, T]:
    """The keys are strings, of which other names are made: 1 and "1" would become one."""
    for key in _mapping(name, value):
        if not isinstance(key, str):
            raise TypeError(f"{name}: expected keys of type str, got {key!r}")
    return value


def _writable(name: str, arrays: Mapping[str, Array]) -> None:
    """All of them can be changed in place, or the caller changes none."""
    for key, a in _mapping(name, arrays).items():
        if not isinstance(a, np.ndarray):
            raise TypeError(f"{name}[{key!r}]: expected an ndarray, got {type(a).__name__}")
        _floating(f"{name}[{key!r}]", a)
        if not a.flags.writeable:
            raise ValueError(f"{name}[{key!r}]: expected a writable array, got a read-only one")


def _floating(name: str, value: ArrayLike) -> Array:
    a = checks.readable(name, value, "floating numbers")
    if a.dtype.kind != "f":
        raise TypeError(f"{name}: expected floating numbers, got {a.dtype}")
    return a.astype(a.dtype.newbyteorder("="), copy=False)


def _wide(dtype: Array | np.dtype[Any]) -> np.dtype[Any]:
    """float64, or what is wider."""
    return np.result_type(dtype, np.float64)


def _logits(value: ArrayLike) -> Array:
    a = _floating("logits", value)
    if a.ndim == 0 or a.shape[-1] == 0:
        raise ValueError(f"logits: expected shape (..., C) with C >= 1, got {a.shape}")
    return a


def _integers(name: str, value: ArrayLike) -> Array:
    a = checks.readable(name, value, "integers")
    if not a.size and not isinstance(value, np.ndarray):
        return a.astype(np.intp)  # an empty list, which NumPy reads as float64
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {a.dtype}")
    return a


def _indices(name: str, value: ArrayLike, count: int) -> Array:
    a = _integers(name, value)
    if a.size and (a.min() < 0 or a.max() >= count):
        raise ValueError(f"{name}: expected values from 0 to {count - 1}, got values from {a.min()} to {a.max()}")
    return a


def _mask(value: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    """Return the mask, all True where there is none, with the shape of what it masks."""
    a = checks.readable("mask", True if value is None else value, "bool")
    if a.dtype != np.bool_:
        raise TypeError(f"mask: expected bool, got {a.dtype}")
    try:
        return np.broadcast_to(a, shape)
    except ValueError:
        raise ValueError(f"mask: expected a shape that broadcasts to {shape}, got {a.shape}") from None


def _scale(reduction: Reduction, count: int) -> float:
    """Return the weight of one of `count` terms."""
    checks.choice("reduction", reduction, ("mean", "sum"))
    if reduction == "sum":
        return 1.0
    if count == 0:
        raise ValueError("reduction: expected at least one element for a mean, got none")
    return 1 / count


def _like(name: str, arrays: Mapping[str, ArrayLike], parameters: Mapping[str, Array]) -> Arrays:
    """Return `arrays` as arrays that have the keys, shapes and dtypes of `parameters`."""
    given = checks.keys(name, arrays, parameters)
    return {
        key: checks.array(f"{name}[{key!r}]", given[key], p.shape, p.dtype.newbyteorder("="))
        for key, p in parameters.items()
    }


def _positive(name: str, value: float) -> float:
    found = checks.number(name, value)
    if found <= 0:
        raise ValueError(f"{name}: expected a number greater than 0, got {value}")
    return found


def _fraction(name: str, value: float) -> float:
    found = checks.number(name, value, 0, 1)
    if found == 1:
        raise ValueError(f"{name}: expected a number less than 1, got {value}")
    return found
