"""What is the Numba backend's own: the bits of the compiled one, its cache, messages and team, cells in users' code.

All else is in the other files, which run over it as over every backend. What changes a process runs in one of its own.
"""

import contextlib
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
from cases import BURSTS, CELLS, DTYPES, Case, assert_same, forward, problem, run

import fusedrnn as fr

numba = pytest.importorskip("numba")
nb = pytest.importorskip("fusedrnn.numba")
once = pytest.importorskip("fusedrnn.numba.jit").once

HERE = Path(__file__).parent
SIZES = (
    (7, 3, 5, 9, "any", "both"),
    (5, 33, 17, 65, "none", "reverse"),
    (90, 7, 12, 20, "zeros", "both"),
    (4, 2, 40, 257, "none", "both"),
    (3, 24, 10, 300, "none", "forward"),
    (40, 16, 8, 24, "any", "forward"),
)
WITHOUT_CORE = "import sys; sys.modules['fusedrnn._core'] = None\n"


def python(code: str, **environment: str) -> str:
    """What code prints in an interpreter of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("FUSEDRNN_")}
    env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(Path(fr.__file__).parents[1]), env.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", code], env=env | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def zeros(*shape, dtype=np.float32, writeable=True):
    a = np.zeros(shape, dtype)
    a.flags.writeable = writeable
    return a


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_the_bits_of_the_compiled_backend(cell, dtype, core):
    """Outputs and gradients, in whatever instruction set has fused multiply-adds."""
    if core.isa() == "baseline":
        pytest.skip("no fused multiply-add here")
    for T, B, I, H, lengths, directions in SIZES:
        p = problem(Case(cell, dtype, T, B, I, H, lengths=lengths, directions=directions))
        assert_same(run(nb, p), run(core, p))
        assert_same(forward(nb, p)[0], forward(core, p)[0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_activations_of_the_compiled_backend(dtype, core):
    x = np.random.default_rng(0).standard_normal(100_003).astype(dtype) * 20
    x[:9] = 0, -0.0, np.nan, np.inf, -np.inf, 1e-30, -1e-30, 200, -200
    for name in ("sigmoid", "tanh"):
        assert np.array_equal(getattr(nb, name)(x), getattr(core, name)(x), equal_nan=True)


def test_a_wrong_kernel_is_seen(core, monkeypatch):
    """A mutant: the description of a GRU whose gradients of r and z are swapped."""
    from fusedrnn.numba import sequence

    p = problem(Case("gru", lengths="any"))
    assert_same(run(nb, p), run(core, p))
    description = sequence.CELL["gru"]
    monkeypatch.setitem(sequence.CELL, "gru", description)
    where = slice(sequence.OF_X, sequence.OF_X + 2)
    right = description[where].copy()
    description[where] = right[::-1]
    try:
        with pytest.raises(AssertionError):
            assert_same(run(nb, p), run(core, p))
    finally:
        description[where] = right


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_written_past_its_memory(cell, dtype, monkeypatch):
    """Results and work areas, wherever they begin, and whatever was there before."""
    from fusedrnn.numba import backend
    from fusedrnn.numba.jit import VECTOR_BYTES

    size = np.dtype(dtype).itemsize
    odd = 1 + 960 // size  # units whose rows take the longest padding
    wide = 8 * VECTOR_BYTES // size - 1  # two panels, which a row takes at once, if they were whole
    sizes = *SIZES, (3, 150, 3, odd, "any", "both"), (1, 2, 3, odd, "none", "forward"), (1, 1, wide, 1, "none", "both")
    problems = [
        problem(Case(cell, dtype, T, B, I, H, lengths=lengths, directions=directions))
        for T, B, I, H, lengths, directions in sizes
    ]
    wanted, held, before = [run(nb, p) for p in problems], [], fr.get_num_threads()

    def memory(size):
        block = np.full(size + 320, 0xA5, np.uint8)
        begin = (16 - block.ctypes.data) % 64  # the least that NumPy gives, and the worst
        block[begin : begin + size] = 0xFF
        held.append((block, begin, size))
        return block[begin : begin + size]

    def empty(shape, dtype):
        return memory(math.prod(shape) * np.dtype(dtype).itemsize).view(dtype).reshape(shape)

    monkeypatch.setattr(backend, "np", types.SimpleNamespace(**vars(np) | {"empty": empty}))
    monkeypatch.setattr(backend, "memory", memory)
    monkeypatch.setattr(backend, "spare", lambda _: None)
    monkeypatch.setattr(backend, "ROOM", 0)
    try:
        for p, want in zip(problems, wanted, strict=True):
            packed = nb.pack(cell, *p.directions[0][0])
            for threads in (1, 2, 3):
                fr.set_num_threads(threads)
                assert_same(run(nb, p), want)
                assert_same(forward(nb, p)[0], {name: want[name] for name in ("y", "h_n", "c_n")})
                stream = nb.stream((packed,), p.x.shape[1])
                assert not stream.get_state()[0].any()
                stream.step(np.nan_to_num(p.x[0]))
            for block, begin, size in held:
                assert (block[:begin] == 0xA5).all()
                assert (block[begin + size :] == 0xA5).all()
            held.clear()
    finally:
        fr.set_num_threads(before)


TEAM = """
import os, sys, threading
import numpy as np
import fusedrnn as fr
from fusedrnn import numba as nb
from cases import *

problems = [problem(Case(cell, T=9, B=24, I=10, H=200)) for cell in ("lstm", "gru")]
fr.set_num_threads(1)
want = [run(nb, p) for p in problems]
fr.set_num_threads(3)

def work():
    for _ in range(20):
        for p, w in zip(problems, want):
            assert_same(run(nb, p), w)

threads = [threading.Thread(target=work) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
child = os.fork()
if child == 0:
    try:
        work()
        assert sys.platform != "linux" or len(os.listdir("/proc/self/task")) > 1, "the child has no team of its own"
    except BaseException: os._exit(1)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
work()
x, *w = (np.full(shape, value, "f") for shape, value in (((99, 64, 200), 1e-30), ((200, 200), 1e-12), ((200, 200), 0)))
for _ in range(20):  # a worker may come late
    y = nb.forward("rnn_tanh", x, (((*w, None, None), None, None, False),), None, False)[0]
    assert not y.any(), "denormals are not flushed by every thread"
print("done")
"""


@pytest.mark.parametrize("team", ["compiled", "own"])
def test_python_threads_at_once_and_a_fork(team):
    """On the team of the extension and on one's own; Numba's workqueue layer would abort at the second thread."""
    code = (WITHOUT_CORE if team == "own" else "") + TEAM
    assert "done" in python(code, NUMBA_THREADING_LAYER="workqueue")


WIDTHS = """
import fusedrnn as fr
from fusedrnn import _core
from fusedrnn.numba import backend
from cases import *

met = set()
for threads in 1, 2, 3, 4:
    fr.set_num_threads(threads)
    for cell, T, B, I, H in [
        ("rnn_tanh", 3, 2, 50, 1), ("rnn_tanh", 3, 2, 1, 50), ("gru_reset_before", 3, 7, 33, 17),
        ("gru", 3, 2, 70, 100), ("rnn_tanh", 60, 1, 130, 400), ("gru_reset_before", 60, 1, 20, 300),
    ]:
        p = problem(Case(cell, T=T, B=B, I=I, H=H))
        table = backend._tables[p.x.dtype]
        def forget():
            table[:] = 0
            backend._meet.cache_clear()
            backend._meet_backward.cache_clear()
        forget()
        assert_same(run(backend, p), run(_core, p))
        met.add(tuple(V for V in (1, 2, 3, 4) if table[9 * V + 1]))
        forget()
        weights = p.directions[0][0]
        steps = [m.stream((m.pack(cell, *weights),), B).step(p.x[0]) for m in (backend, _core)]
        assert np.array_equal(*steps)
assert len(met) > 2, met
print("done")
"""


@pytest.mark.usefixtures("core")
def test_every_tile_that_is_met_is_there():
    """The table of tiles is emptied before each problem and stream: one that is forgotten is a call of nowhere."""
    assert "done" in python(WIDTHS)


@pytest.mark.skipif(fr.threads.available_cpus() < 2, reason="needs two CPUs")
def test_no_worker_is_lost():
    assert "done" in python(WITHOUT_CORE + BURSTS)


@pytest.mark.usefixtures("core")
def test_the_team_is_free_whenever_python_runs(core, monkeypatch):
    """Where a signal handler may raise: what was begun and has not found room goes on in Python."""

    def interrupt(*_):
        for _ in range(1000):  # where other processes have the CPUs, a worker may come late
            with contextlib.suppress(RuntimeError):
                core.barrier_cost(2, 0.001)  # needs the team
                raise KeyboardInterrupt
            time.sleep(0.01)

    layer, x = fr.LSTM(256, 256, rng=0, backend="numba"), np.ones((20, 32, 256), np.float32)
    want = layer(x)[0]
    monkeypatch.setattr("fusedrnn.numba.backend.memory", interrupt)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            layer(x)
    monkeypatch.undo()
    assert np.array_equal(layer(x)[0], want)


def test_a_stream_that_finds_no_memory_goes_on_as_it_was(monkeypatch):
    x, before = np.random.default_rng(0).standard_normal((6, 64, 64), np.float32), fr.get_num_threads()
    fast = fr.GRU(64, 256, rng=0, backend="numba").freeze()
    want = fast(x)[0]

    def refuse(_):
        raise MemoryError

    try:
        fr.set_num_threads(1)
        stream = fast.stream(64)
        assert np.array_equal(stream.step(x[0]), want[0])
        fr.set_num_threads(2)
        monkeypatch.setattr("fusedrnn.numba.backend.memory", refuse)
        with pytest.raises(MemoryError):
            stream.step(x[1])
        fr.set_num_threads(1)
        assert np.array_equal(stream.step(x[1]), want[1])
        monkeypatch.undo()
        stream._stepper._divide()
        assert stream._stepper._data[0]["laid"] == 0  # the next step lays itself out in its new memory
        for t, threads in enumerate((2, 3, 1, 2), start=2):
            fr.set_num_threads(threads)
            assert np.array_equal(stream.step(x[t]), want[t])
    finally:
        fr.set_num_threads(before)


def test_a_stream_has_room_for_fewer_threads():
    """A step gets those of the team who come in time, and they may divide it into more groups."""
    from fusedrnn.numba import sequence

    before = fr.get_num_threads()
    try:
        for B, H in ((24, 200), (64, 300), (40, 512), (300, 70)):
            stream, needs = nb.stream((nb.pack("rnn_tanh", zeros(H, 3), zeros(H, H)),), B), []
            for threads in range(1, 9):
                fr.set_num_threads(threads)
                stream._divide()
                needs.append(int(stream._divisions[0][0][:4].view(sequence.DIVISION)[0]["need"]))
            assert needs == sorted(needs)
    finally:
        fr.set_num_threads(before)


@pytest.mark.skipif(fr.threads.available_cpus() < 2, reason="needs two CPUs")
def test_threads_that_are_far_apart_share_less():
    """The number of threads that a short call is divided for; the bits are the same."""
    from fusedrnn.numba import backend, sequence

    (meeting,) = backend._team()[2]
    weights = tuple(np.random.default_rng(0).uniform(-0.1, 0.1, (128, n)).astype(np.float32) for n in (32, 128))
    x, before, ys = np.ones((50, 1, 32), np.float32), (*meeting, fr.get_num_threads()), []

    def threads():
        y, *_, tape = nb.forward("rnn_tanh", x, (((*weights, None, None), None, None, False),), None, True)
        ys.append(y)
        return int(tape.frame[: sequence.RUN.itemsize].view(sequence.RUN)[0]["size"])

    try:
        fr.set_num_threads(2)
        for far, want in ((0, 2), (1, 1), (0, 2)):
            meeting["looked"], meeting["far"], end = math.inf, far, time.monotonic() + 5
            while (found := threads()) != want and time.monotonic() < end:
                pass  # the other thread may be asleep
            assert found == want
        meeting["looked"] = -1
        threads()
        assert meeting["looked"] > 0
        assert all(np.array_equal(y, ys[0]) for y in ys)
    finally:
        fr.set_num_threads(before[-1])
        meeting["looked"] = -1


@pytest.mark.skipif(fr.threads.available_cpus() < 2, reason="needs two CPUs")
def test_a_short_step_now_and_then_is_made_alone():
    """A helper has fallen asleep in between, and waking it takes longer than the step."""
    before = fr.get_num_threads()
    try:
        fr.set_num_threads(2)
        stream, x = fr.LSTM(128, 128, rng=0, backend="numba").freeze().stream(), np.zeros((1, 128), np.float32)
        data, end, helped = stream._stepper._data[0], time.monotonic() + 20, []
        assert data["helped"]
        assert stream._stepper._divisions[0][0][1] == 2, "two threads are wanted"
        while sum(helped) == len(helped) and time.monotonic() < end:
            stream.step(x)
            time.sleep(0.0005)
            helped.append(data["helped"])
        assert 0 in helped
    finally:
        fr.set_num_threads(before)


def test_spare_memory_has_a_limit(monkeypatch):
    """Of a few blocks, the largest, and of their size."""
    from fusedrnn.numba import backend

    monkeypatch.setattr(backend, "_spares", {})
    for size in (5 << 20, 41 << 20, 9 << 20, 7 << 20, 1 << 17, 8 << 20):
        backend.spare(np.empty(size, np.uint8))
    assert sorted(map(len, backend._spares.values())) == [7 << 20, 8 << 20, 9 << 20]


def test_what_is_made_once():
    """Threads that ask at the same time get the same object, which lives on."""
    started = threading.Barrier(4)
    made = []

    @once
    def make(key):
        made.append(key)
        time.sleep(0.01)
        return made[-1]

    found = []

    def ask():
        started.wait()
        found.append(make("a"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, made) == (["a"] * 4, ["a"])


def test_a_fork_waits_for_what_is_being_made():
    code = """
import os, signal, threading, time
from fusedrnn.numba.jit import once

begun = threading.Event()

@once
def make(key):
    begun.set()
    time.sleep(0.3)
    return key

thread = threading.Thread(target=make, args=("a",))
thread.start()
begun.wait()
child = os.fork()
if child == 0:
    signal.alarm(20)
    os._exit(make("a") != "a" or make("b") != "b")
assert os.waitpid(child, 0)[1] == 0
thread.join()
print("done")
"""
    assert "done" in python(code)


def test_tiles_of_a_width_are_compiled_once():
    """Also where several threads meet it at the same time, in a process that has met none."""
    code = """
import threading
import numpy as np
import fusedrnn as fr
from fusedrnn.numba import backend

met, Kernel = [], backend.Kernel
def kernel(function, signature):
    met.append((function.__name__, str(signature)))
    return Kernel(function, signature)
backend.Kernel = kernel

x = np.ones((5, 2, 3), np.float32)
layers = [fr.LSTM(3, H, rng=0, backend="numba") for H in (20, 200, 20, 200, 20, 200)]
want = [fr.LSTM(3, layer.hidden_size, rng=0, backend="reference")(x)[0] for layer in layers]
together, found = threading.Barrier(len(layers)), [None] * len(layers)
def ask(i):
    together.wait()
    found[i] = layers[i](x)[0]
threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(layers))]
for t in threads: t.start()
for t in threads: t.join()
for f, w in zip(found, want): np.testing.assert_allclose(f, w, rtol=1e-5, atol=1e-6)
assert len(set(met)) == len(met), met
print("done")
"""
    assert "done" in python(code)


def test_without_the_extension_numba_is_the_default():
    code = "import fusedrnn as fr; print(fr.backends.get().name, fr.show_config('dicts')['backends']['in use'])"
    assert python(WITHOUT_CORE + code).split() == ["numba", "numba"]


def test_without_numba():
    code = "import sys; sys.modules['numba'] = None\nimport fusedrnn as fr\nprint(fr.backends.available())\n"
    code += "try: import fusedrnn.numba\nexcept ImportError as error: print(error)\n"
    code += "try: fr.use_backend('numba')\nexcept ImportError as error: print(error)\n"
    found = python(code)
    assert "'numba'" not in found.splitlines()[0]
    assert found.count("pip install fusedrnn[numba]") == 2


def test_importing_fusedrnn_does_not_import_numba():
    assert (
        python("import sys, fusedrnn as fr; fr.RNN(1, 1); print('numba' in sys.modules)", FUSEDRNN_BACKEND="reference")
        == "False\n"
    )


def test_the_cache_and_the_messages(tmp_path):
    """The second process compiles nothing; the first one says that it does."""
    code = "import logging; logging.basicConfig(level='INFO')\nfrom fusedrnn import numba as nb\n"
    code += "nb.compile(['rnn_relu'], ['f4'])\n"
    first = python(code, NUMBA_CACHE_DIR=str(tmp_path))
    assert "compiling takes some seconds, once" in first
    assert "compiled work in" in first
    assert "rnn_relu float32 is ready" in first
    code += """
import numpy as np
x, w = np.ones((3, 2, 4), "f"), [np.ones(shape, "f") for shape in ((5, 4), (5, 5))] + [None, None]
y, *_, tape = nb.forward("rnn_relu", x, ((w, None, None, False),), None, True)
nb.backward(tape, y, None, None)
nb.stream((nb.pack("rnn_relu", *w),), 2).step(x[0])
"""
    assert not re.findall(r"compiled \w+ in", python(code, NUMBA_CACHE_DIR=str(tmp_path)))


def test_any_source_is_in_the_stamp_of_the_cache(tmp_path, monkeypatch):
    jit = sys.modules[once.__module__]
    shutil.copytree(Path(jit.__file__).parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "jit.py"))
    sources, stamps = list(tmp_path.glob("*.py")), {jit._stamp()}
    for source in sources:
        source.write_bytes(source.read_bytes() + b"#")
        stamps.add(jit._stamp())
    assert len(stamps) == 1 + len(sources)


AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+f16c,+bmi,+bmi2"}


def test_avx2_has_the_bits_of_avx2(core, tmp_path):
    """On 16 registers: other tiles, large panels of four worked off as two halves."""
    if "avx2" not in core.available_isas():
        pytest.skip("this CPU does not run avx2")
    code = (
        "from cases import *\nfrom fusedrnn import numba as nb, _core as core\n"
        "from fusedrnn.numba.jit import VECTOR_BYTES\n"
        "assert (VECTOR_BYTES, core.isa()) == (32, 'avx2')\n"
        "for cell, dtype in (('lstm', 'float32'), ('gru_reset_before', 'float64')):\n"
        "    for T, B, I, H, lengths, directions in ((7, 3, 5, 9, 'any', 'both'), (40, 16, 8, 24, 'any', 'forward'),\n"
        "                                            (3, 24, 10, 300, 'none', 'forward')):\n"
        "        p = problem(Case(cell, dtype, T, B, I, H, lengths=lengths, directions=directions))\n"
        "        assert_same(run(nb, p), run(core, p))\n"
        "print('same')\n"
    )
    assert "same" in python(code, **AVX2, FUSEDRNN_ISA="avx2", NUMBA_CACHE_DIR=str(tmp_path))


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}, "fused multiply-adds"),
        ({"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT is set"),
    ],
)
def test_what_cannot_work_is_refused(environment, said):
    if "NUMBA_CPU_NAME" in environment and platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("a setting of x86")
    code = "try: import fusedrnn.numba\nexcept ImportError as error: print(error)"
    assert said in python(code, **environment)


def test_a_compiler_that_is_turned_off_is_missing():
    code = "import fusedrnn as fr; print(fr.backends.missing('numba'), fr.backends.available())"
    found = python(code, NUMBA_DISABLE_JIT="1")
    assert "NUMBA_DISABLE_JIT is set" in found
    assert "'numba'" not in found
    for none in ("", "0"):
        assert "None (" in python(code, NUMBA_DISABLE_JIT=none)


SIGNALS = """
import signal
blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
import numpy as np, fusedrnn as fr
from fusedrnn import numba as nb
fr.set_num_threads(2)
rng = np.random.default_rng(0)
B, H = 512, 256
weights = [rng.uniform(-0.1, 0.1, s).astype("f") for s in ((4 * H, H), (4 * H, H))] + [None, None]
x = rng.standard_normal((40, B, H)).astype("f")
def forward(training=False): return nb.forward("lstm", x, ((weights, None, None, False),), None, training)
want = forward()[0]
*_, tape = forward(True)
gradient = nb.backward(tape, want, None, None)[0]
def alarm(handler, seconds):
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
seen = []
alarm(lambda *_: seen.append(np.float32(1e-40) * np.float32(1) != 0), 0.01)
while not seen: assert np.array_equal(forward()[0], want)
assert all(seen), "denormals are flushed inside the handler"
def interrupted(call):
    try:
        alarm(signal.default_int_handler, 0.2)                # once: a second one may come wherever Python is by then
        while True: call()
    except KeyboardInterrupt: pass
    assert np.float32(1e-40) * np.float32(1) != 0
interrupted(forward)
assert np.array_equal(forward()[0], want)
def backward(): nb.backward(forward(True)[3], want, None, None)
interrupted(backward)
assert np.array_equal(nb.backward(forward(True)[3], want, None, None)[0], gradient)
stream = nb.stream((nb.pack("lstm", *weights),) * 4, B)
first = stream.step(x[0])
interrupted(lambda: stream.step(x[0]))
try: stream.step(x[0])
except RuntimeError as error: assert "interrupted" in str(error)
stream.reset()
assert np.array_equal(stream.step(x[0]), first)
assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == blocked, "the caller's signals are blocked"
print("done")
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are sent the POSIX way")
@pytest.mark.parametrize("team", ["compiled", "own"])
def test_signals_in_a_call(team):
    """Handlers run with the caller's floating-point state; Ctrl-C ends a call, and all can be used afterwards."""
    assert "done" in python((WITHOUT_CORE if team == "own" else "") + SIGNALS)


# Cells in users' code ------------------------------------------------------------------------------------------------

G = {"lstm": 4, "gru": 3, "rnn": 1}
FORMS = {
    "lstm": ("lstm", {}),
    "gru": ("gru", {}),
    "gru_reset_before": ("gru", {"reset_after": False}),
    "rnn_tanh": ("rnn", {}),
    "rnn_relu": ("rnn", {"nonlinearity": "relu"}),
}


def weights_of(cell, I, H, dtype, rng):
    shapes = ((G[cell] * H, I), (G[cell] * H, H), (G[cell] * H,), (G[cell] * H,))
    return [rng.uniform(-0.5, 0.5, shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_sequences_in_jitted_code(form, dtype):
    """The bits of the layer, for one sequence and for a batch of several tiles; the state is the last."""
    rng = np.random.default_rng(0)
    cell, options = FORMS[form]
    pack, sequence = getattr(nb, f"{cell}_weights"), getattr(nb, f"{cell}_sequence")
    for T, B, I, H in ((6, 1, 3, 5), (5, 7, 20, 33), (4, 13, 64, 64)):
        given = weights_of(cell, I, H, dtype, rng)
        x = rng.standard_normal((T, B, I)).astype(dtype)
        want = getattr(fr, f"{cell}_forward")(x, *given, **options, backend="numba")
        y, h, c = np.empty((T, B, H), dtype), np.zeros((B, H), dtype), np.zeros((B, H), dtype)
        sequence(pack(*given, **options), x, *((h, c) if cell == "lstm" else (h,)), y)
        assert np.array_equal(y, want[0])
        assert np.array_equal(h, want[1])
        y, h, c = np.empty((T, H), dtype), np.zeros(H, dtype), np.zeros(H, dtype)
        sequence(pack(*given, **options), x[:, 0].copy(), *((h, c) if cell == "lstm" else (h,)), y)
        assert np.array_equal(y, want[0][:, 0])
        assert np.float32(1e-40) * np.float32(1) != 0, "the floating-point state was not restored"


@numba.njit(parallel=True)
def all_at_once(weights, x, h, c, y):
    for n in numba.prange(x.shape[0]):
        nb.lstm_sequence(weights, x[n], h[n], c[n], y[n])


def test_an_outer_prange():
    rng, I, H = np.random.default_rng(0), 5, 17
    given = weights_of("lstm", I, H, "float32", rng)
    x = rng.standard_normal((50, 9, I)).astype(np.float32)
    y, h, c = np.empty((50, 9, H), np.float32), np.zeros((50, H), np.float32), np.zeros((50, H), np.float32)
    all_at_once(nb.lstm_weights(*given), x, h, c, y)
    assert np.array_equal(y, fr.lstm_forward(x.transpose(1, 0, 2), *given, backend="numba")[0].transpose(1, 0, 2))


def test_what_does_not_fit_is_refused():
    rng = np.random.default_rng(0)
    given = weights_of("rnn", 3, 5, "float32", rng)
    packed, x, h = nb.rnn_weights(*given), np.zeros(3, np.float32), np.zeros(5, np.float32)
    nb.rnn_step(packed, x, h)
    with pytest.raises(ValueError, match="nonlinearity: expected 'tanh' or 'relu'"):
        nb.rnn_weights(*given, nonlinearity="step")
    with pytest.raises(ValueError, match="w_ih: expected shape"):
        nb.lstm_weights(*given)


SHARED = zeros(4, 5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": zeros(4, 7)}, "x: expected as many numbers in its last axis"),
        ({"x": zeros(1, 3)}, "x: expected a batch as large as that of h"),
        ({"x": zeros(3)}, "x: expected 2 axes of float32 as h, got 1 of float32"),
        ({"x": zeros(4, 3, dtype=np.float64)}, "x: expected 2 axes of float32 as h, got 2 of float64"),
        ({"x": zeros(4, 3, dtype=np.int32)}, "x: expected 2 axes of float32 as h, got 2 of int32"),
        ({"x": zeros(3, 4).T}, "x, h: expected contiguous rows"),
        ({"h": zeros(5, 4).T}, "x, h: expected contiguous rows"),
        ({"h": zeros(4, 6)}, "h: expected as many numbers in its last axis"),
        ({"h": zeros(4, 5, dtype=np.float64)}, "h: expected float32 as the weights, got float64"),
        ({"h": zeros(2, 4, 5)}, "h: expected an array"),
        ({"h": zeros(4, 5, writeable=False)}, "h: expected an array .* got readonly"),
        ({"c": zeros(3, 5)}, "c: expected the shape of h"),
        ({"c": zeros(4, 6)}, "c: expected the shape of h"),
        ({"c": zeros(4, 5, dtype=np.float64)}, "c: expected 2 axes of float32 as h"),
        ({"c": zeros(4, 5, writeable=False)}, "c: .* got readonly"),
        ({"c": zeros(5, 4).T}, "c: expected the shape of h, and contiguous rows"),
        ({"h": SHARED, "c": SHARED}, "c: expected an array of its own, got h"),
        ({"x": (1.0, 2.0)}, "x: expected an array, got UniTuple"),
        ({"c": None}, "c: expected an array, got none"),
    ],
)
def test_arrays_that_do_not_fit_a_step(changed, said):
    """Nothing is read or written past an array, or taken for what it is not."""
    packed = nb.lstm_weights(*weights_of("lstm", 3, 5, "float32", np.random.default_rng(0)))
    arrays = {"x": zeros(4, 3), "h": zeros(4, 5), "c": zeros(4, 5)}
    nb.lstm_step(packed, **arrays)
    with pytest.raises(ValueError, match=said):
        nb.lstm_step(packed, **{**arrays, **changed})


@numba.njit
def lstm(weights, x, h):
    nb.lstm_step(weights, x, h, h.copy())


@numba.njit
def gru(weights, x, h):
    nb.gru_step(weights, x, h)


@numba.njit
def rnn(weights, x, h):
    nb.rnn_step(weights, x, h)


PACK = {"lstm": nb.lstm_weights, "gru": nb.gru_weights, "rnn": nb.rnn_weights}


@pytest.mark.parametrize("step", [lstm, gru, rnn])
def test_weights_of_another_cell(step):
    """By type, in users' own functions too: panels of another width would be read past their end."""
    rng = np.random.default_rng(0)
    own = step.__name__
    all_weights = {cell: PACK[cell](*weights_of(cell, 3, 5, "float32", rng)) for cell in PACK}
    all_weights["before"] = nb.gru_weights(*weights_of("gru", 3, 5, "float32", rng), reset_after=False)
    arrays = zeros(4, 3), zeros(4, 5)
    packed = all_weights[own]
    step(packed, *arrays)
    wrong = [all_weights[cell] for cell in all_weights if cell != own and (cell, own) != ("before", "gru")]
    for weights in (*wrong, None, tuple(packed), packed.x):
        with pytest.raises(ValueError, match=rf"^weights: expected what {own}_weights\(\) packed, got "):
            step(weights, *arrays)
    twice = packed._replace(h=np.repeat(packed.h, 2, axis=-1))
    for weights in (
        packed._replace(bias=packed.bias.astype(np.float64)),
        packed._replace(h=packed.h.astype(np.float64)),
        twice._replace(h=twice.h[..., ::2]),
        packed._replace(x=packed.x[0]),
        packed._replace(x=1),
        packed._replace(h=1),
        type(packed)(*range(len(packed))),
    ):
        with pytest.raises(ValueError, match=r"^weights: expected contiguous fields of one dtype"):
            step(weights, *arrays)


def test_a_relu_out_of_a_stack():
    """Its flag may be any integer or bool by then, and nothing else."""
    rng = np.random.default_rng(0)
    packed, x = nb.rnn_weights(*weights_of("rnn", 3, 5, "float32", rng), nonlinearity="relu"), zeros(4, 3)
    want = fr.rnn_forward(x[None], *weights_of("rnn", 3, 5, "float32", np.random.default_rng(0)), nonlinearity="relu")[
        1
    ]
    for relu in (True, np.int8(1), np.bool_(True)):
        h = zeros(4, 5)
        rnn(packed._replace(relu=relu), x, h)
        assert np.array_equal(h, want)
    with pytest.raises(ValueError, match=r"^weights: expected contiguous fields"):
        rnn(packed._replace(relu=1.0), x, h)


def test_weights_as_the_layers_want_them():
    rng = np.random.default_rng(0)
    w_ih, w_hh, *_ = weights_of("gru", 3, 5, "float32", rng)
    with pytest.raises(TypeError, match="reset_after: expected True or False, got 1"):
        nb.gru_weights(w_ih, w_hh, reset_after=1)
    with pytest.raises(TypeError, match="w_ih: expected float32 or float64, got None"):
        nb.gru_weights(None, None)
    with pytest.raises(ValueError, match=r"w_ih: expected shape \(3\*H, I\) with H >= 1 and I >= 1, got \(15, 0\)"):
        nb.gru_weights(w_ih[:, :0], w_hh)
    with pytest.raises(TypeError, match="w_hh: expected float32, got float64"):
        nb.gru_weights(w_ih, w_hh.astype(np.float64))
    with pytest.raises(TypeError, match="cells: expected a tuple or list, got 'lstm'"):
        nb.compile("lstm")


@pytest.mark.parametrize("reset_after", [True, False])
def test_weights_of_two_cells(reset_after):
    """Fields out of stacks of other sizes."""
    rng = np.random.default_rng(0)
    small, large = (nb.gru_weights(*weights_of("gru", 3, H, "float32", rng), reset_after=reset_after) for H in (5, 300))
    nb.gru_step(small, zeros(4, 3), zeros(4, 5))
    for field in set(small._fields) - {"h"}:
        for one, other, H in ((small, large, 5), (large, small, 300)):
            with pytest.raises(ValueError, match="weights: expected fields of one cell"):
                nb.gru_step(one._replace(**{field: getattr(other, field)}), zeros(4, 3), zeros(4, H))
    with pytest.raises(ValueError, match="weights: expected fields of one cell"):
        nb.gru_step(large._replace(h=large.h[:1]), zeros(4, 3), zeros(4, 300))
    with pytest.raises(ValueError, match="weights: expected panels of this CPU's vectors"):
        nb.gru_step(small._replace(x=small.x[..., :1].copy()), zeros(4, 3), zeros(4, 5))


def test_a_last_axis_of_one():
    """A series as a column has neighbours nowhere, and needs none."""
    given = weights_of("lstm", 1, 1, "float32", np.random.default_rng(0))
    series = np.linspace(-1, 1, 8, dtype=np.float32)[::2, None]
    packed, h, c, y = nb.lstm_weights(*given), zeros(2, 1)[::2, 0], zeros(2, 1)[::2, 0], zeros(4, 1)
    nb.lstm_sequence(packed, series, h, c, y)
    assert np.array_equal(y, fr.lstm_forward(series[:, None], *given, backend="numba")[0][:, 0])
    nb.lstm_step(packed, zeros(0, 1), zeros(0, 1), zeros(0, 1))


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (zeros(2, 1, 3), zeros(2, 4, 5), "x: expected a batch as large as that of h"),
        (zeros(2, 4, 3), zeros(1, 4, 5), "y: expected as many steps as x has"),
        (zeros(2, 4, 3), zeros(2, 4, 6), "y: expected as many steps as x has, each of the shape of h"),
        (zeros(2, 4, 3), zeros(2, 4, 5, dtype=np.int64), "y: expected 3 axes of float32 as h, .* got array.int64"),
        (zeros(2, 4, 3), zeros(2, 4, 5, writeable=False), "y: expected 3 axes of float32 .* got readonly"),
        (zeros(2, 4, 3), zeros(8, 5), "y: expected 3 axes"),
        (zeros(2, 4, 3), None, "y: expected an array, got none"),
    ],
)
def test_arrays_that_do_not_fit_a_sequence(x, y, said):
    given = weights_of("gru", 3, 5, "float32", np.random.default_rng(0))
    with pytest.raises(ValueError, match=said):
        nb.gru_sequence(nb.gru_weights(*given), x, zeros(4, 5), y)


def test_the_snippet_of_the_documentation():
    """`simulate` leaves the state that the layer ends in."""
    text = (Path(__file__).parents[1] / "docs/numba.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    names = {}
    exec(compile(snippet, "numba.md", "exec"), names)
    names["lstm"].backend = "numba"
    _, (h_n, c_n) = names["lstm"](np.ones((100, 28), np.float32))
    assert_same({"h": names["h"], "c": names["c"]}, {"h": h_n[0], "c": c_n[0]})


def test_the_example(capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE.parent / "examples"))
    example = pytest.importorskip("numba_simulation")
    assert example.main(["--carts", "20", "--steps", "30"]) < 1e-4
    assert "Numba" in capsys.readouterr().out
    for option in ("--carts", "--steps", "--hidden"):
        with pytest.raises(SystemExit):
            example.main([option, "0"])
        assert f"{option}: expected at least 1, got 0" in capsys.readouterr().err
