"""Every backend, instruction set, dtype and cell against the reference in a wider type: all outputs and all gradients.

Sizes and options are zipped cycles, not a product: every size around a vector's width meets every cell, and every
option meets every other one, in a time that an ordinary run can pay.
"""

import itertools

import numpy as np
import pytest
from cases import CELLS, DTYPES, Case, assert_close, assert_same, forward, oracle, problem, run

WIDTHS = (*range(1, 71), *range(127, 131))
STEPS = (7, 1, 2, 7, 2, 100)
BIASES = ("both", "none", "ih", "hh")
LENGTHS = ("none", "any", "zeros", "full", "short")
DIRECTIONS = ("forward", "reverse", "both")
GRADS = ("yhc", "y", "h", "c", "yh", "yc", "hc")


def states(cell):
    return ("given", "zero", "h", "c") if cell == "lstm" else ("given", "zero")


def grads(cell):
    return GRADS if cell == "lstm" else ("yh", "y", "h")


def turn(values, i):
    """The i-th of a cycle that shifts by one each time round, so that two cycles never keep step."""
    return values[(i + i // len(values)) % len(values)]


def sized(cell, dtype):
    """Each width once as H and once as I, each batch size from 1 to 33, and all options in turn."""
    for i, H in enumerate(WIDTHS):
        I = WIDTHS[(31 * i + 7) % len(WIDTHS)]
        B = 1 + 10 * i % 33
        T = STEPS[i % len(STEPS)]
        if T == 100:  # long chains, but not large ones: rounding must accumulate, the run must not
            B = 1 + B % 4
        yield Case(
            cell,
            dtype,
            T,
            B,
            I,
            H,
            turn(BIASES, i),
            turn(states(cell), i),
            turn(LENGTHS, i),
            turn(DIRECTIONS, i),
            turn(grads(cell), i),
        )


def optional(cell, dtype):
    """Every combination of biases, states, lengths and directions; every mix of gradients with each of them."""
    mixes = itertools.cycle(grads(cell))
    for b, s, n, d in itertools.product(BIASES, states(cell), LENGTHS, DIRECTIONS):
        yield Case(cell, dtype, 5, 4, 3, 9, b, s, n, d, next(mixes))


# T, B, I, H past the blocks that long sums and many rows are worked off in.
LARGE = (
    (2, 3, 1100, 7),
    (2, 2, 9, 600),
    (3, 9, 520, 140),
    (40, 33, 9, 12),
    (300, 5, 3, 17),
    (2, 3000, 4, 50),
    (3, 128, 64, 20),
)

SIZED = [case for dtype in DTYPES for cell in CELLS for case in sized(cell, dtype)]


def check(target, case):
    p = problem(case)
    got = run(target.module, p)
    assert_close(got, oracle(case), p)
    if p.lengths is not None:
        padding = np.arange(case.T)[:, None] >= p.lengths
        assert not got["y"][padding].any(), "y past a sequence's length is zero"
        assert not got["x"][padding].any(), "dx past a sequence's length is zero"


@pytest.mark.parametrize("case", SIZED, ids=str)
def test_sizes(case, target):
    check(target, case)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_options(cell, dtype, target):
    for case in optional(cell, dtype):
        try:
            check(target, case)
        except Exception as error:
            error.add_note(f"in {case}")
            raise


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("size", LARGE, ids=str)
def test_large_sizes(size, cell, dtype, target):
    check(target, Case(cell, dtype, *size, lengths="any", directions="both"))


@pytest.mark.parametrize("cell", CELLS)
def test_large_gradients(cell, target):
    """dW in deep blocks, several of them, whose operands give way to the matrix of dx."""
    check(target, Case(cell, "float32", 70, 33, 300, 400, lengths="any", directions="forward"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("T", "B"), [(0, 3), (0, 0), (4, 0), (0, 33)])
def test_nothing_to_do(T, B, cell, dtype, target):
    """No step or no sequence: states come back as they went in, gradients of states too, the rest is zero."""
    for directions, lengths in itertools.product(DIRECTIONS, ("none", "full")):
        case = Case(cell, dtype, T, B, 5, 19, lengths=lengths, directions=directions)
        p = problem(case)
        got = run(target.module, p)
        assert_close(got, oracle(case), p)
        for d, (_, h0, c0, _) in enumerate(p.directions):
            if T == 0:
                assert np.array_equal(got["h_n"][d], h0)
                assert np.array_equal(got[f"{d}.h0"], p.dh_n[d])
                if case.lstm:
                    assert np.array_equal(got["c_n"][d], c0)
                    assert np.array_equal(got[f"{d}.c0"], p.dc_n[d])
            assert not got[f"{d}.w_ih"].any()
            assert not got[f"{d}.w_hh"].any()


@pytest.mark.parametrize("directions", DIRECTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_mix_of_gradients(cell, directions, target):
    """None means zeros, for each of dy, dh_n and dc_n, with and without lengths."""
    for mix, lengths in itertools.product(("", *grads(cell)), ("none", "zeros")):
        case = Case(cell, "float64", 6, 5, 7, 17, grads=mix, lengths=lengths, directions=directions)
        p = problem(case)
        assert_close(run(target.module, p), oracle(case), p)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_training_and_inference_give_the_same_bits(cell, dtype, target):
    for T, B, H, lengths in ((7, 3, 33, "none"), (2, 33, 16, "any"), (100, 1, 65, "none"), (7, 12, 127, "zeros")):
        p = problem(Case(cell, dtype, T, B, 20, H, lengths=lengths, directions="both"))
        inference, tape = forward(target.module, p, training=False)
        assert tape is None
        assert_same(inference, forward(target.module, p, training=True)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_packed_weights_give_the_same_bits(cell, dtype, target):
    for biases in BIASES:
        p = problem(Case(cell, dtype, 7, 5, 19, 35, biases, lengths="any", directions="both"))
        packed = [target.module.pack(cell, *weights) for weights, *_ in p.directions]
        for a, (weights, *_) in zip(packed, p.directions, strict=True):
            assert (a.cell, a.input_size, a.hidden_size, a.dtype) == (cell, 19, 35, weights[0].dtype)
        directions = tuple((a, *rest) for a, (_, *rest) in zip(packed, p.directions, strict=True))
        y, h_n, c_n, tape = target.module.forward(cell, p.x, directions, p.lengths, False)
        assert tape is None
        assert_same({"y": y, "h_n": h_n, "c_n": c_n}, forward(target.module, p)[0])


def test_large_weights(target):
    """More than 16 MB are packed piece by piece, transposed and by rows, at once and beforehand."""
    case = Case("lstm", T=2, B=2, I=1100, H=1301, directions="both")
    p = problem(case)
    got = run(target.module, p)
    assert_close(got, oracle(case), p)
    directions = tuple((target.module.pack("lstm", *weights), *rest) for weights, *rest in p.directions)
    y, h_n, c_n, _ = target.module.forward("lstm", p.x, directions, None, False)
    assert_same({"y": y, "h_n": h_n, "c_n": c_n}, {name: got[name] for name in ("y", "h_n", "c_n")})


@pytest.mark.parametrize("cell", CELLS)
def test_packing_copies(cell, target):
    """A packed layer is immutable: changing the arrays it came from changes nothing."""
    p = problem(Case(cell, "float32", 3, 2, 4, 17))
    (weights, h0, c0, _) = p.directions[0]
    weights = tuple(w.copy() for w in weights)
    packed = target.module.pack(cell, *weights)
    before = target.module.forward(cell, p.x, ((packed, h0, c0, False),), None, False)[0]
    for w in weights:
        w[...] = np.nan
    assert np.array_equal(before, target.module.forward(cell, p.x, ((packed, h0, c0, False),), None, False)[0])


def test_a_tape_is_for_one_backward_pass(compiled):
    p = problem(Case("gru"))
    tape = forward(compiled.module, p, training=True)[1]
    compiled.module.backward(tape, p.dy, p.dh_n, None)
    with pytest.raises(RuntimeError, match="got a second"):
        compiled.module.backward(tape, p.dy, p.dh_n, None)


def test_packed_weights_are_for_inference_and_their_cell(compiled):
    p = problem(Case("gru"))
    (weights, h0, _, _) = p.directions[0]
    for cell, training in (("gru", True), ("gru_reset_before", False), ("lstm", False)):
        packed = compiled.module.pack("gru", *weights)
        with pytest.raises(TypeError, match="gru weights packed for inference"):
            compiled.module.forward(cell, p.x, ((packed, h0, None, False),), None, training)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_stacked_stream(cell, dtype, target):
    """A stream of three layers against layer after layer, its state after each step, set_state and reset."""
    T, B, I, H = 6, 3, 5, 18
    cases = [Case(cell, dtype, T, B, I if n == 0 else H, H, seed=n) for n in range(3)]
    problems = [problem(case) for case in cases]
    layers = tuple(target.module.pack(cell, *p.directions[0][0]) for p in problems)
    h0 = np.stack([p.directions[0][1] for p in problems])
    c0 = np.stack([p.directions[0][2] for p in problems]) if cell == "lstm" else None

    stepper = target.module.stream(layers, B)
    x = problems[0].x
    for start_h, start_c in ((None, None), (h0, c0)):
        if start_h is None:
            stepper.reset()
        else:
            stepper.set_state(start_h, start_c)
        y, h_n, c_n = x, [], []
        for n, layer in enumerate(layers):
            state = (None, None) if start_h is None else (start_h[n], None if start_c is None else start_c[n])
            y, h, c, _ = target.module.forward(cell, y, ((layer, *state, False),), None, False)
            h_n.append(h[0])
            c_n.append(None if c is None else c[0])
        p = problems[-1]
        steps = [stepper.step(x[t]) for t in range(T)]
        assert_close({"y": np.stack(steps)}, {"y": y}, p)
        h, c = stepper.get_state()
        assert_close({"h_n": h}, {"h_n": np.stack(h_n)}, p)
        if cell == "lstm":
            assert_close({"c_n": c}, {"c_n": np.stack(c_n)}, p)
        else:
            assert c is None
    stepper.get_state()[0][...] = np.nan  # the state handed out is a copy
    assert np.isfinite(stepper.get_state()[0]).all()
    out = np.empty((B, H), dtype)
    assert stepper.step(x[0], out=out) is out
    stepper.reset()
    assert not stepper.get_state()[0].any()
