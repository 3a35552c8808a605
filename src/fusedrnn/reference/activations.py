"""Activations of the reference: any NumPy float dtype, and complex input for complex-step differentiation.

Derivatives are functions of the activation's value, not of its argument: that is what forward keeps.
Sources: docs/math.md, section 2.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def sigmoid(p: Array) -> Array:
    """``1 / (1 + exp(-p))``, (A1), from the exponential that cannot overflow; relatively accurate on both sides."""
    positive = p.real >= 0
    e = np.exp(np.where(positive, -p, p))
    value: Array = np.where(positive, 1, e) / (1 + e)
    return value


def dsigmoid(value: Array) -> Array:
    """``sigmoid' = sigmoid (1 - sigmoid)``, (A1')."""
    slope: Array = value * (1 - value)
    return slope


def tanh(p: Array) -> Array:
    """``tanh p``, (A2)."""
    return np.tanh(p)


def dtanh(value: Array) -> Array:
    """``tanh' = 1 - tanh^2``, (A2')."""
    slope: Array = 1 - value * value
    return slope


def relu(p: Array) -> Array:
    """``max(p, 0)``, (A3). Written so that NaN stays NaN and complex input is decided by its real part."""
    return np.where(p.real <= 0, 0, p)


def drelu(value: Array) -> Array:
    """``relu' = 0 where relu = 0, else 1``, (A3'): at the kink the left derivative, as PyTorch takes it."""
    return np.where(value.real <= 0, 0, np.ones_like(value))
