"""The time loop, one for every cell: forward and backward through time of one direction of one layer.

A cell brings only pointwise equations; all products, ragged batches, reversed time and initial states are here.
Arguments have been checked above; nothing is checked again. Step (1) stands for (R1), (L1), (G1) and (C1), and so on.

Legend: T time, B batch, I input, H hidden, G gates, S states of the cell (1: h; 2: h and c).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from fusedrnn.backends import Gradients, Weights
from fusedrnn.reference.activations import Array

Kept: TypeAlias = tuple[Array, ...]
"""What one step keeps for its backward pass: arrays (B, H)."""
StepResult: TypeAlias = tuple[tuple[Array, ...], Kept]
"""The new state, h or (h, c), and what is kept."""
StepGradient: TypeAlias = tuple[Array, Array, tuple[Array | int, ...]]
"""da (B, GH), ds (B, GH), and the gradient of the previous state apart from what s gives it (0 for none)."""


class Reset(NamedTuple):
    """The pointwise pair in front of the candidate's product, where a cell has one in the middle of its step.

    The first gate is the reset's alone: the cell's own `backward` gives the gradients of the gates after it.
    """

    forward: Callable[[Array, Array], tuple[Array, Kept]]
    backward: Callable[[Kept, Array], tuple[Array, Array]]


@dataclass(frozen=True)
class Cell:
    """A cell: how many gates and states it has, and its pointwise equations."""

    gates: int
    states: int
    forward: Callable[..., StepResult]  # (a, s, *previous state)
    backward: Callable[..., StepGradient]  # (kept, *gradient of the new state)
    reset: Reset | None = None  # given: the last gate's recurrent product takes q = r * h_prev in place of h_prev


class Step(NamedTuple):
    """One time step on the tape."""

    t: int
    kept: Kept
    kept_reset: Kept


@dataclass
class Run:
    """The tape of one direction. Parameters are held by reference."""

    cell: Cell
    parameters: Weights
    steps: list[Step]  # in the order they were run
    h_prev: Array  # (T, B, H): the state each step started from
    q: Array | None  # (T, B, H): operand of the last gate's product, where the cell has a reset


NOTHING: Kept = ()


def biases(parameters: Weights) -> tuple[Array, Array]:
    """Both biases, zeros for the absent ones."""
    w_ih, _, b, v = parameters
    zeros = np.zeros(len(w_ih), w_ih.dtype)
    return (zeros if b is None else b), (zeros if v is None else v)


def step_forward(
    cell: Cell, a: Array, state: Array, u: Array, v: Array
) -> tuple[tuple[Array, ...], Kept, Kept, Array | None]:
    """One time step: the new state, what its two pointwise parts keep, and q. a (B, GH), state (S, B, H)."""
    h_prev = state[0]
    if cell.reset is None:
        s = h_prev @ u.T + v  # (2)
        q, kept_reset = None, NOTHING
    else:
        size = h_prev.shape[1]
        s_rz = h_prev @ u[:-size].T + v[:-size]  # (2)
        q, kept_reset = cell.reset.forward(a[:, :size] + s_rz[:, :size], h_prev)
        s = np.concatenate((s_rz, q @ u[-size:].T + v[-size:]), axis=1)  # (5)
    new, kept = cell.forward(a, s, *state)
    return new, kept, kept_reset, q


def step_backward(cell: Cell, step: Step, dstate: Array, u: Array) -> tuple[Array, Array, tuple[Array | int, ...]]:
    """Gradients da, ds (B, GH) and of the previous state, from the gradient dstate (S, B, H) of the new one."""
    da, ds, (dh_prev, *dc_prev) = cell.backward(step.kept, *dstate)
    if cell.reset is None:
        dh_prev = dh_prev + ds @ u  # (2')
    else:
        size = dstate.shape[2]
        dq = ds[:, -size:] @ u[-size:]  # (5')
        dp_r, dh_reset = cell.reset.backward(step.kept_reset, dq)
        da = ds = np.concatenate((dp_r, ds), axis=1)
        dh_prev = dh_prev + dh_reset + ds[:, :-size] @ u[:-size]  # (2')
    return da, ds, (dh_prev, *dc_prev)


def run_forward(
    cell: Cell, x: Array, valid: Array, parameters: Weights, state: Array, reverse: bool, training: bool
) -> tuple[Array, Run | None]:
    """Run over the whole sequence; `state` goes from the initial to the final one in place.

    x (T, B, I), read where valid; valid (T, B) bool; state (S, B, H), inout. Returns y (T, B, H) and the tape.
    """
    w, u = parameters[:2]
    b, v = biases(parameters)
    time, batch = valid.shape
    a = np.zeros((time, batch, len(w)), x.dtype)
    a[valid] = x[valid] @ w.T + b  # (1)
    y = np.zeros((time, batch, u.shape[1]), x.dtype)
    run = Run(cell, parameters, [], np.zeros_like(y), None if cell.reset is None else np.zeros_like(y))
    for t in reversed(range(time)) if reverse else range(time):
        rows = valid[t]  # only these sequences have a step at time t: the others' states stay as they are
        previous = state[:, rows]
        new, kept, kept_reset, q = step_forward(cell, a[t, rows], previous, u, v)
        state[:, rows] = new
        y[t, rows] = new[0]
        if training:
            run.steps.append(Step(t, kept, kept_reset))
            run.h_prev[t, rows] = previous[0]
            if run.q is not None:
                run.q[t, rows] = q
    return y, run if training else None


def run_backward(run: Run, x: Array, valid: Array, dy: Array | None, dstate: Array, dx: Array | None) -> Gradients:
    """Backward through time; `dstate` goes from the final state's gradient to the initial one's in place.

    x, valid as in run_forward; dy (T, B, H), read where valid; dstate (S, B, H), inout; dx (T, B, I), added to where
    valid, or None. Returns the other gradients.
    """
    w, u, b, v = run.parameters
    da = np.zeros((*valid.shape, len(w)), x.dtype)
    ds = np.zeros_like(da)
    for step in reversed(run.steps):
        t, rows = step.t, valid[step.t]
        if dy is not None:
            dstate[0, rows] += dy[t, rows]  # (T2)
        da[t, rows], ds[t, rows], dstate[:, rows] = step_backward(run.cell, step, dstate[:, rows], u)
    if dx is not None:
        dx[valid] += da[valid] @ w  # (1')
    dw = da[valid].T @ x[valid]  # (1')
    db = da[valid].sum(axis=0)  # (1')
    du = ds[valid].T @ run.h_prev[valid]  # (2')
    dv = ds[valid].sum(axis=0)  # (2')
    if run.q is not None:
        size = u.shape[1]
        du[-size:] = ds[valid][:, -size:].T @ run.q[valid]  # (5')
    dh0, dc0 = dstate[0], dstate[1] if run.cell.states == 2 else None
    return dw, du, None if b is None else db, None if v is None else dv, dh0, dc0
