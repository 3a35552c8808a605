"""The suite can fail: backends that are wrong in one small way do not get past the comparisons the other tests use.

Each mutant wraps the reference and breaks one thing; what it computes besides is right.
"""

import dataclasses

import numpy as np
import pytest
import test_gradients
from cases import CELLS, DTYPES, GATES, PARAMETERS, Case, assert_close, assert_same, oracle, problem, run

from fusedrnn import reference

CASE = Case("lstm", T=7, B=5, I=6, H=9, lengths="any", directions="both")


@dataclasses.dataclass
class Mutant:
    """The reference, with a chance to meddle before and after its forward and its backward."""

    arguments: object = None  # of forward: (x, directions, lengths) -> the same
    between: object = None  # (x, y) are changed in place before backward reads them
    gradient_in: object = None  # (dy, lengths) -> dy
    outputs: object = None  # (y, lengths) -> y
    gradients: object = None  # (dx, gradients, lengths) -> the same

    def forward(self, cell, x, directions, lengths, training):
        given = (x, directions, lengths)
        if self.arguments:
            given = self.arguments(*given)
        y, h_n, c_n, tape = reference.forward(cell, given[0].copy(), *given[1:], training)
        if self.outputs:
            y = self.outputs(y, lengths)
        return y, h_n, c_n, (tape, lengths)

    def backward(self, tape, dy, dh_n, dc_n, of_x):
        tape, lengths = tape
        if self.between:
            self.between(tape)
        if self.gradient_in:
            dy = self.gradient_in(dy, lengths)
        dx, gradients = reference.backward(tape, dy, dh_n, dc_n, of_x)
        return self.gradients(dx, gradients, lengths) if self.gradients else (dx, gradients)


def change(name, f):
    """A mutant's `gradients`: f applied to one gradient of the last direction."""

    def changed(dx, gradients, lengths):  # noqa: ARG001
        if name == "x":
            return f(dx), gradients
        named = dict(zip((*PARAMETERS, "h0", "c0"), gradients[-1], strict=True))
        named[name] = f(named[name])
        return dx, (*gradients[:-1], tuple(named.values()))

    return changed


def flip_one_gate(gate):
    def flip(a):
        a = a.copy()
        rows = len(a) // GATES["lstm"]
        a[gate * rows : (gate + 1) * rows] *= -1
        return a

    return flip


def without_bias(x, directions, lengths):
    return x, tuple(((*w[:2], None, w[3]), *rest) for w, *rest in directions), lengths


def roll_x(tape):
    tape.x[:] = np.nan_to_num(np.roll(tape.x, 1, axis=0))


def roll_h(tape):
    for r in tape.runs:
        r.h_prev[:] = np.roll(r.h_prev, 1, axis=0)


def leak(dy, lengths):
    """The gradient past the end of a sequence is added at its last valid step."""
    dy = np.where(np.isnan(dy), 1e-3, dy).astype(dy.dtype)
    for b, length in enumerate(lengths):
        if 0 < length < len(dy):
            dy[length - 1, b] += dy[length, b]
    return dy


def one_padded_step_of_dx(dx, gradients, lengths):
    t = int(lengths[lengths < len(dx)][0])
    dx[t, int(np.argmax(lengths == t))] = 1e-4
    return dx, gradients


def nudge(a):
    """The very smallest of mistakes: one element off by some ten thousandths of the largest."""
    a = a.copy()
    a.flat[a.size // 2] += 3e-4 * np.abs(a).max()
    return a


MUTANTS = {
    **{
        f"sign of gate {n} in d{w}": Mutant(gradients=change(w, flip_one_gate(n))) for n in range(4) for w in PARAMETERS
    },
    "dW of the wrong time step": Mutant(between=roll_x),
    "dU of the wrong time step": Mutant(between=roll_h),
    "dropped bias": Mutant(arguments=without_bias, gradients=change("b_ih", lambda _: np.zeros(36, np.float32))),
    "dy of a padded step leaks": Mutant(gradient_in=leak),
    "dx of a padded step": Mutant(gradients=one_padded_step_of_dx),
    "y of a padded step": Mutant(outputs=lambda y, lengths: np.where(y == 0, y[:1], y)),  # noqa: ARG005
    "no final state's gradient": Mutant(gradients=change("h0", np.zeros_like)),
    "directions swapped": Mutant(gradients=lambda dx, g, lengths: (dx, g[::-1])),  # noqa: ARG005
    "gradient is None": Mutant(gradients=change("b_hh", lambda _: None)),
    "wrong dtype": Mutant(gradients=change("w_hh", lambda a: a.astype(np.float64))),
    "wrong shape": Mutant(gradients=change("b_ih", lambda a: a[None])),
    "NaN": Mutant(gradients=change("w_ih", lambda a: a * np.nan)),
    **{f"one element of d{w}": Mutant(gradients=change(w, nudge)) for w in ("x", *PARAMETERS, "h0", "c0")},
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_itself_passes(dtype):
    case = dataclasses.replace(CASE, dtype=dtype)
    p = problem(case)
    assert_close(run(Mutant(), p), oracle(case), p)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_parity_sees(mutant):
    p = problem(CASE)
    with pytest.raises(AssertionError):
        assert_close(run(MUTANTS[mutant], p), oracle(CASE), p)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", ["x", *PARAMETERS, "h0"])
def test_differences_see(name, cell):
    """The smallest of mistakes, in each gradient of each cell."""

    class Target:
        module = Mutant(gradients=change(name, nudge))

    with pytest.raises(AssertionError, match=name):
        test_gradients.test_central_differences(cell, test_gradients.CONFIGURATIONS[0], Target)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_see(dtype):
    """One unit in the last place of one element; a NaN; a shape; the sign of zero alone is let pass."""
    want = run(reference, problem(dataclasses.replace(CASE, dtype=dtype)))
    for name, a in want.items():
        if a is None:
            continue
        changed = a.copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], 9)
        for wrong in (changed, changed * np.nan, a[..., :-1], a.astype(np.longdouble), None):
            with pytest.raises(AssertionError, match=name):
                assert_same(want | {name: wrong}, want)
        assert_same(want | {name: np.where(a == 0, -a, a)}, want)
