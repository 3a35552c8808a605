"""Central differences in float64 on each backend itself, for every element of every input and parameter.

The loss is a random linear function of y, h_n and c_n. Four points at distances s and 2s leave an error of s^4
(times the fifth derivative) and of eps/s: with s = 2e-3 both are below 1e-10.
"""

import dataclasses

import numpy as np
import pytest
from cases import CELLS, PARAMETERS, Case, draw_clear_of_kinks, forward, problem, run

S = 2e-3
TOLERANCE = 1e-9  # relative to the largest element of the gradient, or to 1
STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))

CONFIGURATIONS = (
    Case("", "float64", T=4, B=3, I=3, H=5),
    Case("", "float64", T=4, B=4, I=2, H=3, directions="both", lengths="zeros"),
    Case("", "float64", T=3, B=2, I=2, H=9, directions="reverse", lengths="any", biases="ih"),
    Case("", "float64", T=3, B=5, I=1, H=1, biases="hh", grads="hc"),
)


def variables(p):
    """Every array of a problem that has a gradient, by the name `run` gives to it."""
    yield "x", p.x
    for d, (weights, h0, c0, _) in enumerate(p.directions):
        for name, a in zip((*PARAMETERS, "h0", "c0"), (*weights, h0, c0), strict=True):
            if a is not None:
                yield f"{d}.{name}", a


def loss(backend, p):
    results, _ = forward(backend, p)
    total = 0.0
    for name, weight in (("y", p.dy), ("h_n", p.dh_n), ("c_n", p.dc_n)):
        if weight is not None:
            total += np.vdot(np.nan_to_num(weight), results[name])  # NaN marks the padding, whose y is zero
    return total


def differences(backend, p, a):
    """d loss / d a, by differences; `a` is one of the arrays of p and is put back."""
    gradient = np.zeros_like(a)
    for index in np.ndindex(a.shape):
        value = a[index]
        if np.isnan(value):  # padding
            continue
        for offset, weight in STENCIL:
            a[index] = value + offset * S
            gradient[index] += weight * loss(backend, p) / S
        a[index] = value
    return gradient


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda case: str(case).lstrip("-"))
@pytest.mark.parametrize("cell", CELLS)
def test_central_differences(cell, configuration, target):
    case = dataclasses.replace(configuration, cell=cell)
    p = draw_clear_of_kinks(case, 5 * S) if cell == "rnn_relu" else problem(case)
    gradients = run(target.module, p)
    for name, a in variables(p):
        want = differences(target.module, p, a)
        scale = np.abs(want).max(initial=1)
        error = np.abs(gradients[name] - want).max(initial=0) / scale
        assert error <= TOLERANCE, f"{name}: off by {error:.3g} of its largest element"
