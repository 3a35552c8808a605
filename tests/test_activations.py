"""sigmoid and tanh as the kernels compute them: at most 2 ulp off in float32, exact where they saturate, NaN for NaN.

float32 is held to float64, over all 2^32 values in the slow run and over a sample that knows the hard places in the
ordinary one; float64 is held to longdouble. The kernels flush subnormal numbers to zero, and a result may come out
subnormal where the true value lies just above the smallest normal number: up to there it is held to it absolutely.
"""

import itertools

import numpy as np
import pytest
from cases import DTYPES

ULPS = {"float32": 2, "float64": 3}  # 2 is the promise; float64 is the same source at the other width
CHUNK = 1 << 18  # values at a time: the temporaries stay in cache


def sigmoid(x):
    """Stable: the exponential never overflows, and nothing cancels."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, e) / (1 + e)


EXACT = {"sigmoid": sigmoid, "tanh": np.tanh}
FUNCTIONS = tuple(EXACT)

# From where on the correctly rounded result is a constant: (sigmoid is 1, sigmoid is 0, |tanh| is 1), rounded up.
SATURATION = {"float32": (17.5, 104, 9.1), "float64": (37.5, 746, 19.1)}


def check(module, function, x):
    """Accuracy, range, saturation and NaN of one function on the values x."""
    got = getattr(module, function)(x)
    assert (got.dtype, got.shape) == (x.dtype, x.shape)
    nan = np.isnan(x)
    assert np.array_equal(np.isnan(got), nan), "NaN for NaN and for nothing else"
    x, got = x[~nan], got[~nan]
    want = EXACT[function](x.astype(np.float64 if x.dtype == np.float32 else np.longdouble))
    info = np.finfo(x.dtype)
    flushed = info.smallest_normal * (1 + 4 * info.eps)  # within 2 ulp of what is flushed, and a little more
    with np.errstate(under="ignore"):  # subnormal samples
        _, exponent = np.frexp(want)
        ulp = np.ldexp(want.dtype.type(1), np.maximum(exponent, info.minexp + 1) - info.nmant - 1)
        limit = np.where(np.abs(want) < flushed, flushed, ULPS[x.dtype.name] * ulp)
        off = np.abs(got - want)
    if (off > limit).any():
        worst = np.argmax(off / limit)
        wrong = (
            f"{(off > limit).sum()} values, the worst: {function}({x[worst]!r}) = {got[worst]!r} not {want[worst]!r}"
        )
        pytest.fail(f"{wrong}, off by {off[worst] / ulp[worst]:.3g} ulp")
    assert got.max(initial=0) <= 1
    assert got.min(initial=0) >= (0 if function == "sigmoid" else -1)
    one, zero, tanh_one = SATURATION[x.dtype.name]
    if function == "sigmoid":
        assert (got[x >= one] == 1).all()
        assert (got[x <= -zero] == 0).all()
    else:
        assert (np.abs(got[np.abs(x) >= tanh_one]) == 1).all()


def sample(dtype):
    """Every exponent of both signs, all between the saturations densely, and the neighbours of what is special."""
    info, rng = np.finfo(dtype), np.random.default_rng(0)
    bits = np.dtype(f"u{info.dtype.itemsize}")
    exponents = np.arange(2 << info.nexp, dtype=bits) << info.nmant
    mantissas = rng.integers(0, 1 << info.nmant, (32, 1), dtype=bits)
    every = (exponents | mantissas).view(dtype).ravel()
    with np.errstate(over="ignore"):
        special = [0, info.smallest_subnormal, info.smallest_normal, 1, info.max, np.inf, info.eps, np.sqrt(info.eps)]
        special += [
            0.625,
            np.log(2) / 2,
            np.log(2),
            *SATURATION[dtype],
            -np.log(info.smallest_normal),
            np.log(info.max),
        ]
        special = np.array([special, np.negative(special)], dtype).ravel()
    neighbours = special.view(bits)[:, None] + np.arange(-2000, 2001).astype(
        bits
    )  # wraps around: any pattern is a number
    limit = SATURATION[dtype][1]
    between = np.linspace(-limit, limit, 200_001)
    near_zero = rng.standard_normal(200_000)
    parts = (every, neighbours.view(dtype).ravel(), between, near_zero, [np.nan])
    return np.concatenate([np.asarray(part, dtype) for part in parts])


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # signalling NaN among the patterns
def test_sample(function, dtype, compiled):
    if dtype == "float64" and np.finfo(np.longdouble).eps == np.finfo(dtype).eps:
        pytest.skip("longdouble is not wider than float64 here")
    values = sample(dtype)
    for start in range(0, len(values), CHUNK):
        check(compiled.module, function, values[start : start + CHUNK])


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_all_float32(function, compiled):
    for start in range(0, 1 << 32, CHUNK):
        bits = np.arange(start, start + CHUNK, dtype=np.uint32)
        check(compiled.module, function, bits.view(np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tanh_is_odd(dtype, compiled):
    values = sample(dtype)
    values = values[~np.isnan(values)]
    assert np.array_equal(compiled.module.tanh(-values), -compiled.module.tanh(values))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_points(function, dtype, compiled):
    largest = np.finfo(dtype).max
    points = np.array([0.0, -0.0, np.inf, -np.inf, largest, -largest], dtype)
    expected = {"sigmoid": [0.5, 0.5, 1, 0, 1, 0], "tanh": [0, 0, 1, -1, 1, -1]}
    assert getattr(compiled.module, function)(points).tolist() == expected[function]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_place_in_the_array(function, dtype, compiled):
    """An element's result does not depend on its neighbours, nor on being one of the last."""
    f = getattr(compiled.module, function)
    values = np.random.default_rng(1).standard_normal(67).astype(dtype)
    whole = f(values)
    for start, stop in itertools.combinations(range(0, 68, 3), 2):
        assert np.array_equal(f(values[start:stop].copy()), whole[start:stop])
    assert f(values[:0]).shape == (0,)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_avx2_and_avx512(function, dtype, core):
    names = [name for name in ("avx512", "avx2") if name in core.available_isas()]
    if len(names) < 2:
        pytest.skip("this CPU does not run both")
    before, found = core.isa(), []
    values = sample(dtype)
    try:
        for name in names:
            core.set_isa(name)
            found.append(getattr(core, function)(values))
    finally:
        core.set_isa(before)
    assert np.array_equal(*found, equal_nan=True)
