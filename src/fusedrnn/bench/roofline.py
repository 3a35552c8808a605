"""The roofline: the least time in which this machine can do a piece of work, and what it is that takes this time.

The formulas stand in docs/performance.md, with the same letters. The model knows products, weights, data, chains and
barriers. Gate arithmetic, packing and Python are no part of it, so that small shapes cannot come near it. It measures
nothing.
"""

import dataclasses
import math

from fusedrnn.bench.machine import Limits
from fusedrnn.bench.work import GATES, Work

STAGES = {"rnn_tanh": 1, "rnn_relu": 1, "lstm": 1, "gru": 1, "gru_reset_before": 2}
"""Products of one step that wait for each other."""
TAPE = {"rnn_tanh": 0, "rnn_relu": 0, "lstm": 5, "gru": 4, "gru_reset_before": 4}
"""What training keeps of one step beside h, in units of H."""


@dataclasses.dataclass(frozen=True)
class Bound:
    """The least time, and what binds: "arithmetic", "chain", "barrier", "weights in L2", "data in L3" and so on."""

    seconds: float
    limit: str


def reading(size: float, limits: Limits) -> tuple[float, str]:
    """Seconds in which each thread reads its own `size` bytes, and the last level they reach.

    They stay where they are from one time to the next: what a level has no room for is read from the one behind it.
    """
    seconds, held, last = 0.0, 0.0, "L1"
    for level, room in limits.caches.items():
        if size > held and room > held:
            rate = limits.bandwidth[level] / limits.threads
            seconds, held, last = seconds + (min(size, room) - held) / rate, room, level
    return seconds, last


def bound(work: Work, mode: str, limits: Limits) -> Bound:
    """The best over the ways to share W_hh among the threads: one rank holds all of it and shares the batch instead.

    NaN where one of the limits could not be probed.
    """
    rates = [limits.bandwidth[level] for level, room in limits.caches.items() if room]
    if any(math.isnan(value) for value in (limits.flops, limits.barrier, limits.latency, *rates)):
        return Bound(math.nan, "not probed")
    return min((divided(work, mode, limits, n) for n in range(1, limits.threads + 1)), key=lambda b: b.seconds)


def divided(work: Work, mode: str, limits: Limits, ranks: int) -> Bound:
    """The bound where `ranks` threads share the weights of a layer, meeting after each stage of a step."""
    training = mode == "training"
    passes = 2 if training else 1
    fresh = 0 if mode == "stream" else 1  # no initial state: the first step forward does without W_hh
    T, H, D, G, item = work.T, work.H, work.directions, GATES[work.cell], work.itemsize
    layers = len(work.inputs)

    weights = 0.0
    for inputs in work.inputs:
        share = D * G * H * item / ranks
        seconds, level = reading(share * (H + (inputs if T == 1 else 0)), limits)
        weights += (T * passes - fresh) * seconds
        if T == 1 and fresh:
            weights += reading(share * inputs, limits)[0]
    data = sum(inputs + D * H for inputs in work.inputs)
    if training:
        data += sum(2 * inputs + 2 * D * H + 2 * TAPE[work.cell] * D * H for inputs in work.inputs)
    moving, behind = reading(work.valid * data * item / limits.threads, limits)
    links = (T - fresh) * STAGES[work.cell] * H + (T * G * H if training else 0)
    # A rank reads the line of every other one.
    meeting = limits.barrier * (ranks - 1) / (limits.threads - 1) if ranks > D else 0.0
    waiting = layers * (T * passes * STAGES[work.cell] - fresh * (STAGES[work.cell] - 1)) * meeting
    seconds, limit = max(
        (work.flops(mode) / limits.flops, "arithmetic"),
        (weights, f"weights in {level}"),
        (moving, f"data in {behind}"),
        (layers * links * limits.latency, "chain"),
    )
    return Bound(seconds + waiting, "barrier" if waiting > seconds else limit)
