"""One layer, one direction, as plain functions over arrays: the forward pass and the gradients of all it was given.

Weights are in PyTorch's layout, gates stacked along the first axis: LSTM i, f, g, o; GRU r, z, n. The shapes' letters:
T time steps, B batch, I input size, H hidden size, G gates (RNN 1, GRU 3, LSTM 4). These functions take batches only
and keep no state between calls; what is stacked, bidirectional or unbatched is in `fusedrnn.layers`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy.typing as npt

from fusedrnn import backends, checks
from fusedrnn.checks import Array
from fusedrnn.module import GATES, GRU_CELLS, RNN_CELLS
from fusedrnn.tape import Tape

__all__ = [
    "Gradients",
    "gru_backward",
    "gru_forward",
    "lstm_backward",
    "lstm_forward",
    "rnn_backward",
    "rnn_forward",
]


class Gradients(NamedTuple):
    """The gradients of one call, each of its argument's shape and dtype.

    Attributes
    ----------
    x : ndarray, shape (T, B, I)
        Zero past a sequence's length; None if told ``dx=False``.
    w_ih : ndarray, shape (G*H, I)
        Of the input weights.
    w_hh : ndarray, shape (G*H, H)
        Of the recurrent weights.
    b_ih : ndarray, shape (G*H,), or None
        None where the bias was.
    b_hh : ndarray, shape (G*H,), or None
        None where the bias was.
    h0 : ndarray, shape (B, H)
        Given where the argument was None too, as zeros are a state.
    c0 : ndarray, shape (B, H), or None
        The same, for an LSTM; None for the others.
    """

    x: Array | Any  # None on request alone: who asks for it need not check
    w_ih: Array
    w_hh: Array
    b_ih: Array | None
    b_hh: Array | None
    h0: Array
    c0: Array | None


def _forward(
    function: str,
    cell: str,
    x: npt.ArrayLike,
    w_ih: npt.ArrayLike,
    w_hh: npt.ArrayLike,
    b_ih: npt.ArrayLike | None,
    b_hh: npt.ArrayLike | None,
    h0: npt.ArrayLike | None,
    c0: npt.ArrayLike | None,
    lengths: npt.ArrayLike | None,
    reverse: bool,
    training: bool,
    backend: str | None,
) -> tuple[Array, Array, Array | None, Tape | None]:
    """Check every argument and run the cell: y (T, B, H), h_n (1, B, H), c_n (1, B, H) or None, tape or None."""
    runner = backends.get(backend)
    x = checks.sequence(x, runner.dtypes)
    dtype, (steps, batch, input_size), gates = x.dtype, x.shape, GATES[cell]
    w_ih, rows = checks.input_weight(w_ih, gates, x, dtype)
    hidden_size = rows // gates
    w_hh = checks.array("w_hh", w_hh, (rows, hidden_size), dtype)
    if b_ih is not None:
        b_ih = checks.array("b_ih", b_ih, (rows,), dtype)
    if b_hh is not None:
        b_hh = checks.array("b_hh", b_hh, (rows,), dtype)
    if h0 is not None:
        h0 = checks.array("h0", h0, (batch, hidden_size), dtype)
    if c0 is not None:
        c0 = checks.array("c0", c0, (batch, hidden_size), dtype)
    if lengths is not None:
        lengths = checks.lengths(lengths, steps, batch)
    if reverse is not False:
        reverse = checks.flag("reverse", reverse)
    if training is not False:
        training = checks.flag("training", training)
    if ((steps + 1) * (batch + 1) + rows) * (rows + input_size) >= checks.FAR:
        checks.memory(x, hidden_size, 1)
    direction = ((w_ih, w_hh, b_ih, b_hh), h0, c0, reverse)
    y, h_n, c_n, inner = runner.forward(cell, x, (direction,), lengths, training)
    return y, h_n, c_n, Tape(function, y.shape, dtype, (runner, inner)) if training else None


def _backward(function: str, tape: Tape | None, dy: Any, dh_n: Any, dc_n: Any, dx: bool) -> Gradients:
    """Check every argument, then spend the tape."""
    tape = checks.tape(tape, Tape, function)
    checks.tape_maker(tape.maker, function)
    shape, dtype = tape.shape, tape.dtype
    if dy is not None:
        dy = checks.array("dy", dy, shape, dtype)
    if dh_n is not None:
        dh_n = checks.array("dh_n", dh_n, shape[1:], dtype)[None]
    if dc_n is not None:
        dc_n = checks.array("dc_n", dc_n, shape[1:], dtype)[None]
    dx = checks.flag("dx", dx)
    runner, inner = tape.take()
    of_x, (of_direction,) = runner.backward(inner, dy, dh_n, dc_n, dx)
    return Gradients(of_x, *of_direction)


def rnn_forward(
    x: npt.ArrayLike,
    w_ih: npt.ArrayLike,
    w_hh: npt.ArrayLike,
    b_ih: npt.ArrayLike | None = None,
    b_hh: npt.ArrayLike | None = None,
    h0: npt.ArrayLike | None = None,
    *,
    nonlinearity: str = "tanh",
    lengths: npt.ArrayLike | None = None,
    reverse: bool = False,
    training: bool = False,
    backend: str | None = None,
) -> tuple[Array, Array, Tape | None]:
    """Run a vanilla recurrent layer over a batch of sequences.

    With f = tanh or relu::

        h' = f(W x + b_ih + U h + b_hh)

    Parameters
    ----------
    x : array_like, shape (T, B, I)
        The sequences, float32 or float64; every other array has the same dtype.
    w_ih : array_like, shape (H, I)
        Weights of the input.
    w_hh : array_like, shape (H, H)
        Weights of the hidden state.
    b_ih, b_hh : array_like, shape (H,), optional
        Biases (two, as PyTorch has; their sum counts). None is zeros.
    h0 : array_like, shape (B, H), optional
        Initial hidden state. None is zeros.
    nonlinearity : {"tanh", "relu"}, default "tanh"
        The f of the equation.
    lengths : array_like of int, shape (B,), optional
        Valid steps of each sequence, from 0 to T, in any order. What lies past them is never read. None is T for all.
    reverse : bool, default False
        Run from each sequence's last valid step down to time 0; ``y[t]`` is then the state after reading ``x[t]``.
    training : bool, default False
        Keep a tape for `rnn_backward`. x, y and the weights must not be changed before that.
    backend : {"cython", "numba", "reference"}, optional
        Who computes. None is the choice of `use_backend`. The reference takes any floating dtype.

    Returns
    -------
    y : ndarray, shape (T, B, H)
        The hidden state after each step; 0 past a sequence's length.
    h_n : ndarray, shape (B, H)
        The hidden state after the last step read; the initial one where the length is 0.
    tape : Tape or None
        None unless training.

    Raises
    ------
    TypeError
        An argument is of a wrong type or dtype.
    ValueError
        An argument has a wrong shape or value, or the result could not be addressed.
    ImportError
        The backend is not installed.

    References
    ----------
    Elman, J. L. (1990). Finding structure in time. Cognitive Science 14, 179-211.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((7, 2, 3))  # T, B, I
    >>> w_ih, w_hh = rng.standard_normal((1 * 5, 3)), rng.standard_normal((1 * 5, 5))
    >>> y, h_n, tape = fr.rnn_forward(x, w_ih, w_hh, lengths=[7, 4], training=True)
    >>> y.shape, h_n.shape
    ((7, 2, 5), (2, 5))
    >>> g = fr.rnn_backward(tape, dy=np.ones_like(y))
    >>> g.w_hh.shape
    (5, 5)
    """
    cell = RNN_CELLS[checks.choice("nonlinearity", nonlinearity, RNN_CELLS)]
    y, h_n, _, tape = _forward(
        "rnn_forward", cell, x, w_ih, w_hh, b_ih, b_hh, h0, None, lengths, reverse, training, backend
    )
    return y, h_n[0], tape


def rnn_backward(
    tape: Tape | None,
    dy: npt.ArrayLike | None = None,
    dh_n: npt.ArrayLike | None = None,
    *,
    dx: bool = True,
) -> Gradients:
    """Backpropagate through time: the gradients of all that `rnn_forward` was given.

    Parameters
    ----------
    tape : Tape
        From ``rnn_forward(..., training=True)``. It is spent: a second backward raises.
    dy : array_like, shape (T, B, H), optional
        Gradient of the loss with respect to y. Past a sequence's length it is ignored. None is zeros.
    dh_n : array_like, shape (B, H), optional
        Gradient with respect to the final state. None is zeros.
    dx : bool, default True
        Whether the gradient of x is wanted. Data need none; in a training step it is a sixth of the arithmetic where
        I = H, a third where I is much larger.

    Returns
    -------
    Gradients
        ``x``, ``w_ih``, ``w_hh``, ``b_ih``, ``b_hh``, ``h0``, each of its argument's shape.

    Raises
    ------
    TypeError
        An argument is of a wrong type or dtype, or the tape is None.
    ValueError
        An argument has a wrong shape, or the tape is another function's.
    RuntimeError
        The tape is spent.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> w_ih, w_hh = np.zeros((1 * 2, 1)), np.zeros((1 * 2, 2))
    >>> *_, tape = fr.rnn_forward(np.ones((3, 1, 1)), w_ih, w_hh, training=True)
    >>> fr.rnn_backward(tape, dh_n=np.ones((1, 2))).x.shape
    (3, 1, 1)
    """
    return _backward("rnn_forward", tape, dy, dh_n, None, dx)


def gru_forward(
    x: npt.ArrayLike,
    w_ih: npt.ArrayLike,
    w_hh: npt.ArrayLike,
    b_ih: npt.ArrayLike | None = None,
    b_hh: npt.ArrayLike | None = None,
    h0: npt.ArrayLike | None = None,
    *,
    reset_after: bool = True,
    lengths: npt.ArrayLike | None = None,
    reverse: bool = False,
    training: bool = False,
    backend: str | None = None,
) -> tuple[Array, Array, Tape | None]:
    """Run a gated recurrent unit over a batch of sequences.

    With s = sigmoid, W x + b the input's part (b = b_ih), U h + c the state's part (c = b_hh), and * elementwise::

        r  = s(W_r x + b_r + U_r h + c_r)
        z  = s(W_z x + b_z + U_z h + c_z)
        n  = tanh(W_n x + b_n + r * (U_n h + c_n))      reset_after=True
        n  = tanh(W_n x + b_n + U_n (r * h) + c_n)      reset_after=False
        h' = (1 - z) * n + z * h

    Parameters
    ----------
    x : array_like, shape (T, B, I)
        The sequences, float32 or float64; every other array has the same dtype.
    w_ih : array_like, shape (3*H, I)
        Weights of the input, gates in the order r, z, n.
    w_hh : array_like, shape (3*H, H)
        Weights of the hidden state, gates in the same order.
    b_ih, b_hh : array_like, shape (3*H,), optional
        Biases of both products. None is zeros.
    h0 : array_like, shape (B, H), optional
        Initial hidden state. None is zeros.
    reset_after : bool, default True
        True resets the product U_n h + c_n, as PyTorch and cuDNN do; False resets h before it, as Cho et al. wrote.
    lengths : array_like of int, shape (B,), optional
        Valid steps of each sequence, from 0 to T, in any order. What lies past them is never read. None is T for all.
    reverse : bool, default False
        Run from each sequence's last valid step down to time 0; ``y[t]`` is then the state after reading ``x[t]``.
    training : bool, default False
        Keep a tape for `gru_backward`. x, y and the weights must not be changed before that.
    backend : {"cython", "numba", "reference"}, optional
        Who computes. None is the choice of `use_backend`. The reference takes any floating dtype.

    Returns
    -------
    y : ndarray, shape (T, B, H)
        The hidden state after each step; 0 past a sequence's length.
    h_n : ndarray, shape (B, H)
        The hidden state after the last step read; the initial one where the length is 0.
    tape : Tape or None
        None unless training.

    Raises
    ------
    TypeError
        An argument is of a wrong type or dtype.
    ValueError
        An argument has a wrong shape or value, or the result could not be addressed.
    ImportError
        The backend is not installed.

    References
    ----------
    Cho, K. et al. (2014). Learning phrase representations using RNN encoder-decoder for statistical machine
    translation. EMNLP, arXiv:1406.1078.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((7, 2, 3))  # T, B, I
    >>> w_ih, w_hh = rng.standard_normal((3 * 5, 3)), rng.standard_normal((3 * 5, 5))
    >>> y, h_n, tape = fr.gru_forward(x, w_ih, w_hh, lengths=[7, 4], training=True)
    >>> y.shape, h_n.shape
    ((7, 2, 5), (2, 5))
    >>> g = fr.gru_backward(tape, dy=np.ones_like(y))
    >>> g.w_hh.shape
    (15, 5)
    """
    cell = GRU_CELLS[checks.flag("reset_after", reset_after)]
    y, h_n, _, tape = _forward(
        "gru_forward", cell, x, w_ih, w_hh, b_ih, b_hh, h0, None, lengths, reverse, training, backend
    )
    return y, h_n[0], tape


def gru_backward(
    tape: Tape | None,
    dy: npt.ArrayLike | None = None,
    dh_n: npt.ArrayLike | None = None,
    *,
    dx: bool = True,
) -> Gradients:
    """Backpropagate through time: the gradients of all that `gru_forward` was given.

    Parameters
    ----------
    tape : Tape
        From ``gru_forward(..., training=True)``. It is spent: a second backward raises.
    dy : array_like, shape (T, B, H), optional
        Gradient of the loss with respect to y. Past a sequence's length it is ignored. None is zeros.
    dh_n : array_like, shape (B, H), optional
        Gradient with respect to the final state. None is zeros.
    dx : bool, default True
        Whether the gradient of x is wanted. Data need none; in a training step it is a sixth of the arithmetic where
        I = H, a third where I is much larger.

    Returns
    -------
    Gradients
        ``x``, ``w_ih``, ``w_hh``, ``b_ih``, ``b_hh``, ``h0``, each of its argument's shape.

    Raises
    ------
    TypeError
        An argument is of a wrong type or dtype, or the tape is None.
    ValueError
        An argument has a wrong shape, or the tape is another function's.
    RuntimeError
        The tape is spent.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> w_ih, w_hh = np.zeros((3 * 2, 1)), np.zeros((3 * 2, 2))
    >>> *_, tape = fr.gru_forward(np.ones((3, 1, 1)), w_ih, w_hh, training=True)
    >>> fr.gru_backward(tape, dh_n=np.ones((1, 2))).x.shape
    (3, 1, 1)
    """
    return _backward("gru_forward", tape, dy, dh_n, None, dx)


def lstm_forward(
    x: npt.ArrayLike,
    w_ih: npt.ArrayLike,
    w_hh: npt.ArrayLike,
    b_ih: npt.ArrayLike | None = None,
    b_hh: npt.ArrayLike | None = None,
    h0: npt.ArrayLike | None = None,
    c0: npt.ArrayLike | None = None,
    *,
    lengths: npt.ArrayLike | None = None,
    reverse: bool = False,
    training: bool = False,
    backend: str | None = None,
) -> tuple[Array, Array, Array, Tape | None]:
    """Run a long short-term memory layer over a batch of sequences.

    With s = sigmoid, a = W x + b_ih + U h + b_hh, and * elementwise::

        i = s(a_i)    f = s(a_f)    g = tanh(a_g)    o = s(a_o)
        c' = f * c + i * g
        h' = o * tanh(c')

    Parameters
    ----------
    x : array_like, shape (T, B, I)
        The sequences, float32 or float64; every other array has the same dtype.
    w_ih : array_like, shape (4*H, I)
        Weights of the input, gates in the order i, f, g, o.
    w_hh : array_like, shape (4*H, H)
        Weights of the hidden state, gates in the same order.
    b_ih, b_hh : array_like, shape (4*H,), optional
        Biases of both products; their sum counts. None is zeros.
    h0, c0 : array_like, shape (B, H), optional
        Initial hidden state and cell state. None is zeros.
    lengths : array_like of int, shape (B,), optional
        Valid steps of each sequence, from 0 to T, in any order. What lies past them is never read. None is T for all.
    reverse : bool, default False
        Run from each sequence's last valid step down to time 0; ``y[t]`` is then the state after reading ``x[t]``.
    training : bool, default False
        Keep a tape for `lstm_backward`. x, y and the weights must not be changed before that.
    backend : {"cython", "numba", "reference"}, optional
        Who computes. None is the choice of `use_backend`. The reference takes any floating dtype.

    Returns
    -------
    y : ndarray, shape (T, B, H)
        The hidden state after each step; 0 past a sequence's length.
    h_n, c_n : ndarray, shape (B, H)
        The states after the last step read; the initial ones where the length is 0.
    tape : Tape or None
        None unless training.

    Raises
    ------
    TypeError
        An argument is of a wrong type or dtype.
    ValueError
        An argument has a wrong shape or value, or the result could not be addressed.
    ImportError
        The backend is not installed.

    References
    ----------
    Hochreiter, S. and Schmidhuber, J. (1997). Long short-term memory. Neural Computation 9, 1735-1780.
    Gers, F. A. et al. (2000). Learning to forget. Neural Computation 12, 2451-2471.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> rng = np.random.default_rng(0)
    >>> x = rng.standard_normal((7, 2, 3))  # T, B, I
    >>> w_ih, w_hh = rng.standard_normal((4 * 5, 3)), rng.standard_normal((4 * 5, 5))
    >>> y, h_n, c_n, tape = fr.lstm_forward(x, w_ih, w_hh, lengths=[7, 4], training=True)
    >>> y.shape, h_n.shape
    ((7, 2, 5), (2, 5))
    >>> g = fr.lstm_backward(tape, dy=np.ones_like(y))
    >>> g.w_hh.shape
    (20, 5)
    """
    y, h_n, c_n, tape = _forward(
        "lstm_forward", "lstm", x, w_ih, w_hh, b_ih, b_hh, h0, c0, lengths, reverse, training, backend
    )
    assert c_n is not None
    return y, h_n[0], c_n[0], tape


def lstm_backward(
    tape: Tape | None,
    dy: npt.ArrayLike | None = None,
    dh_n: npt.ArrayLike | None = None,
    dc_n: npt.ArrayLike | None = None,
    *,
    dx: bool = True,
) -> Gradients:
    """Backpropagate through time: the gradients of all that `lstm_forward` was given.

    Parameters
    ----------
    tape : Tape
        From ``lstm_forward(..., training=True)``. It is spent: a second backward raises.
    dy : array_like, shape (T, B, H), optional
        Gradient of the loss with respect to y. Past a sequence's length it is ignored. None is zeros.
    dh_n, dc_n : array_like, shape (B, H), optional
        Gradients with respect to the final states. None is zeros.
    dx : bool, default True
        Whether the gradient of x is wanted. Data need none; in a training step it is a sixth of the arithmetic where
        I = H, a third where I is much larger.

    Returns
    -------
    Gradients
        ``x``, ``w_ih``, ``w_hh``, ``b_ih``, ``b_hh``, ``h0``, ``c0``, each of its argument's shape.

    Raises
    ------
    TypeError
        An argument is of a wrong type or dtype, or the tape is None.
    ValueError
        An argument has a wrong shape, or the tape is another function's.
    RuntimeError
        The tape is spent.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> w_ih, w_hh = np.zeros((4 * 2, 1)), np.zeros((4 * 2, 2))
    >>> *_, tape = fr.lstm_forward(np.ones((3, 1, 1)), w_ih, w_hh, training=True)
    >>> fr.lstm_backward(tape, dh_n=np.ones((1, 2))).x.shape
    (3, 1, 1)
    """
    return _backward("lstm_forward", tape, dy, dh_n, dc_n, dx)
