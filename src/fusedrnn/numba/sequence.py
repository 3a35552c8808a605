"""THE TIME LOOP, one for every cell, dtype and both passes, and what stands around it: packing, the partition of work
over the team, the parameter gradients. The twin of kernels/time_loop.pxi and its neighbours, without narrow panels,
panels shared by rows, matrices read as they came or packed late, dW's lent memory and open steps. What memory holds,
why one barrier a stage is enough and how a signal ends a run stands in kernels/README.md.

Structures lie at addresses, in memory that `backend` allocates, and tiles and gate math are called by address: so this
file is compiled once, whatever the cell, the dtype and the layout. Arguments come checked; it refuses to allocate.
"""

from typing import Any

import numpy as np

from fusedrnn.numba.jit import VECTOR_BYTES, Kernel, inlined, inner
from fusedrnn.numba.machine import (
    at,
    call,
    call_acquire,
    call_asleep,
    call_native,
    call_nothing,
    call_python,
    clear,
    copy,
    count,
    fp_now,
    fp_restore,
    get,
    integer,
    peek,
    poke,
    put,
    raise_again,
    released,
    retaken,
    seconds,
    share,
    signals,
    stack,
    swap,
    unshare,
)
from fusedrnn.numba.team import spin
from fusedrnn.numba.tile import LEFT, PACK, PANEL, POINTWISE, PRODUCT, record, widths_for
from fusedrnn.numba.vec import real, set_real
from fusedrnn.threads import own_cache

__all__ = ["CELL", "FRAME_BYTES"]

# What a cell is to the loop: words of a description. A SHARE is a product within the cell: which gates take part, and
# which segments of the gate row; see `Cell` and `Share` in cell.pxi.
GATES, SEGMENTS, STAGES, STATES, PLAIN, OF_X, OF_H, RIGHT, SOURCE = 0, 1, 2, 3, 4, 5, 9, 13, 17
SHARE_X, SHARE_H, SHARE_DH = 19, 25, 37
SHARE_WORDS = 6  # gates, segment, gate[4]
CELL_WORDS = 49

# Tunables; their reasons stand in _core.pyx.
CHUNK = 128
LEFT_DEPTH = 512
LEFT_DEPTH_FAR = 1024
FAR_BYTES = 8 * 1024 * 1024
LEFT_STRIP = 48
DX_ROWS = 48
WAY_BYTES = 2048
SERPENT = 128 * 1024
FEW_ROWS = 8
SHARED_WORK = 300000
PIECE = 16 * 1024 * 1024
CLEARED = 32
L2_STAYS, L2_RETURNS, L2_APART = 15 * own_cache() // 16, 3 * own_cache() // 5, 11 * own_cache() // 5
PATIENCE = 1e-3
SIGNAL_SECONDS = 0.05
SIGNAL_WORK = 2e7
COST_BARRIER, COST_CALL, COST_LINE = 350.0, 2000.0, 20.0
MET_ROWS = 4
RATE_FMA, RATE_L1, RATE_L2, RATE_L3 = 55.0, 150.0, 80.0, 20.0
STREAMING = 0.25
COST_BESIDE, COST_FAR, FAR_SECONDS = 1000.0, 2500.0, 120e-9
LOOK_SECONDS, LOOK_PATIENCE, MEETINGS = 0.1, 20e-6, 64
TRIED, SETTLED, TRIED_FIRST = 7, 2, 32
WORTH_CHANGING, WORTH_LEAVING, NO_QUESTION, NO_QUESTION_TIMES, AWAKE = 0.95, 0.9, 200e-6, 500.0, 200e-6
TRIED_AGAIN, TRIED_AT_LAST, TRIAL_TIMES = 2e-3, 16e-3, 200.0
NO_TIME = 1e300

MATRIX = record(
    *("data", "depth", "width", "vectors", "columns", "gate_rows", "gated", "transposed", "gates", "w", "ld"),
)
RIGHT_OPERAND = record(*(MATRIX.names or ()), "in_place", "split", "row0", "ld0", "row1", "ld1")
LAYER = record(
    *("cell", "tiles", "product", "pointwise", "pack_transposed", "pack_rows", "pack_left"),
    *("size", "lanes", "inputs", "H", "stride", "x", "h0", "h1", "bias", "w_ih", "w_hh", "b_ih", "b_hh"),
)
DIRECTION = record(
    # fresh: h0 is none, the first step has no product with W_hh, nor a part in dW_hh
    *("layer", "reverse", "fresh", "packed", "training", "B", "steps", "order", "length", "active", "offset"),
    *("x", "x_t", "x_b", "x_i", "y", "y_t", "y_b", "h0", "c0", "gates", "c"),
    *("dh0", "dh1", "dx", "dy", "dy_t", "dy_b", "d_h", "d_c", "d_q", "grad_x", "gx_t", "gx_b"),
    *("grad_w_ih", "grad_w_hh", "grad_b_ih", "grad_b_hh"),
    # states (B, H), contiguous, given and asked for: h_n and c_n forward; dh_n and dc_n, dh0 and dc0 backward
    *("given_h", "given_c", "out_h", "out_c", "T"),
)
GROUP = record("direction", "begin", "rows", "steps", "units", "most", "gates", "lines", "stop0", "stop1")
RUN = np.dtype(
    [
        *((name, np.int64) for name in ("size", "width", "groups", "backward", "directions", "direction0")),
        *((name, np.int64) for name in ("direction1", "group", "lines", "scratch", "scratch_bytes", "right")),
        *((name, np.int64) for name in ("interrupted", "stop0", "stop1", "error0", "error1", "error2")),
        *((name, np.int64) for name in ("acquire", "run", "release", "team", "work_function", "carry_out", "none")),
        *((name, np.int64) for name in ("asleep", "meeting", "granted", "room", "room_end", "need")),
        ("outside", np.int64),  # the caller's floating-point state, for its signal handlers
        *((name, np.float64) for name in ("patience", "checked", "work")),
    ]
)
ERROR = RUN.fields["error0"][1]  # type: ignore[index]  # it has fields
WORKER = np.dtype(
    [
        *((name, np.int64) for name in ("run", "rank", "epoch", "a", "out", "gates", "h_prev", "h", "c_prev", "c")),
        *((name, np.int64) for name in ("dy", "dh", "dc", "dq", "buffer")),
        # in the time loop: where this rank works, on which seat, and the group's barrier
        *((name, np.int64) for name in ("group", "seat", "group_epoch")),
    ]
)
WORKER_BYTES, PRODUCT_BYTES, POINTWISE_BYTES, PACK_BYTES = (
    WORKER.itemsize,
    PRODUCT.itemsize,
    POINTWISE.itemsize,
    PACK.itemsize,
)
TWO_PRODUCTS = 2 * PRODUCT_BYTES
THREE_RIGHTS = 3 * RIGHT_OPERAND.itemsize
MATRIX_BYTES = MATRIX.itemsize
RIGHT_BYTES = RIGHT_OPERAND.itemsize
LINE = 128  # of a barrier: its epoch, and the turns taken from it by parity of the epoch

# The frame of a call: RUN, two DIRECTIONs, two LAYERs, six MATRIXes of each direction (x, h0, h1, dh0, dh1, dx).
AT_DIRECTION = RUN.itemsize
AT_LAYER = AT_DIRECTION + 2 * DIRECTION.itemsize
AT_MATRIX = AT_LAYER + 2 * LAYER.itemsize
FRAME_BYTES = AT_MATRIX + 12 * MATRIX_BYTES
DIRECTION_BYTES, LAYER_BYTES = DIRECTION.itemsize, LAYER.itemsize
GROUP_BYTES = GROUP.itemsize


def describe(
    segments: int,
    stages: list[tuple[list[int], int, int, list[int], int]],
    x: tuple[list[int], int],
    of_x: list[int],
    of_h: list[int],
    right: list[int],
    plain: int = -1,
    states: int = 1,
) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Describe a cell.

    stages: h W_hh (gates, first segment written, operand: -1 is h, else a segment), dh (gates, first segment read).
    x: the gates of x W_ih and the first segment they are written to. of_x, of_h: the segments of the gradients by gate.
    right: the right operand of dW_hh by gate. plain: the segment of h W_hh alone, without a share of x; -1: none.
    """
    d = np.zeros(CELL_WORDS, np.int64)
    d[:5] = len(x[0]), segments, len(stages), states, plain

    def share(where: int, gates: list[int], segment: int) -> None:
        d[where : where + 2] = len(gates), segment
        d[where + 2 : where + 2 + len(gates)] = gates

    share(SHARE_X, *x)
    for s, (gates, segment, source, dh_gates, dh_segment) in enumerate(stages):
        share(SHARE_H + s * SHARE_WORDS, gates, segment)
        d[SOURCE + s] = source
        share(SHARE_DH + s * SHARE_WORDS, dh_gates, dh_segment)
    for where, values in ((OF_X, of_x), (OF_H, of_h), (RIGHT, right)):
        d[where : where + len(values)] = values
    return d


_RNN = describe(1, [([0], 0, -1, [0], 0)], ([0], 0), [0], [0], [-1])
CELL = {
    "rnn_tanh": _RNN,
    "rnn_relu": _RNN,
    "lstm": describe(
        4,
        [([0, 1, 2, 3], 0, -1, [0, 1, 2, 3], 0)],
        ([0, 1, 2, 3], 0),
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [-1] * 4,
        states=2,
    ),
    "gru": describe(4, [([0, 1, 2], 1, -1, [0, 1, 2], 1)], ([2, 0, 1], 0), [1, 2, 0], [1, 2, 3], [-1] * 3, plain=3),
    "gru_reset_before": describe(
        4, [([0, 1], 1, -1, [0, 1], 1), ([2], 0, 3, [2], 0)], ([2, 0, 1], 0), [1, 2, 0], [1, 2, 0], [-1, -1, 3]
    ),
}
"""Every cell's description; the time loop knows no other cell."""


def widths(cell: "np.ndarray[Any, np.dtype[np.int64]]", units: int, threads: int) -> set[int]:
    """Vectors of the tiles that a forward pass needs; units: vectors of a state."""
    shares = SHARE_X, *(SHARE_H + s * SHARE_WORDS for s in range(cell[STAGES]))
    return set().union(*(widths_for(int(cell[share]), units, threads) for share in shares))


@inner
def padded(n, size):
    """n rounded up to 64 bytes; an odd number of lines where rows would otherwise share their cache sets."""
    lane = 64 // size
    n = (n + lane - 1) // lane * lane
    return n + lane if n * size % 1024 == 0 else n


# An array comes as the address of its Python object, whose layout NumPy's C interface fixes: far faster than
# Numba's own way, and an array of any strides has the same type. ----------------------------------------------------

HEAD = object.__basicsize__ // 8  # words; the last is the type
ITEMS = tuple.__basicsize__ // 8  # where a tuple's items begin


@inner
def data_of(array):
    """The address of an array's data; 0 for none."""
    return get(array, HEAD) if array else 0


@inner
def stride_of(array, axis):
    return get(get(array, HEAD + 3), axis)


@inner
def shape_of(array, axis):
    return get(get(array, HEAD + 2), axis)


# Packed matrices -----------------------------------------------------------------------------------------------------


@inner
def forward_matrix(m, share, H, K, L):
    """Gate columns of W (G*H, K) transposed: gated panels, or linear ones of a single gate."""
    a = at(m, MATRIX)
    gates = get(share, 0)
    a.depth = K
    a.gated = 1 if gates > 1 else 0
    a.width = gates if gates > 1 else PANEL
    a.vectors = (H + L - 1) // L * gates
    a.columns = H
    a.transposed = 1
    a.gate_rows = H
    a.gates = share + 16


@inner
def backward_matrix(m, share, H, N, L):
    """W (G*H, N) by rows: linear panels of its N columns, depth G*H gate by gate in the order of the gate row."""
    a = at(m, MATRIX)
    a.depth = get(share, 0) * H
    a.gated = 0
    a.width = PANEL
    a.vectors = (N + L - 1) // L
    a.columns = N
    a.transposed = 0
    a.gate_rows = H
    a.gates = share + 16


@inner
def matrix_bytes(m):
    a = at(m, MATRIX)
    return a.vectors * a.depth * VECTOR_BYTES


@inner
def pack_matrix(m, layer, rank, size, rows):
    """The rank's share of the vectors. `rows` has room for `depth` pointers where the matrix is packed by rows."""
    a, l = at(m, MATRIX), at(layer, LAYER)
    address = stack(PACK_BYTES)
    p = at(address, PACK)
    p.out = a.data
    p.depth = a.depth
    p.width = a.width
    p.vectors = a.vectors
    p.first = a.vectors * rank // size
    p.last = a.vectors * (rank + 1) // size
    p.columns = a.columns
    p.gated = a.gated
    p.gate0, p.gate1, p.gate2, p.gate3 = get(a.gates, 0), get(a.gates, 1), get(a.gates, 2), get(a.gates, 3)
    p.w = a.w
    p.ld = a.ld
    if a.transposed:
        if not a.gated:
            p.w = a.w + get(a.gates, 0) * a.columns * a.ld * l.size
        call_native(l.pack_transposed, address)
    elif p.first < p.last:
        for k in range(a.depth):
            g = k // a.gate_rows
            put(rows, k, a.w + (get(a.gates, g) * a.gate_rows + k - g * a.gate_rows) * a.ld * l.size)
        p.row = rows
        call_native(l.pack_rows, address)


@inner
def lay_out(layer, m, kernels, w_ih, w_hh, b_ih, b_hh):
    """Describe a layer and, at m, its forward matrices; the bytes of their data and of the bias row.

    kernels: addresses of the cell's description and of tiles, product, pointwise, pack_transposed; the size of an
    element.
    The weights are arrays, b_ih and b_hh may be 0."""
    l = at(layer, LAYER)
    l.cell, l.tiles, l.product = get(kernels, 0), get(kernels, 1), get(kernels, 2)
    l.pointwise, l.pack_transposed, l.size = get(kernels, 3), get(kernels, 4), get(kernels, 5)
    l.inputs, l.H = shape_of(w_ih, 1), shape_of(w_hh, 1)
    l.w_ih, l.w_hh, l.b_ih, l.b_hh = data_of(w_ih), data_of(w_hh), data_of(b_ih), data_of(b_hh)
    l.x, l.h0, l.h1 = m, m + MATRIX_BYTES, m + 2 * MATRIX_BYTES
    l.stride = padded(l.H, l.size)
    l.lanes = VECTOR_BYTES // l.size
    forward_matrix(l.x, l.cell + 8 * SHARE_X, l.H, l.inputs, l.lanes)
    x = at(l.x, MATRIX)
    x.w, x.ld = l.w_ih, l.inputs
    size = get(l.cell, SEGMENTS) * l.stride * l.size + matrix_bytes(l.x)
    for s in range(get(l.cell, STAGES)):
        h = l.h1 if s else l.h0
        forward_matrix(h, l.cell + 8 * (SHARE_H + s * SHARE_WORDS), l.H, l.H, l.lanes)
        a = at(h, MATRIX)
        a.w, a.ld = l.w_hh, l.H
        size += matrix_bytes(h)
    return size


@inner
def carve(layer, memory):
    """Give the bias row and the matrices their places in `memory` and fill the bias row; gives what lies behind."""
    l = at(layer, LAYER)
    l.bias = memory
    size = get(l.cell, SEGMENTS) * l.stride * l.size
    clear(memory, size)
    if l.b_ih:
        add_bias(layer, l.b_ih, l.cell + 8 * OF_X)
    if l.b_hh:
        add_bias(layer, l.b_hh, l.cell + 8 * OF_H)
    memory += size
    x = at(l.x, MATRIX)
    x.data = memory
    memory += matrix_bytes(l.x)
    for s in range(get(l.cell, STAGES)):
        h = l.h1 if s else l.h0
        a = at(h, MATRIX)
        a.data = memory
        memory += matrix_bytes(h)
    return memory


@inner
def add_bias(layer, b, segment):
    l = at(layer, LAYER)
    H = l.H
    for g in range(get(l.cell, GATES)):
        row = l.bias + get(segment, g) * l.stride * l.size
        if l.size == 8:
            for u in range(H):
                set_real(row, u, real(row, u, np.float64) + real(b, g * H + u, np.float64))
        else:
            for u in range(H):
                set_real(row, u, real(row, u, np.float32) + real(b, g * H + u, np.float32))


# The order of a ragged batch: longest first ---------------------------------------------------------------------------


@inner
def plan(d, T, B, lengths, memory):
    """Fill order, length, active and offset of a direction, in (2 T + 2 B + 1) words of memory (T = 0 where B is)."""
    q = at(d, DIRECTION)
    steps = T if B else 0
    q.B = B
    q.order = memory
    q.length = memory + 8 * B
    q.active = memory + 16 * B
    q.offset = q.active + 8 * steps
    for b in range(B):
        put(q.order, b, b)
        put(q.length, b, get(lengths, b) if lengths else T)
    if B and lengths:
        clear(q.offset, 8 * (steps + 1))
        for b in range(B):
            place = get(lengths, b)
            put(q.offset, place, get(q.offset, place) + 1)  # sequences of each length ...
        n = 0
        for s in range(steps, -1, -1):
            here = get(q.offset, s)
            put(q.offset, s, n)  # ... where the first of them comes ...
            n += here
        for b in range(B):
            place = get(lengths, b)
            put(q.order, get(q.offset, place), b)  # ... and the next one
            put(q.offset, place, get(q.offset, place) + 1)
        steps = get(q.length, get(q.order, 0))
    q.steps = steps
    put(q.offset, 0, 0)
    n = B
    rows = 0
    for s in range(steps):
        while n and get(q.length, get(q.order, n - 1)) <= s:
            n -= 1
        put(q.active, s, n)
        rows += n
        put(q.offset, s + 1, rows)


# A run: one call of the team over one or two directions ---------------------------------------------------------------


@inner
def look_for_signals(run):
    r = at(run, RUN)
    now = seconds()
    r.work = 0.0
    if r.interrupted or now - r.checked < SIGNAL_SECONDS:
        return
    inside = fp_now()
    fp_restore(r.outside)
    if signals(run + ERROR):
        r.interrupted = 1
    fp_restore(inside)
    r.checked = seconds()


@inner
def account(k, multiply_adds):
    """Called beside every product: rank 0 looks for signals now and then."""
    w = at(k, WORKER)
    if w.rank == 0:
        r = at(w.run, RUN)
        r.work = r.work + multiply_adds
        if r.work > SIGNAL_WORK:
            look_for_signals(w.run)


@inner
def interrupted(k):
    return peek(at(k, WORKER).run + INTERRUPTED)


INTERRUPTED = RUN.fields["interrupted"][1]  # type: ignore[index]


@inner
def wait(lines, rank, size, epoch):
    """A barrier of `size` ranks: each writes its own line and reads the others', and winds back its turns."""
    put(lines + rank * LINE, 1 + (epoch & 1), 0)
    poke(lines + rank * LINE, epoch)
    for r in range(size):
        if r != rank:
            polls = 0
            while peek(lines + r * LINE) < epoch:
                spin(polls)
                polls += 1


@inner
def meet(k):
    """The whole team's barrier; true when all agree to stop. Rank 0 decides before, the others read after."""
    w = at(k, WORKER)
    r = at(w.run, RUN)
    if r.size == 1:
        return interrupted(k) != 0
    w.epoch = w.epoch + 1
    place = w.run + STOP + 8 * (w.epoch & 1)
    if w.rank == 0:
        put(place, 0, r.interrupted)
    wait(r.lines, w.rank, r.size, w.epoch)
    return get(place, 0) != 0


STOP = RUN.fields["stop0"][1]  # type: ignore[index]
GROUP_STOP = GROUP.fields["stop0"][1]  # type: ignore[index]


@inner
def take_turn(line, epoch):
    """The next of a line's turns, 0, 1, 2, ...; each goes to one rank. `epoch` is that of the last barrier, or 0."""
    return count(line + 8 + 8 * (epoch & 1))


@inner
def next_turn(k, line, turn):
    """The next of the turns that the team takes between two of its barriers; `turn` is the last one, -1 at first."""
    w = at(k, WORKER)
    r = at(w.run, RUN)
    return take_turn(r.lines + line * LINE, w.epoch) if r.size > 1 else turn + 1


@inner
def even(n, size):
    """n rounded up, for every rank to have as much."""
    return (n + size - 1) // size * size


@inlined
def group_rows(g, active):
    """Rows of a group at work in a step, of so many at work in all."""
    q = at(g, GROUP)
    return max(0, min(active - q.begin, q.rows))


@inner
def part(n, rank, size):
    """Where the rank's share of n begins; rank == size: where the last one ends."""
    return 0 if rank == 0 else n if rank == size else n * rank // size


@inner
def time_of(d, b, s):
    q = at(d, DIRECTION)
    return get(q.length, b) - 1 - s if q.reverse else s


@inner
def x_row(d, j, s):
    q = at(d, DIRECTION)
    b = get(q.order, j)
    return q.x + time_of(d, b, s) * q.x_t + b * q.x_b


@inner
def row_bytes(d):
    """Of a segment of a gate row."""
    l = at(at(d, DIRECTION).layer, LAYER)
    return l.stride * l.size


@inner
def y_row(d, j, s):
    """h after step s of row j; h0 before the first."""
    q = at(d, DIRECTION)
    if s < 0:
        return q.h0 + j * row_bytes(d)
    b = get(q.order, j)
    return q.y + time_of(d, b, s) * q.y_t + b * q.y_b


@inner
def tape_c(d, j, s):
    q = at(d, DIRECTION)
    if s < 0 or not q.training:
        return q.c0 + j * row_bytes(d)
    return q.c + (get(q.offset, s) + j) * row_bytes(d)


@inner
def tape_row(d, j, s):
    q = at(d, DIRECTION)
    return q.gates + (get(q.offset, s) + j) * get(at(q.layer, LAYER).cell, SEGMENTS) * row_bytes(d)


@inner
def stage_row(d, row, to, n):
    """x rows whose elements are not neighbours are copied, a chunk at a time."""
    q = at(d, DIRECTION)
    step = q.x_i
    if at(q.layer, LAYER).size == 8:
        for i in range(n):
            set_real(to, i, real(row + i * step, 0, np.float64))
    else:
        for i in range(n):
            set_real(to, i, real(row + i * step, 0, np.float32))
    return to


@inner
def take(p, m, layer):
    """Aim a product at a packed matrix; a single segment of operand unless said otherwise."""
    q, a, l = at(p, PRODUCT), at(m, MATRIX), at(layer, LAYER)
    clear(p, PRODUCT_BYTES)
    q.tiles = l.tiles
    q.w = a.data
    q.width = a.width
    q.vectors = a.vectors
    q.last = a.vectors
    q.depth = a.depth
    q.segments = 1
    q.a_step = 1
    q.out_step = l.lanes
    q.out_panel = a.width * l.lanes


@inner
def into_gates(p, m, layer, segment):
    """Results go into gate rows: gate v of a panel into segment `segment + v`."""
    q, l = at(p, PRODUCT), at(layer, LAYER)
    q.out_offset = segment * l.stride
    if at(m, MATRIX).gated:
        q.out_step = l.stride
        q.out_panel = l.lanes


@inner
def from_gates(p, layer, share):
    """The left operand is segments of a gate row, the row pointers being those of the first segment."""
    q, l = at(p, PRODUCT), at(layer, LAYER)
    q.segments = get(share, 0)
    q.depth = l.H
    q.a_segment = l.stride


@inner
def stage(k, m, p, q, shared, backwards):
    """One stage of a step: the product of some panels, then the pointwise part on the rows they have just made; for the
    projection, which has none, q has no rows.

    The units of this rank and, where the stage is shared, what the others have not come to when it has done its own.
    Where nobody shares the units, all go at once: no CPU fetches ahead, from row to row, what another group is writing.
    Serpentine: `backwards` on every other step, so that what is still in cache is used first."""
    w = at(k, WORKER)
    run, group, a, product, point = at(w.run, RUN), at(w.group, GROUP), at(m, MATRIX), at(p, PRODUCT), at(q, POINTWISE)
    l = at(at(group.direction, DIRECTION).layer, LAYER)
    each = a.width if a.gated else 1  # vectors a unit vector
    width, whose = run.width, w.seat
    span = group.most
    rows = max(product.rows, point.rows)
    work = 1.0 * product.rows * product.segments * product.depth * l.lanes * each
    unit_bytes = each * a.depth * VECTOR_BYTES
    weights = group.most * unit_bytes
    streams = weights > (L2_STAYS if group.steps > 1 else L2_RETURNS)  # they come from beyond L2 in every step
    product.prefetch = 0
    if rows >= FEW_ROWS and (width > 1 or weights > L2_APART or point.rows == 0 or work * group.units > SIGNAL_WORK):
        span = 1 if a.gated else PANEL
        product.prefetch = 1 if streams or point.rows == 0 else 0  # W_ih has to make room in L2 while the steps go on
    elif rows < FEW_ROWS and streams:
        span = max(1, SERPENT // (2 * PANEL * unit_bytes)) * 2 * PANEL
    for _ in range(width if shared else 1):
        first, last = part(group.units, whose, width), part(group.units, whose + 1, width)
        blocks, origin = 1, first
        if span < last - first:
            origin = first // span * span  # whole panels where the share allows
            blocks = (last - origin + span - 1) // span
        turn = -1
        while not interrupted(k):
            turn = take_turn(group.lines + whose * LINE, w.group_epoch) if shared else turn + 1
            if turn >= blocks:
                break
            begin = origin + (blocks - 1 - turn if backwards else turn) * span
            end = min(begin + span, last)
            begin = max(begin, first)
            product.first = begin * each
            product.last = end * each
            product.next = 0
            product.fetch_left = 1 if turn == 0 and width > 1 and rows >= FEW_ROWS and point.rows else 0
            if product.prefetch and turn + 1 < blocks:
                product.next = product.w + (begin - span if backwards else end) * unit_bytes
            call_native(l.product, p)
            if point.rows:
                point.first = begin * l.lanes
                point.last = min(end * l.lanes, l.H)
                call_native(l.pointwise, q)
            account(k, work * (end - begin))
        whose = whose + 1 if whose + 1 < width else 0


@inner
def project(k, start, end, shared):
    """x W_ih + biases into the gate rows of steps [start, end): the recurrent tiles go on from there."""
    w = at(k, WORKER)
    group = at(w.group, GROUP)
    d = group.direction
    q = at(d, DIRECTION)
    layer = q.layer
    l, width = at(layer, LAYER), at(w.run, RUN).width
    size = l.size
    gate_bytes = get(l.cell, SEGMENTS) * l.stride * size
    plain = get(l.cell, PLAIN)
    alone = plain * l.stride * size
    units = group.units
    a, b = part(units, w.seat, width) * VECTOR_BYTES, part(units, w.seat + 1, width) * VECTOR_BYTES
    n = 0
    for s in range(start, end):
        for i in range(group_rows(w.group, get(q.active, s))):
            j = group.begin + i
            row = x_row(d, j, s)
            if q.x_i != size:
                row = stage_row(d, row, w.buffer + n * l.inputs * size, l.inputs)
            out = tape_row(d, j, s) if q.training else group.gates + n * gate_bytes
            put(w.a, n, row)
            put(w.out, n, out)
            if plain >= 0:
                copy(out + alone + a, l.bias + alone + a, b - a)
            n += 1
    p, none = stack(PRODUCT_BYTES), stack(POINTWISE_BYTES)
    take(p, l.x, layer)
    into_gates(p, l.x, layer, get(l.cell, SHARE_X + 1))
    product = at(p, PRODUCT)
    product.init = l.bias
    product.a = w.a
    product.out = w.out
    product.rows = n
    at(none, POINTWISE).rows = 0
    stage(k, l.x, p, none, shared, False)


@inlined
def barrier(k):
    """The group's barrier; true when all of it agree to stop."""
    w = at(k, WORKER)
    r = at(w.run, RUN)
    if r.width == 1:
        return interrupted(k) != 0
    w.group_epoch = w.group_epoch + 1
    place = w.group + GROUP_STOP + 8 * (w.group_epoch & 1)
    if w.seat == 0:
        put(place, 0, r.interrupted)
    wait(at(w.group, GROUP).lines, w.seat, r.width, w.group_epoch)
    return get(place, 0) != 0


# THE TIME LOOP -------------------------------------------------------------------------------------------------------


@inner
def time_loop(k, g, seat):
    """All steps of a group, forwards or backwards; true when interrupted.

    Forward step s:   gates = projection + operand W_hh, then the pointwise part makes h (and c), stage by stage. Where
                      there is no h0, the first step's operands are zeros, and its products are left out.
    Backward step s:  dh += gate gradients of step s+1 W_hh^T, then the pointwise part makes those of step s.
    A block of units is one rank's from the product to the end of its pointwise part, so one barrier a stage is enough,
    and none between a chunk's projection and its steps as long as a rank keeps to its own units.
    """
    w, group = at(k, WORKER), at(g, GROUP)
    run = at(w.run, RUN)
    d = group.direction
    q = at(d, DIRECTION)
    layer = q.layer
    l = at(layer, LAYER)
    cell = l.cell
    size, lanes, states, stages = l.size, l.lanes, get(cell, STATES), get(cell, STAGES)
    w.group, w.seat, w.group_epoch = g, seat, 0
    segment_bytes = l.stride * size
    gate_bytes = get(cell, SEGMENTS) * segment_bytes
    back, training = run.backward, q.training
    chunk_end, chunk_rows, at_row = 0, 0, 0
    products, pointwise = stack(TWO_PRODUCTS), stack(POINTWISE_BYTES)
    point = at(pointwise, POINTWISE)
    point.stride = l.stride
    point.training = training
    point.gates, point.h_prev, point.h, point.c_prev, point.c = w.gates, w.h_prev, w.h, w.c_prev, w.c
    point.dy = w.dy if q.dy else 0
    point.dh, point.dc, point.dq = w.dh, w.dc, w.dq
    for t in range(stages):
        p = products + t * PRODUCT_BYTES
        product = at(p, PRODUCT)
        if back:
            take(p, q.dh1 if t else q.dh0, layer)
            from_gates(p, layer, cell + 8 * (SHARE_DH + t * SHARE_WORDS))
            product.accumulate = 1 if t == 0 else 0
            product.out = w.dh if t == 0 else w.dq
        else:
            m = l.h1 if t else l.h0
            take(p, m, layer)
            into_gates(p, m, layer, get(cell, SHARE_H + t * SHARE_WORDS + 1))
            product.accumulate = 1
            product.out = w.gates
        product.a = w.a

    for turn in range(group.steps):
        s = group.steps - 1 - turn if back else turn
        n = group_rows(g, get(q.active, s))
        m_rows = 0 if s == 0 and q.fresh else n
        shared = run.width > 1 and 1.0 * n * l.H * lanes * PANEL > SHARED_WORK
        if back:
            m_rows = group_rows(g, get(q.active, s + 1)) if turn else 0
        elif s == chunk_end:
            chunk_rows = 0
            while chunk_end < group.steps:
                more = group_rows(g, get(q.active, chunk_end))
                if chunk_rows and chunk_rows + more > CHUNK:
                    break
                chunk_rows += more
                chunk_end += 1
            project(k, s, chunk_end, shared)
            if shared and barrier(k):
                return True
            at_row = 0

        for i in range(n):
            j = group.begin + i
            put(w.gates, i, tape_row(d, j, s) if training else group.gates + (at_row + i) * gate_bytes)
            put(w.h_prev, i, y_row(d, j, s - 1))
            put(w.h, i, y_row(d, j, s))
            if states == 2:
                put(w.c_prev, i, tape_c(d, j, s - 1))
                put(w.c, i, tape_c(d, j, s))
            if back:
                put(w.dh, i, q.d_h + j * segment_bytes)
                if states == 2:
                    put(w.dc, i, q.d_c + j * segment_bytes)
                if stages == 2:
                    put(w.dq, i, q.d_q + j * segment_bytes)
                if q.dy:
                    b = get(q.order, j)
                    put(w.dy, i, q.dy + time_of(d, b, s) * q.dy_t + b * q.dy_b)
        at_row += n

        for t in range(stages):
            p = products + t * PRODUCT_BYTES
            rows = n if back and t else m_rows
            at(p, PRODUCT).rows = rows
            point.rows = n
            point.stage = t
            if back:
                segment = get(cell, SHARE_DH + t * SHARE_WORDS + 1) * segment_bytes
                for i in range(rows):
                    j = group.begin + i
                    put(w.a, i, tape_row(d, j, s + 1 if t == 0 else s) + segment)
                m = q.dh1 if t else q.dh0
            else:
                source = get(cell, SOURCE + t)
                for i in range(n):
                    put(w.a, i, get(w.h_prev, i) if source < 0 else get(w.gates, i) + source * segment_bytes)
                m = l.h1 if t else l.h0
            stage(k, m, p, pointwise, shared, turn & 1 == 1)
            if barrier(k):
                return True

    if back and group.steps:  # dh0: what step 0 sends
        n = group_rows(g, get(q.active, 0))
        segment = get(cell, SHARE_DH + 1) * segment_bytes
        for i in range(n):
            j = group.begin + i
            put(w.a, i, tape_row(d, j, 0) + segment)
            put(w.dh, i, q.d_h + j * segment_bytes)
        at(products, PRODUCT).rows = n
        point.rows = 0
        stage(k, q.dh0, products, pointwise, False, group.steps & 1 == 1)
        return run.width == 1 and interrupted(k) != 0
    return False


# After the backward loop the gate rows hold the gradients of the pre-activations: three large products remain ---------


@inner
def step_of(d, row):
    """The step that a row of the tape belongs to."""
    q = at(d, DIRECTION)
    low, high = 0, q.steps
    while high - low > 1:
        middle = low + (high - low) // 2
        if get(q.offset, middle) <= row:
            low = middle
        else:
            high = middle
    return low


@inner
def none_before(d, operand, row0, end):
    """How many rows of a block of dW_hh, its first ones, have no right operand: those of a first step without h0."""
    q = at(d, DIRECTION)
    return max(0, min(get(q.offset, 1), end) - row0) if operand != -2 and q.fresh and end else 0


@inner
def right_operand(d, operand, right):
    """x (-2), h_prev (-1) or a segment: in place where rows are short and evenly spaced. Whole vectors are read, and so
    the beginning of the row behind; behind x's last row there is none, so that is copied."""
    q, r = at(d, DIRECTION), at(right, RIGHT_OPERAND)
    l = at(q.layer, LAYER)
    size, rows = l.size, get(q.offset, q.steps)
    dense = rows > 0 and rows == q.T * q.B and (q.T == 1 or not q.reverse)
    apart = 0
    r.width = PANEL
    r.columns = l.inputs if operand == -2 else l.H
    r.vectors = (r.columns + l.lanes - 1) // l.lanes
    past = r.vectors * l.lanes - r.columns
    r.split = r.row0 = r.ld0 = r.row1 = 0
    if operand >= 0:
        r.row1 = q.gates + operand * l.stride * size
        apart = get(l.cell, SEGMENTS) * l.stride * size
    elif operand == -1:
        if dense and (q.B >= FEW_ROWS or q.T == 1):  # a run of fewer rows takes longer than packing
            apart = q.y_b
        r.split = min(q.B, rows)
        r.row0 = q.h0
        r.ld0 = l.stride
        r.row1 = q.y
    elif dense and q.x_i == size and (q.T == 1 or q.x_t == q.B * q.x_b):
        r.split = rows - 1 if past else rows
        r.row0 = q.x
        apart = q.x_b
        r.ld0 = apart // size
    r.ld1 = apart // size
    longest = r.columns * size
    even = apart % size == 0 and apart % WAY_BYTES != 0
    r.in_place = 1 if past * size <= apart and longest <= apart and longest < WAY_BYTES and even else 0


@inner
def pack_right(k, d, operand, m, row0, row_end):
    """Right operand of dW, this rank's vectors of tape rows [row0, row_end): x (-2), h_prev (-1) or a segment. Where it
    is in place, the copy of x's last row is all there is to do, once."""
    w, q, a = at(k, WORKER), at(d, DIRECTION), at(m, RIGHT_OPERAND)
    l, run = at(q.layer, LAYER), at(w.run, RUN)
    size = l.size
    if a.in_place:
        if operand == -2 and row0 == 0 and a.split < get(q.offset, q.steps):
            a.row1 = a.data
            if w.rank == 0:
                copy(a.data, a.row0 + a.split * a.ld0 * size, a.columns * size)
        return
    address = stack(PACK_BYTES)
    p = at(address, PACK)
    p.gated = 0
    p.out = a.data
    row0 += none_before(d, operand, row0, row_end)
    p.depth = row_end - row0
    p.width = a.width
    p.vectors = a.vectors
    p.columns = a.columns
    p.first = a.vectors * w.rank // run.size
    p.last = a.vectors * (w.rank + 1) // run.size
    p.row = w.a
    if p.first == p.last:
        return
    s = step_of(d, row0)
    j = row0 - get(q.offset, s)
    for n in range(row_end - row0):
        while row0 + n >= get(q.offset, s + 1):
            s += 1
            j = 0
        if operand == -2:
            row = x_row(d, j, s)
            if q.x_i != size:
                row = stage_row(d, row, w.buffer + n * l.inputs * size, l.inputs)
        elif operand == -1:
            row = y_row(d, j, s - 1)
        else:
            row = tape_row(d, j, s) + operand * l.stride * size
        put(w.a, n, row)
        j += 1
    call_native(l.pack_rows, address)


@inner
def go_on(p, layer, rows, ld, depth):
    """Add these rows of the right operand, if any, times as many of the left one, and pass by the latter."""
    q, l = at(p, PRODUCT), at(layer, LAYER)
    if depth == 0:
        return
    q.w = rows
    q.ld = ld
    q.depth = depth
    call_native(l.product, p)
    q.accumulate = 1
    for i in range(q.rows):
        put(q.a, i, get(q.a, i) + depth * LEFT * l.size)


@inner
def weight_gradients(k, d):
    """dW_ih, dW_hh and both bias gradients: sums over all rows of the tape in ascending order, in blocks of a fixed
    number of rows. A rank makes whole rows of dW, the right operands are packed together."""
    w, q = at(k, WORKER), at(d, DIRECTION)
    run, layer = at(w.run, RUN), q.layer
    l = at(layer, LAYER)
    cell, size, H = l.cell, l.size, l.H
    gates = get(cell, GATES)
    rows, ld = get(q.offset, q.steps), get(cell, SEGMENTS) * l.stride
    sixes = (H + LEFT - 1) // LEFT
    strips = min(even((H + LEFT_STRIP - 1) // LEFT_STRIP, run.size), sixes)
    total = strips * gates
    right = stack(THREE_RIGHTS)
    memory, in_place = run.right, 1
    second = get(cell, SOURCE + 1) if get(cell, STAGES) == 2 else -1
    for which in range(3 if second >= 0 else 2):
        right_operand(d, second if which == 2 else which - 2, right + which * RIGHT_BYTES)
        m = at(right + which * RIGHT_BYTES, RIGHT_OPERAND)
        m.data = memory
        memory += m.vectors * VECTOR_BYTES * block_rows(d)
        in_place &= m.in_place
    p, left = stack(PRODUCT_BYTES), stack(PACK_BYTES)
    product, pl = at(p, PRODUCT), at(left, PACK)
    row0 = 0
    while row0 < rows:
        depth = min(block_rows(d), rows - row0)
        sixes_apart = LEFT * depth + l.lanes  # 6 * 512 alone would be a multiple of 4 KB
        if row0 == 0 or not in_place:
            pack_right(k, d, -2, right, row0, row0 + depth)
            pack_right(k, d, -1, right + RIGHT_BYTES, row0, row0 + depth)
            if second >= 0:
                pack_right(k, d, second, right + 2 * RIGHT_BYTES, row0, row0 + depth)
            if meet(k):
                return
        strip = next_turn(k, 0, -1)
        while not interrupted(k) and strip < total:
            g = strip // strips
            u0 = LEFT * (sixes * (strip - g * strips) // strips)
            u1 = min(LEFT * (sixes * (strip - g * strips + 1) // strips), H)
            packed_segment = -1
            for which in range(2):
                segment = get(cell, OF_H + g) if which else get(cell, OF_X + g)
                operand = 0 if which == 0 else 1 if get(cell, RIGHT + g) < 0 else 2
                grad = q.grad_w_hh if which else q.grad_w_ih
                bias = (q.grad_b_hh if which else q.grad_b_ih) + (g * H + u0) * size
                if segment != packed_segment:
                    pl.out = w.buffer
                    pl.w = q.gates + (row0 * ld + segment * l.stride + u0) * size
                    pl.ld = ld
                    pl.depth = depth
                    pl.columns = u1 - u0
                    pl.step = sixes_apart
                    pl.sum = bias
                    call_native(l.pack_left, left)
                    packed_segment = segment
                else:
                    copy(bias, q.grad_b_ih + (g * H + u0) * size, (u1 - u0) * size)
                m = at(right + operand * RIGHT_BYTES, RIGHT_OPERAND)
                take(p, right + operand * RIGHT_BYTES, layer)
                columns = m.columns
                product.a = w.a
                product.a_step = LEFT
                product.out = w.out
                product.rows = u1 - u0
                product.columns = columns
                product.accumulate = 1 if row0 > 0 else 0
                product.whole = 1
                product.prefetch = 0 if m.in_place else 1
                skip = none_before(d, -2 if operand == 0 else -1, row0, row0 + depth)
                begin_row, end_row = row0 + skip, row0 + depth
                for i in range(u1 - u0):
                    put(w.a, i, w.buffer + (i // LEFT * sixes_apart + skip * LEFT + i % LEFT) * size)
                    put(w.out, i, grad + (g * H + u0 + i) * columns * size)
                if begin_row == end_row and row0 == 0:
                    clear(grad + (g * H + u0) * columns * size, (u1 - u0) * columns * size)
                elif m.in_place:
                    middle = max(begin_row, min(m.split, end_row))
                    go_on(p, layer, m.row0 + begin_row * m.ld0 * size, m.ld0, middle - begin_row)
                    go_on(p, layer, m.row1 + (middle - m.split) * m.ld1 * size, m.ld1, end_row - middle)
                else:
                    go_on(p, layer, m.data, 0, end_row - begin_row)
                account(k, 1.0 * product.rows * (end_row - begin_row) * columns)
                if interrupted(k):
                    break
            strip = next_turn(k, 0, strip)
        row0 += depth
        if row0 < rows and meet(k):
            return


@inner
def input_gradient(k, d, accumulate):
    """dx = gate gradients W_ih, so many rows of the tape a turn."""
    w, q = at(k, WORKER), at(d, DIRECTION)
    run, layer = at(w.run, RUN), q.layer
    l = at(layer, LAYER)
    size, rows = l.size, get(q.offset, q.steps)
    blocks = min(even((rows + DX_ROWS - 1) // DX_ROWS, run.size), rows)
    p = stack(PRODUCT_BYTES)
    take(p, q.dx, layer)
    from_gates(p, layer, l.cell + 8 * SHARE_X)
    product = at(p, PRODUCT)
    product.a = w.a
    product.out = w.out
    product.columns = l.inputs
    product.accumulate = accumulate
    product.prefetch = 1
    if not accumulate:
        clear_padding(k, d, q.grad_x, q.gx_t, q.gx_b, l.inputs)
    turn = next_turn(k, 1, -1)
    while not interrupted(k) and turn < blocks:
        row, end = rows * turn // blocks, rows * (turn + 1) // blocks
        s = step_of(d, row)
        n = 0
        while row < end:
            while row >= get(q.offset, s + 1):
                s += 1
            b = get(q.order, row - get(q.offset, s))
            segment = row * get(l.cell, SEGMENTS) + get(l.cell, SHARE_X + 1)
            put(w.a, n, q.gates + segment * l.stride * size)
            put(w.out, n, q.grad_x + time_of(d, b, s) * q.gx_t + b * q.gx_b)
            n += 1
            row += 1
        product.rows = n
        call_native(l.product, p)
        account(k, 1.0 * n * get(l.cell, GATES) * l.H * l.inputs)
        turn = next_turn(k, 1, turn)


# What every rank runs -------------------------------------------------------------------------------------------------


@inner
def direction_of(run, i):
    r = at(run, RUN)
    return r.direction1 if i else r.direction0


def work(run, rank):
    """A rank's share of a forward run."""
    r = at(run, RUN)
    k = stack(WORKER_BYTES)
    open_worker(k, run, rank)
    packing = False
    for i in range(r.directions):
        q = at(direction_of(run, i), DIRECTION)
        if not q.packed:
            packing = True
            l = at(q.layer, LAYER)
            pack_share(k, l.x, q.layer)
            for s in range(get(l.cell, STAGES) if q.steps > 1 or not q.fresh else 0):
                pack_share(k, l.h1 if s else l.h0, q.layer)
    if packing and meet(k):
        return
    work_loops(k)
    for i in range(r.directions):
        d = direction_of(run, i)
        q = at(d, DIRECTION)
        clear_padding(k, d, q.y, q.y_t, q.y_b, at(q.layer, LAYER).H)


@inner
def pack_share(k, m, layer):
    """This rank's share of a matrix, large ones piece by piece: signals are looked for in between."""
    w, l = at(k, WORKER), at(layer, LAYER)
    size = at(w.run, RUN).size
    share = matrix_bytes(m) // size
    pieces = 1 + share // PIECE
    for i in range(pieces):
        if not interrupted(k):
            pack_matrix(m, layer, w.rank * pieces + i, size * pieces, w.a)
            account(k, 1.0 * CLEARED * share / pieces / l.size)


@inner
def clear_padding(k, d, rows, by_t, by_b, columns):
    """Zeros past the end of every sequence, the steps shared out among the ranks."""
    w, q = at(k, WORKER), at(d, DIRECTION)
    if get(q.offset, q.steps) == q.T * q.B:
        return
    size = at(q.layer, LAYER).size
    for t in range(w.rank, q.T, at(w.run, RUN).size):
        if interrupted(k):
            return
        account(k, 1.0 * CLEARED * columns * q.B)
        for j in range(get(q.active, t) if t < q.steps else 0, q.B):
            clear(rows + t * by_t + get(q.order, j) * by_b, columns * size)


@inner
def work_loops(k):
    """The time loops of a rank; true when interrupted."""
    w = at(k, WORKER)
    r = at(w.run, RUN)
    if r.size > 1:
        stopped = time_loop(k, r.group + w.rank // r.width * GROUP_BYTES, w.rank % r.width)
        return stopped and r.groups == 1
    for i in range(r.groups):  # noqa: SIM110  # a generator is nothing for Numba
        if time_loop(k, r.group + i * GROUP_BYTES, 0):
            return True
    return False


def work_backward(run, rank):
    """A rank's share of a backward run: apart, so that a first forward call need not compile it."""
    r = at(run, RUN)
    k = stack(WORKER_BYTES)
    open_worker(k, run, rank)
    for i in range(r.directions):
        q = at(direction_of(run, i), DIRECTION)
        for s in range(get(at(q.layer, LAYER).cell, STAGES)):
            pack_share(k, q.dh1 if s else q.dh0, q.layer)
        if q.grad_x:
            pack_share(k, q.dx, q.layer)
    if meet(k) or work_loops(k) or meet(k):
        return
    for i in range(r.directions):
        d = direction_of(run, i)
        weight_gradients(k, d)
        if at(d, DIRECTION).grad_x:
            input_gradient(k, d, 1 if i else 0)
        if meet(k):
            return


@inner
def block_rows(d):
    """Rows of the tape in a block of dW, all of them about the same."""
    q = at(d, DIRECTION)
    l = at(q.layer, LAYER)
    of_dw = 1.0 * get(l.cell, GATES) * l.H * (l.inputs + l.H) * l.size
    most = LEFT_DEPTH_FAR if of_dw > FAR_BYTES else LEFT_DEPTH
    rows = get(q.offset, q.steps)
    blocks = max(1, (rows + most - 1) // most)
    return (rows + blocks - 1) // blocks


@inner
def most_rows(run):
    """The largest batch of a run's directions."""
    B = 0
    for i in range(at(run, RUN).directions):
        B = max(B, at(direction_of(run, i), DIRECTION).B)
    return B


@inner
def pointer_rows(run):
    """Row pointers that a rank may need at once: a chunk, a batch, a block of the tape, or the rows of a matrix."""
    r = at(run, RUN)
    n = max(CHUNK, LEFT_DEPTH_FAR, most_rows(run))
    if r.backward:
        for i in range(r.directions):
            l = at(at(direction_of(run, i), DIRECTION).layer, LAYER)
            n = max(n, get(l.cell, GATES) * l.H)
    return n


@inner
def worker_bytes(run):
    r = at(run, RUN)
    staged, B = 0, most_rows(run)
    for i in range(r.directions):
        q = at(direction_of(run, i), DIRECTION)
        l = at(q.layer, LAYER)
        if q.x_i != l.size:
            staged = max(staged, max(CHUNK, LEFT_DEPTH_FAR, B) * l.inputs * l.size)
        if r.backward:
            staged = max(staged, LEFT_STRIP * (block_rows(direction_of(run, i)) + 64) * l.size)
    return (2 * pointer_rows(run) + 9 * B) * 8 + (staged + 127) // 64 * 64


@inner
def open_worker(k, run, rank):
    """Carve the rank's row pointers out of its scratch."""
    w, r = at(k, WORKER), at(run, RUN)
    B, rows = 8 * most_rows(run), 8 * pointer_rows(run)
    w.run = run
    w.rank = rank
    w.epoch = 0
    w.a = r.scratch + rank * r.scratch_bytes
    w.out = w.a + rows
    w.gates = w.out + rows
    w.h_prev = w.gates + B
    w.h = w.h_prev + B
    w.c_prev = w.h + B
    w.c = w.c_prev + B
    w.dy = w.c + B
    w.dh = w.dy + B
    w.dc = w.dh + B
    w.dq = w.dc + B
    w.buffer = (w.dq + B + 63) // 64 * 64


# The partition: rows of the batch over `groups`, the units of a group over `width` threads ----------------------------


@inner
def step_cost(d, groups, width, far):
    """Nanoseconds a step, roughly: arithmetic or the stream of the weights, whichever is slower, the barriers, and,
    where no rank has to share the weights, what one reads of another's."""
    q = at(d, DIRECTION)
    l = at(q.layer, LAYER)
    units, rows = (l.H + l.lanes - 1) // l.lanes, (q.B + groups - 1) // groups
    columns = 1.0 * ((units + width - 1) // width) * l.lanes * get(l.cell, GATES)
    weights = columns * l.size * (l.H + l.inputs if q.steps == 1 else l.H)  # a chunk shares W_ih
    stays = L2_RETURNS if q.steps == 1 else L2_APART if far else L2_STAYS
    hides = L2_APART if q.steps > 1 and VECTOR_BYTES < 64 else stays  # by slower arithmetic
    rate = RATE_L1 if weights < 24e3 else RATE_L2 if weights < stays else RATE_L3
    arithmetic = rows * columns * (l.H + l.inputs) * l.size / 4 / RATE_FMA
    pointwise = rows * columns * l.size / 4 * 0.3
    streaming = STREAMING * weights / rate if weights > hides else 0.0
    meeting = COST_BARRIER * get(l.cell, STAGES) * (width + 2) / 4 if width > 1 else 0.0
    all_weights = 1.0 * units * l.lanes * get(l.cell, GATES) * l.H * l.size
    if width > 1 and rows > MET_ROWS and q.steps > 1 and all_weights <= hides:
        meeting += COST_LINE * rows * l.H * l.size / 64 * (width - 1) / width  # h of the others
    return max(arithmetic, weights / rate) + streaming + pointwise + meeting


# What is known of how far apart threads are, one for all calls: when it was looked at and what was seen; where two
# threads meet for that, and the address of meet_often.
MEETING = np.dtype([*((name, np.int64) for name in ("far", "function", "epoch", "repeats")), ("looked", np.float64)])
AT_LINES = (MEETING.itemsize + LINE - 1) // LINE * LINE


def meet_often(meeting, rank):
    """What two threads do to be timed."""
    q = at(meeting, MEETING)
    for i in range(q.repeats):
        wait(meeting + AT_LINES, rank, 2, q.epoch + i + 1)


@inner
def look(run):
    """Whether two threads share no cache, by the time in which they meet. The caller has the team, two or more."""
    r = at(run, RUN)
    q = at(r.meeting, MEETING)
    q.repeats, best, began = MEETINGS, 1.0, 0.0
    for _ in range(3):
        began = seconds()
        call(r.run, np.int32(2), q.function, r.meeting, r.team)
        took = (seconds() - began) / MEETINGS
        q.epoch = q.epoch + MEETINGS
        best = min(best, took)
        if took > 8 * FAR_SECONDS:
            break
    q.looked, q.far = began, 1 if best > FAR_SECONDS else 0


@inner
def far_apart(run):
    """Whether threads share no cache, as far as is known. A call of several threads looks when it is done. Where calls
    are made alone for that very reason, they look again here, or forget about it where the other thread has fallen
    asleep meanwhile."""
    r = at(run, RUN)
    q = at(r.meeting, MEETING)
    if q.far and seconds() - q.looked > LOOK_SECONDS:
        if call_asleep(r.asleep, r.team):
            q.far = 0
        else:
            q.looked = seconds()
            granted = call_acquire(r.acquire, 2, LOOK_PATIENCE, r.team)
            if granted > 1:
                look(run)
            call(r.release, np.int32(granted), r.team)
    return q.far != 0


@inner
def divide(run, wanted, far):
    """Fill size, width and groups: the cheapest way to use up to `wanted` threads, near to one another or far apart."""
    r = at(run, RUN)
    d = r.direction0
    q = at(d, DIRECTION)
    l = at(q.layer, LAYER)
    directions = r.directions
    each = max(1, wanted // directions)
    units = (l.H + l.lanes - 1) // l.lanes
    scale = 3.0 if r.backward else 1.0
    alone = scale * directions * q.steps * step_cost(d, 1, 1, far)
    best = alone
    r.size = r.width = 1
    r.groups = directions
    r.patience = 0.0
    if wanted <= 1 or q.B == 0:
        return
    for width in range(1, min(each, units) + 1):
        groups = min(each // width, q.B)
        while groups * width * directions > 1:
            size = groups * width * directions
            cost = COST_CALL * (size + 6) / 8 + scale * q.steps * step_cost(d, groups, width, far)
            if far:
                cost += scale * q.steps * (COST_FAR if width > 1 else COST_BESIDE)
            if cost < best:
                best = cost
                r.patience = min(0.5e-9 * (alone - best), PATIENCE)
                r.size = size
                r.width = width
                r.groups = groups * directions
            groups //= 2  # all, half, a quarter of them: it need not be exact


@inner
def chunk_bytes(d):
    """Of the gate rows of a group, where they do not stay."""
    q = at(d, DIRECTION)
    rows = max(CHUNK, q.B) if q.steps > 1 else q.B
    return rows * get(at(q.layer, LAYER).cell, SEGMENTS) * row_bytes(d)


@inner
def work_bytes(run):
    """Of barriers, scratch and gate rows; -1 where no machine can address a step of x."""
    r = at(run, RUN)
    per = r.groups // r.directions
    extra = 0
    for i in range(r.directions):
        d = direction_of(run, i)
        q = at(d, DIRECTION)
        l = at(q.layer, LAYER)
        if q.x_i != l.size and 1.0 * max(LEFT_DEPTH_FAR, q.B) * l.inputs > 2.0**56:
            return -1
        if r.backward:
            extra = max(extra, (l.inputs + 2 * l.H + 6 * l.lanes) * l.size * block_rows(d))
        elif not q.training:
            extra += chunk_bytes(d) * per
    r.scratch_bytes = (worker_bytes(run) + 127) // 128 * 128
    lines = (r.groups * r.width + r.size) * LINE
    return (r.groups * GROUP_BYTES + 127) // 128 * 128 + lines + r.size * r.scratch_bytes + extra + 256


@inner
def deal(g, groups):
    """The batch of one direction to so many groups, at most as many as sequences. The longest come first, and all
    groups get about as many valid steps: few long sequences, or many short ones, which are few steps of many rows. Each
    gets one at least: the caller, who alone looks for signals, is in the first group and must not sit idle."""
    d = at(at(g, GROUP).direction, DIRECTION)
    j, before = 0, 0
    for i in range(groups):
        q = at(g + i * GROUP_BYTES, GROUP)
        q.begin = j
        while j <= d.B - groups + i:
            length = get(d.length, get(d.order, j))
            if j > q.begin and (2 * before + length) * groups > 2 * get(d.offset, d.steps) * (i + 1):
                break
            before += length
            j += 1
        q.rows = j - q.begin
        q.steps = get(d.length, get(d.order, q.begin)) if q.rows else 0


@inner
def open_run(run, memory):
    """Carve barriers, scratch and gate rows out of memory."""
    r = at(run, RUN)
    per = r.groups // r.directions
    r.group = memory
    memory = (memory + r.groups * GROUP_BYTES + 127) // 128 * 128
    lines = (r.groups * r.width + r.size) * LINE
    clear(memory, lines)
    r.lines = memory
    at_lines = memory + r.size * LINE
    memory += lines
    r.scratch = memory
    memory += r.size * r.scratch_bytes
    r.right = memory
    for i in range(r.groups):
        q = at(r.group + i * GROUP_BYTES, GROUP)
        d = direction_of(run, i // per)
        q.direction = d
        l = at(at(d, DIRECTION).layer, LAYER)
        q.units = (l.H + l.lanes - 1) // l.lanes
        q.most = (q.units + r.width - 1) // r.width
        q.lines = at_lines
        q.stop0 = q.stop1 = 0
        at_lines += r.width * LINE
        if not r.backward and not at(d, DIRECTION).training:
            q.gates = memory
            memory += chunk_bytes(d)
    for i in range(r.directions):
        deal(r.group + i * per * GROUP_BYTES, per)


@inner
def set_team(run, team):
    """team: addresses of acquire, run, release, asleep, the team itself, `work` and `carry_out`, None and a MEETING."""
    r = at(run, RUN)
    r.acquire, r.run, r.release, r.asleep, r.team = get(team, 0), get(team, 1), get(team, 2), get(team, 3), get(team, 4)
    r.work_function, r.carry_out, r.none, r.meeting = get(team, 5), get(team, 6), get(team, 7), get(team, 8)


@inner
def take_team(run, threads):
    """Divide the work, call the team for it, and divide it again over those who came."""
    r = at(run, RUN)
    divide(run, threads, False)
    far = r.size > 1 and far_apart(run)
    if far:
        divide(run, threads, True)
    wanted = r.size
    r.granted = call_acquire(r.acquire, wanted, r.patience, r.team)
    if r.granted != wanted:
        divide(run, r.granted, far)


@inner
def on_team(run):
    """Run; false when interrupted."""
    r = at(run, RUN)
    r.interrupted = 0
    r.outside = fp_now()
    r.work = 0.0
    call(r.run, np.int32(r.size), r.work_function, run, r.team)
    return r.interrupted == 0


# Calls from Python ----------------------------------------------------------------------------------------------------


@inner
def state_in(d, state, to):
    """A state (B, H), contiguous, or zeros for none, into padded rows in plan order."""
    q = at(d, DIRECTION)
    l = at(q.layer, LAYER)
    bytes_, n = row_bytes(d), l.H * l.size
    clear(to, q.B * bytes_)
    if state:
        for j in range(q.B):
            copy(to + j * bytes_, state + get(q.order, j) * n, n)


@inner
def state_out(d, rows, to):
    q = at(d, DIRECTION)
    l = at(q.layer, LAYER)
    bytes_, n = row_bytes(d), l.H * l.size
    for j in range(q.B):
        copy(to + get(q.order, j) * n, rows + j * bytes_, n)


@inner
def carve_backward(d, memory):
    """Running gradients and the matrices of a direction; gives what lies behind."""
    q = at(d, DIRECTION)
    l = at(q.layer, LAYER)
    rows = q.B * row_bytes(d)
    q.d_h = memory
    state_in(d, q.given_h, q.d_h)
    memory += rows
    if get(l.cell, STATES) == 2:
        q.d_c = memory
        state_in(d, q.given_c, q.d_c)
        memory += rows
    if get(l.cell, STAGES) == 2:
        q.d_q = memory
        memory += rows
    x = at(q.dx, MATRIX)
    x.data = memory
    memory += matrix_bytes(q.dx)
    for s in range(get(l.cell, STAGES)):
        h = q.dh1 if s else q.dh0
        a = at(h, MATRIX)
        a.data = memory
        memory += matrix_bytes(h)
    return memory


@inner
def item(objects, i, none):
    """The address of an object of a tuple; 0 for None."""
    found = get(objects, ITEMS + i)
    return 0 if found == none else found


@inner
def open_direction(frame, i, kernels, training, reverse, objects):
    """Fill a direction; the bytes that its layer wants."""
    d = frame + AT_DIRECTION + i * DIRECTION_BYTES
    q, none = at(d, DIRECTION), at(frame, RUN).none
    x, y, own = get(objects, ITEMS), get(objects, ITEMS + 1), 5 + 7 * i
    packed = item(objects, own, none)
    size, bytes_ = get(kernels, 5), 0
    if packed:
        q.layer = data_of(packed)
        q.packed = 1
    else:
        q.layer = frame + AT_LAYER + i * LAYER_BYTES
        w_ih, w_hh = get(objects, ITEMS + own + 1), get(objects, ITEMS + own + 2)
        b_ih, b_hh = item(objects, own + 3, none), item(objects, own + 4, none)
        bytes_ = lay_out(q.layer, frame + AT_MATRIX + 6 * i * MATRIX_BYTES, kernels, w_ih, w_hh, b_ih, b_hh)
    H = at(q.layer, LAYER).H
    q.T, q.B = shape_of(x, 0), shape_of(x, 1)
    q.reverse = reverse
    q.training = training
    q.x = data_of(x)
    q.x_t, q.x_b, q.x_i = stride_of(x, 0), stride_of(x, 1), stride_of(x, 2)
    if shape_of(x, 2) <= 1:
        q.x_i = size
    q.y = data_of(y) + i * H * size
    q.y_t, q.y_b = stride_of(y, 0), shape_of(y, 2) * size
    q.given_h = data_of(item(objects, own + 5, none))
    q.given_c = data_of(item(objects, own + 6, none))
    return bytes_


def begin(frame, kernels, threads, training, reverse, directions, objects):
    """A forward run: fill the frame, call the team, and run; see `run_in` for the answer.

    frame: an array, whose room behind the frame itself holds plan, states and tape, which a tape keeps, and then what
    the run needs. reverse: a bit a direction, the last one's lowest. objects: a tuple (x, y, lengths, h_n, c_n), and of
    each direction (packed, w_ih, w_hh, b_ih, b_hh, h0, c0), where packed is an array that holds a LAYER and the weights
    are None, or the other way round."""
    room_end = data_of(frame) + shape_of(frame, 0)
    frame = data_of(frame)
    persistent = frame + FRAME_BYTES
    clear(frame, FRAME_BYTES)
    r = at(frame, RUN)
    r.directions = directions
    r.direction0, r.direction1 = frame + AT_DIRECTION, frame + AT_DIRECTION + DIRECTION_BYTES
    set_team(frame, get(kernels, 6))
    need = 0
    for i in range(directions):
        need += open_direction(frame, i, kernels, training, reverse >> (directions - 1 - i) & 1, objects)
    first = at(r.direction0, DIRECTION)
    plan(r.direction0, first.T, first.B, data_of(item(objects, 2, r.none)), persistent)
    memory = (persistent + (2 * ((first.T if first.B else 0) + first.B) + 1) * 8 + 63) // 64 * 64
    cell = get(kernels, 0)
    states, segments = get(cell, STATES), get(cell, SEGMENTS)
    h_n, c_n = get(objects, ITEMS + 3), item(objects, 4, r.none)
    for i in range(directions):
        d = direction_of(frame, i)
        q = at(d, DIRECTION)
        l = at(q.layer, LAYER)
        if i:
            q.order, q.length, q.active, q.offset = first.order, first.length, first.active, first.offset
            q.steps = first.steps
        state = q.B * l.H * l.size
        q.out_h = data_of(h_n) + i * state
        q.out_c = data_of(c_n) + i * state if c_n else 0
        q.h0 = memory
        memory += q.B * row_bytes(d)
        state_in(d, q.given_h, q.h0)
        q.fresh = 0 if q.given_h else 1
        if states == 2:
            q.c0 = memory
            memory += q.B * row_bytes(d)
            state_in(d, q.given_c, q.c0)
        if training:
            rows = get(q.offset, q.steps)
            q.gates = memory
            memory += rows * segments * row_bytes(d)
            q.c = memory
            memory += rows * row_bytes(d) if states == 2 else 0
    r.room, r.room_end = memory, room_end
    return begun(frame, threads, need)


def begin_backward(frame, kernels, threads, objects):
    """A backward run on the frame of a forward one: as `begin`.

    kernels: addresses of work_backward, pointwise, pack_rows, pack_left. objects: a tuple (dy, dh_n, dc_n, dx), and of
    each direction (w_ih, w_hh and the gradients of w_ih, w_hh, b_ih, b_hh, h0, c0), all contiguous."""
    frame = data_of(frame)
    r = at(frame, RUN)
    r.backward = 1
    r.work_function = get(kernels, 0)
    dy, dh_n, dc_n = item(objects, 0, r.none), item(objects, 1, r.none), item(objects, 2, r.none)
    need = 0
    for i in range(r.directions):
        d = direction_of(frame, i)
        q = at(d, DIRECTION)
        l = at(q.layer, LAYER)
        l.pointwise, l.pack_rows, l.pack_left = get(kernels, 1), get(kernels, 2), get(kernels, 3)
        cell, size, own = l.cell, l.size, objects + 8 * (ITEMS + 4 + 8 * i)
        state = q.B * l.H * size
        m = frame + AT_MATRIX + (6 * i + 3) * MATRIX_BYTES
        q.dh0, q.dh1, q.dx = m, m + MATRIX_BYTES, m + 2 * MATRIX_BYTES
        dx = item(objects, 3, r.none)
        if dx:  # else a matrix without vectors
            backward_matrix(q.dx, cell + 8 * SHARE_X, l.H, l.inputs, l.lanes)
            a = at(q.dx, MATRIX)
            a.w, a.ld = data_of(get(own, 0)), l.inputs
        need += matrix_bytes(q.dx) + (get(cell, STATES) + get(cell, STAGES) - 1) * q.B * row_bytes(d)
        for s in range(get(cell, STAGES)):
            h = q.dh1 if s else q.dh0
            backward_matrix(h, cell + 8 * (SHARE_DH + s * SHARE_WORDS), l.H, l.H, l.lanes)
            b = at(h, MATRIX)
            b.w, b.ld = data_of(get(own, 1)), l.H
            need += matrix_bytes(h)
        q.dy = data_of(dy) + i * l.H * size if dy else 0
        q.dy_t, q.dy_b = q.B * r.directions * l.H * size, r.directions * l.H * size
        q.given_h = data_of(dh_n) + i * state if dh_n else 0
        q.given_c = data_of(dc_n) + i * state if dc_n else 0
        q.grad_x, q.gx_t, q.gx_b = data_of(dx) if dx else 0, q.B * l.inputs * size, l.inputs * size
        q.grad_w_ih, q.grad_w_hh = data_of(get(own, 2)), data_of(get(own, 3))
        q.grad_b_ih, q.grad_b_hh = data_of(get(own, 4)), data_of(get(own, 5))
        q.out_h = data_of(get(own, 6))
        q.out_c = data_of(get(own, 7)) if get(cell, STATES) == 2 else 0
    return begun(frame, threads, need)


NO_ROOM, CUT_SHORT = -1, -2


@inner
def begun(frame, threads, need):
    """Run in the room behind the frame, if it will do. need: the bytes of what is not known to `work_bytes`."""
    r = at(frame, RUN)
    r.need = need + 64
    return run_in(frame, threads, r.room, r.room_end)


@inner
def run_in(frame, threads, memory, end):
    """Run in this memory, if it will do: 0 or CUT_SHORT; else the bytes that are wanted, or NO_ROOM where no machine
    has them. The team is let go in any case: on its way back to Python a signal handler may end the call."""
    r = at(frame, RUN)
    take_team(frame, threads)
    more = work_bytes(frame)
    if more >= 0 and r.need + more <= end - memory:
        call(r.carry_out, frame, memory)
        return CUT_SHORT if r.interrupted else 0
    call(r.release, np.int32(r.granted), r.team)
    return NO_ROOM if more < 0 else r.need + more


@inner
def finish_forward(d):
    """h_n and c_n."""
    q = at(d, DIRECTION)
    l = at(q.layer, LAYER)
    n = l.H * l.size
    for j in range(q.B):
        b = get(q.order, j)
        length = get(q.length, b)
        copy(q.out_h + b * n, y_row(d, j, length - 1), n)
        if q.out_c:
            copy(q.out_c + b * n, tape_c(d, j, length - 1), n)


def carry_out(frame, memory):
    """Run what was begun, in memory of the bytes that were asked for, and let the team go."""
    r = at(frame, RUN)
    memory = (memory + 63) // 64 * 64
    for i in range(r.directions):
        d = direction_of(frame, i)
        if r.backward:
            memory = carve_backward(d, memory)
        elif not at(d, DIRECTION).packed:
            memory = carve(at(d, DIRECTION).layer, memory)
    open_run(frame, memory)
    r.checked = seconds()
    done = on_team(frame)
    if r.granted > 1 and seconds() - at(r.meeting, MEETING).looked > LOOK_SECONDS:
        look(frame)
    call(r.release, np.int32(r.granted), r.team)
    if not done:
        return
    for i in range(r.directions):
        d = direction_of(frame, i)
        q = at(d, DIRECTION)
        if not r.backward:
            finish_forward(d)
        else:
            state_out(d, q.d_h, q.out_h)
            if q.out_c:
                state_out(d, q.d_c, q.out_c)


def go(frame, memory, threads):
    """Run what was begun in other memory, both being arrays; see `run_in` for the answer."""
    return run_in(data_of(frame), threads, data_of(memory), data_of(memory) + shape_of(memory, 0))


def pack_begin(layer, kernels, w_ih, w_hh, b_ih, b_hh):
    """Describe a layer that is to be packed; the bytes that `pack_end` wants."""
    clear(layer, LAYER_BYTES + 3 * MATRIX_BYTES)
    return lay_out(layer, layer + LAYER_BYTES, kernels, w_ih, w_hh, b_ih, b_hh) + 64


def pack_end(layer, memory, piece, pieces):
    """Pack a piece of it."""
    l = at(layer, LAYER)
    if piece == 0:
        carve(layer, (memory + 63) // 64 * 64)
    pack_matrix(l.x, layer, piece, pieces, 0)
    for s in range(get(l.cell, STAGES)):
        pack_matrix(l.h1 if s else l.h0, layer, piece, pieces, 0)


INT = "int64"
work_kernel = Kernel(work, "void(int64, int32)")
work_backward_kernel = Kernel(work_backward, "void(int64, int32)")
meet_kernel = Kernel(meet_often, "void(int64, int32)")
begin_kernel = Kernel(begin, f"int64({', '.join([INT] * 7)})")
begin_backward_kernel = Kernel(begin_backward, f"int64({', '.join([INT] * 4)})")
carry_out_kernel = Kernel(carry_out, "void(int64, int64)")
go_kernel = Kernel(go, "int64(int64, int64, int64)")
pack_begin_kernel = Kernel(pack_begin, f"int64({', '.join([INT] * 6)})")
pack_end_kernel = Kernel(pack_end, f"void({', '.join([INT] * 4)})")

# Streams: the same loop over a single step, with everything laid out beforehand -------------------------------------

STREAM = np.dtype(
    [
        *((name, np.int64) for name in ("layers", "frames", "B", "inputs", "H", "size", "descr")),
        *((name, np.int64) for name in ("array", "none", "name", "laid", "busy", "small")),
        # halfway: the last step was interrupted, some layers are a step ahead of the others. status: of the last step
        *((name, np.int64) for name in ("halfway", "status", "division")),
        # whether steps call for other threads, and the trials of that: Ways of kernels/step.pxi
        *((name, np.int64) for name in ("helped", "pause", "settling", "timed", "came")),
        *((name, np.float64) for name in ("period", "since", "began")),
        ("seconds", np.float64, (2 * TRIED,)),
    ]
)
SECONDS_AT = STREAM.fields["seconds"][1]  # type: ignore[index]
TIME = np.dtype([("seconds", np.float64)])
# How a step is divided: `asked` is the number of threads that there might be, `wanted` those that it is worth, `need`
# the bytes of memory of each layer; where these lie follows.
DIVISION = np.dtype([*((name, np.int64) for name in ("asked", "wanted", "need")), ("patience", np.float64)])
AT_MEMORY = DIVISION.itemsize
RUN_BYTES = RUN.itemsize
BUSY_AT = STREAM.fields["busy"][1]  # type: ignore[index]
C_CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x100, 0x400
DONE, INTERRUPTED_STEP, UNFIT, BUSY, HALFWAY, DIVIDED_FOR_OTHERS = range(6)


def open_stream(stream, team, layers):
    """Fill the frames and the states of the layers of a stream.

    The frame of layer i lies at frames + i * FRAME_BYTES, and behind them all states: two of h and one of c a layer,
    zeros. layers: addresses of packed LAYERs."""
    q = at(stream, STREAM)
    B, memory = q.B, q.frames + q.layers * FRAME_BYTES
    order = memory
    memory += (2 * (1 + B) + 1) * 8
    work = 0.0
    for i in range(q.layers):
        frame = q.frames + i * FRAME_BYTES
        clear(frame, FRAME_BYTES)
        r = at(frame, RUN)
        r.directions = 1
        d = r.direction0 = frame + AT_DIRECTION
        set_team(frame, team)
        p = at(d, DIRECTION)
        p.layer, p.packed, p.T = get(layers, i), 1, 1
        l = at(p.layer, LAYER)
        plan(d, 1, B, 0, order)
        state = B * row_bytes(d)
        p.x_i = l.size
        p.x_b = l.inputs * l.size if i == 0 else at(get(layers, i - 1), LAYER).stride * l.size
        p.y_b = row_bytes(d)
        memory = (memory + 63) // 64 * 64
        p.h0, p.y, p.c0 = memory, memory + state, memory + 2 * state
        memory += (1 + get(l.cell, STATES)) * state
        clear(p.h0, (1 + get(l.cell, STATES)) * state)
        work += 1.0 * B * get(l.cell, GATES) * l.H * (l.H + l.inputs)
    q.small = 1 if work < 1e5 else 0  # a few microseconds: not worth letting the GIL go


def divide_stream(stream, threads, division):
    """How a step would be divided over up to so many threads; need is -1 where no machine has the memory."""
    q, found, frame = at(stream, STREAM), at(division, DIVISION), stack(RUN_BYTES)
    r = at(frame, RUN)
    found.asked, found.wanted, found.need, found.patience = threads, 0, 0, 0.0
    for i in range(q.layers):
        copy(frame, q.frames + i * FRAME_BYTES, RUN_BYTES)  # a step may be at work on the other one
        for number in range(1, threads + 1):
            divide(frame, number, False)
            need = work_bytes(frame)
            if need < 0:
                found.need = -1
                return
            found.need = max(found.need, need)
        found.wanted = max(found.wanted, r.size)
        found.patience = found.patience + r.patience


def take_division(stream, division):
    """Let the next step be divided so; false where a step is under way."""
    q = at(stream, STREAM)
    if not swap(stream + BUSY_AT, 0, 1):
        return False
    q.division, q.laid = division, 0
    q.helped = 1
    end_trial(q, TRIED_AGAIN, 1.0)
    q.pause = TRIED_FIRST
    poke(stream + BUSY_AT, 0)
    return True


@inner
def asks(q):
    """Whether this step calls for other threads: as was faster, or the way that is tried."""
    if q.pause:
        return q.helped != 0
    q.began = seconds()
    return (q.helped != 0) == (q.timed >= TRIED)


@inner
def judge(stream, asked, helped):
    """After a step that asked for other threads, or did not, and had their help: twin of open_step and try_step."""
    q = at(stream, STREAM)
    if q.pause:
        q.pause = q.pause - 1 if helped or not asked else q.pause // 2  # nobody came: it may be time to do without
        return
    took = seconds() - q.began
    if q.since == 0.0:
        q.since, q.settling = q.began, SETTLED
    if q.timed < TRIED and took > NO_QUESTION:
        end_trial(q, NO_QUESTION_TIMES * took, took)
    elif asked and q.settling == SETTLED and not helped and q.began - q.since < AWAKE:
        pass  # until they have woken up ...
    elif q.settling:
        q.settling = q.settling - 1  # ... and the weights are where this way wants them
    else:
        at(stream + SECONDS_AT + 8 * q.timed, TIME).seconds = took
        q.timed = q.timed + 1
        if helped:
            q.came = q.came + 1
        if q.timed == TRIED:
            q.since = 0.0
        elif q.timed == 2 * TRIED:
            other, before = median(stream + SECONDS_AT), median(stream + SECONDS_AT + 8 * TRIED)
            if other < (WORTH_LEAVING if q.helped and q.came <= TRIED // 2 else WORTH_CHANGING) * before:
                q.helped = 1 - q.helped
                end_trial(q, TRIED_AGAIN, other)
            else:
                q.period = min(2 * q.period, TRIED_AT_LAST)
                end_trial(q, max(q.period, TRIAL_TIMES * (TRIED + SETTLED) * (other - before)), before)


@inner
def end_trial(q, period, step):
    """Steps of so many seconds until the next one."""
    q.period = min(period, TRIED_AT_LAST)
    q.pause = 1 + np.int64(period / max(step, 1e-8))
    q.since, q.timed, q.came = 0.0, 0, 0


@inner
def median(times):
    """... of TRIED numbers, which it sorts."""
    for i in range(1, TRIED):
        x = at(times + 8 * i, TIME).seconds
        j = i
        while j > 0 and at(times + 8 * (j - 1), TIME).seconds > x:
            at(times + 8 * j, TIME).seconds = at(times + 8 * (j - 1), TIME).seconds
            j -= 1
        at(times + 8 * j, TIME).seconds = x
    return at(times + 8 * (TRIED // 2), TIME).seconds


@inner
def fits(array, q, columns, more):
    """Whether an object is an array (B, columns) of the stream's dtype, contiguous, aligned and `more`."""
    flags = C_CONTIGUOUS | ALIGNED | more
    return (
        get(array, HEAD - 1) == q.array
        and get(array, HEAD + 5) == q.descr
        and get(array, HEAD + 1) & 0xFFFFFFFF == 2
        and shape_of(array, 0) == q.B
        and shape_of(array, 1) == columns
        and get(array, HEAD + 6) & flags == flags
    )


@inner
def step(stream, x, out):
    """One step of every layer; the new state takes the place of the old one. DONE, or why not."""
    q = at(stream, STREAM)
    if not swap(stream + BUSY_AT, 0, 1):
        return BUSY
    if q.halfway:
        poke(stream + BUSY_AT, 0)
        return HALFWAY
    thread = 0 if q.small else released()
    first = at(q.frames, RUN)
    division = at(q.division, DIVISION)
    asked = division.wanted > 1 and asks(q)
    granted = call_acquire(first.acquire, division.wanted, division.patience, first.team) if asked else 1
    status = DONE
    before = data_of(x)
    checked = NO_TIME if q.small else seconds()
    for i in range(q.layers):
        frame = q.frames + i * FRAME_BYTES
        r = at(frame, RUN)
        if granted != q.laid:
            divide(frame, granted, False)
            work_bytes(frame)
            open_run(frame, get(q.division + AT_MEMORY, i))
        elif r.size > 1:
            clear(r.lines, (r.groups * r.width + r.size) * LINE)
        p = at(r.direction0, DIRECTION)
        p.x = before
        r.checked = checked
        if not on_team(frame):
            status = INTERRUPTED_STEP
            copy(q.frames + ERROR, frame + ERROR, 24)
            break
        checked = r.checked
        p.h0, p.y = p.y, p.h0
        before = p.h0
    q.laid = granted if status == DONE else 0
    q.halfway = 0 if status == DONE else 1
    call(first.release, np.int32(granted), first.team)
    if division.wanted > 1:
        judge(stream, asked, granted > 1)
    if status == DONE:
        last = at(at(q.frames + (q.layers - 1) * FRAME_BYTES, RUN).direction0, DIRECTION)
        to, n = data_of(out), q.H * q.size
        for b in range(q.B):
            copy(to + b * n, last.h0 + b * last.y_b, n)
    if thread:
        retaken(thread)
    poke(stream + BUSY_AT, 0)
    return status


@inner
def try_step(stream, make, threads, x, out):
    """What `step_method` returns, 0 for an exception; or -1, why in `status`."""
    q = at(stream, STREAM)
    number = call_nothing(threads)
    if number == 0:
        return 0
    status = DIVIDED_FOR_OTHERS if integer(number) != at(q.division, DIVISION).asked else DONE
    unshare(number)
    if status == DONE and not fits(x, q, q.inputs, 0):
        status = UNFIT
    if status != DONE:
        q.status = status
        return -1
    if out == 0 or out == q.none:
        out = call_nothing(make)
        if out == 0:
            return 0
    else:
        share(out)
    status = step(stream, x, out) if fits(out, q, q.H, WRITEABLE) else UNFIT
    if status == DONE:
        return out
    unshare(out)
    if status == INTERRUPTED_STEP:
        at_error = q.frames + ERROR
        raise_again(get(at_error, 0), get(at_error, 1), get(at_error, 2))
        return 0
    q.status = status
    return -1


def step_method(self, args, given, names):
    """`step(x_t, out=None)` as CPython calls a built-in function: with an array of arguments, the named ones last.

    self: (the STREAM, what makes an array for the result, what does all that is not done here, get_num_threads)."""
    named = 0
    if names and get(names, HEAD) == 1 and get(names, ITEMS) == at(data_of(get(self, ITEMS)), STREAM).name:
        named = 1
    if given >= 1 and given + named <= 2 and (named or not names):
        out = get(args, 1) if given + named == 2 else 0
        found = try_step(data_of(get(self, ITEMS)), get(self, ITEMS + 1), get(self, ITEMS + 3), get(args, 0), out)
        if found != -1:
            return found
    else:
        at(data_of(get(self, ITEMS)), STREAM).status = UNFIT
    return call_python(get(self, ITEMS + 2), args, given, names)


def stream_state(stream, h, c, writing):
    """Copy the states of all layers, (layers, B, H) contiguous: out, or in where `writing`; no h: zeros. c may be 0.
    DONE, or why not."""
    q = at(stream, STREAM)
    if not swap(stream + BUSY_AT, 0, 1):
        return BUSY
    if writing:
        q.halfway = 0
    elif q.halfway:
        poke(stream + BUSY_AT, 0)
        return HALFWAY
    for i in range(q.layers):
        d = at(q.frames + i * FRAME_BYTES, RUN).direction0
        p = at(d, DIRECTION)
        offset = i * q.B * q.H * q.size
        if writing:
            state_in(d, data_of(h) + offset if h else 0, p.h0)
            if get(at(p.layer, LAYER).cell, STATES) == 2:
                state_in(d, data_of(c) + offset if c else 0, p.c0)
        else:
            state_out(d, p.h0, data_of(h) + offset)
            if c:
                state_out(d, p.c0, data_of(c) + offset)
    poke(stream + BUSY_AT, 0)
    return DONE


open_stream_kernel = Kernel(open_stream, f"void({', '.join([INT] * 3)})")
divide_stream_kernel = Kernel(divide_stream, f"void({', '.join([INT] * 3)})")
take_division_kernel = Kernel(take_division, f"boolean({', '.join([INT] * 2)})")
step_method_kernel = Kernel(step_method, f"int64({', '.join([INT] * 4)})")
stream_state_kernel = Kernel(stream_state, f"int64({', '.join([INT] * 4)})")
