"""The examples in the docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fusedrnn as fr

# The compiled module has no docstrings of its own to try; __main__ is a command.
MODULES = ["fusedrnn"] + [
    module.name
    for module in pkgutil.walk_packages(fr.__path__, "fusedrnn.")
    if module.name.rpartition(".")[2] not in ("_core", "__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    if name.startswith("fusedrnn.numba"):
        pytest.importorskip("numba")
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_there_are_examples():
    """What a user calls shows how."""
    finder = doctest.DocTestFinder(recurse=False)
    shown = [name for name in fr.__all__ if any(test.examples for test in finder.find(getattr(fr, name), name))]
    assert {"lstm_forward", "gru_forward", "rnn_forward", "LSTM", "GRU", "RNN"} <= set(shown)
