"""Cells with parameters: one time step of RNN, GRU and LSTM, named and initialised as in PyTorch.

A cell is for training through loops of one's own. A sequence that is known runs faster through a layer, and one that
comes step by step runs faster through a frozen layer's stream.
"""

from __future__ import annotations

from typing import Any, Generic, cast

import numpy as np
import numpy.typing as npt

from fusedrnn import checks
from fusedrnn.checks import Array
from fusedrnn.frozen import Pair, State
from fusedrnn.layers import LayerGradients
from fusedrnn.module import GRU_CELLS, RNN_CELLS, Module
from fusedrnn.tape import Tape

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


class _Cell(Module, Generic[State]):
    """What RNNCell, GRUCell and LSTMCell share: a layer whose sequences have one step."""

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        bias: bool,
        dtype: npt.DTypeLike,
        rng: Any,
        backend: str | None,
    ) -> None:
        input_size, hidden_size = checks.size("input_size", input_size), checks.size("hidden_size", hidden_size)
        super().__init__(cell, input_size, hidden_size, {"": input_size}, bias, dtype, rng, backend)

    def __call__(self, x: npt.ArrayLike, state: Any = None) -> State:
        """Run one step for inference; nothing is kept.

        Parameters
        ----------
        x : array_like, shape (B, I), or (I,) without a batch
            The input, of the cell's dtype.
        state : array_like or pair of array_like, shape (B, H), optional
            The state before: h, or for an LSTM (h, c); without the B for an unbatched x. None is zeros.

        Returns
        -------
        state : ndarray or pair of ndarray, shape (B, H)
            The state after, in the form of the one before.

        Raises
        ------
        TypeError, ValueError
            An argument, or a parameter that was replaced, does not fit.
        """
        return self._run(x, state, training=False)[0]

    def forward(self, x: npt.ArrayLike, state: Any = None) -> tuple[State, Tape]:
        """Run one step for training: with a tape for `backward`.

        Parameters
        ----------
        x : array_like
            As in a call. It and the parameters must not be changed before `backward`.
        state : array_like or pair of array_like, optional
            As in a call.

        Returns
        -------
        state : ndarray or pair of ndarray
            As from a call.
        tape : Tape
            For one `backward`.

        Raises
        ------
        TypeError, ValueError
            An argument, or a parameter that was replaced, does not fit.
        """
        return cast(tuple[State, Tape], self._run(x, state, training=True))

    def backward(self, tape: Tape, dstate: Any = None, *, dx: bool = True) -> LayerGradients[State]:
        """Backpropagate through one step.

        Parameters
        ----------
        tape : Tape
            From `forward` of this very cell. It is spent: a second backward raises.
        dstate : array_like or pair of array_like, optional
            Gradient with respect to the state after, in its form: dh, or for an LSTM (dh, dc). None is zeros.
        dx : bool, default True
            Whether the gradient of x is wanted: data need none.

        Returns
        -------
        LayerGradients
            ``x``, ``state`` in the form of the state before, and ``parameters``, a dict with the keys of `state_dict`.

        Raises
        ------
        TypeError, ValueError
            An argument does not fit, or the tape is another cell's.
        RuntimeError
            The tape is spent.
        """
        tape = checks.tape(tape, Tape, self)
        checks.tape_maker(tape.maker, self)
        dh, dc = self._split("dstate", ("dh", "dc"), dstate, tape.shape)
        dx = checks.flag("dx", dx)
        runner, inner = tape.take()
        of_x, ((*weights, dh0, dc0),) = runner.backward(inner, None, dh, dc, dx)
        parameters = dict(zip(self._shapes, weights[: len(self._shapes)], strict=True))
        if of_x is not None:
            of_x = of_x[0, 0] if len(tape.shape) == 1 else of_x[0]
        return LayerGradients(of_x, self._join(dh0, dc0, tape.shape), parameters)

    def _run(self, x: npt.ArrayLike, state: Any, training: bool) -> tuple[State, Tape | None]:
        runner = self._runner()
        (weights,) = self._weights()
        x_t: Array = checks.features(x, 2, "B", self.input_size, self.dtype)
        shape = (*x_t.shape[:-1], self.hidden_size)
        h0, c0 = self._split("state", ("h", "c"), state, shape)
        batch = x_t.reshape(1, -1, self.input_size)  # inserts axes of one: a view
        checks.memory(batch, self.hidden_size, 1)
        direction = (weights, None if h0 is None else h0[0], None if c0 is None else c0[0], False)
        _, h, c, inner = runner.forward(self.cell, batch, (direction,), None, training)
        tape = Tape(self, shape, self.dtype, (runner, inner)) if training else None
        return self._join(h[0], None if c is None else c[0], shape), tape

    def _split(
        self, name: str, parts: tuple[str, str], state: Any, shape: checks.Shape
    ) -> tuple[Array | None, Array | None]:
        """A state, or its gradient, as h and c of shape (1, B, H)."""
        h, c = checks.state(name, parts if self.cell == "lstm" else parts[:1], state, shape, self.dtype)
        return h if h is None else h.reshape(1, -1, shape[-1]), c if c is None else c.reshape(1, -1, shape[-1])

    def _join(self, h: Array, c: Array | None, shape: checks.Shape) -> State:
        """h and c (B, H) as a state of this shape."""
        return cast(State, h.reshape(shape) if c is None else (h.reshape(shape), c.reshape(shape)))


class RNNCell(_Cell[Array]):
    """One step of a vanilla recurrent network: ``h' = f(W x + b_ih + U h + b_hh)``.

    PyTorch's ``torch.nn.RNNCell`` for NumPy; the equations are those of `rnn_forward`.

    Parameters
    ----------
    input_size : int
        I, the features of x.
    hidden_size : int
        H, the features of the state.
    bias : bool, default True
        Whether there are biases.
    nonlinearity : {"tanh", "relu"}, default "tanh"
        The f of the equation.
    dtype : dtype_like, default float32
        Either float32 or float64; every array of a call has this dtype. The reference takes any floating dtype.
    rng : Generator, int or None
        Draws the parameters, U(-k, k) with k = 1 / sqrt(H).
    backend : {"cython", "numba", "reference"}, optional
        Who computes. None is the choice of `use_backend` at the time of each call.

    Attributes
    ----------
    parameters : dict of str to ndarray
        The parameters themselves, by the names of `state_dict`: to be changed in place, or replaced by name.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> cell = fr.RNNCell(3, 5, rng=0)
    >>> x = np.ones((2, 3), np.float32)  # B, I
    >>> h = cell(x)
    >>> h = cell(x, h)
    >>> h.shape
    (2, 5)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: np.random.Generator | int | None = None,
        backend: str | None = None,
    ) -> None:
        self.nonlinearity = checks.choice("nonlinearity", nonlinearity, RNN_CELLS)
        super().__init__(RNN_CELLS[nonlinearity], input_size, hidden_size, bias, dtype, rng, backend)

    def _options(self) -> dict[str, object]:
        return super()._options() | {"nonlinearity": None if self.nonlinearity == "tanh" else self.nonlinearity}


class GRUCell(_Cell[Array]):
    """One step of a gated recurrent unit.

    PyTorch's ``torch.nn.GRUCell`` for NumPy; the equations are those of `gru_forward`.

    Parameters
    ----------
    input_size : int
        I, the features of x.
    hidden_size : int
        H, the features of the state.
    bias : bool, default True
        Whether there are biases.
    reset_after : bool, default True
        True resets the product U_n h + c_n, as PyTorch does; False resets h before it, as Cho et al. wrote.
    dtype : dtype_like, default float32
        Either float32 or float64; every array of a call has this dtype. The reference takes any floating dtype.
    rng : Generator, int or None
        Draws the parameters, U(-k, k) with k = 1 / sqrt(H).
    backend : {"cython", "numba", "reference"}, optional
        Who computes. None is the choice of `use_backend` at the time of each call.

    Attributes
    ----------
    parameters : dict of str to ndarray
        The parameters themselves, by the names of `state_dict`: to be changed in place, or replaced by name.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> cell = fr.GRUCell(3, 5, rng=0)
    >>> x = np.ones((2, 3), np.float32)  # B, I
    >>> h = cell(x)
    >>> h = cell(x, h)
    >>> h.shape
    (2, 5)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        reset_after: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: np.random.Generator | int | None = None,
        backend: str | None = None,
    ) -> None:
        self.reset_after = checks.flag("reset_after", reset_after)
        super().__init__(GRU_CELLS[self.reset_after], input_size, hidden_size, bias, dtype, rng, backend)

    def _options(self) -> dict[str, object]:
        return super()._options() | {"reset_after": None if self.reset_after else False}


class LSTMCell(_Cell[Pair]):
    """One step of a long short-term memory cell.

    PyTorch's ``torch.nn.LSTMCell`` for NumPy; the equations are those of `lstm_forward`.

    Parameters
    ----------
    input_size : int
        I, the features of x.
    hidden_size : int
        H, the features of the state.
    bias : bool, default True
        Whether there are biases.
    dtype : dtype_like, default float32
        Either float32 or float64; every array of a call has this dtype. The reference takes any floating dtype.
    rng : Generator, int or None
        Draws the parameters, U(-k, k) with k = 1 / sqrt(H).
    backend : {"cython", "numba", "reference"}, optional
        Who computes. None is the choice of `use_backend` at the time of each call.

    Attributes
    ----------
    parameters : dict of str to ndarray
        The parameters themselves, by the names of `state_dict`: to be changed in place, or replaced by name.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> cell = fr.LSTMCell(3, 5, rng=0)
    >>> x = np.ones((2, 3), np.float32)  # B, I
    >>> h, c = cell(x)
    >>> h, c = cell(x, (h, c))
    >>> h.shape
    (2, 5)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: np.random.Generator | int | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__("lstm", input_size, hidden_size, bias, dtype, rng, backend)
