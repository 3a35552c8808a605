"""Other initialisations than PyTorch's, which every layer and cell starts with: Glorot, orthogonal, forget-gate bias.

Each takes a layer or cell and changes its parameters in place; they combine, as in the recipe of Keras:

>>> import fusedrnn as fr
>>> lstm = fr.LSTM(3, 5, num_layers=2, rng=0)
>>> fr.init.glorot(lstm)
>>> fr.init.orthogonal(lstm)
>>> fr.init.zero_biases(lstm)
>>> fr.init.forget_bias(lstm, 1.0)

The gates are treated one by one, each as the matrix it is in the equations, though they are stored stacked.
"""

import math
from collections.abc import Iterator

import numpy as np

from fusedrnn import checks
from fusedrnn.checks import Array
from fusedrnn.module import GATES, Module, draw

__all__ = ["forget_bias", "glorot", "orthogonal", "zero_biases"]


def glorot(module: Module, rng: np.random.Generator | int | None = None) -> None:
    """Draw the input weights from U(-k, k), k = sqrt(6 / (fan_in + fan_out)).

    It keeps the variance of activations and gradients from layer to layer. For each gate's matrix, fan_in is its number
    of columns (the width of the layer's input) and fan_out its number of rows, H.

    Parameters
    ----------
    module : layer or cell
        Whose ``weight_ih`` are drawn anew, in place.
    rng : Generator, int or None
        None is the module's own.

    Raises
    ------
    TypeError
        `module` is no layer or cell, or `rng` no source of random numbers.

    References
    ----------
    Glorot, X. and Bengio, Y. (2010). Understanding the difficulty of training deep feedforward neural networks.
    AISTATS, equation 16.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> gru = fr.GRU(3, 5)
    >>> fr.init.glorot(gru, rng=0)
    >>> bool(np.abs(gru.parameters["weight_ih_l0"]).max() < np.sqrt(6 / (3 + 5)))
    True
    """
    module, source = checks.instance("module", module, Module), _generator(module, rng)
    for gate in _gates(module, "weight_ih"):
        k = math.sqrt(6 / sum(gate.shape))
        draw(source, gate, -k, k)


def orthogonal(module: Module, rng: np.random.Generator | int | None = None, gain: float = 1.0) -> None:
    """Draw each gate's recurrent weights as a random orthogonal matrix times `gain`.

    Powers of such a matrix neither grow nor shrink a vector, and so neither do gradients over many steps. The matrix is
    uniformly distributed (Haar): the Q of a Gaussian matrix's QR decomposition, columns signed by the diagonal of R.

    Parameters
    ----------
    module : layer or cell
        Whose ``weight_hh`` are drawn anew, in place.
    rng : Generator, int or None
        None is the module's own.
    gain : float, default 1.0
        Factor.

    Raises
    ------
    TypeError, ValueError
        `module` is no layer or cell, `rng` no source of random numbers, or `gain` no finite number.

    References
    ----------
    Saxe, A. M., McClelland, J. L. and Ganguli, S. (2014). Exact solutions to the nonlinear dynamics of learning in deep
    linear neural networks. ICLR, arXiv:1312.6120.
    Mezzadri, F. (2007). How to generate random matrices from the classical compact groups. Notices of the AMS 54, 592.

    Examples
    --------
    >>> import numpy as np
    >>> import fusedrnn as fr
    >>> rnn = fr.RNN(3, 5)
    >>> fr.init.orthogonal(rnn, rng=0)
    >>> u = rnn.parameters["weight_hh_l0"]
    >>> np.allclose(u @ u.T, np.eye(5), atol=1e-6)
    True
    """
    module, source = checks.instance("module", module, Module), _generator(module, rng)
    gain = checks.number("gain", gain)
    for gate in _gates(module, "weight_hh"):
        q, r = np.linalg.qr(source.standard_normal(gate.shape))
        gate[...] = gain * q * np.sign(np.diagonal(r))


def zero_biases(module: Module) -> None:
    """Set every bias to zero.

    Parameters
    ----------
    module : layer or cell
        Whose biases are set, in place; one without biases is left as it is.

    Raises
    ------
    TypeError
        `module` is no layer or cell.

    Examples
    --------
    >>> import fusedrnn as fr
    >>> cell = fr.RNNCell(3, 2)
    >>> fr.init.zero_biases(cell)
    >>> cell.parameters["bias_ih"]
    array([0., 0.], dtype=float32)
    """
    for gate in _gates(checks.instance("module", module, Module), "bias"):
        gate[...] = 0


def forget_bias(module: Module, value: float = 1.0) -> None:
    """Set the bias of an LSTM's forget gate: ``bias_ih`` to `value` and ``bias_hh`` to 0, so that their sum is `value`.

    With 1 or more the cell starts out remembering, and gradients reach far back from the first step of training.

    Parameters
    ----------
    module : LSTM or LSTMCell
        Whose biases are set, in place.
    value : float, default 1.0
        The sum of both biases.

    Raises
    ------
    TypeError, ValueError
        `module` is no LSTM, has no biases, or `value` is no finite number.

    References
    ----------
    Gers, F. A., Schmidhuber, J. and Cummins, F. (2000). Learning to forget: continual prediction with LSTM. Neural
    Computation 12, 2451-2471.
    Jozefowicz, R., Zaremba, W. and Sutskever, I. (2015). An empirical exploration of recurrent network architectures.
    ICML.

    Examples
    --------
    >>> import fusedrnn as fr
    >>> lstm = fr.LSTM(3, 2)
    >>> fr.init.forget_bias(lstm, 1.0)
    >>> lstm.parameters["bias_ih_l0"][2:4]
    array([1., 1.], dtype=float32)
    """
    module = checks.instance("module", module, Module)
    checks.forget_gate(module, module.cell == "lstm", module.bias)
    value = checks.number("value", value)
    for kind, number in (("bias_ih", value), ("bias_hh", 0.0)):
        for gate in list(_gates(module, kind))[1::4]:  # i, f, g, o
            gate[...] = number


def _gates(module: Module, kind: str) -> Iterator[Array]:
    """The parts, gate by gate, of all parameters whose name begins with `kind`."""
    for name, value in module._writable().items():
        if name.startswith(kind):
            yield from np.split(value, GATES[module.cell])


def _generator(module: Module, rng: np.random.Generator | int | None) -> np.random.Generator:
    return module.rng if rng is None else checks.generator(rng)
