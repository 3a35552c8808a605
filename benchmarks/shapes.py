"""The shapes that are measured, and nowhere else. (B, T, I, H): batch, steps, input size, hidden size."""

from __future__ import annotations

import numpy as np

from fusedrnn.bench.work import GATES, Work

CELLS = tuple(GATES)
THREE = ("rnn_tanh", "gru", "lstm")
Shape = tuple[int, int, int, int]

GRID: tuple[Shape, ...] = (
    (1, 100, 64, 64),
    (1, 100, 256, 256),
    (1, 100, 512, 512),
    (8, 100, 128, 128),
    (32, 50, 256, 256),
    (64, 50, 512, 512),
    (64, 25, 1024, 1024),
    (128, 28, 28, 128),
)
GRID_FLOAT64 = tuple(GRID[i] for i in (1, 3, 4, 7))
ODD: tuple[Shape, ...] = ((1, 200, 16, 100), (3, 60, 20, 150), (17, 40, 33, 190), (48, 30, 40, 330), (250, 20, 64, 64))
STREAMS: tuple[Shape, ...] = (
    (1, 1, 32, 32),
    (1, 1, 28, 100),
    (1, 1, 256, 256),
    (1, 1, 512, 512),
    (8, 1, 128, 128),
    (32, 1, 256, 256),
)

# DeepBench's training and server shapes, I = H. Its T, unless one forward pass would take more than DEEP operations:
# a step costs the same as the one before, and the suite has a time to keep. FEWEST share what a sequence costs once.
DEEP, FEWEST = 8e9, 8
DEEPBENCH: tuple[tuple[str, Shape], ...] = (
    *(("lstm", (B, 25, H, H)) for H in (512, 1024, 2048) for B in (16, 32, 64, 128)),
    *(("lstm", (B, 50, 1536, 1536)) for B in (8, 16, 32)),
    *(("lstm", (B, 150, 256, 256)) for B in (16, 32, 64)),
    *(("gru", (32, T, H, H)) for H, T in ((1024, 1500), (1536, 750), (2048, 375))),
    *(("rnn_tanh", (B, 50, 1760, 1760)) for B in (16, 32, 64, 128)),
)

SMALL: dict[str, Work] = {  # networks that people run
    "speech_bidirectional": Work("lstm", 1, 63, 24, 32, bidirectional=True),
    "amp_8": Work("lstm", 1, 1024, 1, 8),
    "amp_16": Work("lstm", 1, 1024, 1, 16),
    "amp_24": Work("lstm", 1, 1024, 1, 24),
    "g2p": Work("gru", 1, 12, 256, 256),
    "thai": Work("gru", 1, 20, 256, 512),
    "short_wide": Work("lstm", 500, 5, 510, 32),
    "long_stack": Work("lstm", 8, 2000, 256, 256, layers=2),
}

AXES: dict[str, tuple[Shape, tuple[int, ...]]] = {  # one size grows, the others stay
    "T": ((16, 0, 128, 128), (8, 32, 128, 512)),
    "B": ((0, 50, 128, 128), (1, 4, 16, 64, 256)),
    "H": ((16, 50, 128, 0), (16, 64, 256, 1024)),
}
THREADED: Shape = (64, 25, 512, 512)


def shortened(cell: str, shape: Shape, flops: float = DEEP) -> Work:
    """The work, with as many of its steps as so many operations allow, FEWEST at least."""
    B, T, I, H = shape
    step = Work(cell, B, 1, I, H).flops("stream")
    return Work(cell, B, min(T, max(FEWEST, int(flops / step))), I, H)


def ragged(kind: str, B: int = 32, T: int = 50) -> tuple[int, ...]:
    """Lengths: "uniform" in 1..T, "one_long" among short ones, "all_short" in a long array."""
    if kind == "uniform":
        return tuple(int(n) for n in np.random.default_rng(3).integers(1, T, B, endpoint=True))
    return (T if kind == "one_long" else T // 10, *[T // 10] * (B - 1))


def grown(axis: str, cell: str, value: int) -> Work:
    """The work of one point of a scaling curve."""
    sizes = dict(zip("BTIH", AXES[axis][0], strict=True)) | {axis: value}
    return Work(cell, **sizes)


def named(job: Work) -> str:
    """B1-T100-I64-H64."""
    return "-".join(f"{name}{value}" for name, value in zip("BTIH", (job.B, job.T, job.I, job.H), strict=True))
