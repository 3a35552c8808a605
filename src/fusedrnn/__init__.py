"""Fused recurrent cells for NumPy: RNN, GRU and LSTM, forward and backward over a sequence in one compiled call."""

from fusedrnn import backends, init, train
from fusedrnn.backends import use_backend
from fusedrnn.cells import GRUCell, LSTMCell, RNNCell
from fusedrnn.frozen import Frozen, Stream
from fusedrnn.functional import (
    Gradients,
    gru_backward,
    gru_forward,
    lstm_backward,
    lstm_forward,
    rnn_backward,
    rnn_forward,
)
from fusedrnn.info import show_config, version
from fusedrnn.layers import GRU, LSTM, RNN, LayerGradients
from fusedrnn.tape import Tape
from fusedrnn.threads import get_num_threads, set_num_threads

__version__ = version()

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Frozen",
    "GRUCell",
    "Gradients",
    "LSTMCell",
    "LayerGradients",
    "RNNCell",
    "Stream",
    "Tape",
    "backends",
    "get_num_threads",
    "gru_backward",
    "gru_forward",
    "init",
    "lstm_backward",
    "lstm_forward",
    "rnn_backward",
    "rnn_forward",
    "set_num_threads",
    "show_config",
    "train",
    "use_backend",
]
