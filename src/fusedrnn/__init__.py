"""Fused recurrent cells for NumPy: RNN, GRU and LSTM, forward and backward over a sequence in one compiled call."""

from fusedrnn import backends
from fusedrnn.backends import use_backend
from fusedrnn.functional import (
    Gradients,
    Tape,
    gru_backward,
    gru_forward,
    lstm_backward,
    lstm_forward,
    rnn_backward,
    rnn_forward,
)

__version__ = "0.1.0"

__all__ = [
    "Gradients",
    "Tape",
    "backends",
    "gru_backward",
    "gru_forward",
    "lstm_backward",
    "lstm_forward",
    "rnn_backward",
    "rnn_forward",
    "use_backend",
]
