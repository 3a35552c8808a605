"""Every cell and pass under its kernel's name, over sizes and dtypes, each checked against the reference before it is
timed: a frozen layer (forward), forward with a tape and backward (training), one step of a stream (stream)."""

from __future__ import annotations

import pytest
import work
from conftest import Timer
from work import Work

FLOAT64 = ((8, 100, 128, 128), (32, 50, 256, 256))


def over(points, float64=()):
    """Parametrise a benchmark over (B, T, I, H) and the dtype."""
    cases = [(*p, "float32") for p in points] + [(*p, "float64") for p in float64]
    return pytest.mark.parametrize("size", cases, ids=[f"B{B}-T{T}-I{I}-H{H}-{dtype}" for B, T, I, H, dtype in cases])


def forward(timer: Timer, job: Work) -> None:
    timer(job, work.inference(job), work.inference(job, "reference"), job.flops())


def training(timer: Timer, job: Work) -> None:
    timer(job, work.training(job), work.training(job, "reference"), job.flops(training=True))


def stream(timer: Timer, job: Work) -> None:
    seconds = timer(job, work.stream(job), work.stream(job, "reference"), job.flops())
    timer.note(microseconds=seconds * 1e6)


@over(work.POINTS, FLOAT64)
def test_rnn_tanh_forward(timer, size):
    forward(timer, Work("rnn_tanh", *size))


@over(work.POINTS, FLOAT64)
def test_rnn_tanh_training(timer, size):
    training(timer, Work("rnn_tanh", *size))


@over(work.STREAM_POINTS)
def test_rnn_tanh_stream(timer, size):
    stream(timer, Work("rnn_tanh", *size))


@over(work.POINTS, FLOAT64)
def test_rnn_relu_forward(timer, size):
    forward(timer, Work("rnn_relu", *size))


@over(work.POINTS, FLOAT64)
def test_rnn_relu_training(timer, size):
    training(timer, Work("rnn_relu", *size))


@over(work.STREAM_POINTS)
def test_rnn_relu_stream(timer, size):
    stream(timer, Work("rnn_relu", *size))


@over(work.POINTS, FLOAT64)
def test_gru_forward(timer, size):
    forward(timer, Work("gru", *size))


@over(work.POINTS, FLOAT64)
def test_gru_training(timer, size):
    training(timer, Work("gru", *size))


@over(work.STREAM_POINTS)
def test_gru_stream(timer, size):
    stream(timer, Work("gru", *size))


@over(work.POINTS, FLOAT64)
def test_gru_reset_before_forward(timer, size):
    forward(timer, Work("gru_reset_before", *size))


@over(work.POINTS, FLOAT64)
def test_gru_reset_before_training(timer, size):
    training(timer, Work("gru_reset_before", *size))


@over(work.STREAM_POINTS)
def test_gru_reset_before_stream(timer, size):
    stream(timer, Work("gru_reset_before", *size))


@over(work.POINTS, FLOAT64)
def test_lstm_forward(timer, size):
    forward(timer, Work("lstm", *size))


@over(work.POINTS, FLOAT64)
def test_lstm_training(timer, size):
    training(timer, Work("lstm", *size))


@over(work.STREAM_POINTS)
def test_lstm_stream(timer, size):
    stream(timer, Work("lstm", *size))
