"""Layers with parameters: RNN, GRU and LSTM, stacked and bidirectional, named and initialised as in PyTorch.

They compute outputs and gradients; they hold no gradients, no optimiser and no hidden state between calls.
"""

from __future__ import annotations

import warnings
from typing import Any, Final, Generic, NamedTuple

import numpy as np
import numpy.typing as npt

from fusedrnn import checks
from fusedrnn.backends import Direction
from fusedrnn.checks import Array
from fusedrnn.frozen import Frozen, Pair, State
from fusedrnn.module import GRU_CELLS, RNN_CELLS, Module
from fusedrnn.stack import Stack
from fusedrnn.tape import Tape

__all__ = ["GRU", "LSTM", "RNN", "LayerGradients"]

MOST_LAYERS: Final = 1 << 16
"""Every layer has arrays and names of its own: a mistyped number should not fill the memory with them."""


class LayerGradients(NamedTuple, Generic[State]):
    """The gradients of one call of a layer or cell.

    Attributes
    ----------
    x : ndarray
        In the form of the call's x; None if told ``dx=False``.
    state : ndarray or pair of ndarray
        In the form of the call's state; given where that was None too, as zeros are a state.
    parameters : dict of str to ndarray
        With the keys of `state_dict`.
    """

    x: Array | Any  # None on request alone: who asks for it need not check
    state: State
    parameters: dict[str, Array]


class _Layer(Module, Generic[State]):
    """What RNN, GRU and LSTM share: everything but their names and options."""

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        dtype: npt.DTypeLike,
        rng: Any,
        backend: str | None,
    ) -> None:
        input_size, hidden_size = checks.size("input_size", input_size), checks.size("hidden_size", hidden_size)
        self.num_layers = checks.size("num_layers", num_layers, MOST_LAYERS)
        self.batch_first = checks.flag("batch_first", batch_first)
        self.dropout = dropout
        self.bidirectional = checks.flag("bidirectional", bidirectional)
        if self.dropout and self.num_layers == 1:
            warnings.warn("dropout acts between layers, and num_layers is 1: it does nothing", stacklevel=3)
        both = ("", "_reverse") if bidirectional else ("",)
        widths = {
            f"_l{layer}{way}": len(both) * hidden_size if layer else input_size
            for layer in range(self.num_layers)
            for way in both
        }
        super().__init__(cell, input_size, hidden_size, widths, bias, dtype, rng, backend)
        self._stack = Stack(cell, input_size, hidden_size, self.num_layers, len(both), self.batch_first, self.dtype)

    @property
    def dropout(self) -> float:
        """Share of each layer's outputs that the next layer does not see, in training only; it may be changed."""
        return self._dropout

    @dropout.setter
    def dropout(self, value: float) -> None:
        self._dropout = checks.number("dropout", value, 0, 1)

    def __call__(
        self, x: npt.ArrayLike, state: Any = None, lengths: npt.ArrayLike | None = None
    ) -> tuple[Array, State]:
        """Run the layer for inference: no dropout, nothing is kept, and `forward` has no part in it.

        Parameters
        ----------
        x : array_like, shape (T, B, I), or (B, T, I) if batch_first, or (T, I) for one sequence without a batch
            The sequences, of the layer's dtype.
        state : array_like or pair of array_like, shape (num_layers * D, B, H), optional
            The initial state: h0, or for an LSTM (h0, c0); without the B for an unbatched x. None is zeros.
        lengths : array_like of int, shape (B,), optional
            Valid steps of each sequence, from 0 to T, in any order. What lies past them is never read.

        Returns
        -------
        y : ndarray, shape (T, B, D * H), or (B, T, D * H) if batch_first, or (T, D * H)
            The last layer's hidden states, the forward direction's first; 0 past a sequence's length. Batch-first, a
            view of an array (T, B, D * H).
        state : ndarray or pair of ndarray, shape (num_layers * D, B, H)
            The final state, in the form of the initial one. Of two directions row ``2 * layer + 1`` is the reverse one.

        Raises
        ------
        TypeError, ValueError
            An argument, or a parameter that was replaced, does not fit.
        """
        return self._stack.infer(self._runner(), self._by_layer(), x, state, lengths)

    def forward(
        self, x: npt.ArrayLike, state: Any = None, lengths: npt.ArrayLike | None = None
    ) -> tuple[Array, State, Tape]:
        """Run the layer for training: with dropout, and with a tape for `backward`.

        Parameters
        ----------
        x : array_like
            As in a call. It, y and the parameters must not be changed before `backward`.
        state : array_like or pair of array_like, optional
            As in a call.
        lengths : array_like of int, optional
            As in a call.

        Returns
        -------
        y : ndarray
            As from a call.
        state : ndarray or pair of ndarray
            As from a call.
        tape : Tape
            For one `backward`.

        Raises
        ------
        TypeError, ValueError
            An argument, or a parameter that was replaced, does not fit.
        """
        stack, runner, layers = self._stack, self._runner(), self._by_layer()
        y, h0, c0, valid, unbatched = stack.enter(x, state, lengths)
        h, c, kept = [], [], []
        for layer, directions in enumerate(layers):
            share = self.dropout if layer else 0.0
            mask = self.rng.random(y.shape, dtype=np.float32) >= share if share else None
            y = _dropped(y, mask, share)
            begun = stack.begin(layer, directions, h0, c0)
            y, h_n, c_n, inner = runner.forward(self.cell, y, begun, valid, True)
            h.append(h_n)
            c.append(c_n)
            kept.append((mask, share, inner))
        y = stack.outward(y, unbatched)
        return y, stack.join(h, c, unbatched), Tape(self, y.shape, self.dtype, (runner, kept))

    def backward(
        self, tape: Tape, dy: npt.ArrayLike | None = None, dstate: Any = None, *, dx: bool = True
    ) -> LayerGradients[State]:
        """Backpropagate through time and through the layers.

        Parameters
        ----------
        tape : Tape
            From `forward` of this very layer. It is spent: a second backward raises.
        dy : array_like, optional
            Gradient of the loss with respect to y, of its shape. Past a sequence's length it is ignored. None is zeros.
        dstate : array_like or pair of array_like, optional
            Gradient with respect to the final state, in its form: dh_n, or for an LSTM (dh_n, dc_n). None is zeros.
        dx : bool, default True
            Whether the gradient of x is wanted. Data need none; in a training step of the lowest layer it is a sixth
            of the arithmetic where I = H, a third where I is much larger.

        Returns
        -------
        LayerGradients
            ``x``, ``state`` in the form of the initial state, and ``parameters``, a dict with the keys of `state_dict`.

        Raises
        ------
        TypeError, ValueError
            An argument does not fit, or the tape is another layer's.
        RuntimeError
            The tape is spent.
        """
        stack = self._stack
        tape = checks.tape(tape, Tape, self)
        checks.tape_maker(tape.maker, self)
        unbatched = len(tape.shape) == 2
        batch = 1 if unbatched else tape.shape[0 if stack.batch_first else 1]
        if dy is not None:
            dy = stack.inward(checks.array("dy", dy, tape.shape, tape.dtype), unbatched)
        dh, dc = stack.split("dstate", ("dh_n", "dc_n"), dstate, batch, unbatched)
        dx = checks.flag("dx", dx)
        runner, kept = tape.take()
        found = []
        for layer in reversed(range(stack.num_layers)):
            mask, share, inner = kept.pop()  # the tape's memory goes back layer by layer
            of_x, directions = runner.backward(inner, dy, stack.rows(layer, dh), stack.rows(layer, dc), dx or layer > 0)
            dy = None if of_x is None else _dropped(of_x, mask, share)
            found.append(directions)
        found.reverse()
        count = 4 if self.bias else 2
        values: list[Any] = []
        for directions in found:
            for direction in directions:
                values += direction[:count]
        parameters = dict(zip(self._shapes, values, strict=True))
        h = [stack.both([direction[4] for direction in directions]) for directions in found]
        c = [stack.both([direction[5] for direction in directions]) for directions in found] if stack.two_states else []
        of_x = None if of_x is None else stack.outward(of_x, unbatched)
        return LayerGradients(of_x, stack.join(h, c, unbatched), parameters)

    def freeze(self) -> Frozen[State]:
        """Pack a copy of the weights for inference.

        Returns
        -------
        Frozen
            Immutable, on the backend in use now, and safe to share between threads. Training on leaves it as it is.
        """
        runner = self._runner()
        packed = (runner.pack(self.cell, *weights) for weights in self._weights())
        layers = tuple(
            tuple((next(packed), None, None, reverse) for *_, reverse in directions) for directions in self._by_layer()
        )
        return Frozen(repr(self), self._stack, runner, layers)

    def _options(self) -> dict[str, object]:
        return {
            "num_layers": self.num_layers if self.num_layers > 1 else None,
            **super()._options(),
            "batch_first": self.batch_first or None,
            "dropout": self.dropout or None,
            "bidirectional": self.bidirectional or None,
        }

    def _by_layer(self) -> list[tuple[Direction, ...]]:
        """The directions of every layer, without initial states."""
        weights = iter(self._weights())
        if self._stack.directions == 2:
            return [((w, None, None, False), (next(weights), None, None, True)) for w in weights]
        return [((w, None, None, False),) for w in weights]


def _dropped(values: Array, mask: npt.NDArray[np.bool_] | None, share: float) -> Array:
    """What the mask leaves, scaled so that its expectation stays; a new array, and exact zeros even for NaN."""
    if mask is None:
        return values
    left = np.zeros_like(values)
    return np.multiply(values, 1 / (1 - share) if share < 1 else 0, out=left, where=mask)


class RNN(_Layer[Array]):
    """A vanilla recurrent network: ``h' = f(W x + b_ih + U h + b_hh)``.

    PyTorch's ``torch.nn.RNN`` for NumPy; the equations are those of `rnn_forward`.

    Parameters
    ----------
    input_size : int
        I, the features of x.
    hidden_size : int
        H, the features of the state.
    num_layers : int, default 1
        Stacked layers, at most 65536; each takes the outputs of the one below.
    nonlinearity : {"tanh", "relu"}, default "tanh"
        The f of the equation.
    bias : bool, default True
        Whether there are biases.
    batch_first : bool, default False
        Whether x and y are (B, T, ...) and not (T, B, ...). States are not concerned.
    dropout : float, default 0.0
        Share of each layer's outputs that the next layer does not see, in training only.
    bidirectional : bool, default False
        Whether a second direction runs backwards in time; D is then 2 and y has 2 * H features.
    dtype : dtype_like, default float32
        Either float32 or float64; every array of a call has this dtype. The reference takes any floating dtype.
    rng : Generator, int or None
        Draws the parameters, U(-k, k) with k = 1 / sqrt(H), and the dropout masks.
    backend : {"cython", "numba", "reference"}, optional
        Who computes. None is the choice of `use_backend` at the time of each call.

    Attributes
    ----------
    parameters : dict of str to ndarray
        The parameters themselves, by the names of `state_dict`: to be changed in place, or replaced by name.
    dropout, rng, backend
        May be changed between calls; the other options are fixed.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> rnn = fr.RNN(3, 5, rng=0)
    >>> x = np.ones((7, 2, 3), np.float32)  # T, B, I
    >>> y, h_n = rnn(x)
    >>> y.shape
    (7, 2, 5)
    >>> y, state, tape = rnn.forward(x)
    >>> g = rnn.backward(tape, dy=np.ones_like(y))
    >>> list(g.parameters)
    ['weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0']
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: np.random.Generator | int | None = None,
        backend: str | None = None,
    ) -> None:
        self.nonlinearity = checks.choice("nonlinearity", nonlinearity, RNN_CELLS)
        super().__init__(
            RNN_CELLS[nonlinearity],
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            rng,
            backend,
        )

    def _options(self) -> dict[str, object]:
        return super()._options() | {"nonlinearity": None if self.nonlinearity == "tanh" else self.nonlinearity}


class GRU(_Layer[Array]):
    """A network of gated recurrent units.

    PyTorch's ``torch.nn.GRU`` for NumPy; the equations, of both forms, are those of `gru_forward`.

    Parameters
    ----------
    input_size : int
        I, the features of x.
    hidden_size : int
        H, the features of the state.
    num_layers : int, default 1
        Stacked layers, at most 65536; each takes the outputs of the one below.
    bias : bool, default True
        Whether there are biases.
    batch_first : bool, default False
        Whether x and y are (B, T, ...) and not (T, B, ...). States are not concerned.
    dropout : float, default 0.0
        Share of each layer's outputs that the next layer does not see, in training only.
    bidirectional : bool, default False
        Whether a second direction runs backwards in time; D is then 2 and y has 2 * H features.
    reset_after : bool, default True
        True resets the product U_n h + c_n, as PyTorch does; False resets h before it, as Cho et al. wrote.
    dtype : dtype_like, default float32
        Either float32 or float64; every array of a call has this dtype. The reference takes any floating dtype.
    rng : Generator, int or None
        Draws the parameters, U(-k, k) with k = 1 / sqrt(H), and the dropout masks.
    backend : {"cython", "numba", "reference"}, optional
        Who computes. None is the choice of `use_backend` at the time of each call.

    Attributes
    ----------
    parameters : dict of str to ndarray
        The parameters themselves, by the names of `state_dict`: to be changed in place, or replaced by name.
    dropout, rng, backend
        May be changed between calls; the other options are fixed.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> gru = fr.GRU(3, 5, rng=0)
    >>> x = np.ones((7, 2, 3), np.float32)  # T, B, I
    >>> y, h_n = gru(x)
    >>> y.shape
    (7, 2, 5)
    >>> y, state, tape = gru.forward(x)
    >>> g = gru.backward(tape, dy=np.ones_like(y))
    >>> list(g.parameters)
    ['weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0']
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        reset_after: bool = True,
        dtype: npt.DTypeLike = np.float32,
        rng: np.random.Generator | int | None = None,
        backend: str | None = None,
    ) -> None:
        self.reset_after = checks.flag("reset_after", reset_after)
        super().__init__(
            GRU_CELLS[self.reset_after],
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            dtype,
            rng,
            backend,
        )

    def _options(self) -> dict[str, object]:
        return super()._options() | {"reset_after": None if self.reset_after else False}


class LSTM(_Layer[Pair]):
    """A network of long short-term memory cells.

    PyTorch's ``torch.nn.LSTM`` for NumPy; the equations are those of `lstm_forward`.

    Parameters
    ----------
    input_size : int
        I, the features of x.
    hidden_size : int
        H, the features of the state.
    num_layers : int, default 1
        Stacked layers, at most 65536; each takes the outputs of the one below.
    bias : bool, default True
        Whether there are biases.
    batch_first : bool, default False
        Whether x and y are (B, T, ...) and not (T, B, ...). States are not concerned.
    dropout : float, default 0.0
        Share of each layer's outputs that the next layer does not see, in training only.
    bidirectional : bool, default False
        Whether a second direction runs backwards in time; D is then 2 and y has 2 * H features.
    dtype : dtype_like, default float32
        Either float32 or float64; every array of a call has this dtype. The reference takes any floating dtype.
    rng : Generator, int or None
        Draws the parameters, U(-k, k) with k = 1 / sqrt(H), and the dropout masks.
    backend : {"cython", "numba", "reference"}, optional
        Who computes. None is the choice of `use_backend` at the time of each call.

    Attributes
    ----------
    parameters : dict of str to ndarray
        The parameters themselves, by the names of `state_dict`: to be changed in place, or replaced by name.
    dropout, rng, backend
        May be changed between calls; the other options are fixed.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> lstm = fr.LSTM(3, 5, rng=0)
    >>> x = np.ones((7, 2, 3), np.float32)  # T, B, I
    >>> y, (h_n, c_n) = lstm(x)
    >>> y.shape
    (7, 2, 5)
    >>> y, state, tape = lstm.forward(x)
    >>> g = lstm.backward(tape, dy=np.ones_like(y))
    >>> list(g.parameters)
    ['weight_ih_l0', 'weight_hh_l0', 'bias_ih_l0', 'bias_hh_l0']
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        dtype: npt.DTypeLike = np.float32,
        rng: np.random.Generator | int | None = None,
        backend: str | None = None,
    ) -> None:
        super().__init__(
            "lstm", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, dtype, rng, backend
        )
