"""fusedrnn beside PyTorch, ONNX Runtime and JAX, the same work in the same minutes, as Markdown tables.

    python benchmarks/peers.py [inference] [training] [stream] [--memory] [--dtype float64] [--readme] ...

Every contender lives in a process of its own, because the idle threads of one would spin in the way of the next. They
are asked in turn, round by round; a ratio is the median over the rounds of the peer's time over ours, so that above 1
we are ahead. Nobody is timed whose answer differs from ours. A peer that is not installed, or does not offer
something, is reported and left out. `--memory` compares the peak memory of a training step with PyTorch's (Linux).
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import importlib
import importlib.metadata
import math
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import work
from work import Run, Work

import fusedrnn as fr

ROOT = Path(__file__).parents[1]
MODES = ("inference", "training", "stream")
BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
PAUSE = 0.02  # seconds between two contenders: the threads of the one before go to sleep
MEMORY_POINTS = ((1, 100, 256, 256), (32, 50, 256, 256), (64, 50, 512, 512), (128, 28, 28, 128))


class NotOffered(Exception):
    """A contender has no such thing."""


# ---------------------------------------------------------------------------------------------------------------
# The contenders: (work, mode, threads) -> run, which returns what fusedrnn's run of that mode returns


def us(job: Work, mode: str, threads: int) -> Run:
    fr.set_num_threads(threads)
    return getattr(work, mode)(job)


def torch(job: Work, mode: str, threads: int) -> Run:
    import torch

    if job.cell == "gru_reset_before":
        raise NotOffered("its GRU resets after the product")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(mode == "training")
    kind, options = work.LAYERS[job.cell]
    net = getattr(torch.nn, kind + ("Cell" if mode == "stream" else ""))(job.I, job.H, **options)
    weights = {name: torch.from_numpy(w) for name, w in job.weights.items()}
    if mode == "stream":
        weights = {name.removesuffix("_l0"): w for name, w in weights.items()}
    net = net.to(getattr(torch, job.dtype))
    net.load_state_dict(weights)
    x = torch.from_numpy(job.x)
    if mode == "inference":
        return lambda: net(x)[0]
    if mode == "stream":
        x_t, state = x[0], None

        def step() -> Any:
            nonlocal state
            state = net(x_t, state)
            return state[0] if isinstance(state, tuple) else state

        return step

    dy, x = torch.from_numpy(job.dy), x.requires_grad_()

    def train() -> tuple[Any, ...]:
        net.zero_grad()
        x.grad = None
        net(x)[0].backward(dy)
        return (x.grad, *(p.grad for p in net.parameters()))

    return train


def onnxruntime(job: Work, mode: str, threads: int) -> Run:
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    if mode == "training":
        raise NotOffered("it does not train")
    lstm = job.cell == "lstm"
    kind, _ = work.LAYERS[job.cell]
    order = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}[kind]  # its gates: i, o, f, g; z, r, n

    def gates(name: str) -> np.ndarray:
        return np.concatenate([np.split(job.weights[name], len(order))[g] for g in order])[None]

    options: dict[str, Any] = {"hidden_size": job.H}
    if kind == "GRU":
        options["linear_before_reset"] = int(job.cell == "gru")
    if job.cell == "rnn_relu":
        options["activations"] = ["Relu"]
    states = ["h", "c"] if lstm else ["h"]
    real = TensorProto.DOUBLE if job.dtype == "float64" else TensorProto.FLOAT
    inputs = ["x", *(states if mode == "stream" else [])]
    outputs = [f"{name}_n" for name in states] if mode == "stream" else ["y"]
    node = helper.make_node(
        kind,
        ["x", "w", "r", "b", *(["", *states] if mode == "stream" else [])],
        ["", *outputs] if mode == "stream" else outputs,
        **options,
    )
    graph = helper.make_graph(
        [node],
        job.cell,
        [helper.make_tensor_value_info(name, real, [None] * 3) for name in inputs],
        [helper.make_tensor_value_info(name, real, None) for name in outputs],
        [
            numpy_helper.from_array(gates("weight_ih_l0"), "w"),
            numpy_helper.from_array(gates("weight_hh_l0"), "r"),
            numpy_helper.from_array(np.concatenate([gates("bias_ih_l0"), gates("bias_hh_l0")], 1), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    if mode == "inference":
        return lambda: session.run(None, {"x": job.x})[0][:, 0]

    feed = {"x": job.x[:1]} | {name: np.zeros((1, job.B, job.H), job.dtype) for name in states}

    def step() -> np.ndarray:
        feed.update(zip(states, session.run(None, feed), strict=True))
        return feed["h"][0]

    return step


def jax(job: Work, mode: str, threads: int) -> Run:  # noqa: ARG001, prepare() gave it its threads
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", job.dtype == "float64")
    H, sigmoid, tanh = job.H, jax.nn.sigmoid, jnp.tanh

    def advance(state: Any, p: Any, w: Any, b: Any) -> Any:
        """The state after a step, from p = x_t W_ih' + b_ih."""
        if job.cell == "lstm":
            h, c = state
            i, f, g, o = jnp.split(p + h @ w.T + b, 4, -1)
            c = sigmoid(f) * c + sigmoid(i) * tanh(g)
            return sigmoid(o) * tanh(c), c
        (h,) = state
        if job.cell == "gru":
            q = h @ w.T + b
            r, z = jnp.split(sigmoid(p[:, : 2 * H] + q[:, : 2 * H]), 2, -1)
            n = tanh(p[:, 2 * H :] + r * q[:, 2 * H :])
            return ((1 - z) * n + z * h,)
        if job.cell == "gru_reset_before":
            r, z = jnp.split(sigmoid(p[:, : 2 * H] + h @ w[: 2 * H].T + b[: 2 * H]), 2, -1)
            n = tanh(p[:, 2 * H :] + (r * h) @ w[2 * H :].T + b[2 * H :])
            return ((1 - z) * n + z * h,)
        activation = tanh if job.cell == "rnn_tanh" else jax.nn.relu
        return (activation(p + h @ w.T + b),)

    def layer(x: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        def step(state: Any, p: Any) -> Any:
            state = advance(state, p, w_hh, b_hh)
            return state, state[0]

        return jax.lax.scan(step, zeros, x @ w_ih.T + b_ih)[1]

    zeros = (jnp.zeros((job.B, H), job.dtype),) * (2 if job.cell == "lstm" else 1)
    arguments = [jnp.asarray(a) for a in (job.x, *job.weights.values())]
    if mode == "inference":
        y = jax.jit(layer)
        return lambda: jax.block_until_ready(y(*arguments))
    if mode == "training":
        dy = jnp.asarray(job.dy)
        gradients = jax.jit(jax.grad(lambda *a: (layer(*a) * dy).sum(), argnums=tuple(range(5))))
        return lambda: jax.block_until_ready(gradients(*arguments))

    x_t, (w_ih, w_hh, b_ih, b_hh), state = arguments[0][0], arguments[1:], zeros
    one = jax.jit(lambda state, x_t: advance(state, x_t @ w_ih.T + b_ih, w_hh, b_hh))

    def step() -> Any:
        nonlocal state
        state = jax.block_until_ready(one(state, x_t))
        return state[0]

    return step


CONTENDERS: dict[str, Callable[[Work, str, int], Run]] = {
    "fusedrnn": us,
    "torch": torch,
    "onnxruntime": onnxruntime,
    "jax": jax,
}
TITLES = {"fusedrnn": "fusedrnn", "torch": "PyTorch", "onnxruntime": "ONNX Runtime", "jax": "JAX"}


# ---------------------------------------------------------------------------------------------------------------
# A contender's process


def prepare(name: str, threads: int) -> None:
    """JAX takes as many threads as there are CPUs to run on; the others are told a number."""
    if name == "jax" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    importlib.import_module(name)


def timed(run: Run, seconds: float) -> float:
    """Seconds of one run: the median of as many as fit, at least three; the first quarter does not count."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times[len(times) // 4 :])


def resident(field: str) -> int:
    """KiB, from /proc: VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_memory(run: Run) -> int:
    """KiB that one run takes at its peak over what was there before."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts again from VmRSS
    base = resident("VmRSS")
    answer = run()
    peak = resident("VmHWM")
    del answer  # gradients are part of the step
    return peak - base


def serve(name: str, threads: int, pipe: Any) -> None:
    """Answer the parent: (job, mode) makes a run, the answer is its first result; seconds time it; None ends."""
    try:
        prepare(name, threads)
        pipe.send(None)
    except ImportError as error:
        pipe.send(str(error))
        return
    run: Run | None = None
    while (request := pipe.recv()) is not None:
        try:
            if isinstance(request, float):
                assert run is not None
                pipe.send(timed(run, request))
            else:
                job, mode = request
                run = None  # the memory of the last one goes first
                if mode == "memory":
                    small = dataclasses.replace(job, B=2, T=2, I=8, H=8)
                    CONTENDERS[name](small, "training", threads)()  # threads and code are there before it counts
                    pipe.send(peak_memory(CONTENDERS[name](job, "training", threads)))
                else:
                    run = CONTENDERS[name](job, mode, threads)
                    pipe.send(work.arrays(run()))
                    run()
        except Exception as error:  # reported by the parent; the next job may work
            reason = str(error) if isinstance(error, NotOffered) else f"{type(error).__name__}: {error}"
            pipe.send(NotOffered(reason.partition("\n")[0][:200]))


class Contender:
    """The parent's end of one contender's process."""

    def __init__(self, name: str, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(name, threads, theirs), daemon=True)
        self.process.start()
        theirs.close()
        try:
            self.missing = self.pipe.recv()
        except EOFError:
            self.missing = "its process died"

    def ask(self, request: Any) -> Any:
        """The answer; NotOffered is raised, also for a process that died."""
        try:
            self.pipe.send(request)
            answer = self.pipe.recv()
        except (EOFError, BrokenPipeError):
            answer = NotOffered("its process died")
        if isinstance(answer, NotOffered):
            raise answer
        return answer

    def close(self) -> None:
        if self.process.is_alive():
            self.pipe.send(None)
        self.process.join()


# ---------------------------------------------------------------------------------------------------------------
# The comparison


def report(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def start(names: list[str], threads: int) -> list[Contender]:
    """Those that are there, fusedrnn first."""
    contenders = [Contender(name, threads) for name in names]
    for contender in contenders:
        if contender.missing:
            report(f"{TITLES[contender.name]} is left out: {contender.missing}")
            contender.process.join()
    if contenders[0].missing:
        raise SystemExit("nothing to compare with")
    return [contender for contender in contenders if not contender.missing]


def ready(contenders: list[Contender], job: Work, mode: str) -> list[Contender]:
    """Those that do this job, once all agree with the first, which is us."""
    agreed, ours = [], None
    for contender in contenders:
        try:
            answer = contender.ask((job, mode))
        except NotOffered as reason:
            if contender.name == "fusedrnn":
                raise SystemExit(f"{mode} {job}: {reason}") from None
            report(f"{mode} {job}: {TITLES[contender.name]} is left out: {reason}")
            continue
        ours = ours or answer
        if (off := work.difference(answer, ours)) > job.tolerance:
            raise SystemExit(f"{mode} {job}: {TITLES[contender.name]} and fusedrnn differ by {off:.3g}")
        agreed.append(contender)
    return agreed


def race(contenders: list[Contender], options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds of every contender, round by round; every round begins with another one."""
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for r in range(options.rounds):
        shift = r % len(contenders)
        for contender in contenders[shift:] + contenders[:shift]:
            time.sleep(PAUSE)
            times[contender.name].append(contender.ask(options.seconds))
    return times


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; the first column to the left, numbers to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def means(ratios: list[float]) -> str:
    return f"geometric mean {statistics.geometric_mean(ratios):.2f}, worst {min(ratios):.2f}"


def speed(mode: str, options: argparse.Namespace) -> str:
    """One mode's table."""
    names = ["fusedrnn", *options.peers]
    contenders = start(names, options.threads)
    streaming = mode == "stream"
    points = options.points or (work.STREAM_POINTS if streaming else work.POINTS)
    if streaming:
        points = tuple(dict.fromkeys((B, 1, I, H) for B, _, I, H in points))
    unit, scale = ("µs", 1e6) if streaming else ("ms", 1e3)
    rows, ratios = [], []
    for cell in options.cells:
        for point in points:
            job = Work(cell, *point, options.dtype)
            times = race(ready(contenders, job, mode), options)
            middle = {name: statistics.median(t) for name, t in times.items()}
            over = {
                name: statistics.median(peer / own for peer, own in zip(t, times["fusedrnn"], strict=True))
                for name, t in times.items()
                if name != "fusedrnn"
            }
            if over:
                ratios.append(min(over.values()))
            rows.append(
                [
                    f"`{cell}`",
                    *(str(n) for n in ((job.B, job.I, job.H) if streaming else (job.B, job.T, job.I, job.H))),
                    number(job.flops(training=mode == "training") / middle["fusedrnn"] / 1e9),
                    *(number(middle[name] * scale) if name in middle else "–" for name in names),
                    f"**{min(over.values()):.2f}**" if over else "–",
                ]
            )
            report(f"{mode}: " + " ".join(rows[-1]))
    for contender in contenders:
        contender.close()
    sizes = ["B", "I", "H"] if streaming else ["B", "T", "I", "H"]
    head = ["cell", *sizes, "GFLOP/s", *(f"{TITLES[name]}, {unit}" for name in names), "best peer / fusedrnn"]
    title = {"inference": "Inference, weights packed once", "training": "Training step", "stream": "Stream step"}[mode]
    summary = f" Best peer over fusedrnn: {means(ratios)}." if ratios else ""
    return f"**{title}, {options.dtype}.**{summary}\n\n{table(head, rows)}"


def memory(options: argparse.Namespace) -> str:
    """Peak memory of a training step; every figure from a fresh process."""
    rows, ratios = [], []
    for cell in options.cells:
        for point in options.points or MEMORY_POINTS:
            job, taken = Work(cell, *point, options.dtype), []
            for contender in start(["fusedrnn", "torch"], options.threads):
                try:
                    taken.append(contender.ask((job, "memory")))
                except NotOffered as reason:
                    report(f"memory {job}: {TITLES[contender.name]} is left out: {reason}")
                contender.close()
            if len(taken) == 2 and min(taken) > 0:
                ratios.append(taken[0] / taken[1])
                mib = [number(kib / 1024) for kib in taken]
                rows.append([f"`{cell}`", *(str(n) for n in point), *mib, f"**{ratios[-1]:.2f}**"])
                report("memory: " + " ".join(rows[-1]))
    head = ["cell", "B", "T", "I", "H", "fusedrnn, MiB", "PyTorch, MiB", "fusedrnn / PyTorch"]
    summary = f" fusedrnn over PyTorch: worst {max(ratios):.2f}." if ratios else ""
    return f"**Peak memory of a training step, {options.dtype}.**{summary}\n\n{table(head, rows)}"


def machine(options: argparse.Namespace) -> str:
    """What was measured on, and with what."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    config = fr.show_config("dicts")
    backend = config["backends"]
    versions = [f"fusedrnn {fr.__version__}", f"Python {platform.python_version()}", f"NumPy {np.__version__}"]
    for name in dict.fromkeys([*(options.peers if options.modes else []), *(["torch"] if options.memory else [])]):
        try:
            versions.append(f"{TITLES[name]} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"{TITLES[name]} not installed")
    return (
        f"Measured on {dt.datetime.now(dt.UTC):%Y-%m-%d} on {models[0] if models else platform.machine()} "
        f"with {options.threads} threads; backend {backend['in use']}, instruction set "
        f"{backend.get('instruction set', 'none')}, compiler {backend.get('compiler', 'none')}; {', '.join(versions)}."
    )


def section(options: argparse.Namespace, arguments: list[str]) -> str:
    """All of it."""
    command = "make bench-peers" + (f" ARGS={shlex.quote(shlex.join(arguments))}" if arguments else "")
    parts = [
        f"{machine(options)} Every contender runs in a process of its own, in turns, after all have given the same "
        "answer; ratios are medians over the rounds.",
        f"```console\n{command}\n```",
        *(speed(mode, options) for mode in options.modes),
        *([memory(options)] if options.memory else []),
    ]
    return "\n\n".join(parts) + "\n"


def write(path: Path, text: str) -> None:
    """Put the text between the markers of a Markdown file."""
    page = path.read_text(encoding="utf-8")
    if page.count(BEGIN) != 1 or END not in page.partition(BEGIN)[2]:
        raise SystemExit(f"{path.name}: expected {BEGIN} and {END}, once each")
    before, _, rest = page.partition(BEGIN)
    path.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def point(text: str) -> tuple[int, int, int, int]:
    """B,T,I,H."""
    B, T, I, H = (int(n) for n in text.split(","))
    return B, T, I, H


def names_of(text: str) -> list[str]:
    """Names, with commas between them."""
    return [name for name in text.split(",") if name]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modes", nargs="*", metavar="MODE", help="inference, training, stream; default: all")
    parser.add_argument("--memory", action="store_true", help="a table of peak memory beside PyTorch's, too")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    parser.add_argument("--cells", type=names_of, default=["lstm", "gru", "rnn_tanh"], metavar="CELL,...")
    parser.add_argument("--peers", type=names_of, default=["torch", "onnxruntime", "jax"], metavar="NAME,...")
    parser.add_argument("--points", type=point, nargs="+", metavar="B,T,I,H")
    parser.add_argument("--threads", type=int, default=min(2, fr.get_num_threads()))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.03, help="of each contender in each round")
    parser.add_argument(
        "--readme", type=Path, nargs="?", const=ROOT / "README.md", metavar="FILE", help="write the tables there"
    )
    options = parser.parse_args(arguments)
    options.modes = options.modes or ([] if options.memory else list(MODES))
    for what, given, known in (
        ("mode", options.modes, MODES),
        ("cell", options.cells, work.GATES),
        ("peer", options.peers, [name for name in CONTENDERS if name != "fusedrnn"]),
    ):
        if unknown := set(given) - set(known):
            parser.error(f"{what}: expected {', '.join(known)}, got {', '.join(sorted(unknown))}")
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    text = section(options, arguments)
    print(text)
    if options.readme:
        write(options.readme, text)


if __name__ == "__main__":
    main(sys.argv[1:])
