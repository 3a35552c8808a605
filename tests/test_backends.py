"""Which backend runs: by name, environment and use_backend, in blocks and threads; what is missing, what is broken."""

import dataclasses
import importlib
import os
import subprocess
import sys
import threading

import numpy as np
import pytest

import fusedrnn as fr
from fusedrnn import backends

OTHER = "reference"  # there is always this one


def python(code, **environment):
    """Run code in an interpreter of its own, with only these of our variables set."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("FUSEDRNN_")}
    return subprocess.run([sys.executable, "-c", code], env=env | environment, capture_output=True, text=True)


def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def name():
    return backends.get().name


@pytest.fixture
def fastest(monkeypatch):
    """Nobody has chosen, and the environment is silent: the name of the default."""
    monkeypatch.setattr(backends, "_wanted", None)
    monkeypatch.setattr(backends, "_default", None)
    monkeypatch.setattr(backends, "_process", None)
    return backends.available()[0]


def test_default_is_the_fastest(fastest):
    assert name() == fastest
    assert backends.available()[-1] == OTHER
    assert set(backends.available()) <= set(backends.NAMES)


def test_every_available_backend_has_the_four_functions():
    for one in backends.available():
        backend = backends.get(one)
        assert backend.name == one
        assert backend is backends.get(one)
        assert all(callable(getattr(backend, f)) for f in ("pack", "forward", "backward", "stream"))


def test_the_backend_of_a_call(monkeypatch):
    """An argument comes before what was chosen; None is what was chosen."""
    called = []
    for one in backends.available():
        found = backends.get(one)
        spy = dataclasses.replace(found, forward=lambda *args, f=found: called.append(f.name) or f.forward(*args))
        monkeypatch.setitem(backends._loaded, one, spy)
    x, w_ih, w_hh = np.ones((1, 1, 1)), np.ones((1, 1)), np.ones((1, 1))
    for one in backends.available():
        fr.rnn_forward(x, w_ih, w_hh, backend=one)
        fr.RNN(1, 1, dtype="f8", backend=one)(x)
        fr.RNNCell(1, 1, dtype="f8", backend=one)(x[0])
        with fr.use_backend(one):
            fr.rnn_forward(x, w_ih, w_hh)
            fr.RNN(1, 1, dtype="f8")(x)
            fr.RNN(1, 1, dtype="f8").freeze()(x)
        assert called == [one] * 6
        called.clear()


def test_use_backend_as_a_call(fastest):
    fr.use_backend(OTHER)
    assert name() == OTHER
    assert in_thread(name) == OTHER
    fr.use_backend(fastest)
    assert name() == fastest


def test_use_backend_as_a_block(fastest):
    with fr.use_backend(OTHER) as nothing:
        assert nothing is None
        assert name() == OTHER
        assert in_thread(name) == OTHER
        with fr.use_backend(fastest):
            assert name() == fastest
        assert name() == OTHER
        fr.use_backend(fastest)  # holds to the end of the block
        assert name() == fastest
    assert name() == fastest


def test_a_block_may_be_entered_again(fastest):
    choice = fr.use_backend(OTHER)
    with choice:
        assert name() == OTHER
    assert name() == fastest
    with choice:
        assert name() == OTHER
        with fr.use_backend(fastest), choice:
            assert name() == OTHER
        assert name() == OTHER
    assert name() == fastest


def test_a_block_is_left_by_an_error_too(fastest):
    with pytest.raises(KeyError), fr.use_backend(OTHER):
        raise KeyError
    assert name() == fastest


def test_a_thread_chooses_for_itself_alone(fastest):
    names = backends.available()
    start, wrong = threading.Barrier(len(names) * 2), []

    def work(mine):
        start.wait()
        for _ in range(200):
            with fr.use_backend(mine):
                if name() != mine:
                    wrong.append(mine)
            if name() != fastest:
                wrong.append("outside")
        fr.use_backend(mine)
        if name() != mine:
            wrong.append("call")

    threads = [threading.Thread(target=work, args=(one,)) for one in names * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert name() == fastest


def test_a_threads_own_choice_comes_before_the_main_threads(fastest):
    chosen, go = threading.Event(), threading.Event()
    found = []

    def work():
        fr.use_backend(fastest)
        chosen.set()
        go.wait()
        found.append(name())

    thread = threading.Thread(target=work)
    thread.start()
    chosen.wait()
    with fr.use_backend(OTHER):
        go.set()
        thread.join()
    assert found == [fastest]


def test_blocks_of_a_thread_lie_in_each_other(fastest):
    def work():
        with fr.use_backend(OTHER):
            with fr.use_backend(fastest):
                inside = name()
            return inside, name()

    assert in_thread(work) == (fastest, OTHER)


def test_the_environment_chooses():
    show = "print(fr.backends.get().name); "
    code = f"import fusedrnn as fr; {show} fr.use_backend('reference'); {show}"
    fastest = backends.available()[0]
    assert python(code, FUSEDRNN_BACKEND="reference").stdout.split() == [OTHER, OTHER]
    assert python(code, FUSEDRNN_BACKEND="").stdout.split() == [fastest, OTHER]
    assert python(code).stdout.split() == [fastest, OTHER]
    code = code.replace(OTHER, fastest)
    assert python(code, FUSEDRNN_BACKEND=OTHER).stdout.split() == [OTHER, fastest]


def test_the_environment_names_no_backend():
    result = python("import fusedrnn", FUSEDRNN_BACKEND="quick")
    assert result.returncode == 1
    assert result.stderr.endswith(
        "ValueError: FUSEDRNN_BACKEND: expected 'cython', 'numba' or 'reference', got 'quick'\n"
    )


WITHOUT = "import sys; sys.modules['fusedrnn._core'] = sys.modules['numba'] = None; import fusedrnn as fr; "


def test_what_is_not_installed_is_left_out_of_the_default():
    code = WITHOUT + "print(fr.backends.available(), fr.backends.get().name, fr.backends.missing('cython'))"
    expected = "('reference',) reference backend 'cython' is not installed: "
    assert python(code).stdout.startswith(expected)
    for call in (
        "fr.use_backend('cython')",
        "fr.LSTM(1, 1, backend='cython')",
        "fr.lstm_forward(1, 2, 3, backend='cython')",
    ):
        result = python(WITHOUT + call)
        assert "ModuleNotFoundError: backend 'cython' is not installed: " in result.stderr
    result = python(WITHOUT + "fr.RNN(1, 1)", FUSEDRNN_BACKEND="cython")
    assert "ModuleNotFoundError: backend 'cython' is not installed: " in result.stderr


@pytest.mark.parametrize(
    "error", [ImportError("undefined symbol"), ModuleNotFoundError("no gizmo", name="gizmo"), ValueError("isa")]
)
@pytest.mark.usefixtures("fastest")
def test_what_is_broken_is_an_error_and_no_fallback(error, monkeypatch):
    def broken(module):
        if module == "fusedrnn._core":
            raise error
        return importlib.import_module(module)

    monkeypatch.delitem(backends._loaded, "cython", raising=False)
    monkeypatch.setattr(backends, "importlib", type("importlib", (), {"import_module": staticmethod(broken)}))
    for call in (backends.get, backends.available, lambda: backends.get("cython"), lambda: fr.RNN(1, 1)):
        with pytest.raises(type(error), match=str(error)):
            call()


def test_importing_loads_no_backend():
    """Of the backends only the one that runs is imported."""
    names = ("fusedrnn._core", "numba", "fusedrnn.reference")
    code = f"import sys; import fusedrnn; print([n for n in sys.modules if n in {names}])"
    assert python(code).stdout == "[]\n"
    code = "import sys, fusedrnn; fusedrnn.backends.available(); print('numba' in sys.modules)"
    assert python(code).stdout == "False\n"


def test_no_numba_where_there_are_no_posix_threads():
    code = "import os, fusedrnn as fr; os.name = 'nt'; print(fr.backends.missing('numba'))"
    assert python(code).stdout == "backend 'numba' is not installed: fusedrnn.numba needs POSIX threads\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_choice_in_a_child_of_a_thread_that_had_made_one():
    """The child's main thread is what was another thread before; its choice holds, for all, and ends with its block."""
    found = python("""
import os, threading, fusedrnn as fr

def names():
    seen = [fr.backends.get().name]
    thread = threading.Thread(target=lambda: seen.append(fr.backends.get().name))
    thread.start()
    thread.join()
    return seen

def work():
    with fr.use_backend("reference"):
        if (pid := os.fork()) == 0:
            with fr.use_backend(other):
                print(names() == [other, other], flush=True)
            print(names()[0] == "reference", flush=True)
            os._exit(0)
        os.waitpid(pid, 0)

other = fr.backends.available()[0]
thread = threading.Thread(target=work)
thread.start()
thread.join()
""")
    assert found.stdout.split() == ["True", "True"], found
