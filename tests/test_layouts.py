"""Any layout of any argument gives the results of the contiguous one, and no argument is ever modified.

Bit for bit where there are kernels; the reference leaves the order of its sums to BLAS, which looks at the strides.
"""

import dataclasses

import arrays
import hypothesis
import numpy as np
import pytest
from cases import CELLS, DTYPES, Case, assert_close, assert_same, problem, run_functional
from hypothesis import strategies as st

ARGUMENTS = ("x", "w_ih", "w_hh", "b_ih", "b_hh", "h0", "c0", "dy", "dh_n", "dc_n")

DETERMINISTIC = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [hypothesis.HealthCheck.function_scoped_fixture],  # `target` only forces a name
}


def arguments(p):
    """The arrays of a problem of one direction by name, as a caller of the public functions gives them."""
    ((weights, h0, c0, _),) = p.directions
    finals = (None if a is None else a[0] for a in (p.dh_n, p.dc_n))
    return dict(zip(ARGUMENTS, (p.x, *weights, h0, c0, p.dy, *finals), strict=True))


def with_arguments(p, named):
    x, *weights, h0, c0, dy, dh_n, dc_n = (named[name] for name in ARGUMENTS)
    finals = (None if a is None else a[None] for a in (dh_n, dc_n))
    dh_n, dc_n = finals
    directions = ((tuple(weights), h0, c0, p.directions[0][3]),)
    return dataclasses.replace(p, x=x, directions=directions, dy=dy, dh_n=dh_n, dc_n=dc_n)


def memory(a):
    """All bytes an array could reach, around it too."""
    while isinstance(a.base, np.ndarray):
        a = a.base
    return a.tobytes()


def check(target, p, named):
    """The problem with its arguments laid out as in `named`, against the same values laid out plainly."""
    before = {name: memory(a) for name, a in named.items() if a is not None}
    got = run_functional(target.backend, with_arguments(p, named))
    for name, a in named.items():
        assert a is None or memory(a) == before[name], f"{name} was modified"
    ordinary = with_arguments(p, {name: None if a is None else arrays.plain(a) for name, a in named.items()})
    want = run_functional(target.backend, ordinary)
    if not target.exact:
        assert_close(got, want, ordinary)
    else:
        assert_same(got, want)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_each_layout_of_each_argument(cell, dtype, target):
    p = problem(Case(cell, dtype, T=4, B=3, I=5, H=18))
    named = arguments(p)
    for name, a in named.items():
        for layout, view in arrays.layouts(a) if a is not None else ():
            try:
                check(target, p, named | {name: view})
            except Exception as error:
                error.add_note(f"{name}: {layout}")
                raise


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("T", "B"), [(5, 200), (2, 1100)])
def test_many_rows_of_a_layout(T, B, threads, compiled):
    """Of x, whose rows are copied a chunk, a step or a block of dW at a time."""
    compiled.module.set_num_threads(threads)
    p = problem(Case("rnn_tanh", T=T, B=B, I=300, H=20))
    named = arguments(p)
    check(compiled, p, named | {"x": arrays.every_second(p.x)})


# T, B, I, H: several blocks of dW, twice; vectors that do not fill a row; one step; many sequences; long rows; rows
# that are, batch first, a multiple of 2 KB apart.
WHERE_THEY_LIE = (
    *((40, 15, 24, 20), (70, 8, 9, 16), (9, 7, 33, 31), (1, 20, 28, 17), (6, 90, 16, 24), (4, 9, 600, 9)),
    (16, 5, 32, 64),
)


@pytest.mark.parametrize(("lengths", "directions"), [("none", "forward"), ("any", "reverse")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_rows_of_x_that_dw_reads_where_they_lie(cell, dtype, lengths, directions, target):
    """Or packs, where they are long, overlap, or are a power of two apart."""
    for T, B, I, H in WHERE_THEY_LIE:
        p = problem(Case(cell, dtype, T=T, B=B, I=I, H=H, lengths=lengths, directions=directions)).map(np.nan_to_num)
        views = dict(arrays.layouts(p.x))
        size = p.x.itemsize
        views["windows"] = np.lib.stride_tricks.as_strided(p.x, p.x.shape, (size, T * size, size), writeable=False)
        for layout in ("misaligned", "axes(1, 0, 2)", "backwards", "step-2 on axis 1", "step3 on axis 0", "windows"):
            try:
                check(target, p, arguments(p) | {"x": views[layout]})
            except Exception as error:
                error.add_note(f"T={T} B={B} I={I} H={H}: {layout}")
                raise


@st.composite
def mixtures(draw):
    """A case and a layout for each of its arguments."""
    case = Case(
        cell=draw(st.sampled_from(CELLS)),
        dtype=draw(st.sampled_from(DTYPES)),
        T=draw(st.integers(0, 5)),
        B=draw(st.integers(0, 7)),
        I=draw(st.integers(1, 20)),
        H=draw(st.integers(1, 35)),
        biases=draw(st.sampled_from(("both", "none", "ih", "hh"))),
        states=draw(st.sampled_from(("given", "zero", "h", "c"))),
        lengths=draw(st.sampled_from(("none", "any", "zeros"))),
        directions=draw(st.sampled_from(("forward", "reverse"))),
        grads=draw(st.sampled_from(("yhc", "y", "hc"))),
    )
    p = problem(case).map(np.nan_to_num)  # a zero stride may bring padding into a valid step
    named = arguments(p)
    for name, a in named.items():
        if a is not None:
            named[name] = draw(st.sampled_from([view for _, view in arrays.layouts(a)]))
    return p, named


@hypothesis.settings(max_examples=100, **DETERMINISTIC)
@hypothesis.given(mixture=mixtures())
def test_mixtures_of_layouts(mixture, target):
    check(target, *mixture)


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", ">i8", "uint64", "list"])
def test_lengths_of_any_layout(kind, target):
    p = problem(Case("lstm", lengths="any", B=6))
    want = run_functional(target.backend, p)
    for layout, view in arrays.layouts(p.lengths.astype("int64" if kind == "list" else kind)):
        if layout.startswith("stride 0"):
            continue
        before = view.copy()
        lengths = view.tolist() if kind == "list" else view
        assert_same(run_functional(target.backend, dataclasses.replace(p, lengths=lengths)), want)
        assert np.array_equal(view, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_layouts_of_a_stream(cell, dtype, target):
    """x_t of every layout; out of every layout that can be written, and an error for the others."""
    p = problem(Case(cell, dtype, T=1, B=3, I=5, H=18))
    stepper = target.module.stream((target.module.pack(cell, *p.directions[0][0]),), 3)
    for layout, x_t in arrays.layouts(p.x[0]):
        before = memory(x_t)
        stepper.reset()
        got = stepper.step(x_t)
        assert memory(x_t) == before, f"x_t was modified: {layout}"
        stepper.reset()
        want = stepper.step(arrays.plain(x_t))
        if not target.exact:
            assert_close({"y": got}, {"y": want}, p)
        else:
            assert_same({"y": got}, {"y": want})
    stepper.reset()
    want = stepper.step(p.x[0])
    for layout, out in arrays.layouts(np.full_like(want, 7)):
        stepper.reset()
        if layout.startswith("stride 0"):
            continue
        if not out.flags.writeable:
            with pytest.raises((ValueError, TypeError), match="out"):
                stepper.step(p.x[0], out=out)
            continue
        if not out.dtype.isnative:  # not promised
            continue
        assert stepper.step(p.x[0], out=out) is out, layout
        assert np.array_equal(out, want), layout
