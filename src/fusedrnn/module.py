"""What layers and cells have in common: parameters in a dict under PyTorch's names, drawn, saved and loaded.

It knows the shapes of the parameters, and nothing of what is computed with them.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fusedrnn import backends, checks
from fusedrnn.backends import Backend, Weights
from fusedrnn.checks import Array

__all__ = ["GATES", "GRU_CELLS", "RNN_CELLS", "Module", "draw"]

GATES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 4, "gru": 3, "gru_reset_before": 3}
"""G of every cell."""
RNN_CELLS = {"tanh": "rnn_tanh", "relu": "rnn_relu"}
"""By nonlinearity."""
GRU_CELLS = {True: "gru", False: "gru_reset_before"}
"""By reset_after."""
AT_ONCE: Final = 1 << 20
"""Random numbers, some milliseconds of them."""
FIXED: Final = frozenset(
    (
        "cell", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "bidirectional", "nonlinearity",
        "reset_after", "dtype",
    )
)  # fmt: skip
"""Attributes that the shapes of the parameters, or the way of a sequence, were worked out from."""


def draw(rng: np.random.Generator, target: Array, low: float, high: float) -> None:
    """Fill `target` from U(low, high), some rows at a time: NumPy does not hear Ctrl-C while it draws."""
    rows = max(1, AT_ONCE * len(target) // max(1, target.size))
    for first in range(0, len(target), rows):
        part = target[first : first + rows]
        part[...] = rng.uniform(low, high, part.shape)


class Module:
    """Named parameters of one dtype, and who computes with them."""

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        directions: Mapping[str, int],
        bias: bool,
        dtype: npt.DTypeLike,
        rng: Any,
        backend: str | None,
    ) -> None:
        """`directions`: the ending of the names of each direction's parameters, and the width of its input."""
        self.cell = cell
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = checks.flag("bias", bias)
        self.backend = backend
        self.dtype = checks.dtype(dtype, backends.get(backend).dtypes)
        self.rng = rng
        rows = GATES[cell] * hidden_size
        self._shapes: dict[str, checks.Shape] = {}
        for ending, width in directions.items():
            self._shapes |= {f"weight_ih{ending}": (rows, width), f"weight_hh{ending}": (rows, hidden_size)}
            if self.bias:
                self._shapes |= {f"bias_ih{ending}": (rows,), f"bias_hh{ending}": (rows,)}
        for name, shape in self._shapes.items():
            checks.addressable(name, shape, self.dtype)
        self.parameters: dict[str, Array] = {name: np.empty(shape, self.dtype) for name, shape in self._shapes.items()}
        self.reset_parameters()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, but none of those that decide what a module is, too late, nor a parameter: they would do
        nothing."""
        if name in FIXED and name in self.__dict__:
            raise AttributeError(f"{name}: fixed when this {type(self).__name__} was made; make another")
        if name in self.__dict__.get("_shapes", ()):
            raise AttributeError(f"{name}: a parameter, not an attribute; it is parameters[{name!r}]")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute, but none of those."""
        if name in FIXED:
            raise AttributeError(f"{name}: fixed when this {type(self).__name__} was made")
        super().__delattr__(name)

    @property
    def rng(self) -> np.random.Generator:
        """What draws parameters and dropout masks; a Generator, or what one is made of, may be assigned."""
        return self._rng

    @rng.setter
    def rng(self, value: np.random.Generator | int | None) -> None:
        self._rng = checks.generator(value)

    def reset_parameters(self) -> None:
        """Draw all parameters anew from U(-k, k), k = 1 / sqrt(H), as PyTorch does.

        The arrays stay the same ones: an optimiser that has them sees the new values.
        """
        k = 1 / math.sqrt(self.hidden_size)
        for target in self._writable().values():
            draw(self.rng, target, -k, k)

    def state_dict(self) -> dict[str, Array]:
        """Copy the parameters.

        Returns
        -------
        dict of str to ndarray
            PyTorch's names, shapes and order. Training on leaves these copies as they are.
        """
        return {name: value.copy() for name, value in zip(self._shapes, self._checked(), strict=True)}

    def load_state_dict(self, state_dict: Mapping[str, npt.ArrayLike]) -> None:
        """Copy parameters in: all of them, or in case of an error none.

        Values may be these parameters themselves, under other names. The arrays stay the same ones, but where the
        caller has put something in a parameter's place that cannot be written to.

        Parameters
        ----------
        state_dict : mapping of str to array_like
            Exactly the keys and shapes of `state_dict`, as arrays or detached PyTorch tensors of a floating dtype that
            NumPy has; cast to the parameters'.

        Raises
        ------
        TypeError
            It is no mapping, or a value is no floating-point array.
        ValueError
            A key is missing or unexpected, a shape is wrong, or a number too large for the parameters' dtype.
        """
        given = checks.keys("state_dict", state_dict, self._shapes)
        found = {name: checks.loaded(name, given[name], shape, self.dtype) for name, shape in self._shapes.items()}
        for target, value in zip(self._writable().values(), found.values(), strict=True):
            target[...] = value

    def __repr__(self) -> str:
        """As it would be called, options at their default left out."""
        options = {
            **self._options(),
            "dtype": None if self.dtype == checks.FLOAT32 else str(self.dtype),
            "backend": self.backend,
        }
        shown = "".join(f", {name}={value!r}" for name, value in options.items() if value is not None)
        return f"{type(self).__name__}({self.input_size}, {self.hidden_size}{shown})"

    def _options(self) -> dict[str, object]:
        """The options that `__repr__` shows, None at their default."""
        return {"bias": None if self.bias else False}

    def _checked(self) -> list[Array]:
        """The parameters in order; the caller of a layer may have replaced any of them."""
        parameters, shapes, dtype = self.parameters, self._shapes, self.dtype
        if type(parameters) is not dict or parameters.keys() != shapes.keys():
            checks.keys("parameters", parameters, shapes)
        return [checks.array(name, parameters[name], shape, dtype) for name, shape in shapes.items()]

    def _writable(self) -> dict[str, Array]:
        """The parameters by name, as arrays to be changed in place; a copy replaces what the caller made none."""
        for name, value in zip(self._shapes, self._checked(), strict=True):
            if value is not self.parameters[name] or not value.flags.writeable:
                self.parameters[name] = value.copy()
        return {name: self.parameters[name] for name in self._shapes}

    def _weights(self) -> list[Weights]:
        """The parameters by direction, as backends take them."""
        values = iter(self._checked())
        if self.bias:
            return list(zip(values, values, values, values, strict=True))
        return [(w_ih, w_hh, None, None) for w_ih, w_hh in zip(values, values, strict=True)]

    def _runner(self) -> Backend:
        """The backend of this call."""
        backend = backends.get(self.backend)
        if self.dtype not in backend.dtypes:
            checks.dtype(self.dtype, backend.dtypes)
        return backend
