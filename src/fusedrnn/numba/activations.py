"""exp, sigmoid and tanh of a vector: the twin of kernels/activations.h, operation by operation, so that both backends
give the same bits. What they promise, and where the constants come from, stands there.
"""

from fusedrnn.numba.jit import inner
from fusedrnn.numba.machine import flush_denormals, fp_restore
from fusedrnn.numba.vec import (
    by_dtype,
    fma,
    horner,
    lanes,
    load_upto,
    maximum,
    negative_abs,
    pick_less,
    pick_negative,
    power_of_two,
    store_upto,
    xor_sign,
)

__all__ = ["sigmoid", "sigmoid_array", "tanh", "tanh_array"]

hexadecimal = float.fromhex
LOG2E = hexadecimal("0x1.715476p+0"), hexadecimal("0x1.71547652b82fep+0")
LN2_HI = hexadecimal("0x1.62e4p-1"), hexadecimal("0x1.62e42feep-1")
LN2_LO = hexadecimal("0x1.7f7d1cp-20"), hexadecimal("0x1.a39ef35793c76p-33")
ROUNDER = hexadecimal("0x1.8p+23"), hexadecimal("0x1.8p+52")
FAR = 88.0, 709.0
TANH_FAR = 40.0
EXPM1_NARROW = (1.9891031e-04, 1.3933686e-03, 8.3333109e-03, 4.1666465e-02, 1.6666667e-01, 0.5)
EXPM1_WIDE = (
    2.0914717341716375952e-9,
    2.5105259538448493419e-8,
    2.7557273570102139673e-7,
    2.7557255297969644392e-6,
    2.4801587325605322782e-5,
    1.9841269874901259234e-4,
    1.3888888888883731828e-3,
    8.3333333333261120526e-3,
    4.1666666666666669767e-2,
    1.6666666666666671008e-1,
    0.5,
)


@inner
def reduced_expm1(t):
    """expm1(r) and 2^n of t = n ln 2 + r; t within [-FAR, 0] or NaN."""
    rounder = by_dtype(t, ROUNDER[0], ROUNDER[1])
    shifted = fma(t, by_dtype(t, LOG2E[0], LOG2E[1]), rounder)
    n = shifted - rounder
    r = fma(n, -by_dtype(t, LN2_LO[0], LN2_LO[1]), fma(n, -by_dtype(t, LN2_HI[0], LN2_HI[1]), t))
    return fma(r * r, horner(r, EXPM1_NARROW, EXPM1_WIDE), r), power_of_two(shifted)


@inner
def sigmoid(x):
    """(A1)."""
    far = -by_dtype(x, FAR[0], FAR[1])
    p, power = reduced_expm1(maximum(far, negative_abs(x)))
    e = power * (1 + p)
    s = pick_negative(x, e, 1) / fma(power, p, 1 + power)
    return pick_less(x, -1, fma(-e, s, e), s)


@inner
def tanh(x):
    """(A2)."""
    p, power = reduced_expm1(maximum(-TANH_FAR, 2 * negative_abs(x)))
    return xor_sign(fma(-power, p, 1 - power) / fma(power, p, 1 + power), x)


def sigmoid_array(x, y, n, like):
    """y = sigmoid(x), n elements at addresses."""
    before = flush_denormals()
    for i in range(0, n, lanes(like)):
        store_upto(y, i, sigmoid(load_upto(x, i, n - i, like)), n - i)
    fp_restore(before)


def tanh_array(x, y, n, like):
    """y = tanh(x), n elements at addresses."""
    before = flush_denormals()
    for i in range(0, n, lanes(like)):
        store_upto(y, i, tanh(load_upto(x, i, n - i, like)), n - i)
    fp_restore(before)
