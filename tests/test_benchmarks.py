"""The tools that measure speed: the probe, the model, the comparison, the contenders. Speed is no test's business.

The comparison has to catch a kernel that was slowed down by 20 % on purpose, and to stay silent about two runs of the
same; on made-up runs for its statistics, and on processes that really are slower for the paired runs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import types
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn.bench import contenders, machine, quick, race, roofline, text, work
from fusedrnn.bench.machine import Limits
from fusedrnn.bench.work import Work

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import compare  # noqa: E402
import loops  # noqa: E402
import paired  # noqa: E402
import peers  # noqa: E402
import python_threads  # noqa: E402
import shapes  # noqa: E402

# 1e12 operations a second, 1e11 bytes a second and thread from L1, halved from level to level, no barrier, no chain
SIMPLE = Limits(
    "float32",
    "none",
    2,
    1e12,
    {"L1": 2e11, "L2": 1e11, "L3": 5e10, "memory": 2.5e10},
    {"L1": 32e3, "L2": 1e6, "L3": 1e7, "memory": math.inf},
    0.0,
    0.0,
)


def replaced(**changes) -> Limits:
    return dataclasses.replace(SIMPLE, **changes)


def test_large_batches_are_bound_by_arithmetic():
    job = Work("lstm", 64, 50, 512, 512)
    bound = roofline.bound(job, "inference", SIMPLE)
    first = 2 * 4 * 512 * 512 * 64 / 1e12  # without an initial state it has no product with W_hh
    assert bound == roofline.Bound(pytest.approx(2 * 4 * 512 * 1024 * 64 * 50 / 1e12 - first), "arithmetic")
    assert roofline.bound(job, "training", SIMPLE).seconds == pytest.approx(3 * bound.seconds + first)


def test_one_sequence_is_bound_by_its_weights():
    job = Work("gru", 1, 1000, 1, 256)  # 3 * 256 * 256 * 4 bytes, half of them each thread's
    share = 3 * 256 * 256 * 4 / 2
    once = 32e3 / 1e11 + (share - 32e3) / 5e10
    bound = roofline.bound(job, "inference", SIMPLE)
    assert bound.limit == "weights in L2"
    assert bound.seconds == pytest.approx(999 * once)  # the first step starts from nothing
    assert roofline.bound(job, "training", SIMPLE).seconds == pytest.approx(1999 * once)


def test_a_stream_reads_both_matrices():
    job, once = Work("rnn_tanh", 1, 1, 64, 64), 64 * 64 * 4 / 2 / 1e11  # each of them
    for mode, times in (("stream", 2), ("inference", 1), ("training", 3)):
        bound = roofline.bound(job, mode, SIMPLE)
        assert bound.seconds == pytest.approx(times * once)
        assert bound.limit == "weights in L1"


def test_wide_input_is_bound_by_data():
    job = Work("rnn_tanh", 100, 100, 10000, 1)
    assert roofline.bound(job, "inference", SIMPLE).limit == "data in memory"


def test_dear_barriers_are_avoided_by_sharing_the_batch():
    job = Work("lstm", 64, 50, 256, 256)
    for barrier, most in ((1e-9, 1.001), (1.0, 2.0)):
        slow = roofline.bound(job, "inference", replaced(barrier=barrier)).seconds
        assert slow <= most * roofline.bound(job, "inference", SIMPLE).seconds
    single = roofline.bound(Work("rnn_tanh", 1, 50, 4, 2000), "inference", replaced(barrier=1e-3))
    assert single.limit.startswith("weights")


def test_a_barrier_that_takes_most_of_the_time_binds():
    half = 120 * 120 * 4 / 2  # fits L1, all of it would not
    bound = roofline.bound(Work("rnn_tanh", 1, 50, 4, 120), "inference", replaced(barrier=4e-7))
    assert bound.limit == "barrier"
    assert bound.seconds == pytest.approx(49 * half / 1e11 + 50 * 4e-7)


def test_barriers_of_every_stage_layer_and_pass():
    job = Work("gru_reset_before", 1, 50, 4, 60, layers=2)
    bound = roofline.bound(job, "training", replaced(barrier=1.2e-7))
    share = 3 * 60 * 60 * 4 / 2  # fits L1
    assert bound == roofline.Bound(pytest.approx(2 * (99 * share / 1e11 + 199 * 1.2e-7)), "barrier")


def test_two_directions_need_no_barrier():
    job = Work("rnn_tanh", 1, 50, 4, 120, bidirectional=True)
    bound = roofline.bound(job, "inference", replaced(barrier=1.0))
    assert bound == roofline.Bound(pytest.approx(49 * roofline.reading(120 * 120 * 4, SIMPLE)[0]), "weights in L2")


@pytest.mark.parametrize(("cell", "D", "kept"), [("rnn_tanh", 1, 0), ("lstm", 1, 5), ("gru", 2, 4)])
def test_training_moves_its_tape_and_its_gradients(cell, D, kept):
    job = Work(cell, 10**6, 1, 3, 64, bidirectional=D == 2)
    for mode, numbers in (("inference", 3 + D * 64), ("training", 3 * 3 + 3 * D * 64 + 2 * kept * D * 64)):
        seconds, _ = roofline.reading(10**6 * numbers * 4 / 2, SIMPLE)
        bound = roofline.bound(job, mode, replaced(flops=math.inf))
        assert bound == roofline.Bound(pytest.approx(seconds), "data in memory")


def test_flops_of_stacked_layers_of_two_directions():
    job = Work("lstm", 2, 3, 5, 7, layers=2, bidirectional=True)
    assert job.flops("stream") == 2 * 2 * 3 * 2 * 4 * 7 * (5 + 7 + 2 * 7 + 7)
    assert job.flops() == job.flops("stream") - 2 * 2 * 2 * 4 * 7 * 2 * 7
    assert job.flops("training") == 2 * job.flops() + job.flops("stream")
    assert dataclasses.replace(job, lengths=(0, 3)).flops() == job.flops() // 2
    assert [a.shape for a in work.training(job, "reference")()[:2]] == [job.x.shape, (28, 5)]


def test_a_chain_binds_the_smallest():
    bound = roofline.bound(Work("lstm", 1, 100, 1, 8), "inference", replaced(latency=1.6e-9))
    assert bound == roofline.Bound(99 * 8 * 1.6e-9, "chain")
    twice = roofline.bound(Work("gru_reset_before", 1, 100, 1, 8), "inference", replaced(latency=1.6e-9))
    assert twice == roofline.Bound(99 * 16 * 1.6e-9, "chain")
    bound = roofline.bound(Work("lstm", 1, 100, 1, 8, layers=2), "training", replaced(latency=1.6e-9))
    assert bound == roofline.Bound(pytest.approx(2 * (99 * 8 + 100 * 4 * 8) * 1.6e-9), "chain")


def test_padding_costs_no_arithmetic():
    dense, lengths = Work("lstm", 32, 50, 256, 256), shapes.ragged("uniform")
    sparse = dataclasses.replace(dense, lengths=lengths)
    ratio = roofline.bound(sparse, "training", SIMPLE).seconds / roofline.bound(dense, "training", SIMPLE).seconds
    assert ratio == pytest.approx(sum(lengths) / (32 * 50), rel=0.01)  # every first step is there, without W_hh


def test_a_level_that_is_not_there_is_passed_over():
    limits = replaced(caches=SIMPLE.caches | {"L3": 0.0}, bandwidth=SIMPLE.bandwidth | {"L3": math.nan})
    assert roofline.reading(3e6, limits) == (pytest.approx(32e3 / 1e11 + 968e3 / 5e10 + 2e6 / 1.25e10), "memory")


def test_a_limit_that_could_not_be_probed_gives_no_bound():
    for lost in ("flops", "barrier", "latency"):
        bound = roofline.bound(Work("lstm", 1, 50, 4, 120), "inference", replaced(**{lost: math.nan}))
        assert math.isnan(bound.seconds)


@pytest.mark.parametrize("mode", ["inference", "training", "stream"])
@pytest.mark.parametrize("cell", shapes.CELLS)
def test_every_cell_pass_and_shape_has_a_bound(cell, mode):
    jobs = [Work(cell, *shape) for shape in (shapes.STREAMS if mode == "stream" else shapes.GRID + shapes.ODD)]
    for job in [*jobs, *shapes.SMALL.values()]:
        limits = replaced(barrier=1e-7, latency=1.5e-9)
        bound = roofline.bound(job, mode, limits)
        assert 0 < bound.seconds < math.inf
        assert bound.limit.partition(" ")[0] in {"arithmetic", "weights", "data", "chain", "barrier"}
        assert bound.seconds >= roofline.bound(job, mode, machine.scaled(limits, 4)).seconds * 0.99


def test_more_threads_bring_what_is_a_cores_own():
    limits = machine.scaled(replaced(barrier=1e-7), 8)
    assert (limits.threads, limits.flops) == (8, 4e12)
    assert limits.bandwidth == {"L1": 8e11, "L2": 4e11, "L3": 5e10, "memory": 2.5e10}
    assert limits.barrier == pytest.approx(7e-7)
    assert machine.scaled(dataclasses.replace(limits, threads=1), 2).barrier == 0


def test_levels_and_threads(monkeypatch):
    monkeypatch.setattr(machine, "caches", lambda: {"L1": 32, "L2": 100, "L3": 1200})
    assert [machine.share(level, 2) for level in machine.LEVELS] == [32, 100, 600, math.inf]
    assert [machine.at_level(level, 2) for level in machine.LEVELS] == [16, 64, 300, 64 << 20]
    assert machine.at_level("L3", 12) == 200
    for cpus, counts in ((1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])):
        monkeypatch.setattr(fr.threads, "available_cpus", lambda cpus=cpus: cpus)
        assert machine.thread_counts() == counts


@pytest.mark.parametrize(
    ("found", "sizes"),
    [
        ([("1", "Data", 48), ("1", "Instruction", 32), ("2", "Unified", 2048)], (48 << 10, 2 << 20, 0)),
        ([("1", "Instruction", 64), ("3", "Unified", 2048)], (32 << 10, 1 << 20, 8 << 20)),  # no data: guesses
    ],
)
def test_caches_are_those_of_data(found, sizes, tmp_path, monkeypatch):
    for i, entry in enumerate(found):
        (tmp_path / f"index{i}").mkdir()
        for name, value in zip(("level", "type", "size"), entry, strict=True):
            content = f"{value}K\n" if name == "size" else f"{value}\n"
            (tmp_path / f"index{i}" / name).write_text(content, encoding="ascii")
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path)
    assert tuple(machine.caches.__wrapped__().values()) == sizes


def test_a_probe_is_patient(monkeypatch):
    """None is a probe that the team keeps away from."""
    monkeypatch.setattr(machine, "core", lambda: types.SimpleNamespace(isa=lambda: "none"))
    monkeypatch.setattr(machine, "best", {})
    monkeypatch.setattr(machine, "PAUSE", 0)

    def probed(*rates):
        left = list(rates)

        def measure():
            if (rate := left.pop(0)) is None:
                raise RuntimeError
            return rate

        return machine.patiently(("flops",), measure)

    assert probed(None, 10.0) == 10
    assert probed(1.0, None, 9.0) == 9
    assert probed(*[1.0] * machine.TRIALS) == 1
    assert math.isnan(probed(*[None] * machine.TRIALS))
    assert machine.best == {("none", "flops"): 10}


@pytest.mark.usefixtures("core")
def test_probe():
    limits = machine.probe("float32", 1, 1e-3)
    assert limits.isa == fr.show_config("dicts")["backends"]["instruction set"]
    assert limits.flops > 1e8
    assert limits.latency > 0
    assert limits.barrier == 0
    assert all(rate > 1e7 for level, rate in limits.bandwidth.items() if level == "memory" or machine.caches()[level])
    again = machine.refresh(limits, "weights in L2", 1e-3)
    assert again.bandwidth["memory"] == limits.bandwidth["memory"]
    best = machine.at_best(dataclasses.replace(limits, flops=1.0))
    assert best.flops >= max(limits.flops, again.flops)
    assert best.bandwidth["L1"] >= limits.bandwidth["L1"]
    assert list(limits.caches) == list(limits.bandwidth) == list(machine.LEVELS)


def test_probe_of_two_threads(core):
    value = machine.barrier(2, 1e-3)
    assert value > 0 or math.isnan(value)  # NaN: the threads had no CPU to meet on
    with pytest.raises(TypeError):
        core.barrier_cost()


def test_probe_is_printed(core, capsys, monkeypatch):
    for name in ("flops", "bandwidth", "barrier", "latency"):
        monkeypatch.setattr(machine, name, lambda *_: 1e9)
    isa = core.isa()
    machine.main()
    printed = capsys.readouterr().out
    assert core.isa() == isa
    for word in (*core.available_isas(), "float64", "memory", "a barrier, ns", core.compiler()):
        assert word in printed


def test_bench_is_printed(capsys):
    quick.main(["--peers=", "--seconds=0.001"])
    printed = capsys.readouterr()
    assert "of the limit" in printed.out
    assert "no time left for inference lstm B64" in printed.err
    for option in ("--peers=nobody", "--threads=0", "--threads=1000", "--seconds=-1", "--seconds=nan"):
        with pytest.raises(SystemExit):
            quick.main([option])
        assert f"{option.partition('=')[0]}: expected" in capsys.readouterr().err


def test_bench_prints_a_row_for_each_job(capsys, monkeypatch):
    def raced(started, job, mode, *_):
        times = {one.name: [2e-3 * (1 + 2 * i * job.B)] * 3 for i, one in enumerate(started)}
        return race.Result(job, mode, times, [1e-3] * 3, "chain")

    monkeypatch.setattr(quick, "JOBS", ((Work("lstm", 1, 2, 3, 4), "inference"), (Work("gru", 5, 6, 7, 8), "training")))
    monkeypatch.setattr(machine, "is_probed", lambda: False)
    names = ["fusedrnn.cython", "torch", "jax"]
    started = [types.SimpleNamespace(name=name, close=lambda: None) for name in names]
    asked = []
    monkeypatch.setattr(race, "start", lambda names, threads, _: asked.append((names[0], threads)) or started)
    monkeypatch.setattr(race, "ready", lambda *_: started)
    monkeypatch.setattr(race, "race", raced)
    quick.main(["--threads=3"])
    assert asked == [(f"fusedrnn.{fr.backends.available()[0]}", 3)]
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "lstm inference 1 2 3 4 2.00 ms 6.00 ms 10.0 ms 3.00 50 % █████····· chain" in printed
    assert "gru training 5 6 7 8 2.00 ms 22.0 ms 42.0 ms 11.00 50 % █████····· chain" in printed
    assert "The best peer takes 5.74 times as long, 3.00 at least." in printed


def test_bare_loops_run(capsys):
    if not machine.is_probed() or "avx512" not in fr.backends.compiled().available_isas() or not shutil.which("cc"):
        pytest.skip("needs AVX-512 and an assembler")
    assert loops.main(["--rounds=1"]) == 0
    assert "tile 6x4, panel in L2" in capsys.readouterr().out


def test_python_threads_are_measured(capsys):
    assert python_threads.main(["--rounds=1", "--seconds=0.01"]) == 0
    assert "2 threads over one" in capsys.readouterr().out


def test_python_threads_are_compared(capsys, monkeypatch):
    monkeypatch.setattr(python_threads, "rate", lambda _, threads, seconds: 1000 * threads**0.5 * seconds)
    python_threads.main(["--threads=9", "--rounds=2", "--seconds=1"])
    assert capsys.readouterr().out.splitlines()[2].split() == ["32", "1.00", "ms", "3.00"]


def test_shapes_are_shortened_and_ragged():
    assert [shapes.shortened("rnn_tanh", (2, T, 3, 5), 1600.0).T for T in (4, 9, 20)] == [4, 9, 10]  # 160 a step
    assert shapes.shortened("rnn_tanh", (2, 20, 3, 5), 0.0).T == shapes.FEWEST
    assert shapes.ragged("one_long", 3, 50) == (50, 5, 5)
    assert shapes.ragged("all_short", 3, 50) == (5, 5, 5)
    assert set(shapes.ragged("uniform", 1000, 9)) == set(range(1, 10))


def test_a_benchmarks_fractions_and_ratios(monkeypatch):
    pytest.importorskip("pytest_benchmark")
    spec = importlib.util.spec_from_file_location("benchmarks_conftest", ROOT / "benchmarks/conftest.py")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    watch = object.__new__(made.Watch)
    watch.bounds = [roofline.Bound(*bound) for bound in ((1.0, "chain"), (math.nan, "not probed"), (3.0, "chain"))]
    expected = {"limit": "chain", "bound": 2.0, "fraction": 0.625, "fractions": [0.5, 0.75]}
    assert watch.fractions([2.0, 2.0, 4.0]) == expected
    assert watch.fractions([1e7, 2.0, 3e7])["fractions"] == [1e-7, 1e-7]  # whose logarithms are taken
    monkeypatch.setattr(work, "once", lambda run, _: run)
    assert made.Timer(types.SimpleNamespace(enabled=True)).ratio(6.0, 2.0) == 3.0


# --- the comparison ---


def made_up(rng: np.random.Generator, slow: float = 1.0, noise: float = 0.03, between: float = 0.02):
    """Fractions of 200 benchmarks of which the first ten are slower; a machine that is now and then disturbed."""
    run = {}
    for i in range(200):
        middle = 0.2 + 0.7 * (i % 10) / 10
        values = middle * np.exp(rng.normal(0, between) + rng.normal(0, noise, (3, 5, 7)[i % 3]))
        values[0] /= 1.5 if rng.random() < 0.2 else 1
        run[str(i)] = list(values / (slow if i < 10 else 1))
    return run


ORACLE = {"fractions": [0.5], "limit": "L2", "bound": 1.0, "kernel": "kernel 0", "backend": "reference"}
KERNELS = {str(i): f"kernel {i // 10}" for i in range(200)}


def test_two_runs_of_the_same_are_not_flagged():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        found = compare.changes(made_up(rng), made_up(rng))
        assert not [change for change in found if change.slower]
        assert not compare.together(found).slower
        assert not [change for change in compare.by_kernel(found, KERNELS) if change.slower]


def test_a_machine_that_slows_down_for_seconds_is_not_flagged():
    """Two benchmarks in a hundred are hit, in either run; a kernel that did get slower is found all the same."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        runs = made_up(rng), made_up(rng), made_up(rng, slow=1.2)
        for run in runs:
            for name in rng.choice(np.arange(10, 200), 4, replace=False):
                run[str(name)] = [fraction / 1.8 for fraction in run[str(name)]]
        base, new, slow = runs
        assert not [change for change in compare.changes(base, new) if change.slower]
        found = compare.by_kernel(compare.changes(base, slow), KERNELS)
        assert [change.name for change in found if change.slower] == ["kernel 0, 10 shapes"]


def test_a_kernel_slowed_down_by_20_percent_is_caught():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        found = compare.changes(made_up(rng), made_up(rng, slow=1.2))
        slower = {change.name for change in found if change.slower}
        assert slower <= {str(i) for i in range(10)}
        assert not compare.together(found).slower
        assert [c.name for c in compare.by_kernel(found, KERNELS) if c.slower] == ["kernel 0, 10 shapes"]


def test_everything_slower_is_caught():
    rng = np.random.default_rng(7)
    base, new = made_up(rng), made_up(rng)
    found = compare.changes(base, {name: [f / 1.2 for f in values] for name, values in new.items()})
    assert compare.together(found).slower
    assert compare.together(found).percent == pytest.approx(-100 / 6, abs=2)


def test_what_is_slower():
    for change, noise, slower in ((-0.1, 0.01, True), (-0.1, 0.03, False), (-0.08, 0.0, False), (0.5, 0.0, False)):
        assert compare.Change("a", change, noise).slower == slower
        assert compare.Change("a", -change, noise).faster == slower
    assert compare.Change("a", math.log(0.5), 0.0).percent == pytest.approx(-50)
    assert compare.error([1.0, 2.0, 3.0, 4.0, 9.0]) == pytest.approx(1.2533 * 1.4826 / math.sqrt(5) * 1.5)
    assert compare.error([1.0]) == math.inf
    found = [compare.Change(name, -0.1, 0.03) for name in "abc"]  # none of them by itself
    assert compare.report(found, {})[1]
    assert not compare.by_kernel(found, {"a": "one", "b": "one", "c": "other"})
    table, _ = compare.report([*found, compare.Change("fast", 0.5, 0.0), compare.Change("slow", -0.5, 0.0)], {})
    assert table.index("slow") < table.index("fast")


def test_limits_that_moved():
    """Against the others of their kind: those of all memory may be another machine's."""
    base = {name: {"limit": "memory" if name < "d" else "chain", "bound": 1.0} for name in "abcdef"}
    new = {name: info | {"bound": 2.0 if name in "abf" else 1.0} for name, info in base.items()}
    assert compare.disturbed(base, new) == {"c", "f"}


def test_a_pair_is_settled():
    for change, noise, settled in ((0.0, 0.2, False), (0.0, 0.05, True), (-0.15, 0.02, True), (-0.15, 0.04, False)):
        assert paired.settled(compare.Change("a", change, noise)) == settled


def test_a_file_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare.main([str(tmp_path / "base.json"), str(tmp_path / "new.json")])
    assert "base.json: expected a file of make bench, found none" in capsys.readouterr().err


def test_compare_reads_what_bench_wrote(tmp_path, capsys):
    about = {"cpu": "x", "threads": 2, "isa": "avx2", "compiler": "gcc"}
    rng = np.random.default_rng(0)
    for name, slow in (("base", 1.0), ("same", 1.0), ("slow", 1.2)):
        made = made_up(rng, slow, 0.005, 0.005)
        infos = {
            n: {"fractions": f, "limit": "L2", "bound": slow, "kernel": KERNELS[n], "backend": "cython"}
            for n, f in made.items()
        }
        if name == "same":  # a neighbour had the cache: the fraction is of another limit
            infos["150"].update(fractions=[f / 3 for f in infos["150"]["fractions"]], bound=1 / 3)
        entries = [{"name": n, "extra_info": info} for n, info in infos.items()]
        if name == "base":
            entries += [{"name": "old", "extra_info": infos["0"]}]
        entries += [{"name": "import", "extra_info": {}}, {"name": "oracle", "extra_info": ORACLE}]
        run = {"machine_info": about, "benchmarks": entries}
        (tmp_path / f"{name}.json").write_text(json.dumps(run), encoding="utf-8")
    base, same, slow = (str(tmp_path / f"{name}.json") for name in ("base", "same", "slow"))
    assert compare.main([base, same]) == 0
    printed = capsys.readouterr().out
    assert "1 benchmarks are not judged" in printed
    assert "199 benchmarks: 0 slower" in printed
    assert compare.main([base, slow]) == 1
    printed = capsys.readouterr().out
    assert "1 benchmarks are not in new" in printed
    assert "200 benchmarks: 10 slower" in printed
    assert "kernel 0 cython, 10 shapes" in printed


SLOWED = """
import dataclasses, time

def _slowed(forward):
    def run(*arguments):
        began = time.perf_counter()
        answer = forward(*arguments)
        now = time.perf_counter()
        while time.perf_counter() < now + 0.2 * (now - began):
            pass
        return answer
    return run

_backend = backends.get()
backends._loaded[_backend.name] = dataclasses.replace(_backend, forward=_slowed(_backend.forward))
backends._default = None
"""


def test_paired_runs_catch_a_slower_build_and_leave_the_same_alone(tmp_path, monkeypatch):
    """Both builds are copies of this one; `same` is it, `slow` takes 1.2 times its time in every forward pass.

    One thread, and three attempts: what the machine does beside one of two processes looks like a slower build.
    """
    monkeypatch.setenv("FUSEDRNN_NUM_THREADS", "1")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("base", "same", "slow"):
        shutil.copytree(Path(fr.__file__).parent, tmp_path / name / "fusedrnn", ignore=ignore)
    with (tmp_path / "slow/fusedrnn/__init__.py").open("a", encoding="utf-8") as file:
        file.write(SLOWED)
    job = ({"cell": "lstm", "B": 8, "T": 20, "I": 64, "H": 64}, "inference")
    for name, changed in (("same", 1.0), ("slow", 1.2)):
        for _ in range(3):
            (found,) = paired.compare(tmp_path / "base", tmp_path / name, [job])
            if paired.settled(found) and found.slower == (changed > 1):
                break
        else:
            if not paired.settled(found):
                pytest.skip(f"the machine is too noisy to tell: {found.percent:.1f} % ± {100 * found.noise:.1f} %")
            raise AssertionError(found)


# --- the contenders ---


@pytest.mark.parametrize("mode", ["inference", "stream"])
@pytest.mark.parametrize("name", ["numpy", "onnx", "onnxruntime", "torch", "torch.grad", "jax", "keras"])
def test_contenders_agree(name, mode):
    pytest.importorskip(contenders.package(name))
    if name in ("jax", "keras"):
        pytest.skip("compiles for seconds; held against us whenever it is timed")
    threads, refused = fr.get_num_threads(), 0
    try:
        for cell in shapes.CELLS:
            job = Work(cell, 3, 1 if mode == "stream" else 4, 5, 6)
            try:
                answer = work.arrays(contenders.CONTENDERS[name](job, mode, threads)())
            except contenders.NotOffered:
                refused += 1
                continue
            work.assert_right(job, answer, work.arrays(work.MODES[mode](job, "reference")()))
        assert refused < len(shapes.CELLS) or (name, mode) == ("torch.grad", "stream")
    finally:
        fr.set_num_threads(threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_grad_enabled(True)


def test_torch_trains_alike():
    """And its gradients do not add up from run to run."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    try:
        for cell in ("rnn_tanh", "gru", "lstm"):
            job = Work(cell, 3, 4, 5, 6, layers=2, bidirectional=True)
            run = contenders.torch(job, "training", 1)
            want = work.arrays(work.training(job, "reference")())
            for _ in range(2):
                work.assert_right(job, work.arrays(run()), want)
    finally:
        torch.set_num_threads(threads)


def test_ragged_work():
    job = Work("lstm", 2, 3, 4, 5, lengths=(3, 1))
    for answer in (work.inference(job, "reference")(), work.training(job, "reference")()[0]):
        assert (answer != 0).any(axis=2).tolist() == [[True, True], [True, False], [True, False]]
    with pytest.raises(contenders.NotOffered, match="whole sequences"):
        contenders.numpy(job, "inference", 1)


def test_our_contenders_have_their_backend_and_threads(monkeypatch):
    threads = fr.get_num_threads()
    monkeypatch.setitem(work.MODES, "inference", lambda _, backend: (backend, fr.get_num_threads()))
    try:
        for n, name in enumerate(fr.backends.NAMES, 1):
            run = contenders.CONTENDERS[f"fusedrnn.{name}"](Work("lstm", 1, 1, 1, 1), "inference", n)
            assert run == (name, n)
    finally:
        fr.set_num_threads(threads)


def test_once_is_a_median(monkeypatch):
    now, steps = [0.0], iter([1.0, 7.0, 3.0])

    def run():
        now[0] += next(steps)

    monkeypatch.setattr(work, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    assert work.once(run, 0.0) == 3


@pytest.mark.parametrize(("busy", "most", "looks"), [(0, 1.0, 1), (3, 1.0, 4), (10**6, 0.1, 9)])
def test_at_rest_is_who_uses_no_cpu_time(monkeypatch, busy, most, looks):
    now, used = [0.0], [0.0]

    def sleep(seconds):
        now[0] += seconds
        used[0] += seconds if now[0] <= (busy + 0.5) * work.LOOK else 1e-5

    clock = types.SimpleNamespace(perf_counter=lambda: now[0], process_time=lambda: used[0], sleep=sleep)
    monkeypatch.setattr(work, "time", clock)
    work.rest(most)
    assert now[0] == pytest.approx(looks * work.LOOK)


def test_a_wrong_answer_is_never_timed():
    job = Work("lstm", 2, 3, 4, 5)
    right = work.arrays(work.inference(job, "reference")())
    with pytest.raises(AssertionError, match="off by"):
        work.assert_right(job, [1.001 * a for a in right], right)
    for wrong in ([a[1:] for a in right], [np.nan * a for a in right]):
        with pytest.raises(AssertionError, match="off by inf"):
            work.assert_right(job, wrong, right)
    with pytest.raises(AssertionError, match="off by"):
        work.assert_right(job, [1.001 * right[0], *right], [*right, *right])


def test_results_of_a_race():
    job = Work("lstm", 2, 3, 4, 5)
    times = {
        "fusedrnn": [1.0, 2.0, 10.0],
        "fusedrnn.numba": [0.5, 1.0, 5.0],
        "jax": [3.0, 6.0, 30.0],
        "torch": [8.0, 4.0, 20.0],
    }
    result = race.Result(job, "training", times, [0.5, math.nan, 2.5], "chain")
    found = result.record()
    assert found["seconds"] == {"fusedrnn": 2, "fusedrnn.numba": 1, "jax": 6, "torch": 8}
    assert found["ratio"] == {"fusedrnn": 1, "fusedrnn.numba": 0.5, "jax": 3, "torch": 2}
    assert found["fraction"]["fusedrnn"] == 0.375
    assert found["flops"] == job.flops("training")
    assert result.best() == "torch"


def test_contenders_that_differ_are_not_raced():
    class Made:
        def __init__(self, name, answer):
            self.name, self.answer = name, answer

        def ask(self, _):
            if self.answer is None:
                raise contenders.NotOffered("no such thing")
            return self.answer

    job, right, told = Work("lstm", 2, 3, 4, 5), [np.ones(3, np.float32)], []
    ours, same, none = Made("fusedrnn", right), Made("torch", right), Made("jax", None)
    assert race.ready([ours, same, none], job, "inference", told.append) == [ours, same]
    assert told == [f"inference {job}: JAX is left out: no such thing"]
    with pytest.raises(SystemExit, match="Keras and fusedrnn differ by"):
        race.ready([ours, Made("keras", [1.01 * right[0]])], job, "inference")
    with pytest.raises(SystemExit, match="no such thing"):
        race.ready([none, ours], job, "inference")


def test_a_race_goes_on_without_one_that_dies(monkeypatch):
    """Every round begins with another one."""
    turns, told = [], []

    class Made:
        def __init__(self, name, lives):
            self.name, self.left = name, lives

        def ask(self, request):
            if request == "limits":
                return roofline.Bound(1.0, "L2" if self.left == 9 else "chain")
            turns.append(self.name)
            self.left -= 1
            if self.left < 0:
                raise contenders.NotOffered("its process died")
            return request

    monkeypatch.setattr(machine, "is_probed", lambda: True)
    made, job = [Made("fusedrnn", 9), Made("torch", 9), Made("jax", 1)], Work("lstm", 2, 3, 4, 5)
    result = race.race(made, job, "inference", 3, 0.5, told.append)
    assert result.seconds == {"fusedrnn": [0.5] * 3, "torch": [0.5] * 3}
    assert (result.bounds, result.limit) == ([1.0] * 3, "chain")
    assert turns == ["fusedrnn", "torch", "jax", "torch", "jax", "fusedrnn", "fusedrnn", "torch"]
    assert told == [f"inference {job}: JAX is left out: its process died"]


@pytest.mark.parametrize(
    ("found", "shown"),
    [
        (text.number(1234.5), "1234"),
        (text.number(12.345), "12.3"),
        (text.number(9.996), "10.0"),
        (text.number(0.0012345), "0.00123"),
        (text.number(0), "0.00"),
        (text.number(math.nan), "–"),
        (text.size(1023), "1023 B"),
        (text.size(1536), "1.50 KiB"),
        (text.size(3 << 20), "3.00 MiB"),
        (text.duration(1.5), "1.50 s"),
        (text.duration(2.5e-3), "2.50 ms"),
        (text.duration(2.5e-6), "2.50 µs"),
        (text.duration(2.5e-9), "2.50 ns"),
        (text.bar(0.26, 4), "█···"),
        (text.bar(7.0, 4), "████"),
        (text.bar(math.nan, 4), "····"),
        (text.table([["", "head"], ["row", "1"]]), "     head\n───  ────\nrow     1"),
        (text.markdown([["a", "b"], ["c", "1"]]), "| a | b |\n| --- | ---: |\n| c | 1 |"),
    ],
)
def test_text(found, shown):
    assert found == shown


def test_a_missing_peer_is_reported(monkeypatch):
    monkeypatch.setitem(contenders.CONTENDERS, "no_such_package", contenders.numpy)
    monkeypatch.setitem(contenders.TITLES, "no_such_package", "Nobody")
    told: list[str] = []
    started = race.start(["fusedrnn", "no_such_package"], 1, told.append)
    for contender in started:
        contender.close()
    assert [contender.name for contender in started] == ["fusedrnn"]
    assert "Nobody is left out" in told[0]


def test_jobs_of_the_comparison_with_peers(monkeypatch):
    options = peers.parse(["--cells=gru", "--dtype=float64", "--points", "1,7,3,5", "1,9,3,5"])
    assert peers.jobs(options, "stream") == [Work("gru", 1, 1, 3, 5, "float64")]
    assert peers.jobs(options, "training") == [Work("gru", 1, T, 3, 5, "float64") for T in (7, 9)]
    monkeypatch.setattr(peers, "memory", lambda job, _: {"fusedrnn": job.T})
    row, _ = peers.compare("memory", options)
    assert row == {"mode": "memory", "cell": "gru", "B": 1, "T": 7, "I": 3, "H": 5, "KiB": {"fusedrnn": 7}}


def test_slow_peers_are_left_out_of_long_jobs(monkeypatch):
    def raced(quick, job, mode, *_):
        return race.Result(job, mode, {one.name: [1.0] for one in quick}, [], "")

    asked = []
    started = [types.SimpleNamespace(name=name, close=lambda: None) for name in ("fusedrnn", "numpy")]
    monkeypatch.setattr(race, "start", lambda *_: started)
    monkeypatch.setattr(race, "ready", lambda quick, *_: asked.append([one.name for one in quick]) or quick)
    monkeypatch.setattr(race, "race", raced)
    peers.compare("inference", peers.parse(["--cells=lstm", "--points", "1,7,3,5", "64,50,512,512"]))
    assert asked == [["fusedrnn", "numpy"], ["fusedrnn"]]


def test_the_comparison_with_peers_writes_its_results(tmp_path):
    path = tmp_path / "peers.json"
    arguments = ["stream", "--peers=numpy", "--cells=gru", "--points", "1,1,3,5", "--rounds=1", "--seconds=0"]
    arguments += ["--spinning=1", "--threads=1"]
    command = [sys.executable, peers.__file__, *arguments, "--json", str(path)]
    subprocess.run(command, check=True)
    run = json.loads(path.read_text(encoding="utf-8"))
    (row,) = run["results"]
    assert (row["cell"], row["B"], row["I"], row["H"], row["mode"]) == ("gru", 1, 3, 5, "stream")
    beside = set(fr.backends.available()) - {"reference", fr.backends.get().name}
    assert set(row["seconds"]) == {"fusedrnn", "numpy", *(f"fusedrnn.{name}" for name in beside)}
    assert run["machine_info"]["cpu"] == machine.cpu()
    assert run["machine_info"]["threads"] == 1
    assert run["command"] == f"make bench-peers ARGS='{' '.join(arguments)}'"


# --- the report ---

ABOUT = {"kernel": "lstm_forward_f32", "cell": "lstm", "mode": "inference", "dtype": "float32", "backend": "cython"}
SIZED = ABOUT | {"B": 1, "T": 100, "I": 256, "H": 256, "seconds": 2e-3, "limit": "weights in L2", "fraction": 0.456}
STREAMED = SIZED | {"kernel": "lstm_stream_f32", "mode": "stream", "p99": 3e-3, "histogram": {"0.002": 9, "0.003": 1}}
GROWN = {"axis": "T", "values": [8, 32], "times": [1e-3, 4e-3], "growth": 1.0, "KiB": {"8": 64, "32": 256}}
THREADED = {"axis": "threads", "values": [1, 2], "times": [4e-3, 2e-3], "growth": -1.0}
PREDICTED = {"predicted": {"values": [4], "times": [1e-3]}}
ENTRIES = [
    ("grid", "test_grid[a-cython]", SIZED),
    ("streams", "test_stream[b-cython]", STREAMED),
    ("ragged", "test_ragged[uniform-lstm-cython]", SIZED | {"over_share_of_dense": 1.07}),
    ("denormals", "test_denormals[lstm-cython]", SIZED | {"over_ordinary": 1.01}),
    ("scaling", "test_size[T-cython]", SIZED | GROWN | {"memory_growth": 0.98}),
    ("scaling", "test_threads[cython]", SIZED | THREADED | PREDICTED),
    ("cold_start", "test_import", {"seconds": 0.05}),
]


def test_tables_of_the_report(tmp_path):
    report = pytest.importorskip("report", exc_type=ImportError)
    (tmp_path / "page").write_text("no markers", encoding="utf-8")
    with pytest.raises(SystemExit, match="page: expected <!-- report:begin --> and <!-- report:end -->, once each"):
        report.write(tmp_path / "page", "lost")
    rows = [{"group": "grid", "backend": "numba", "fraction": f} for f in (0.9, 0.2, 0.4)]
    assert report.summary(rows).endswith("| grid | numba | 3 | 40 % | 20 % | 90 % |")
    fast = replaced(dtype="float64", bandwidth={level: 2 * rate for level, rate in SIMPLE.bandwidth.items()})
    entries = {limits.dtype: dataclasses.asdict(limits) for limits in (SIMPLE, fast)}
    assert "| reading from L3, GB/s | 50.0 | 100 |" in report.limits({"limits": entries})


def test_the_report_writes_tables_and_pictures(tmp_path):
    report = pytest.importorskip("report", exc_type=ImportError)
    limits = dataclasses.asdict(replaced(barrier=1e-7, latency=1.5e-9))
    about = machine.describe() | {"limits": {"float32": limits, "float64": limits}}
    rows = [{"group": group, "name": name, "extra_info": extra} for group, name, extra in ENTRIES]
    run = {"machine_info": about, "datetime": "2026-01-02T03:04", "benchmarks": rows}
    times = {"fusedrnn": 1e-3, "torch": 2e-3, "jax": 5e-3}
    job = dataclasses.asdict(Work("lstm", 1, 100, 256, 256))
    parts = {name: 0.4e-3 / seconds for name, seconds in times.items()}
    ratio = {name: seconds / 1e-3 for name, seconds in times.items()}
    results = [job | {"mode": m, "seconds": times, "fraction": parts, "ratio": ratio} for m in work.MODES]
    results.append(job | {"mode": "memory", "KiB": {"fusedrnn": 1024, "torch": 4096}})
    peers_run = {"versions": {"torch": "9.9"}, "command": "make bench-peers", "results": results}
    (tmp_path / "bench.json").write_text(json.dumps(run), encoding="utf-8")
    (tmp_path / "peers.json").write_text(json.dumps(peers_run), encoding="utf-8")
    old = "before\n<!-- report:begin -->\nold\n<!-- report:end -->\nafter\n"
    for name in ("docs.md", "readme.md"):
        (tmp_path / name).write_text(old, encoding="utf-8")
    where = {"--docs": "docs.md", "--readme": "readme.md", "--pictures": "docs/pictures"}
    options = [argument for name, path in where.items() for argument in (name, str(tmp_path / path))]
    report.main([str(tmp_path / "bench.json"), str(tmp_path / "peers.json"), *options])
    docs, readme = ((tmp_path / name).read_text(encoding="utf-8") for name in ("docs.md", "readme.md"))
    for page in (docs, readme):
        assert page.startswith("before\n<!-- report:begin -->\n\nMeasured on 2026-01-02")
        assert page.endswith("\n\n<!-- report:end -->\nafter\n")
        assert "\nold\n" not in page
    for shown in (
        "2.00 ms | 46 % | weights in L2",
        "2.00 ms | 3.00 ms | 46 %",
        "1.07",
        "8, 32 | T^1.00 | T^0.98",
        "**0.25**",
        "50.0 ms",
    ):
        assert shown in docs
    assert "### DeepBench" not in docs  # nothing of it was measured
    assert "| `lstm` | forward | 2.00 | 5.00 | **2.00 (2.00 to 2.00)** | 46 % |" in readme
    assert "| `gru` | forward | – | – | **–** | – |" in readme
    for name in ("roofline", "ratios", "scaling", "latency"):
        assert f"pictures/{name}.svg" in docs
        assert ET.parse(tmp_path / "docs" / "pictures" / f"{name}.svg").getroot().tag.endswith("svg")
