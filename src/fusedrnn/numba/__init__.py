"""The Numba backend: the cells of kernels/ compiled just in time, and callable from users' own jitted functions.

`fusedrnn.numba` is both a backend (see fusedrnn.backends) and what a simulation in Numba imports its cells from.
"""

import os

if os.name != "posix":  # forks are watched and threads started as POSIX has them
    raise ModuleNotFoundError("fusedrnn.numba needs POSIX threads", name="numba")
try:
    import numba as _numba  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "numba":
        raise
    raise ModuleNotFoundError("fusedrnn.numba needs Numba: pip install fusedrnn[numba]", name="numba") from error

from fusedrnn.numba.backend import backward, compile, forward, pack, sigmoid, stream, tanh  # noqa: A004
from fusedrnn.numba.cells import (
    GRUResetBeforeWeights,
    GRUWeights,
    LSTMWeights,
    RNNWeights,
    gru_sequence,
    gru_step,
    gru_weights,
    lstm_sequence,
    lstm_step,
    lstm_weights,
    rnn_sequence,
    rnn_step,
    rnn_weights,
)
from fusedrnn.threads import get_num_threads, set_num_threads

__all__ = [
    "GRUResetBeforeWeights",
    "GRUWeights",
    "LSTMWeights",
    "RNNWeights",
    "backward",
    "compile",
    "forward",
    "get_num_threads",
    "gru_sequence",
    "gru_step",
    "gru_weights",
    "lstm_sequence",
    "lstm_step",
    "lstm_weights",
    "pack",
    "rnn_sequence",
    "rnn_step",
    "rnn_weights",
    "set_num_threads",
    "sigmoid",
    "stream",
    "tanh",
]
