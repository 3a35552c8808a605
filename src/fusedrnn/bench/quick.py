"""`python -m fusedrnn bench`: under a minute, how fast it is here, against the machine's limits and beside those peers
that are installed. The suites of `benchmarks/` measure more, and longer.
"""

import argparse
import statistics
import sys
import time

from fusedrnn import backends
from fusedrnn.bench import contenders, machine, race, text
from fusedrnn.bench.work import Work
from fusedrnn.threads import MOST, get_num_threads

JOBS = (
    (Work("lstm", 1, 1, 32, 32), "stream"),
    (Work("lstm", 1, 1, 256, 256), "stream"),
    (Work("gru", 1, 1, 256, 256), "stream"),
    (Work("lstm", 1, 100, 64, 64), "inference"),
    (Work("lstm", 1, 100, 256, 256), "inference"),
    (Work("lstm", 32, 50, 256, 256), "inference"),
    (Work("lstm", 64, 25, 512, 512), "inference"),
    (Work("gru", 32, 50, 256, 256), "inference"),
    (Work("rnn_tanh", 32, 50, 256, 256), "inference"),
    (Work("lstm", 32, 25, 256, 256), "training"),
    (Work("gru", 32, 25, 256, 256), "training"),
    (Work("rnn_tanh", 32, 25, 256, 256), "training"),
)
SECONDS = 50.0  # where this is spent, the shapes that are left are left out
ROUNDS = 3


def main(arguments: list[str]) -> None:
    """Probe, race, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m fusedrnn bench", description=__doc__)
    parser.add_argument("--threads", type=int, default=get_num_threads())
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="stop after about so many (default: %(default)s)"
    )
    parser.add_argument("--peers", default=",".join(contenders.FAST), help="NAME,... of " + ", ".join(contenders.PEERS))
    options = parser.parse_args(arguments)
    peers = [name for name in options.peers.split(",") if name]
    if unknown := set(peers) - set(contenders.PEERS):
        parser.error(f"--peers: expected {', '.join(contenders.PEERS)}, got {', '.join(sorted(unknown))}")
    if not 1 <= options.threads <= MOST:
        parser.error(f"--threads: expected 1 to {MOST}, got {options.threads}")
    if not options.seconds > 0:
        parser.error(f"--seconds: expected more than 0, got {options.seconds}")
    end = time.monotonic() + options.seconds
    for name, value in machine.describe().items():
        if name in ("cpu", "fusedrnn", "backend", "isa", "compiler"):
            print(f"{name:9} {value}")
    print(f"{'threads':9} {options.threads}")
    if machine.is_probed():
        limits = machine.probe(threads=options.threads)
        reading = ", ".join(f"{level} {text.number(rate / 1e9)}" for level, rate in limits.bandwidth.items())
        print(f"{'limits':9} {text.number(limits.flops / 1e9)} GFLOP/s float32; reading {reading} GB/s;")
        print(f"{'':9} a barrier {text.duration(limits.barrier)}, a link of a chain {text.duration(limits.latency)}")
    ours = [f"fusedrnn.{name}" for name in backends.available() if name != "reference"] or ["fusedrnn.reference"]
    notes: list[str] = []
    started = race.start([*ours, *peers], options.threads, notes.append)
    names = [contender.name for contender in started]
    results = []
    try:
        for job, mode in text.progress(JOBS, len(JOBS), "measuring"):
            if time.monotonic() > end:
                notes.append(f"no time left for {mode} {job}")
                continue
            able = race.ready(started, job, mode, lambda _: None)
            results.append(race.race(able, job, mode, ROUNDS, 0.02))
    finally:
        for contender in started:
            contender.close()
    titles = [contenders.TITLES[name].replace("fusedrnn, ", "") for name in names]
    rows = [["", "B", "T", "I", "H", *titles, "best peer / ours", "of the limit", "", "limit"]]
    for result in results:
        job, best = result.job, result.best()
        cells = [text.duration(result.median(name)) if name in result.seconds else "–" for name in names]
        ratio = f"{result.ratio(best):.2f}" if best else "–"
        fraction = result.fraction(names[0])
        percent = f"{100 * fraction:.0f} %" if fraction == fraction else "–"
        shape = [str(n) for n in (job.B, job.T, job.I, job.H)]
        rows.append([f"{job.cell} {result.mode}", *shape, *cells, ratio, percent, text.bar(fraction), result.limit])
    print(f"\n{text.table(rows)}\n")
    print(f"Medians of {ROUNDS} rounds; ratios and fractions, those of {titles[0]}, are taken within a round.")
    ratios = [result.ratio(best) for result in results if (best := result.best())]
    if ratios:
        print(f"The best peer takes {statistics.geometric_mean(ratios):.2f} times as long, {min(ratios):.2f} at least.")
    for note in dict.fromkeys(notes):
        print(note, file=sys.stderr)
