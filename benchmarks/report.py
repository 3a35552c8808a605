"""Turns result files into docs/performance.md's tables, the README's, and the pictures of docs/pictures.

    python benchmarks/report.py BENCH.json [PEERS.json] [--docs FILE] [--readme FILE] [--pictures FOLDER]

BENCH.json is what `make bench` wrote, PEERS.json what `make bench-peers` did. Text is replaced between the markers
`<!-- report:begin -->` and `<!-- report:end -->` alone. Nothing is measured here.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

import matplotlib.pyplot as plt
import matplotlib.ticker
import shapes

from fusedrnn.bench import roofline, text
from fusedrnn.bench.contenders import FAST, TITLES
from fusedrnn.bench.machine import Limits
from fusedrnn.bench.work import GATES, PASSES, Work

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- report:begin -->", "<!-- report:end -->"
COLORS = {
    "lstm": "#0b6e99",
    "gru": "#d9730d",
    "rnn_tanh": "#4d8b31",
    "gru_reset_before": "#9065b0",
    "rnn_relu": "#b35488",
}
MARKS = {"torch": "s", "onnxruntime": "D", "jax": "^", "keras": "v", "torch.grad": "P", "numpy": "x", "onnx": "+"}
WORDS = {"inference": "forward", "training": "training step", "stream": "stream step"}
Row = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------------
# Tables


def shape(row: Row) -> list[str]:
    """B, T, I, H."""
    return [str(row[size]) for size in "BTIH"]


def percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def summary(rows: list[Row]) -> str:
    """The fraction of the limit, by group and backend."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if "fraction" in row:
            groups.setdefault((row["group"], row["backend"]), []).append(row["fraction"])
    head = ["group", "backend", "benchmarks", "median", "lowest", "highest"]
    table = [
        [group, backend, str(len(f)), percent(statistics.median(f)), percent(min(f)), percent(max(f))]
        for (group, backend), f in sorted(groups.items())
    ]
    return text.markdown([head, *table])


def limits(machine: Row) -> str:
    """What the fractions are fractions of."""
    rows = [["", *machine["limits"]]]
    found = [Limits(**entry) for entry in machine["limits"].values()]
    rows.append(["multiply-adds, GFLOP/s", *(text.number(entry.flops / 1e9) for entry in found)])
    for level in found[0].bandwidth:
        rows += [[f"reading from {level}, GB/s", *(text.number(e.bandwidth[level] / 1e9) for e in found)]]
    rows.append(["a barrier, ns", *(text.number(entry.barrier * 1e9) for entry in found)])
    rows.append(["a link of a chain, ns", *(text.number(entry.latency * 1e9) for entry in found)])
    return text.markdown(rows)


def by_shape(rows: list[Row], group: str) -> str:
    """Every kernel over the shapes of a group: seconds, fraction, what binds."""
    chosen = [row for row in rows if row["group"] == group and row["backend"] != "reference" and "fraction" in row]
    backends = list(dict.fromkeys(row["backend"] for row in chosen))
    cases: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in chosen:
        cases.setdefault((f"`{row['kernel']}`", *shape(row)), {})[row["backend"]] = row
    head = [
        "kernel",
        "B",
        "T",
        "I",
        "H",
        *(f"{b}: time" for b in backends),
        *(f"{b}: of limit" for b in backends),
        "limit",
    ]
    table = []
    for case, found in cases.items():
        times = [text.duration(found[b]["seconds"]) if b in found else "–" for b in backends]
        parts = [percent(found[b]["fraction"]) if b in found else "–" for b in backends]
        table.append([*case, *times, *parts, next(iter(found.values()))["limit"]])
    return text.markdown([head, *table])


def latencies(rows: list[Row]) -> str:
    """Streams."""
    head = ["kernel", "backend", "B", "I", "H", "median", "99th percentile", "of limit", "limit"]
    table = [
        [f"`{r['kernel']}`", r["backend"], *(str(r[n]) for n in "BIH"), text.duration(r["seconds"]),
         text.duration(r["p99"]), percent(r["fraction"]), r["limit"]]
        for r in rows
        if r["group"] == "streams"
    ]  # fmt: skip
    return text.markdown([head, *table])


def special(rows: list[Row], group: str, figure: str, title: str) -> str:
    """What raggedness or denormal numbers cost."""
    head = ["case", "backend", "time", title]
    table = [
        [row["name"].partition("[")[2].removesuffix(f"-{row['backend']}]"), row["backend"],
         text.duration(row["seconds"]), f"{row[figure]:.2f}"]
        for row in rows
        if row["group"] == group
    ]  # fmt: skip
    return text.markdown([head, *table])


def growth(rows: list[Row]) -> str:
    """The fitted exponents."""
    head = ["kernel", "backend", "over", "values", "time grows as", "peak memory grows as"]
    table = []
    for row in rows:
        if "growth" in row:
            memory = f"{row['axis']}^{row['memory_growth']:.2f}" if "memory_growth" in row else "–"
            values = ", ".join(str(value) for value in row["values"])
            power = f"{row['axis']}^{row['growth']:.2f}"
            table.append([f"`{row['kernel']}`", row["backend"], row["axis"], values, power, memory])
    return text.markdown([head, *table])


def cold(rows: list[Row]) -> str:
    """What comes before the first result."""
    head = ["what", "time"]
    chosen = [row for row in rows if row["group"] == "cold_start"]
    return text.markdown(
        [head, *([row["name"].removeprefix("test_"), text.duration(row["seconds"])] for row in chosen)]
    )


def peer_names(results: list[Row]) -> list[str]:
    """In the order in which they were named, ours first."""
    return list(dict.fromkeys(name for row in results for name in row.get("seconds", ())))


def best(row: Row) -> float:
    """The fastest peer's time over ours; NaN where there was none."""
    ratios = [ratio for name, ratio in row["ratio"].items() if not name.startswith("fusedrnn")]
    return min(ratios, default=math.nan)


def means(values: Iterable[float]) -> str:
    found = [value for value in values if not math.isnan(value)]
    return f"{statistics.geometric_mean(found):.2f} ({min(found):.2f} to {max(found):.2f})" if found else "–"


def beside_peers(results: list[Row], mode: str) -> str:
    """One mode, every shape, every contender."""
    rows = [row for row in results if row["mode"] == mode]
    names = peer_names(rows)
    head = ["cell", "B", "T", "I", "H", *(TITLES[name] for name in names), "best peer / ours", "ours of limit"]
    table = []
    for row in rows:
        times = [text.duration(row["seconds"][name]) if name in row["seconds"] else "–" for name in names]
        ours = percent(row["fraction"]["fusedrnn"])
        table.append([f"`{row['cell']}`", *shape(row), *times, f"**{text.number(best(row))}**", ours])
    return text.markdown([head, *table])


def memory(results: list[Row]) -> str:
    """Peak memory of a training step."""
    head = ["cell", "B", "T", "I", "H", "fusedrnn", "PyTorch", "fusedrnn / PyTorch"]
    table = []
    for row in results:
        if row["mode"] == "memory" and len(row["KiB"]) == 2 and min(row["KiB"].values()) > 0:
            ours, theirs = row["KiB"]["fusedrnn"], row["KiB"]["torch"]
            sizes = [text.size(1024 * kib) for kib in (ours, theirs)]
            table.append([f"`{row['cell']}`", *shape(row), *sizes, f"**{ours / theirs:.2f}**"])
    return text.markdown([head, *table])


def short(rows: list[Row], results: list[Row]) -> str:
    """The README's table: one line a cell and pass, over all shapes of the grid."""
    peers = [name for name in peer_names(results) if name in (*FAST, "numpy")]
    head = ["cell", "pass", *(TITLES[name] for name in peers), "fastest peer", "of the limit"]
    table = []
    for cell in shapes.THREE:
        for mode in PASSES:
            chosen = [row for row in results if row["cell"] == cell and row["mode"] == mode]
            kernel = Work(cell, 1, 1, 1, 1).kernel(mode)
            found = [r["fraction"] for r in rows
                     if r.get("kernel") == kernel and r["group"] in ("grid", "streams") and r["backend"] == "cython"
                     and "fraction" in r]  # fmt: skip
            ratios = [[row["ratio"][name] for row in chosen if name in row["ratio"]] for name in peers]
            each = [text.number(statistics.geometric_mean(values)) if values else "–" for values in ratios]
            part = percent(statistics.median(found)) if found else "–"
            table.append([f"`{cell}`", WORDS[mode], *each, f"**{means(best(row) for row in chosen)}**", part])
    return text.markdown([head, *table])


# ---------------------------------------------------------------------------------------------------------------
# Pictures


def axes(width: float, height: float, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """A figure on white, so that it can be read on dark pages."""
    figure, found = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False, **options)
    for ax in found[0]:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(which="major", color="#e4e4e4", linewidth=0.6)
        ax.set_axisbelow(True)
    return figure, found[0]


def intensity(job: Work) -> float:
    """Operations for each byte of W_hh that a forward step reads."""
    return job.flops("stream") / (job.T * job.directions * GATES[job.cell] * job.H**2 * job.itemsize)


def draw_roofline(results: list[Row], at: Limits) -> Any:
    """Forward passes, ours and the peers', under the roofs; each point at its own fraction of the limits shown."""
    figure, (ax,) = axes(8.2, 5)
    ends = (0.4, 900)
    for level, rate in at.bandwidth.items():
        if not math.isnan(rate):
            top = min(ends[1], at.flops / rate)
            ax.plot([ends[0], top], [ends[0] * rate / 1e9, top * rate / 1e9], color="#999999", linewidth=1)
            ax.annotate(level, (ends[0] * 1.15, ends[0] * 1.15 * rate / 1e9), fontsize=8, color="#666666", rotation=38,
                        rotation_mode="anchor", xytext=(0, 3), textcoords="offset points")  # fmt: skip
    ax.plot([at.flops / max(at.bandwidth.values()), ends[1]], [at.flops / 1e9] * 2, color="#999999", linewidth=1)
    ax.annotate(f"multiply-adds, {at.threads} threads: {at.flops / 1e9:.0f} GFLOP/s", (ends[1], at.flops / 1e9),
                fontsize=8, color="#666666", ha="right", xytext=(0, 4), textcoords="offset points")  # fmt: skip
    names = [name for name in peer_names(results) if name in ("fusedrnn", "torch", "onnxruntime", "jax")]
    cells = dict.fromkeys(row["cell"] for row in results)
    beside = {cell: 0.92 + 0.08 * i for i, cell in enumerate(cells)}  # so that none hides another
    for row in results:
        if row["mode"] != "inference" or "fraction" not in row:
            continue
        job = Work(row["cell"], *(row[n] for n in "BTIH"), row["dtype"])
        reachable = job.flops() / roofline.bound(job, "inference", at).seconds / 1e9
        for name in names:
            if name in row["fraction"]:
                ours = name == "fusedrnn"
                ax.plot(intensity(job) * beside[job.cell], reachable * row["fraction"][name], MARKS.get(name, "o"),
                        color=COLORS[job.cell], markersize=7 if ours else 4.5,
                        markerfacecolor=COLORS[job.cell] if ours else "none", alpha=1 if ours else 0.75)  # fmt: skip
    for cell in cells:
        ax.plot([], [], "o", color=COLORS[cell], label=cell)
    for name in names:
        ours = name == "fusedrnn"
        ax.plot([], [], MARKS.get(name, "o"), color="#444444", markerfacecolor="#444444" if ours else "none",
                label=TITLES[name])  # fmt: skip
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=(2, at.flops / 1e9 * 1.5))
    ax.set_xlabel("operations for each byte of W_hh read")
    ax.set_ylabel("GFLOP/s, forward pass")
    ax.legend(fontsize=8, frameon=False, loc="lower right", ncols=2)
    return figure


def draw_ratios(results: list[Row]) -> Any:
    """Best peer over ours, per shape."""
    modes = [mode for mode in PASSES if any(row["mode"] == mode for row in results)]
    figure, panels = axes(10, 3.8, len(modes))
    for ax, mode in zip(panels, modes, strict=True):
        rows = [row for row in results if row["mode"] == mode and not math.isnan(best(row))]
        labels = list(dict.fromkeys((row["B"], row["T"], row["I"], row["H"]) for row in rows))
        for row in rows:
            y = labels.index((row["B"], row["T"], row["I"], row["H"]))
            ax.plot(best(row), y, "o", color=COLORS[row["cell"]], markersize=6)
        ax.axvline(1, color="#444444", linewidth=1)
        names = [f"B{B} I{I} H{H}" if mode == "stream" else f"B{B} T{T} I{I} H{H}" for B, T, I, H in labels]
        ax.set_yticks(range(len(labels)), names, fontsize=8)
        ax.invert_yaxis()
        ax.set_xscale("log")
        ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100) if t <= 1.5 * max([1.0, *(best(row) for row in rows)])]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.set_xlim(left=0.5)
        ax.minorticks_off()
        ax.set_title(WORDS[mode], fontsize=10)
    figure.supxlabel("fastest peer's time / fusedrnn's (right of the line fusedrnn is faster)", fontsize=9)
    for cell in dict.fromkeys(row["cell"] for row in results):
        panels[-1].plot([], [], "o", color=COLORS[cell], label=cell)
    figure.legend(fontsize=8, frameon=False, loc="outside upper right", ncols=3)
    return figure


def draw_scaling(rows: list[Row]) -> Any:
    """Time over T, B, H and threads; memory where it was measured; the prediction for more threads dashed."""
    figure, panels = axes(11, 3.4, 5)
    chosen = [row for row in rows if "axis" in row]
    backends = list(dict.fromkeys(row["backend"] for row in chosen))
    names = ["T", "B", "H", "threads"]
    for row in chosen:
        ax = panels[names.index(row["axis"])]
        style = {"inference": "-", "training": "--"}[row["mode"]]
        mark, color = "os^"[backends.index(row["backend"]) % 3], COLORS[row["cell"]]
        label = f"{row['cell']} {WORDS[row['mode']]}, {row['backend']}"
        ax.plot(row["values"], [1e3 * t for t in row["times"]], style, marker=mark, color=color, markersize=4,
                linewidth=1, label=label)  # fmt: skip
        if more := row.get("predicted"):
            xs, ys = [row["values"][-1], *more["values"]], [row["times"][-1], *more["times"]]
            ax.plot(xs, [1e3 * t for t in ys], ":", color=color, linewidth=1, marker=mark, markersize=4,
                    markerfacecolor="white")  # fmt: skip
        if "KiB" in row and row["axis"] == "T":
            mib = {int(n): kib / 1024 for n, kib in row["KiB"].items()}
            panels[4].plot(list(mib), list(mib.values()), style, marker=mark, color=color, markersize=4, linewidth=1)
    for ax, name in zip(panels, [*names, "T"], strict=True):
        ax.set(xscale="log", yscale="log", xlabel=name)
        ax.yaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5), numticks=12))
        ax.yaxis.set_major_formatter("{x:g}")
        values = sorted(
            {v for r in chosen if r["axis"] == name for v in (*r["values"], *r.get("predicted", {}).get("values", ()))}
        )
        ax.set_xticks(values, [str(v) for v in values], fontsize=8)
        ax.minorticks_off()
    panels[0].set_ylabel("ms")
    panels[3].set_title("hollow: predicted", fontsize=8)
    panels[4].set_ylabel("MiB at the peak")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside lower center", ncols=3)
    return figure


def draw_latency(rows: list[Row]) -> Any:
    """How long single stream steps took."""
    kinds = [(cell, H) for H in (32, 256) for cell in ("rnn_tanh", "gru", "lstm")]
    figure, panels = axes(9, 3.4, 2)
    for row in rows:
        kind = (row.get("cell"), row.get("H"))
        if (
            "histogram" not in row
            or row["B"] != 1
            or row["dtype"] != "float32"
            or row["backend"] != "cython"
            or kind not in kinds
        ):
            continue
        ax = panels[0 if row["H"] == 32 else 1]
        edges, counts = [1e6 * float(edge) for edge in row["histogram"]], list(row["histogram"].values())
        step = 10 ** (1 / 20)
        ax.bar(edges, [100 * c / sum(counts) for c in counts], [e * (step - 1) for e in edges], align="edge",
               color=COLORS[row["cell"]], alpha=0.6, label=row["cell"])  # fmt: skip
        ax.axvline(1e6 * row["p99"], color=COLORS[row["cell"]], linewidth=1, linestyle="--")
    for ax, H in zip(panels, (32, 256), strict=True):
        ax.set(xscale="log", xlabel=f"µs a step, B = 1, I = H = {H} (dashed: 99th percentile)", ylabel="% of the steps")
        low, high = ax.get_xlim()[0], 1.5 * max((line.get_xdata()[0] for line in ax.lines), default=10)
        ax.set_xlim(low, high)
        ticks = [t for t in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if low <= t <= high]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
        ax.minorticks_off()
        if ax.patches:
            ax.legend(fontsize=8, frameon=False)
    return figure


# ---------------------------------------------------------------------------------------------------------------
# Together


def described(run: Row, peers: Row | None) -> str:
    """Where it was measured, with what."""
    machine, commit = run["machine_info"], run.get("commit_info", {})
    versions = ", ".join(f"{name} {version}" for name, version in peers["versions"].items()) if peers else "none"
    return (
        f"Measured on {run['datetime'][:10]} at commit {commit.get('id', 'unknown')[:10]}"
        f"{' with changes' if commit.get('dirty') else ''} on {machine['cpu']} ({machine['cpus']} CPUs, "
        f"{machine['system']}) with {machine['threads']} threads, instruction set {machine['isa']}, compiler "
        f"{machine['compiler']}, Python {machine['python']}, NumPy {machine['numpy']}. Peers: {versions}."
    )


def page(run: Row, peers: Row | None, rows: list[Row], pictures: str) -> str:
    """The tables of docs/performance.md."""
    parts = [described(run, peers)]

    def add(title: str, table: str, picture: str = "") -> None:
        if table.count("\n") == 1:  # a head and nothing below: this was not part of the run
            return
        parts.append(f"### {title}")
        if picture:
            parts.append(f"![{title}]({pictures}/{picture}.svg)")
        parts.append(table)

    if "limits" in run["machine_info"]:
        add("The limits, rates at their best", limits(run["machine_info"]))
    add("Fraction of the limit that binds", summary(rows), "roofline" if peers else "")
    add("The grid", by_shape(rows, "grid"))
    add("DeepBench", by_shape(rows, "deepbench"))
    add("Small networks that people run", by_shape(rows, "small"))
    add("Streams, one step", latencies(rows), "latency")
    add("Ragged batches", special(rows, "ragged", "over_share_of_dense", "time / (dense time x share of valid steps)"))
    add("Denormal weights", special(rows, "denormals", "over_ordinary", "time / time with ordinary weights"))
    add("Scaling", growth(rows), "scaling")
    add("Cold start", cold(rows))
    if peers:
        parts.append(f"### Beside the peers\n\n```console\n{peers['command']}\n```\n\n![ratios]({pictures}/ratios.svg)")
        for mode in (m for m in PASSES if any(row["mode"] == m for row in peers["results"])):
            parts += [f"**{WORDS[mode].capitalize()}**", beside_peers(peers["results"], mode)]
        parts.append(f"**Peak memory of a training step**\n\n{memory(peers['results'])}")
    return "\n\n".join(parts)


def write(path: Path, content: str) -> None:
    """Put the text between the markers of a Markdown file."""
    old = path.read_text(encoding="utf-8")
    if old.count(BEGIN) != 1 or END not in old.partition(BEGIN)[2]:
        raise SystemExit(f"{path.name}: expected {BEGIN} and {END}, once each")
    before, _, rest = old.partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{content}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def draw(folder: Path, name: str, picture: Callable[[], Any]) -> None:
    """An SVG that is the same for the same results."""
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": name, "font.size": 9}):
        figure = picture()
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", type=Path)
    parser.add_argument("peers", type=Path, nargs="?")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs/performance.md")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--pictures", type=Path, default=ROOT / "docs/pictures")
    options = parser.parse_args(arguments)
    run = json.loads(options.bench.read_text(encoding="utf-8"))
    peers = json.loads(options.peers.read_text(encoding="utf-8")) if options.peers else None
    rows = [{"name": b["name"], "group": b["group"], **b["extra_info"]} for b in run["benchmarks"]]
    groups = {row["group"] for row in rows}
    pictures = {}
    if "scaling" in groups:
        pictures["scaling"] = lambda: draw_scaling(rows)
    if "streams" in groups:
        pictures["latency"] = lambda: draw_latency(rows)
    if peers:
        results = peers["results"]
        at = Limits(**run["machine_info"]["limits"]["float32"])
        timed = [row for row in results if row["mode"] != "memory"]
        pictures |= {"roofline": lambda: draw_roofline(timed, at), "ratios": lambda: draw_ratios(timed)}
    for name, picture in pictures.items():
        draw(options.pictures, name, picture)
    write(options.docs, page(run, peers, rows, options.pictures.name))
    if peers:
        where = options.pictures.resolve().relative_to(options.readme.resolve().parent).as_posix()
        lead = (
            "Peers' times over fusedrnn's, geometric means over the shapes, in brackets the smallest and the largest; "
            "and the median fraction of what the machine can do at most."
        )
        parts = [described(run, peers), f"![ratios]({where}/ratios.svg)", lead, short(rows, timed)]
        write(options.readme, "\n\n".join(parts))


if __name__ == "__main__":
    main(sys.argv[1:])
