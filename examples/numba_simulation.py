"""Thousands of small recurrent controllers inside one jitted simulation loop, beside the same loop in plain NumPy.

Every controller is an LSTM with weights of its own that pushes a cart, sees where it is, and pushes again. In Numba the
whole simulation, controllers and physics, is one compiled loop over carts (`prange`); in NumPy every time step is a
handful of array operations over all of them. Both give the same paths to a few digits.

usage: python examples/numba_simulation.py [--carts 2000] [--steps 200] [--hidden 16]
"""

import argparse
import time

import numba
import numpy as np

from fusedrnn.numba import LSTMWeights, lstm_step, lstm_weights

SEES = 2  # where the cart is, and how fast


@numba.njit(parallel=True, nogil=True)
def simulate(x, h, bias, push, paths, hidden):
    """paths (carts, steps) of carts whose packed weights are x[n], h[n], bias[n] and whose push is push[n] . h."""
    for n in numba.prange(paths.shape[0]):
        weights = LSTMWeights(x[n], h[n], bias[n])
        seen, state, memory = np.zeros(SEES, np.float32), np.zeros(hidden, np.float32), np.zeros(hidden, np.float32)
        seen[0] = 1
        for t in range(paths.shape[1]):
            lstm_step(weights, seen, state, memory)
            force = np.float32(0)
            for u in range(hidden):
                force += push[n, u] * state[u]
            seen[1] += np.float32(0.1) * (force - seen[0])
            seen[0] += np.float32(0.1) * seen[1]
            paths[n, t] = seen[0]


def simulate_numpy(w_ih, w_hh, b, push, steps):
    """The same, one time step of all carts at a time."""
    carts, hidden = push.shape
    seen, state = np.zeros((carts, SEES), np.float32), np.zeros((carts, hidden), np.float32)
    memory, paths = np.zeros((carts, hidden), np.float32), np.empty((carts, steps), np.float32)
    seen[:, 0] = 1
    for t in range(steps):
        gates = (w_ih @ seen[:, :, None] + w_hh @ state[:, :, None])[:, :, 0] + b
        i, f, g, o = np.split(gates, 4, axis=1)
        i, f, o = (1 / (1 + np.exp(-p)) for p in (i, f, o))
        memory = f * memory + i * np.tanh(g)
        state = o * np.tanh(memory)
        seen[:, 1] += np.float32(0.1) * ((push * state).sum(axis=1) - seen[:, 0])
        seen[:, 0] += np.float32(0.1) * seen[:, 1]
        paths[:, t] = seen[:, 0]
    return paths


def main(arguments=None):
    """Run both and print their times."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--carts", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=16)
    given = parser.parse_args(arguments)
    for name, value in vars(given).items():
        if value < 1:
            parser.error(f"--{name}: expected at least 1, got {value}")
    rng, H = np.random.default_rng(0), given.hidden

    def draw(*shape):
        return rng.uniform(-0.5, 0.5, (given.carts, *shape)).astype(np.float32)

    w_ih, w_hh, b, push = draw(4 * H, SEES), draw(4 * H, H), draw(4 * H), draw(H)
    packed = [lstm_weights(*one) for one in zip(w_ih, w_hh, b, strict=True)]
    fields = [np.stack(field) for field in zip(*packed, strict=True)]
    paths = np.empty((given.carts, given.steps), np.float32)
    simulate(*fields, push, np.empty((given.carts, 1), np.float32), H)  # compiles
    began = time.perf_counter()
    simulate(*fields, push, paths, H)
    jitted = time.perf_counter() - began
    began = time.perf_counter()
    want = simulate_numpy(w_ih, w_hh, b, push, given.steps)
    plain = time.perf_counter() - began
    print(f"{given.carts} carts, {given.steps} steps: NumPy {plain:.3f} s, Numba {jitted:.3f} s, x{plain / jitted:.1f}")
    print(f"largest difference of the paths: {np.abs(paths - want).max():.1e}")
    return float(np.abs(paths - want).max())


if __name__ == "__main__":
    main()
