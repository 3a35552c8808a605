"""Frozen layers and streams: the results of the layer they came from, for ever and from any thread.

Errors are in test_checks.py.
"""

import concurrent.futures
import contextlib
import copy
import inspect
import os
import pickle
import signal
import sys
import threading
import time

import numpy as np
import pytest

import fusedrnn as fr

CELLS = ("RNN", "GRU", "LSTM")
T, B, I, H = 7, 4, 3, 5


@pytest.fixture(params=fr.backends.NAMES)
def backend(request):
    if why := fr.backends.missing(request.param):
        pytest.skip(why)
    return request.param


def parts(state):
    return list(state) if isinstance(state, tuple) else [state]


def whole(cell, arrays):
    return tuple(arrays) if cell == "LSTM" else arrays[0]


def assert_same(found, expected, backend="cython"):
    """Bit for bit; the reference promises numbers only: float32, and sums of a dozen terms of size 1."""
    for f, e in zip(parts(found), parts(expected), strict=True):
        if backend == "reference":
            np.testing.assert_allclose(f, e, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(f, e, strict=True)


def sequence(steps=T, seed=1):
    return np.random.default_rng(seed).standard_normal((steps, B, I)).astype(np.float32)


# ----------------------------------------------------------------------------------------------------- frozen layers


@pytest.mark.parametrize("lengths", [None, [7, 0, 3, 5]], ids=["full", "ragged"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time-major", "batch-first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize(
    ("cell", "own"),
    [("RNN", {"nonlinearity": "relu"}), ("GRU", {"reset_after": False}), ("GRU", {}), ("LSTM", {"bias": False})],
)
def test_same_as_the_layer(cell, own, num_layers, bidirectional, batch_first, lengths, backend):
    layer = getattr(fr, cell)(
        I, H, num_layers, bidirectional=bidirectional, batch_first=batch_first, rng=0, backend=backend, **own
    )
    fast = layer.freeze()
    x = sequence().swapaxes(0, 1) if batch_first else sequence()
    y, state = layer(x, None, lengths)
    assert_same(fast(x, None, lengths)[0], y)
    assert_same(fast(x, None, lengths)[1], state)
    assert_same(fast(x, state, lengths)[0], layer(x, state, lengths)[0])
    assert_same(fast(x, state=state, lengths=lengths)[1], layer(x, state, lengths)[1])


@pytest.mark.parametrize("cell", CELLS)
def test_unbatched(cell, backend):
    layer = getattr(fr, cell)(I, H, rng=0, backend=backend)
    y, state = layer(sequence()[:, 0])
    found, last = layer.freeze()(sequence()[:, 0])
    assert found.shape == (T, H)
    assert_same(found, y)
    assert_same(last, state)


def test_training_on_does_not_change_it(backend):
    layer = fr.LSTM(I, H, rng=0, backend=backend)
    fast = layer.freeze()
    expected = layer(sequence())[0]
    for value in layer.parameters.values():
        value[...] = 0
    assert_same(fast(sequence())[0], expected)


def test_results_are_the_callers(backend):
    """A result is not overwritten by the next call, nor is an argument by this one."""
    fast = fr.LSTM(I, H, rng=0, backend=backend).freeze()
    x = sequence()
    before = x.copy()
    y, state = fast(x)
    kept = y.copy(), *(s.copy() for s in state)
    for a in (y, *state):
        a[...] = 0
    fast(x, state)
    assert_same(x, before)
    again, state = fast(x)
    assert_same((again, *state), kept)


@pytest.mark.parametrize("cell", CELLS)
def test_threads_share_it(cell, backend):
    fast = getattr(fr, cell)(I, H, 2, bidirectional=True, rng=0, backend=backend).freeze()
    xs = [sequence(seed=seed) for seed in range(16)]
    expected = [fast(x)[0] for x in xs]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for found, e in zip(pool.map(lambda x: fast(x)[0], xs * 4), expected * 4, strict=True):
            assert_same(found, e)


def test_it_stays_on_its_backend():
    layer = fr.GRU(I, H, rng=0)
    with fr.use_backend("reference"):
        fast = layer.freeze()
    assert repr(fast) == "<frozen GRU(3, 5) on reference>"
    assert repr(layer.freeze()) == f"<frozen GRU(3, 5) on {fr.backends.get().name}>"


def test_it_cannot_be_changed():
    fast = fr.LSTM(I, H).freeze()
    for name in (*fast.__slots__, "new"):
        with pytest.raises(AttributeError, match=rf"^{name}: a frozen layer cannot be changed$"):
            setattr(fast, name, None)
        with pytest.raises(AttributeError, match=rf"^{name}: a frozen layer cannot be changed$"):
            delattr(fast, name)


def test_copies_are_itself():
    fast = fr.LSTM(I, H).freeze()
    assert copy.copy(fast) is fast
    assert copy.deepcopy({"a": fast})["a"] is fast
    with pytest.raises(TypeError, match=r"^a frozen layer cannot be pickled: pickle the layer and freeze it again$"):
        pickle.dumps(fast)


def test_any_layout(backend):
    fast = fr.LSTM(I, H, rng=0, backend=backend).freeze()
    x = sequence()
    expected = fast(x)[0]
    for form in (np.asfortranarray(x), x[:, ::-1].copy()[:, ::-1], x.astype(">f4"), np.repeat(x, 2, axis=2)[..., ::2]):
        assert_same(fast(form)[0], expected, backend)


# ------------------------------------------------------------------------------------------------------------ streams


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize(
    ("cell", "own"),
    [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("GRU", {}), ("GRU", {"reset_after": False}), ("LSTM", {})],
)
def test_a_stream_is_the_sequence(cell, own, num_layers, backend):
    fast = getattr(fr, cell)(I, H, num_layers, rng=0, backend=backend, **own).freeze()
    y, state = fast(sequence())
    stream = fast.stream(batch_size=B)
    for x_t, y_t in zip(sequence(), y, strict=True):
        assert_same(stream.step(x_t), y_t, backend)
    assert_same(stream.state, state, backend)


def test_out_is_written_and_returned(backend):
    stream = fr.GRU(I, H, rng=0, backend=backend).freeze().stream(B)
    out = np.full((B, H), np.nan, np.float32)
    assert stream.step(sequence()[0], out=out) is out
    first = out.copy()
    assert_same(stream.state[0], first)
    assert stream.step(sequence()[0], out) is out
    assert (out != first).all()
    new = stream.step(sequence()[0])
    assert new is not out
    assert not np.shares_memory(new, stream.step(sequence()[0]))


def test_what_comes_as_out_is_let_go(backend):
    """Whether it is taken or refused."""
    stream = fr.GRU(I, H, rng=0, backend=backend).freeze().stream(B)
    for out in np.empty((B, H), np.float32), np.empty((B, H + 1), np.float32):
        before = sys.getrefcount(out)
        for _ in range(5):
            with contextlib.suppress(ValueError):
                stream.step(sequence()[0], out=out)
        assert sys.getrefcount(out) == before


def test_the_batch_may_be_strided(backend):
    fast = fr.LSTM(I, H, rng=0, backend=backend).freeze()
    one, other = fast.stream(B), fast.stream(B)
    wide = np.full((2 * B, 2 * H), np.nan, np.float32)
    for x_t in sequence():
        expected = one.step(x_t)
        assert_same(other.step(np.repeat(x_t, 2, axis=0)[::2], out=wide[::2, 1::2]), expected)
        assert_same(wide[::2, 1::2], expected)
        assert np.isnan(wide[1::2]).all()


@pytest.mark.parametrize("cell", CELLS)
def test_the_state_can_be_read_and_set(cell, backend):
    fast = getattr(fr, cell)(I, H, 2, rng=0, backend=backend).freeze()
    one, other = fast.stream(B), fast.stream(B)
    assert all(s.shape == (2, B, H) and not s.any() for s in parts(one.state))
    x = sequence()
    for x_t in x[:3]:
        one.step(x_t)
    state = one.state
    other.state = state
    for x_t in x[3:]:
        assert_same(other.step(x_t), one.step(x_t))
    copies = [s.copy() for s in parts(state)]
    for s in parts(state):
        s[...] = 0
    one.state = whole(cell, copies)
    assert_same(one.state, whole(cell, copies))
    one.step(x[0])
    assert_same(fast(x[:1], whole(cell, copies))[1], one.state, backend)


@pytest.mark.parametrize("cell", CELLS)
def test_reset_and_none_are_zeros(cell, backend):
    stream = getattr(fr, cell)(I, H, 2, rng=0, backend=backend).freeze().stream(B)
    first = stream.step(sequence()[0])
    stream.reset()
    assert all(not s.any() for s in parts(stream.state))
    assert_same(stream.step(sequence()[0]), first)
    stream.state = None
    assert_same(stream.step(sequence()[0]), first)
    if cell == "LSTM":
        h, c = stream.state
        stream.state = h, None
        assert_same(stream.state, (h, np.zeros_like(c)))
        stream.state = [None, c]
        assert_same(stream.state, (np.zeros_like(h), c))


def test_an_error_leaves_the_state(backend):
    stream = fr.LSTM(I, H, rng=0, backend=backend).freeze().stream(B)
    stream.step(sequence()[0])
    before = stream.state
    with pytest.raises(ValueError, match=r"^x_t: "):
        stream.step(np.ones((B, I + 1), np.float32))
    with pytest.raises(ValueError, match=r"^c: "):
        stream.state = (before[0], before[1][:, 1:])
    assert_same(stream.state, before)


def test_streams_are_independent(backend):
    layer = fr.LSTM(I, H, rng=0, backend=backend)
    fast = layer.freeze()
    one, other = fast.stream(B), fast.stream(batch_size=1)
    one.step(sequence()[0])
    assert not other.state[0].any()
    del layer, fast
    assert one.step(sequence()[1]).shape == (B, H)
    assert other.step(np.ones((1, I), np.float32)).shape == (1, H)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_a_copy_of_a_stream_goes_its_own_way(cell, duplicate, backend):
    x = sequence()
    stream = getattr(fr, cell)(I, H, 2, rng=0, backend=backend).freeze().stream(B)
    stream.step(x[0])
    twin = duplicate(stream)
    before = stream.state
    assert_same(twin.state, before)
    h = twin.step(x[1])
    assert_same(stream.state, before)
    assert_same(stream.step(x[1]), h)
    assert_same(stream.state, twin.state)


def test_a_stream_says_what_it_is():
    fast = fr.GRU(I, H, 2, rng=0, dtype="f8").freeze()
    stream = fast.stream()
    assert repr(stream) == "<stream of GRU(3, 5, num_layers=2, dtype='float64'), batch_size=1>"
    assert stream.batch_size == 1
    for each in (fast, stream):
        assert (each.input_size, each.hidden_size, each.num_layers, each.dtype) == (I, H, 2, np.float64)
    assert "Run one time step." in inspect.getdoc(fr.Stream.step)
    for name in ("new", "step", "batch_size"):
        with pytest.raises(AttributeError, match=f"^{name}: only the state of a stream can be changed$"):
            setattr(stream, name, 1)
        with pytest.raises(AttributeError, match=f"^{name}: only the state of a stream can be changed$"):
            delattr(stream, name)
    with pytest.raises(TypeError, match=r"^a stream cannot be pickled: pickle the layer and the stream's state$"):
        pickle.dumps(stream)


@pytest.mark.parametrize("hidden", [5, 200], ids=["short", "long"])  # a long step lets the GIL go
def test_threads_that_share_a_stream(hidden, backend):
    """A step is done whole or refused. This stream counts: layer 1 to n, and layer 2 to the sum of 1 to n."""
    layer = fr.RNN(hidden, hidden, 2, nonlinearity="relu", bias=False, backend=backend)
    for parameter in layer.parameters.values():
        parameter[...] = np.eye(hidden)
    stream, x = layer.freeze().stream(batch_size=B), np.ones((B, hidden), np.float32)
    together = threading.Barrier(4)

    def steps(_):
        found = []
        together.wait()
        for _ in range(250):
            try:
                found.append(stream.step(x))
            except RuntimeError as error:
                if "a step is under way" not in str(error):
                    raise
        return found

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = [y for each in pool.map(steps, range(4)) for y in each]
    n = len(found)
    assert {(y.min(), y.max()) for y in found} == {(k * (k + 1) // 2, k * (k + 1) // 2) for k in range(1, n + 1)}
    assert (stream.state[0] == n).all()
    assert (stream.state[1] == n * (n + 1) // 2).all()


def test_a_state_is_read_whole(backend):
    """h and c of the same step, however many another thread takes meanwhile."""
    stream, xs = fr.LSTM(I, H, rng=0, backend=backend).freeze().stream(batch_size=B), sequence(1000)

    def read():
        return tuple(part.tobytes() for part in stream.state)

    legal = {read()}
    for x in xs:
        stream.step(x)
        legal.add(read())
    stop, found = threading.Event(), set()

    def until_done(call):
        while not stop.is_set():
            with contextlib.suppress(RuntimeError):  # until the other one is out of the way
                return call()
        return None

    def steps():
        while not stop.is_set():
            until_done(stream.reset)
            for x in xs:
                until_done(lambda x=x: stream.step(x))

    thread, interval = threading.Thread(target=steps), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    thread.start()
    try:
        while len(found) < 300:
            found.add(until_done(read))
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert found <= legal


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs a timer's signals")
def test_an_interrupt_at_any_time_leaves_a_stream_usable(backend):
    """A handler that raises wherever it happens to run: what comes after it finds nobody at work in the stream."""
    stream = fr.GRU(3, 4, rng=0, backend=backend).freeze().stream()
    rng, hits = np.random.default_rng(0), 0

    def handler(*_):
        raise InterruptedError

    def operate():
        stream.reset()
        stream.state = stream.state

    operate()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(3000):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 6e-5))
                for _ in range(20):
                    operate()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except InterruptedError:
                hits += 1
            with contextlib.suppress(InterruptedError):  # one that was late
                signal.setitimer(signal.ITIMER_REAL, 0)
            stream.reset()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert hits > 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # that it has threads
@pytest.mark.parametrize("cell", ["GRU", "LSTM"])
def test_a_fork_while_another_thread_is_in_a_step(cell, backend):
    """The child has no such thread: the stream's last step counts as interrupted there, and a new state mends it."""
    # The reference's products are NumPy's: OpenBLAS stands still for ever where a fork meets a large one.
    batch, width, hidden = (1, 2, 3) if backend == "reference" else (8, 64, 512)
    layer = getattr(fr, cell)(width, hidden, 2, rng=0, backend=backend)
    stream, x = layer.freeze().stream(batch_size=batch), np.ones((batch, width), np.float32)
    stream.step(x)
    state = copy.deepcopy(stream.state)
    expected = stream.step(x).copy()
    stop, fates = threading.Event(), set()

    def steps():
        while not stop.is_set():
            stream.step(x)

    def child():
        fate = 0
        try:
            stream.step(x)
        except RuntimeError as error:
            fate = 7 if "interrupted" in str(error) else 1
        stream.state = state
        return fate if np.allclose(stream.step(x), expected, rtol=1e-5, atol=1e-6) else 2

    thread = threading.Thread(target=steps)
    thread.start()
    try:
        for _ in range(100):
            time.sleep(0.003)
            if (pid := os.fork()) == 0:
                signal.alarm(30)
                try:
                    os._exit(child())
                finally:
                    os._exit(3)
            fates.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            if 7 in fates:
                break
    finally:
        stop.set()
        thread.join()
    assert fates in ({7}, {0, 7})
    stream.state = state
    assert_same(stream.step(x), expected)


def test_the_reference_knows_of_a_step_that_was_interrupted(monkeypatch):
    module = sys.modules[type(fr.GRU(I, H, backend="reference").freeze().stream()._stepper).__module__]
    stream, x = fr.GRU(I, H, 2, rng=0, backend="reference").freeze().stream(batch_size=B), sequence(1)[0]
    first = stream.step(x)
    stream.reset()
    step_forward, calls = module.step_forward, []

    def interrupted(*arguments):
        calls.append(0)
        with pytest.raises(RuntimeError, match="a step is under way"):
            stream.reset()
        with pytest.raises(RuntimeError, match="a step is under way"):
            stream.state  # noqa: B018
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step_forward(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "step_forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.step(x)
    for asked in (lambda: stream.step(x), lambda: stream.state, lambda: copy.copy(stream)):
        with pytest.raises(RuntimeError, match="its last step was interrupted"):
            asked()
    stream.reset()
    assert_same(stream.step(x), first)
