"""What Python threads gain where each steps a stream of its own: steps a second of several over those of one.

    python benchmarks/python_threads.py        (a quarter of a minute)

A GIL lets them take turns, for steps of a few microseconds keep it; a free-threaded Python has none. LSTM, B = 1,
I = H, one thread of fusedrnn's a call. Medians of rounds in which one and several take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time

import numpy as np

import fusedrnn as fr
from fusedrnn.bench import text

SIZES = (32, 100)
STEPS = 200  # between two looks at whether it is over


def rate(fast: fr.Frozen, threads: int, seconds: float) -> float:
    """Steps a second of so many threads together."""
    counts, over, together = [0] * threads, threading.Event(), threading.Barrier(threads + 1)

    def steps(i: int) -> None:
        step, out = fast.stream().step, np.empty((1, fast.hidden_size), fast.dtype)
        x_t = np.ones((1, fast.input_size), fast.dtype)
        together.wait()
        while not over.is_set():
            for _ in range(STEPS):
                step(x_t, out=out)
            counts[i] += STEPS

    workers = [threading.Thread(target=steps, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    together.wait()
    began = time.perf_counter()
    time.sleep(seconds)
    over.set()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - began)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="Python threads (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a measurement (default: %(default)s)")
    options = parser.parse_args(arguments)
    before = fr.get_num_threads()
    fr.set_num_threads(1)
    rows = [["H", "a step of one", f"{options.threads} threads over one"]]
    try:
        for size in SIZES:
            fast = fr.LSTM(size, size, rng=0).freeze()
            pairs = [
                (rate(fast, 1, options.seconds), rate(fast, options.threads, options.seconds))
                for _ in range(options.rounds)
            ]
            one = statistics.median(1 / one for one, _ in pairs)
            rows.append([str(size), text.duration(one), f"{statistics.median(n / one for one, n in pairs):.2f}"])
    finally:
        fr.set_num_threads(before)
    print(text.table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
