# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: auto_pickle=False
# distutils: language=c
"""THE TIME LOOP, one for every cell and both passes, and what stands around it: packing, the partition of work over
the team, the parameter gradients, streams. Arguments come checked; this file refuses to judge them (streams excepted:
nothing stands before them) and holds no gate math, which lives in the tiles."""

cimport cython
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from posix.stdlib cimport posix_memalign

cimport numpy as np

import os

import numpy

from tiles cimport (
    CELLS, GRU, GRU_RESET_BEFORE, LSTM, PANEL, RNN_RELU, RNN_TANH, TEAM_MOST,
    barrier_line, cpu_compiler, cpu_count, cpu_isa, cpu_large_pages, cpu_seconds, cpu_tiles, fp_now, fp_restore,
    fp_state, pack_t, pointwise_fn, pointwise_t, product_t, team_acquire, team_barrier, team_release, team_run,
    team_turn, tiles_t,
)

np.import_array()


cdef extern from "Python.h":
    int signals_pending "PyErr_CheckSignals"()      # leaves the exception set; raised once the loop has ended


# ---------------------------------------------------------------------------------------------------------------
# What a cell is to the loop. A gate row has `segments` segments of H (padded): its pre-activations going in, the
# tape after the forward pass, the gradients of the pre-activations after the backward pass.


cdef struct Share:
    # A product within the cell: which gates (rows of W) and which segments of the gate row take part.
    int gates               # 0: no such product
    int gate[4]             # forward: which gate vector v of a panel is. backward: whose rows of W come in turn
    int segment             # first segment written (forward) or read (backward)


cdef struct Cell:
    int gates               # G, as PyTorch counts
    int segments            # of a gate row
    int stages              # products and pointwise parts a step
    int states              # 2 with c, else 1
    Share x                 # x W_ih -> gate row
    Share h[2]              # h W_hh -> gate row, by stage
    int source[2]           # left operand of h[stage]: -1 is h, otherwise a segment of the gate row
    Share dh[2]             # gate row -> dh, by backward stage
    int of_x[4]             # segment that holds the gradient of gate g as W_ih sees it
    int of_h[4]             # ... and as W_hh sees it
    int right[4]            # right operand of dW_hh of gate g: -1 is h_prev, otherwise a segment
    int plain               # the segment of h W_hh alone, without a share of x; -1: none

cdef Cell[CELLS] CELL
cdef dict CELL_NUMBER = {
    "rnn_tanh": RNN_TANH, "rnn_relu": RNN_RELU, "lstm": LSTM, "gru": GRU, "gru_reset_before": GRU_RESET_BEFORE,
}


cdef Share share(gates, int segment):
    cdef Share s
    memset(&s, 0, sizeof(s))
    s.gates = len(gates)
    s.segment = segment
    for v, g in enumerate(gates):
        s.gate[v] = g
    return s


cdef void describe(int kind, int segments, list stages, Share x, of_x, of_h, right, int plain=-1, int states=1):
    cdef Cell *c = &CELL[kind]
    memset(c, 0, sizeof(Cell))
    c.gates = x.gates
    c.segments = segments
    c.stages = len(stages)
    c.states = states
    c.plain = plain
    c.x = x
    for s, (forward_gates, forward_segment, source, backward_gates, backward_segment) in enumerate(stages):
        c.h[s] = share(forward_gates, forward_segment)
        c.source[s] = source
        c.dh[s] = share(backward_gates, backward_segment)
    for g in range(c.gates):
        c.of_x[g] = of_x[g]
        c.of_h[g] = of_h[g]
        c.right[g] = right[g]


# kind, segments, stages (h W_hh: gates -> segment, operand; dh: gates <- segment), x W_ih, segments of the gradients
describe(RNN_TANH, 1, [([0], 0, -1, [0], 0)], share([0], 0), [0], [0], [-1])
describe(RNN_RELU, 1, [([0], 0, -1, [0], 0)], share([0], 0), [0], [0], [-1])
describe(LSTM, 4, [([0, 1, 2, 3], 0, -1, [0, 1, 2, 3], 0)], share([0, 1, 2, 3], 0),
         [0, 1, 2, 3], [0, 1, 2, 3], [-1] * 4, -1, 2)
describe(GRU, 4, [([0, 1, 2], 1, -1, [0, 1, 2], 1)], share([2, 0, 1], 0), [1, 2, 0], [1, 2, 3], [-1] * 3, 3)
describe(GRU_RESET_BEFORE, 4, [([0, 1], 1, -1, [0, 1], 1), ([2], 0, 3, [2], 0)], share([2, 0, 1], 0),
         [1, 2, 0], [1, 2, 0], [-1, -1, 3])


# ---------------------------------------------------------------------------------------------------------------
# Tunables, each with its reason.


cdef enum:
    CHUNK = 128             # rows of x projected at once: the gate rows stay in L2 until the recurrence reads them
    LEFT_DEPTH = 512        # rows of the tape that one block of dW sums: half the traffic of dW at 256
    LEFT_STRIP = 48         # gate units whose left operand is packed at once: 96 KB, 8 tiles reuse every panel
    DX_ROWS = 48            # rows of dx made at once: 8 tiles reuse every panel of W_ih
    SERPENT = 128 * 1024    # bytes of weights between two turning points where few rows stream more than L2 holds
    FEW_ROWS = 8            # below, all panels of a thread go through one product call and one pointwise call
    LARGE_PAGE = 2 * 1024 * 1024    # a tape of 40 MB is 10,000 page faults otherwise
    SPARES = 3              # blocks of memory kept for the next call, ...
    SPARE_LEAST = 256 * 1024        # ... each at least so large (the system hands out small ones without clearing) ...
    SPARE_MOST = 40 * 1024 * 1024   # ... and at most
    SHARED_WORK = 300000    # multiply-adds of a block, some 5 us, worth asking whose turn it is


cdef Py_ssize_t L2_SHARE = 600 * 1024       # bytes of weights that stay in one core's L2 (1 MB or more) over the steps
cdef double PATIENCE = 1e-3                  # a worker that has not answered by then has lost its CPU
cdef double SIGNAL_SECONDS = 0.05           # Ctrl-C is looked for this often
cdef double SIGNAL_WORK = 2e7               # multiply-adds between two looks at the clock

# The cost model of `divide`, in nanoseconds and bytes per nanosecond; only ratios matter.
cdef double COST_BARRIER = 350, COST_CALL = 2000
cdef double RATE_FMA = 55, RATE_L1 = 150, RATE_L2 = 80, RATE_L3 = 20
cdef double STREAMING = .25                 # of the time from beyond L2 does not hide behind the arithmetic


# ---------------------------------------------------------------------------------------------------------------
# Memory


cdef struct Spare:
    char *data
    Py_ssize_t size             # 0: none

cdef Spare[SPARES] SPARE        # touched with the GIL held


cdef Py_ssize_t class_of(Py_ssize_t size) noexcept nogil:
    """A large size rounded up to the next quarter of a power of two: the matrices of a backward pass then find room in
    the block of the forward ones, which is a few rows smaller. Pages that nobody touches take no memory."""
    cdef Py_ssize_t quarter = SPARE_LEAST // 4
    if size < SPARE_LEAST:
        return size
    while size > 8 * quarter:
        quarter *= 2
    return (size + quarter - 1) // quarter * quarter


@cython.final
@cython.internal
cdef class Memory:
    """A block of 64-byte aligned memory that lives as long as its owner. A few large ones are kept for whoever comes
    next: fresh pages have to be cleared by the system, 2 to 6 % of a training step."""
    cdef char *data
    cdef Py_ssize_t size

    def __cinit__(self, size):
        cdef int i
        if size > 2**62:
            raise MemoryError(f"a work area of {size} bytes is more than this machine can address")
        self.size = class_of(max(64, size))
        for i in range(SPARES):
            if self.size <= SPARE[i].size <= 2 * self.size:
                self.data = SPARE[i].data
                self.size = SPARE[i].size
                memset(&SPARE[i], 0, sizeof(Spare))
                return
        cdef bint large = self.size >= 2 * LARGE_PAGE
        if posix_memalign(<void **>&self.data, LARGE_PAGE if large else 64, self.size):
            self.data = NULL
            raise MemoryError(f"no memory for a work area of {size} bytes")
        if large:
            cpu_large_pages(self.data, self.size // LARGE_PAGE * LARGE_PAGE)

    def __dealloc__(self):
        cdef int i, least = 0
        cdef Spare mine
        mine.data = self.data
        mine.size = self.size
        if SPARE_LEAST <= mine.size <= SPARE_MOST:
            for i in range(SPARES):
                if SPARE[i].size < SPARE[least].size:
                    least = i
            if SPARE[least].size < mine.size:
                mine = SPARE[least]
                SPARE[least].data = self.data
                SPARE[least].size = self.size
        free(mine.data)


cdef inline Py_ssize_t padded(Py_ssize_t n, Py_ssize_t itemsize) noexcept nogil:
    """n rounded up to 64 bytes; an odd number of lines where rows would otherwise share their cache sets."""
    cdef Py_ssize_t lane = 64 // itemsize
    n = (n + lane - 1) // lane * lane
    return n + lane if n * itemsize % 1024 == 0 else n


# ---------------------------------------------------------------------------------------------------------------
# Packed matrices


cdef struct Matrix:
    char *data
    Py_ssize_t depth        # K
    Py_ssize_t width        # vectors in a full panel
    Py_ssize_t vectors
    Py_ssize_t columns
    Py_ssize_t gate_rows    # by rows: the source's rows are taken gate by gate, this many each
    bint gated
    bint transposed
    int gate[4]
    const char *w           # the source, rows of ld elements
    Py_ssize_t ld


cdef Matrix forward_matrix(Share *s, Py_ssize_t H, Py_ssize_t K, Py_ssize_t lanes) noexcept:
    """Gate columns of W (G*H, K) transposed: gated panels, or linear ones of a single gate."""
    cdef Matrix m
    memset(&m, 0, sizeof(m))
    m.depth = K
    m.gated = s.gates > 1
    m.width = s.gates if m.gated else PANEL
    m.vectors = (H + lanes - 1) // lanes * s.gates
    m.columns = H
    m.transposed = True
    memcpy(m.gate, s.gate, sizeof(m.gate))
    return m


cdef Matrix backward_matrix(Share *s, Py_ssize_t H, Py_ssize_t N, Py_ssize_t lanes) noexcept:
    """W (G*H, N) by rows: linear panels of its N columns, depth G*H gate by gate in the order of the gate row."""
    cdef Matrix m
    memset(&m, 0, sizeof(m))
    m.depth = s.gates * H
    m.gate_rows = H
    m.width = PANEL
    m.vectors = (N + lanes - 1) // lanes
    m.columns = N
    memcpy(m.gate, s.gate, sizeof(m.gate))
    return m


cdef inline Py_ssize_t matrix_bytes(Matrix *m, const tiles_t *tiles) noexcept nogil:
    return m.vectors * tiles.lanes * m.depth * tiles.itemsize


cdef void pack_matrix(Matrix *m, const tiles_t *tiles, int rank, int size, const void **rows) noexcept nogil:
    """The rank's share of the vectors. `rows` has room for `depth` pointers where the matrix is packed by rows."""
    cdef pack_t p
    cdef Py_ssize_t k, g
    memset(&p, 0, sizeof(p))
    p.out = m.data
    p.depth = m.depth
    p.width = m.width
    p.vectors = m.vectors
    p.first = m.vectors * rank // size
    p.last = m.vectors * (rank + 1) // size
    p.columns = m.columns
    p.gated = m.gated
    memcpy(p.gate, m.gate, sizeof(p.gate))
    p.w = m.w
    p.ld = m.ld
    if m.transposed:
        if not m.gated:
            p.w = m.w + m.gate[0] * m.columns * m.ld * tiles.itemsize
        tiles.pack_transposed(&p)
    elif p.first < p.last:
        for k in range(m.depth):
            g = k // m.gate_rows
            rows[k] = m.w + (m.gate[g] * m.gate_rows + k - g * m.gate_rows) * m.ld * tiles.itemsize
        p.row = rows
        tiles.pack_rows(&p)


cdef struct Layer:
    # One direction of one layer: its forward matrices and the bias row, `[segments][stride]`.
    Cell *cell
    int kind
    const tiles_t *tiles
    Py_ssize_t inputs, H    # I (whose letter C keeps for the imaginary unit) and H
    Py_ssize_t stride       # of a segment of the gate row, in elements
    Matrix x
    Matrix h[2]
    char *bias


cdef np.ndarray contiguous(w):
    return numpy.ascontiguousarray(w)


@cython.final
cdef class Packed:
    """Weights packed for the forward pass: immutable, shared freely between threads."""
    cdef Layer layer
    cdef Memory memory
    cdef tuple sources      # what the matrices are packed from; None once they are
    cdef readonly str cell
    cdef readonly object dtype
    cdef readonly bint has_b_ih, has_b_hh

    def __init__(self):
        raise TypeError("packed weights are made by pack()")

    @property
    def input_size(self):
        return self.layer.inputs

    @property
    def hidden_size(self):
        return self.layer.H


cdef const tiles_t *tiles_for(object dtype) except NULL:
    return &ACTIVE[1 if dtype.itemsize == 8 else 0]


cdef Packed prepare(str cell, w_ih, w_hh, b_ih, b_hh):
    """Lay a layer out and make its bias row; the matrices are packed by the team that needs them."""
    cdef Packed p = Packed.__new__(Packed)
    cdef Layer *l = &p.layer
    cdef np.ndarray wi = contiguous(w_ih), wh = contiguous(w_hh)
    cdef int s
    p.cell = cell
    p.dtype = numpy.dtype(numpy.float64 if wi.itemsize == 8 else numpy.float32)
    p.has_b_ih = b_ih is not None
    p.has_b_hh = b_hh is not None
    l.kind = CELL_NUMBER[cell]
    l.cell = &CELL[l.kind]
    l.tiles = tiles_for(wi.dtype)
    l.inputs = wi.shape[1]
    l.H = wh.shape[1]
    l.stride = padded(l.H, l.tiles.itemsize)
    l.x = forward_matrix(&l.cell.x, l.H, l.inputs, l.tiles.lanes)
    l.x.w = <char *>np.PyArray_DATA(wi)
    l.x.ld = l.inputs
    cdef Py_ssize_t size = l.cell.segments * l.stride * l.tiles.itemsize + matrix_bytes(&l.x, l.tiles)
    for s in range(l.cell.stages):
        l.h[s] = forward_matrix(&l.cell.h[s], l.H, l.H, l.tiles.lanes)
        l.h[s].w = <char *>np.PyArray_DATA(wh)
        l.h[s].ld = l.H
        size += matrix_bytes(&l.h[s], l.tiles)
    p.memory = Memory(size)
    p.sources = (wi, wh)
    l.bias = p.memory.data
    l.x.data = l.bias + l.cell.segments * l.stride * l.tiles.itemsize
    cdef char *at = l.x.data + matrix_bytes(&l.x, l.tiles)
    for s in range(l.cell.stages):
        l.h[s].data = at
        at += matrix_bytes(&l.h[s], l.tiles)
    memset(l.bias, 0, l.cell.segments * l.stride * l.tiles.itemsize)
    if b_ih is not None:
        add_bias(l, contiguous(b_ih), l.cell.of_x)
    if b_hh is not None:
        add_bias(l, contiguous(b_hh), l.cell.of_h)
    return p


cdef void add_bias(Layer *l, np.ndarray b, int *segment) noexcept:
    cdef Py_ssize_t g, u
    cdef char *row
    cdef char *data = <char *>np.PyArray_DATA(b)
    for g in range(l.cell.gates):
        row = l.bias + segment[g] * l.stride * l.tiles.itemsize
        for u in range(l.H):
            if l.tiles.itemsize == 8:
                (<double *>row)[u] += (<double *>data)[g * l.H + u]
            else:
                (<float *>row)[u] += (<float *>data)[g * l.H + u]


cdef void pack_layer(Layer *l, int rank, int size) noexcept nogil:
    cdef int s
    pack_matrix(&l.x, l.tiles, rank, size, NULL)
    for s in range(l.cell.stages):
        pack_matrix(&l.h[s], l.tiles, rank, size, NULL)


def pack(str cell, w_ih, w_hh, b_ih=None, b_hh=None):
    """Pack a layer's weights once; see the backend protocol in fusedrnn.backends."""
    cdef Packed p = prepare(cell, w_ih, w_hh, b_ih, b_hh)
    with nogil:
        pack_layer(&p.layer, 0, 1)
    p.sources = None
    return p


# ---------------------------------------------------------------------------------------------------------------
# The order of a ragged batch: longest first, so that the sequences at work in a step are the first `active[s]`.


@cython.final
@cython.internal
cdef class Plan:
    cdef Py_ssize_t T, B, steps, rows
    cdef Memory memory
    cdef Py_ssize_t *order      # [B]  row j of a step is sequence order[j]
    cdef Py_ssize_t *length     # [B]  by sequence
    cdef Py_ssize_t *active     # [steps]
    cdef Py_ssize_t *offset     # [steps + 1]  first row of a step on the tape

    def __cinit__(self, Py_ssize_t T, Py_ssize_t B, lengths):
        cdef Py_ssize_t b, s, n, count
        cdef const np.int64_t[::1] given
        self.T = T
        self.B = B
        if B == 0:
            T = 0                                               # nothing to plan, however many steps
        self.memory = Memory((2 * (<object>T + B) + 1) * sizeof(Py_ssize_t))
        self.order = <Py_ssize_t *>self.memory.data
        self.length = self.order + B
        self.active = self.length + B
        self.offset = self.active + T
        if lengths is None:
            for b in range(B):
                self.order[b] = b
                self.length[b] = T
        else:
            given = lengths
            memset(self.offset, 0, (T + 1) * sizeof(Py_ssize_t))
            for b in range(B):
                self.length[b] = given[b]
                self.offset[self.length[b]] += 1                # sequences of each length ...
            n = 0
            for s in range(T, -1, -1):
                count = self.offset[s]
                self.offset[s] = n                              # ... where the first of them comes ...
                n += count
            for b in range(B):
                s = self.length[b]
                self.order[self.offset[s]] = b                  # ... and the next one
                self.offset[s] += 1
        self.steps = self.length[self.order[0]] if B else 0
        n = B
        self.offset[0] = 0
        for s in range(self.steps):
            while n and self.length[self.order[n - 1]] <= s:
                n -= 1
            self.active[s] = n
            self.offset[s + 1] = self.offset[s] + n
        self.rows = self.offset[self.steps]


# ---------------------------------------------------------------------------------------------------------------
# A run: one call of the team over one or two directions.


cdef struct Direction:
    Layer layer
    bint reverse, packed, training
    Py_ssize_t B, steps
    Py_ssize_t *order
    Py_ssize_t *length
    Py_ssize_t *active
    Py_ssize_t *offset
    const char *x               # (T, B, I), byte strides
    Py_ssize_t x_t, x_b, x_i
    char *y                     # (T, B, H), byte strides; the units of a row are neighbours
    Py_ssize_t y_t, y_b
    char *h0                    # [B][stride], rows in plan order
    char *c0                    # ... the running c when not training
    char *gates                 # training: [rows][segments*stride]
    char *c                     # training: [rows][stride]
    # backward only
    Matrix dh[2]
    Matrix dx
    const char *dy
    Py_ssize_t dy_t, dy_b
    char *d_h                   # [B][stride] running gradients, in plan order; dh_n in, dh0 out
    char *d_c
    char *d_rh
    char *grad_x                # (T, B, I) contiguous
    Py_ssize_t gx_t, gx_b
    char *grad_w_ih
    char *grad_w_hh
    char *grad_b_ih
    char *grad_b_hh


cdef struct Group:
    # Rows first, first + every, ... of the batch, all steps of one direction, shared by `width` threads.
    Direction *direction
    Py_ssize_t first, every
    Py_ssize_t units, most      # vectors of a state and of a rank at most; a division takes longer than a small tile
    char *gates                 # inference: the gate rows of a chunk
    barrier_line *lines
    int stop[2]                 # by parity of the epoch: agreed by the leader before a barrier, read after it


cdef struct Run:
    int size, width, groups
    double patience             # seconds worth waiting for the team: half of what it would save
    bint backward
    int directions
    Direction direction[2]
    Group *group
    barrier_line *lines         # of the whole team
    char *scratch               # per rank
    Py_ssize_t scratch_bytes
    char *right                 # backward: right operands of dW, shared by the team
    bint interrupted
    fp_state outside            # the caller's, for its signal handlers
    int stop[2]                 # as a group's, for the whole team's barrier
    double checked              # when rank 0 last looked for signals
    double work                 # multiply-adds since it last looked at the clock


cdef struct Worker:
    Run *run
    int rank
    unsigned long epoch         # of the team's barrier
    Group *group                # in the time loop: where this rank works, on which seat, and the group's barrier
    int seat
    unsigned long group_epoch
    # row pointers, carved out of the rank's scratch
    void **a
    void **out
    void **gates
    void **h_prev
    void **h
    void **c_prev
    void **c
    void **dy
    void **dh
    void **dc
    void **drh
    char *buffer                # staged x rows or packed left operands


cdef void look_for_signals(Run *run) noexcept nogil:
    cdef double now = cpu_seconds()
    run.work = 0
    if run.interrupted or now - run.checked < SIGNAL_SECONDS:
        return
    cdef fp_state inside = fp_now()
    fp_restore(run.outside)
    with gil:
        if signals_pending():
            run.interrupted = True
    fp_restore(inside)
    run.checked = cpu_seconds()


cdef inline void account(Worker *k, double multiply_adds) noexcept nogil:
    """Called beside every product: rank 0 looks for signals now and then."""
    if k.rank == 0:
        k.run.work += multiply_adds
        if k.run.work > SIGNAL_WORK:
            look_for_signals(k.run)


cdef bint meet(Worker *k) noexcept nogil:
    """The whole team's barrier; True when all agree to stop. Rank 0 decides before, the others read after."""
    cdef Run *run = k.run
    if run.size == 1:
        return run.interrupted
    k.epoch += 1
    if k.rank == 0:
        run.stop[k.epoch & 1] = run.interrupted
    team_barrier(run.lines, k.rank, run.size, k.epoch)
    return run.stop[k.epoch & 1]


cdef inline Py_ssize_t next_turn(Worker *k, int line, Py_ssize_t *turn) noexcept nogil:
    """The next of the turns that the team takes between two of its barriers; start from -1."""
    turn[0] = team_turn(&k.run.lines[line], k.epoch) if k.run.size > 1 else turn[0] + 1
    return turn[0]


cdef inline Py_ssize_t even(Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    """n rounded up, for every rank to have as much."""
    return (n + size - 1) // size * size


cdef inline Py_ssize_t group_rows(Group *g, Py_ssize_t active) noexcept nogil:
    if g.every == 1:
        return active
    return (active - g.first + g.every - 1) // g.every if active > g.first else 0


cdef inline Py_ssize_t part(Py_ssize_t n, int rank, int size) noexcept nogil:
    """Where the rank's share of n begins; rank == size: where the last one ends."""
    return 0 if rank == 0 else n if rank == size else n * rank // size


cdef inline Py_ssize_t time_of(Direction *d, Py_ssize_t b, Py_ssize_t s) noexcept nogil:
    return d.length[b] - 1 - s if d.reverse else s


cdef inline const char *x_row(Direction *d, Py_ssize_t j, Py_ssize_t s) noexcept nogil:
    cdef Py_ssize_t b = d.order[j]
    return d.x + time_of(d, b, s) * d.x_t + b * d.x_b


cdef inline char *y_row(Direction *d, Py_ssize_t j, Py_ssize_t s) noexcept nogil:
    """h after step s of row j; h0 before the first."""
    cdef Py_ssize_t b
    if s < 0:
        return d.h0 + j * d.layer.stride * d.layer.tiles.itemsize
    b = d.order[j]
    return d.y + time_of(d, b, s) * d.y_t + b * d.y_b


cdef inline char *tape_c(Direction *d, Py_ssize_t j, Py_ssize_t s) noexcept nogil:
    if s < 0 or not d.training:
        return d.c0 + j * d.layer.stride * d.layer.tiles.itemsize
    return d.c + (d.offset[s] + j) * d.layer.stride * d.layer.tiles.itemsize


cdef inline char *tape_row(Direction *d, Py_ssize_t j, Py_ssize_t s) noexcept nogil:
    return d.gates + (d.offset[s] + j) * d.layer.cell.segments * d.layer.stride * d.layer.tiles.itemsize


cdef const char *stage_row(Direction *d, const char *row, char *to, Py_ssize_t n) noexcept nogil:
    """x rows whose elements are not neighbours are copied, a chunk at a time."""
    cdef Py_ssize_t i
    if d.layer.tiles.itemsize == 8:
        for i in range(n):
            (<double *>to)[i] = (<const double *>(row + i * d.x_i))[0]
    else:
        for i in range(n):
            (<float *>to)[i] = (<const float *>(row + i * d.x_i))[0]
    return to


cdef void take(product_t *p, Matrix *m, const tiles_t *tiles) noexcept nogil:
    """Aim a product at a packed matrix; a single segment of operand unless said otherwise."""
    memset(p, 0, sizeof(product_t))
    p.w = m.data
    p.width = m.width
    p.vectors = m.vectors
    p.last = m.vectors
    p.depth = m.depth
    p.segments = 1
    p.a_step = 1
    p.out_step = tiles.lanes
    p.out_panel = m.width * tiles.lanes


cdef void into_gates(product_t *p, Matrix *m, Layer *l, int segment) noexcept nogil:
    """Results go into gate rows: gate v of a panel into segment `segment + v`."""
    p.out_offset = segment * l.stride
    if m.gated:
        p.out_step = l.stride
        p.out_panel = l.tiles.lanes


cdef void from_gates(product_t *p, Layer *l, Share *s) noexcept nogil:
    """The left operand is `gates` segments of a gate row, the row pointers being those of the first segment."""
    p.segments = s.gates
    p.depth = l.H
    p.a_segment = l.stride


# ---------------------------------------------------------------------------------------------------------------
# One stage of a step: the product of some panels, then the pointwise part on the rows they have just made.


cdef void stage(Worker *k, Matrix *m, product_t *p, pointwise_t *q, pointwise_fn f,
                bint shared, bint backwards) noexcept nogil:
    """The units of this rank and, where the stage is shared, what the others have not come to when it has done its own:
    one CPU is often slower than its neighbour. Serpentine: `backwards` on every other step, so that what is still in
    cache is used first."""
    cdef Group *g = k.group
    cdef Layer *l = &g.direction.layer
    cdef Py_ssize_t lanes = l.tiles.lanes
    cdef Py_ssize_t each = m.width if m.gated else 1            # vectors a unit vector
    cdef int width = k.run.width, whose = k.seat, _
    cdef Py_ssize_t span = g.most
    cdef Py_ssize_t first, last, origin, blocks, turn, a, b
    cdef Py_ssize_t rows = max(p.rows, q.rows)
    cdef double work = <double>p.rows * p.segments * p.depth * lanes * each
    cdef const char *data = <const char *>p.w
    cdef Py_ssize_t unit_bytes = each * m.depth * lanes * l.tiles.itemsize
    cdef bint streams = g.most * unit_bytes > L2_SHARE          # the weights come from beyond L2 in every step
    if rows >= FEW_ROWS:
        span = 1 if m.gated else PANEL
    elif streams:
        span = max(1, SERPENT // (2 * PANEL * unit_bytes)) * 2 * PANEL
    p.prefetch = rows >= FEW_ROWS and (streams or f == NULL)    # W_ih has to make room in L2 while the steps go on
    for _ in range(width if shared else 1):
        first = part(g.units, whose, width)
        last = part(g.units, whose + 1, width)
        origin = first
        blocks = 1
        if span < last - first:
            origin = first // span * span                       # whole panels where the share allows
            blocks = (last - origin + span - 1) // span
        turn = -1
        while not k.run.interrupted:
            turn = team_turn(&g.lines[whose], k.group_epoch) if shared else turn + 1
            if turn >= blocks:
                break
            a = origin + (blocks - 1 - turn if backwards else turn) * span
            b = min(a + span, last)
            a = max(a, first)
            p.first = a * each
            p.last = b * each
            p.next = NULL
            if p.prefetch and turn + 1 < blocks:
                p.next = data + (a - span if backwards else b) * unit_bytes
            l.tiles.product(p)
            if q.rows:
                q.first = a * lanes
                q.last = min(b * lanes, l.H)
                f(q)
            account(k, work * (b - a))
        whose = whose + 1 if whose + 1 < width else 0


cdef void project(Worker *k, Py_ssize_t start, Py_ssize_t end, bint shared) noexcept nogil:
    """x W_ih + biases into the gate rows of steps [start, end): the recurrent tiles go on from there."""
    cdef Group *g = k.group
    cdef Direction *d = g.direction
    cdef Layer *l = &d.layer
    cdef Py_ssize_t size = l.tiles.itemsize, row_bytes = l.cell.segments * l.stride * size
    cdef Py_ssize_t s, i, j, n = 0, a, b
    cdef const char *row
    cdef product_t p
    cdef pointwise_t none
    a = part(g.units, k.seat, k.run.width) * l.tiles.lanes * size
    b = part(g.units, k.seat + 1, k.run.width) * l.tiles.lanes * size
    for s in range(start, end):
        for i in range(group_rows(g, d.active[s])):
            j = g.first + i * g.every
            row = x_row(d, j, s)
            if d.x_i != size:
                row = stage_row(d, row, k.buffer + n * l.inputs * size, l.inputs)
            k.a[n] = <void *>row
            k.out[n] = tape_row(d, j, s) if d.training else g.gates + n * row_bytes
            if l.cell.plain >= 0:                               # no share of x: starts from its own bias
                memcpy(<char *>k.out[n] + l.cell.plain * l.stride * size + a,
                       l.bias + l.cell.plain * l.stride * size + a, b - a)
            n += 1
    take(&p, &l.x, l.tiles)
    into_gates(&p, &l.x, l, l.cell.x.segment)
    p.init = l.bias
    p.a = <const void **>k.a
    p.out = k.out
    p.rows = n
    none.rows = 0
    stage(k, &l.x, &p, &none, NULL, shared, False)


cdef bint barrier(Worker *k) noexcept nogil:
    """The group's barrier; True when all of it agree to stop."""
    cdef Group *g = k.group
    cdef int width = k.run.width
    if width == 1:
        return k.run.interrupted
    k.group_epoch += 1
    if k.seat == 0:
        g.stop[k.group_epoch & 1] = k.run.interrupted
    team_barrier(g.lines, k.seat, width, k.group_epoch)
    return g.stop[k.group_epoch & 1]


# ---------------------------------------------------------------------------------------------------------------
# THE TIME LOOP


cdef bint time_loop(Worker *k, Group *g, int seat) noexcept nogil:
    """All steps of a group, forwards or backwards; True when interrupted.

    Forward step s:   gates = projection + operand W_hh, then the pointwise part makes h (and c), stage by stage.
    Backward step s:  dh += gate gradients of step s+1 W_hh^T, then the pointwise part makes those of step s.
    A block of units is one rank's from the product to the end of its pointwise part, so one barrier a stage is enough,
    and none between a chunk's projection and its steps as long as a rank keeps to its own units.
    """
    cdef Run *run = k.run
    cdef Direction *d = g.direction
    cdef Layer *l = &d.layer
    cdef Cell *cell = l.cell
    cdef const tiles_t *tiles = l.tiles
    cdef Py_ssize_t size = tiles.itemsize
    cdef Py_ssize_t s, i, j, n, m, turn, chunk_end = 0, chunk_rows = 0, at = 0
    cdef Py_ssize_t segment_bytes = l.stride * size, row_bytes = cell.segments * l.stride * size
    cdef int t
    cdef bint back = run.backward, shared
    cdef product_t p[2]
    cdef pointwise_t q
    k.group = g
    k.seat = seat
    k.group_epoch = 0
    memset(&q, 0, sizeof(q))
    q.stride = l.stride
    q.training = d.training
    q.gates = k.gates
    q.h_prev = <const void **>k.h_prev
    q.h = k.h
    q.c_prev = <const void **>k.c_prev
    q.c = k.c
    q.dy = <const void **>k.dy if d.dy else NULL
    q.dh = k.dh
    q.dc = k.dc
    q.drh = k.drh
    for t in range(cell.stages):
        if back:
            take(&p[t], &d.dh[t], tiles)
            from_gates(&p[t], l, &cell.dh[t])
            p[t].accumulate = t == 0
            p[t].out = k.dh if t == 0 else k.drh
        else:
            take(&p[t], &l.h[t], tiles)
            into_gates(&p[t], &l.h[t], l, cell.h[t].segment)
            p[t].accumulate = 1
            p[t].out = k.gates
        p[t].a = <const void **>k.a

    for turn in range(d.steps):
        s = d.steps - 1 - turn if back else turn
        n = group_rows(g, d.active[s])
        m = n
        shared = run.width > 1 and <double>n * l.H * tiles.lanes * PANEL > SHARED_WORK
        if back:
            m = group_rows(g, d.active[s + 1]) if turn else 0
        elif s == chunk_end:
            chunk_rows = 0
            while chunk_end < d.steps and (chunk_rows == 0 or chunk_rows + group_rows(g, d.active[chunk_end]) <= CHUNK):
                chunk_rows += group_rows(g, d.active[chunk_end])
                chunk_end += 1
            project(k, s, chunk_end, shared)
            if shared and barrier(k):
                return True
            at = 0

        for i in range(n):
            j = g.first + i * g.every
            k.gates[i] = tape_row(d, j, s) if d.training else g.gates + (at + i) * row_bytes
            k.h_prev[i] = y_row(d, j, s - 1)
            k.h[i] = y_row(d, j, s)
            if cell.states == 2:
                k.c_prev[i] = tape_c(d, j, s - 1)
                k.c[i] = tape_c(d, j, s)
            if back:
                k.dh[i] = d.d_h + j * segment_bytes
                if cell.states == 2:
                    k.dc[i] = d.d_c + j * segment_bytes
                if cell.stages == 2:
                    k.drh[i] = d.d_rh + j * segment_bytes
                if d.dy:
                    k.dy[i] = <void *>(d.dy + time_of(d, d.order[j], s) * d.dy_t + d.order[j] * d.dy_b)
        at += n

        for t in range(cell.stages):
            q.rows = n
            p[t].rows = m if t == 0 else n
            if back:
                for i in range(p[t].rows):
                    j = g.first + i * g.every
                    k.a[i] = tape_row(d, j, s + 1 if t == 0 else s) + cell.dh[t].segment * segment_bytes
                stage(k, &d.dh[t], &p[t], &q, tiles.backward[l.kind][t], shared, turn & 1)
            else:
                for i in range(n):
                    k.a[i] = k.h_prev[i] if cell.source[t] < 0 else <char *>k.gates[i] + cell.source[t] * segment_bytes
                stage(k, &l.h[t], &p[t], &q, tiles.forward[l.kind][t], shared, turn & 1)
            if barrier(k):
                return True

    if back and d.steps:                                        # dh0: what step 0 sends
        n = group_rows(g, d.active[0])
        for i in range(n):
            j = g.first + i * g.every
            k.a[i] = tape_row(d, j, 0) + cell.dh[0].segment * segment_bytes
            k.dh[i] = d.d_h + j * segment_bytes
        p[0].rows = n
        q.rows = 0
        stage(k, &d.dh[0], &p[0], &q, NULL, False, d.steps & 1)
        return k.run.interrupted if run.width == 1 else False
    return False


# ---------------------------------------------------------------------------------------------------------------
# After the backward loop the gate rows hold the gradients of the pre-activations: three large products remain.


cdef Py_ssize_t step_of(Direction *d, Py_ssize_t row) noexcept nogil:
    """The step that a row of the tape belongs to."""
    cdef Py_ssize_t low = 0, high = d.steps, middle
    while high - low > 1:
        middle = low + (high - low) // 2
        if d.offset[middle] <= row:
            low = middle
        else:
            high = middle
    return low


cdef void pack_right(Worker *k, Direction *d, int operand, Matrix *m,
                     Py_ssize_t row0, Py_ssize_t row_end) noexcept nogil:
    """Right operand of dW, this rank's vectors of tape rows [row0, row_end): x (-2), h_prev (-1) or a segment."""
    cdef Layer *l = &d.layer
    cdef Py_ssize_t size = l.tiles.itemsize
    cdef Py_ssize_t s = 0, j, i, n = 0
    cdef const char *row
    cdef pack_t p
    memset(&p, 0, sizeof(p))
    p.out = m.data
    p.depth = row_end - row0
    p.width = m.width
    p.vectors = m.vectors
    p.columns = m.columns
    p.first = m.vectors * k.rank // k.run.size
    p.last = m.vectors * (k.rank + 1) // k.run.size
    p.row = <const void **>k.a
    if p.first == p.last:
        return
    s = step_of(d, row0)
    j = row0 - d.offset[s]
    for i in range(row0, row_end):
        while i >= d.offset[s + 1]:
            s += 1
            j = 0
        if operand == -2:
            row = x_row(d, j, s)
            if d.x_i != size:
                row = stage_row(d, row, k.buffer + n * l.inputs * size, l.inputs)
        elif operand == -1:
            row = y_row(d, j, s - 1)
        else:
            row = tape_row(d, j, s) + operand * l.stride * size
        k.a[n] = <void *>row
        n += 1
        j += 1
    l.tiles.pack_rows(&p)


cdef inline Py_ssize_t block_rows(Direction *d) noexcept nogil:
    """Rows of the tape in a block of dW; a short tape is one block."""
    return min(<Py_ssize_t>LEFT_DEPTH, d.offset[d.steps])


cdef void weight_gradients(Worker *k, Direction *d) noexcept nogil:
    """dW_ih, dW_hh and both bias gradients: sums over all rows of the tape in ascending order, in blocks of a fixed
    number of rows. A rank makes whole rows of dW, the right operands are packed together."""
    cdef Run *run = k.run
    cdef Layer *l = &d.layer
    cdef Cell *cell = l.cell
    cdef Py_ssize_t size = l.tiles.itemsize, lanes = l.tiles.lanes, H = l.H
    cdef Py_ssize_t rows = d.offset[d.steps], ld = cell.segments * l.stride
    cdef Py_ssize_t sixes = (H + 5) // 6, strips = min(even((H + LEFT_STRIP - 1) // LEFT_STRIP, run.size), sixes)
    cdef Py_ssize_t total = strips * cell.gates, strip, g, u0, u1, i, row0, depth, sixes_apart
    cdef int which, segment, operand, packed_segment
    cdef Matrix right[3]                                        # x, h_prev, and r*h of gru_reset_before
    cdef product_t p
    cdef char *grad
    cdef char *bias
    memset(right, 0, sizeof(right))
    for which in range(3):
        right[which].width = PANEL
        right[which].columns = l.inputs if which == 0 else H
        right[which].vectors = (right[which].columns + lanes - 1) // lanes
    right[0].data = run.right
    right[1].data = right[0].data + right[0].vectors * lanes * block_rows(d) * size
    right[2].data = right[1].data + right[1].vectors * lanes * block_rows(d) * size
    row0 = 0
    while row0 < rows:
        depth = min(<Py_ssize_t>LEFT_DEPTH, rows - row0)
        sixes_apart = 6 * depth + lanes                         # 6 * 512 alone would be a multiple of 4 KB
        pack_right(k, d, -2, &right[0], row0, row0 + depth)
        pack_right(k, d, -1, &right[1], row0, row0 + depth)
        if cell.stages == 2:
            pack_right(k, d, cell.right[2], &right[2], row0, row0 + depth)
        if meet(k):
            return
        strip = -1
        while not run.interrupted and next_turn(k, 0, &strip) < total:
            g = strip // strips
            u0 = 6 * (sixes * (strip - g * strips) // strips)
            u1 = min(6 * (sixes * (strip - g * strips + 1) // strips), H)
            packed_segment = -1
            for which in range(2):
                segment = cell.of_h[g] if which else cell.of_x[g]
                operand = 0 if which == 0 else 1 if cell.right[g] < 0 else 2
                grad = d.grad_w_hh if which else d.grad_w_ih
                bias = (d.grad_b_hh if which else d.grad_b_ih) + (g * H + u0) * size
                if segment != packed_segment:
                    l.tiles.pack_left(k.buffer, sixes_apart, d.gates + (row0 * ld + segment * l.stride + u0) * size,
                                      ld, depth, u1 - u0, bias)
                    packed_segment = segment
                else:
                    memcpy(bias, d.grad_b_ih + (g * H + u0) * size, (u1 - u0) * size)
                right[operand].depth = depth
                take(&p, &right[operand], l.tiles)
                p.a = <const void **>k.a
                p.a_step = 6
                p.out = k.out
                p.rows = u1 - u0
                p.columns = right[operand].columns
                p.accumulate = row0 > 0
                p.prefetch = 1
                for i in range(u1 - u0):
                    k.a[i] = k.buffer + (i // 6 * sixes_apart + i % 6) * size
                    k.out[i] = grad + (g * H + u0 + i) * p.columns * size
                l.tiles.product(&p)
                account(k, <double>p.rows * depth * p.columns)
                if run.interrupted:
                    break
        row0 += depth
        if row0 < rows and meet(k):
            return


cdef void input_gradient(Worker *k, Direction *d, bint accumulate) noexcept nogil:
    """dx = gate gradients W_ih, so many rows of the tape a turn."""
    cdef Run *run = k.run
    cdef Layer *l = &d.layer
    cdef Cell *cell = l.cell
    cdef Py_ssize_t size = l.tiles.itemsize, rows = d.offset[d.steps]
    cdef Py_ssize_t blocks = min(even((rows + DX_ROWS - 1) // DX_ROWS, run.size), rows)
    cdef Py_ssize_t block = -1, row, end, s, n, b
    cdef product_t p
    take(&p, &d.dx, l.tiles)
    from_gates(&p, l, &cell.x)
    p.a = <const void **>k.a
    p.out = k.out
    p.columns = l.inputs
    p.accumulate = accumulate
    p.prefetch = 1
    while not run.interrupted and next_turn(k, 1, &block) < blocks:
        row = rows * block // blocks
        end = rows * (block + 1) // blocks
        s = step_of(d, row)
        n = 0
        while row < end:
            while row >= d.offset[s + 1]:
                s += 1
            b = d.order[row - d.offset[s]]
            k.a[n] = d.gates + (row * cell.segments + cell.x.segment) * l.stride * size
            k.out[n] = d.grad_x + time_of(d, b, s) * d.gx_t + b * d.gx_b
            n += 1
            row += 1
        p.rows = n
        l.tiles.product(&p)
        account(k, <double>n * cell.gates * l.H * l.inputs)


# ---------------------------------------------------------------------------------------------------------------
# What every rank runs


cdef void work(void *arg, int rank) noexcept nogil:
    cdef Run *run = <Run *>arg
    cdef Worker k
    cdef int i
    cdef bint packing = run.backward
    open_worker(&k, run, rank)
    for i in range(run.directions):
        if run.backward:
            pack_backward(&k, &run.direction[i])
        elif not run.direction[i].packed:
            packing = True
            pack_layer(&run.direction[i].layer, rank, run.size)
    if packing and meet(&k):
        return
    if run.size == 1:
        for i in range(run.groups):
            if time_loop(&k, &run.group[i], 0):
                return
    elif time_loop(&k, &run.group[rank // run.width], rank % run.width) and run.groups == 1:
        return
    if not run.backward:
        return
    if meet(&k):
        return
    for i in range(run.directions):
        weight_gradients(&k, &run.direction[i])
        input_gradient(&k, &run.direction[i], i > 0)
        if meet(&k):
            return


cdef void pack_backward(Worker *k, Direction *d) noexcept nogil:
    cdef int s
    for s in range(d.layer.cell.stages):
        pack_matrix(&d.dh[s], d.layer.tiles, k.rank, k.run.size, <const void **>k.a)
    pack_matrix(&d.dx, d.layer.tiles, k.rank, k.run.size, <const void **>k.a)


cdef Py_ssize_t pointer_rows(Run *run) noexcept nogil:
    """Row pointers that a rank may need at once: a chunk, a batch, a block of the tape, or the rows of a matrix."""
    cdef Py_ssize_t n = max(CHUNK, LEFT_DEPTH)
    cdef int i
    for i in range(run.directions):
        n = max(n, run.direction[i].B)
        if run.backward:
            n = max(n, run.direction[i].layer.cell.gates * run.direction[i].layer.H)
    return n


cdef Py_ssize_t worker_bytes(Run *run) noexcept nogil:
    cdef Py_ssize_t staged = 0, rows = max(CHUNK, LEFT_DEPTH), B = 0
    cdef Direction *d
    cdef int i
    for i in range(run.directions):
        d = &run.direction[i]
        B = max(B, d.B)
        if d.x_i != d.layer.tiles.itemsize:
            staged = max(staged, max(rows, d.B) * d.layer.inputs * d.layer.tiles.itemsize)
        if run.backward:
            staged = max(staged, LEFT_STRIP * (block_rows(d) + 64) * d.layer.tiles.itemsize)
    return (2 * pointer_rows(run) + 9 * B) * sizeof(void *) + (staged + 127) // 64 * 64


cdef void open_worker(Worker *k, Run *run, int rank) noexcept nogil:
    cdef Py_ssize_t B = 0
    cdef int i
    cdef void **at = <void **>(run.scratch + rank * run.scratch_bytes)
    memset(k, 0, sizeof(Worker))
    k.run = run
    k.rank = rank
    for i in range(run.directions):
        B = max(B, run.direction[i].B)
    k.a = at
    k.out = k.a + pointer_rows(run)
    k.gates = k.out + pointer_rows(run)
    k.h_prev = k.gates + B
    k.h = k.h_prev + B
    k.c_prev = k.h + B
    k.c = k.c_prev + B
    k.dy = k.c + B
    k.dh = k.dy + B
    k.dc = k.dh + B
    k.drh = k.dc + B
    k.buffer = <char *>((<size_t>(k.drh + B) + 63) // 64 * 64)


# ---------------------------------------------------------------------------------------------------------------
# The partition: rows of the batch over `groups`, the units of a group over `width` threads


cdef double step_cost(Direction *d, int groups, int width) noexcept:
    """Nanoseconds a step, roughly: arithmetic or the stream of the weights, whichever is slower, and the barriers."""
    cdef Layer *l = &d.layer
    cdef double size = l.tiles.itemsize
    cdef Py_ssize_t units = (l.H + l.tiles.lanes - 1) // l.tiles.lanes, rows = (d.B + groups - 1) // groups
    cdef double columns = <double>((units + width - 1) // width) * l.tiles.lanes * l.cell.gates
    cdef double weights = columns * size * (l.H + l.inputs if d.steps == 1 else l.H)  # a chunk shares W_ih
    cdef double rate = RATE_L1 if weights < 24e3 else RATE_L2 if weights < L2_SHARE else RATE_L3
    cdef double arithmetic = rows * columns * (l.H + l.inputs) * size / 4 / RATE_FMA
    cdef double pointwise = rows * columns * size / 4 * .3
    cdef double streaming = STREAMING * weights / rate if weights > L2_SHARE else 0
    return max(arithmetic, weights / rate) + streaming + pointwise + (COST_BARRIER * l.cell.stages if width > 1 else 0)


cdef void divide(Run *run, int wanted):
    """Fill size, width and groups per direction (kept in `groups`): the cheapest way to use up to `wanted` threads."""
    cdef Direction *d = &run.direction[0]
    cdef Layer *l = &d.layer
    cdef int directions = run.directions
    cdef int each = max(1, wanted // directions), width, groups
    cdef Py_ssize_t units = (l.H + l.tiles.lanes - 1) // l.tiles.lanes
    cdef double scale = 3 if run.backward else 1, cost
    cdef double alone = scale * directions * d.steps * step_cost(d, 1, 1), best = alone
    run.size = run.width = 1
    run.groups = directions
    run.patience = 0
    if wanted <= 1 or d.B == 0:
        return
    for width in range(1, each + 1):
        groups = each // width
        if width > units or groups > d.B or groups * width * directions <= 1:
            continue
        cost = COST_CALL + scale * d.steps * step_cost(d, groups, width)
        if cost < best:
            best = cost
            run.patience = min(.5e-9 * (alone - best), PATIENCE)
            run.width = width
            run.groups = groups * directions
            run.size = run.groups * width


@cython.final
@cython.internal
cdef class Frame:
    """Everything a run needs besides its directions; keeps their memory alive."""
    cdef Run run
    cdef Memory memory
    cdef list owners

    def __cinit__(self):
        memset(&self.run, 0, sizeof(Run))
        self.owners = []

    cdef int open(self, int wanted) except -1:
        """Partition the work and carve out barriers, scratch and gate rows."""
        cdef Run *run = &self.run
        cdef Direction *d
        cdef Group *g
        cdef int i, per
        cdef Py_ssize_t size, chunk, at
        for i in range(run.directions):                         # Python integers: these do not overflow
            d = &run.direction[i]
            if d.x_i != d.layer.tiles.itemsize and <object>max(LEFT_DEPTH, d.B) * d.layer.inputs > 2**56:
                raise MemoryError("x: a step of it is more than this machine can address")
        divide(run, wanted)
        per = run.groups // run.directions
        run.scratch_bytes = (worker_bytes(run) + 127) // 128 * 128
        size = run.groups * sizeof(Group)
        size = (size + 127) // 128 * 128
        size += (run.groups * run.width + run.size) * sizeof(barrier_line)
        size += run.size * run.scratch_bytes
        cdef object extra = 0                                   # Python integers: no overflow
        for i in range(run.directions):
            d = &run.direction[i]
            if run.backward:
                chunk = (d.layer.inputs + 2 * d.layer.H + 6 * d.layer.tiles.lanes) * d.layer.tiles.itemsize
                extra = max(extra, <object>chunk * block_rows(d))
            elif not d.training:
                chunk = max(CHUNK, d.B) if d.steps > 1 else d.B
                extra = extra + <object>chunk * d.layer.cell.segments * d.layer.stride * d.layer.tiles.itemsize * per
        self.memory = Memory(size + extra + 128)
        cdef char *base = self.memory.data
        run.group = <Group *>base
        at = (run.groups * <Py_ssize_t>sizeof(Group) + 127) // 128 * 128
        at += (-<Py_ssize_t><size_t>(base + at)) & 127
        run.lines = <barrier_line *>(base + at)
        at += run.size * sizeof(barrier_line)
        for i in range(run.groups):
            g = &run.group[i]
            memset(g, 0, sizeof(Group))
            g.direction = &run.direction[i // per]
            g.first = i % per
            g.every = per
            g.units = (g.direction.layer.H + g.direction.layer.tiles.lanes - 1) // g.direction.layer.tiles.lanes
            g.most = (g.units + run.width - 1) // run.width
            g.lines = <barrier_line *>(base + at)
            at += run.width * sizeof(barrier_line)
        run.scratch = base + at
        at += run.size * run.scratch_bytes
        run.right = base + at
        if not run.backward:
            for i in range(run.groups):
                g = &run.group[i]
                d = g.direction
                if not d.training:
                    g.gates = base + at
                    chunk = max(CHUNK, d.B) if d.steps > 1 else d.B
                    at += chunk * d.layer.cell.segments * d.layer.stride * d.layer.tiles.itemsize
        return 0

    cdef void go(self) noexcept nogil:
        cdef Run *run = &self.run
        if run.size > 1:
            memset(run.lines, 0, (run.groups * run.width + run.size) * sizeof(barrier_line))
        run.interrupted = False
        run.outside = fp_now()
        run.work = 0
        team_run(run.size, work, run)


cdef int raise_pending() except -1:
    """An exception is set already: look_for_signals left it there."""
    return -1


cdef int execute(Frame frame) except -1:
    """Run a frame on as much of the team as can be had."""
    cdef int granted
    divide(&frame.run, THREADS)
    granted = team_acquire(frame.run.size, frame.run.patience)
    try:
        frame.open(granted)
        with nogil:
            frame.run.checked = cpu_seconds()
            frame.go()
    finally:
        team_release(granted)
    if frame.run.interrupted:
        raise_pending()
    return 0


# ---------------------------------------------------------------------------------------------------------------
# Forward and backward, as the backend protocol has them


@cython.final
cdef class Tape:
    """What a training forward pass keeps for one backward pass."""
    cdef Plan plan
    cdef list layers        # Packed, by direction
    cdef tuple weights      # (w_ih, w_hh) by direction
    cdef np.ndarray x
    cdef np.ndarray y
    cdef Frame frame

    def __init__(self):
        raise TypeError("a tape is made by forward()")


cdef int state_in(Layer *l, Py_ssize_t *order, Py_ssize_t B, object state, char *to) except -1:
    """A state (B, H), or zeros for None, into padded rows in plan order."""
    cdef Py_ssize_t j, size = l.tiles.itemsize
    cdef np.ndarray a
    memset(to, 0, B * l.stride * size)
    if state is None:
        return 0
    a = contiguous(state)
    for j in range(B):
        memcpy(to + j * l.stride * size, <char *>np.PyArray_DATA(a) + order[j] * l.H * size, l.H * size)
    return 0


cdef inline void state_out(Layer *l, Py_ssize_t *order, Py_ssize_t B, char *rows, char *to) noexcept:
    cdef Py_ssize_t j, size = l.tiles.itemsize
    for j in range(B):
        memcpy(to + order[j] * l.H * size, rows + j * l.stride * size, l.H * size)


cdef void clear_padding(Direction *d, Py_ssize_t T) noexcept nogil:
    """y is 0 past a sequence's length."""
    cdef Py_ssize_t t, b
    for t in range(T):
        for b in range(d.B):
            if t >= d.length[b]:
                memset(d.y + t * d.y_t + b * d.y_b, 0, d.layer.H * d.layer.tiles.itemsize)


def forward(str cell, np.ndarray x, tuple directions, lengths, bint training):
    """One layer, one or two directions; see the backend protocol in fusedrnn.backends."""
    cdef Py_ssize_t T = x.shape[0], B = x.shape[1], D = len(directions), j, s, b
    cdef Plan plan = Plan(T, B, lengths)
    cdef Frame frame = Frame()
    cdef Run *run = &frame.run
    cdef Direction *d
    cdef Layer *l
    cdef Packed packed
    cdef Memory memory
    cdef list layers = []
    cdef list weights = []
    cdef int i
    cdef object dtype = x.dtype
    cdef char *at
    run.directions = D
    for w, _, _, _ in directions:
        if isinstance(w, Packed):
            packed = w
            if training or packed.cell != cell:
                raise TypeError(f"weights: expected {cell} arrays, got {packed.cell} weights packed for inference")
        else:
            packed = prepare(cell, w[0], w[1], w[2], w[3])
            weights.append((w[0], w[1]))
        layers.append(packed)
    cdef Py_ssize_t H = (<Packed>layers[0]).layer.H, I = (<Packed>layers[0]).layer.inputs, size = x.itemsize
    cdef np.ndarray y = numpy.empty((T, B, D * H), dtype)
    cdef np.ndarray h_n = numpy.empty((D, B, H), dtype)
    cdef np.ndarray c_n = numpy.empty((D, B, H), dtype) if (<Packed>layers[0]).layer.cell.states == 2 else None
    for i in range(D):
        d = &run.direction[i]
        packed = layers[i]
        d.layer = packed.layer
        l = &d.layer
        _, h0, c0, reverse = directions[i]
        d.reverse = reverse
        d.packed = packed.sources is None
        d.training = training
        d.B = B
        d.steps = plan.steps
        d.order = plan.order
        d.length = plan.length
        d.active = plan.active
        d.offset = plan.offset
        d.x = <char *>np.PyArray_DATA(x)
        d.x_t = x.strides[0]
        d.x_b = x.strides[1]
        d.x_i = x.strides[2] if I > 1 else size
        d.y = <char *>np.PyArray_DATA(y) + i * H * size
        d.y_t = B * D * H * size
        d.y_b = D * H * size
        rows = <object>plan.rows * (l.cell.segments + (l.cell.states == 2)) if training else 0
        memory = Memory((rows + l.cell.states * B) * l.stride * size)
        frame.owners.append(memory)
        at = memory.data
        d.h0 = at
        at += B * l.stride * size
        state_in(l, plan.order, B, h0, d.h0)
        if l.cell.states == 2:
            d.c0 = at
            at += B * l.stride * size
            state_in(l, plan.order, B, c0, d.c0)
        if training:
            d.gates = at
            at += plan.rows * l.cell.segments * l.stride * size
            d.c = at
    execute(frame)
    for i in range(D):
        d = &run.direction[i]
        l = &d.layer
        for j in range(B):
            b = plan.order[j]
            s = plan.length[b] - 1
            memcpy(<char *>np.PyArray_DATA(h_n) + (i * B + b) * H * size, y_row(d, j, s), H * size)
            if l.cell.states == 2:
                memcpy(<char *>np.PyArray_DATA(c_n) + (i * B + b) * H * size, tape_c(d, j, s), H * size)
        if plan.rows < T * B:
            with nogil:
                clear_padding(d, T)
    if not training:
        return y, h_n, c_n, None
    cdef Tape tape = Tape.__new__(Tape)
    tape.plan = plan
    tape.layers = layers
    tape.weights = tuple(weights)
    tape.x = x
    tape.y = y
    tape.frame = frame
    for packed in layers:
        if packed.sources is not None:
            packed.memory = None                                # the forward matrices are not needed any more
    frame.memory = None
    return y, h_n, c_n, tape


def backward(Tape tape, dy, dh_n, dc_n):
    """Gradients of everything that went into a training forward pass; see the backend protocol."""
    if tape.frame is None:
        raise RuntimeError("tape: expected one backward pass, got a second")
    cdef Frame frame = tape.frame
    tape.frame = None                                           # its memory is overwritten and then let go
    cdef Run *run = &frame.run
    cdef Plan plan = tape.plan
    cdef np.ndarray x = tape.x
    cdef Py_ssize_t T = plan.T, B = plan.B, size = x.itemsize, need
    cdef int D = run.directions, i, s
    cdef Direction *d
    cdef Layer *l
    cdef Packed packed
    cdef Memory memory
    cdef char *at
    cdef np.ndarray grad_y = None if dy is None else contiguous(dy)
    cdef Py_ssize_t I = run.direction[0].layer.inputs, H = run.direction[0].layer.H
    cdef np.ndarray dx = (numpy.empty if plan.rows == T * B else numpy.zeros)((T, B, I), x.dtype)
    cdef np.ndarray wi, wh, a
    cdef list gradients = []
    run.backward = True
    make = numpy.empty if plan.rows else numpy.zeros
    for i in range(D):
        d = &run.direction[i]
        l = &d.layer
        packed = tape.layers[i]
        wi = contiguous(tape.weights[i][0])
        wh = contiguous(tape.weights[i][1])
        frame.owners.extend((wi, wh))
        need = (l.cell.states + (l.cell.stages == 2)) * B * l.stride * size
        d.dx = backward_matrix(&l.cell.x, H, I, l.tiles.lanes)
        d.dx.w = <char *>np.PyArray_DATA(wi)
        d.dx.ld = I
        need += matrix_bytes(&d.dx, l.tiles)
        for s in range(l.cell.stages):
            d.dh[s] = backward_matrix(&l.cell.dh[s], H, H, l.tiles.lanes)
            d.dh[s].w = <char *>np.PyArray_DATA(wh)
            d.dh[s].ld = H
            need += matrix_bytes(&d.dh[s], l.tiles)
        memory = Memory(need)
        frame.owners.append(memory)
        at = memory.data
        d.d_h = at
        at += B * l.stride * size
        state_in(l, plan.order, B, None if dh_n is None else dh_n[i], d.d_h)
        if l.cell.states == 2:
            d.d_c = at
            at += B * l.stride * size
            state_in(l, plan.order, B, None if dc_n is None else dc_n[i], d.d_c)
        if l.cell.stages == 2:
            d.d_rh = at
            at += B * l.stride * size
        d.dx.data = at
        at += matrix_bytes(&d.dx, l.tiles)
        for s in range(l.cell.stages):
            d.dh[s].data = at
            at += matrix_bytes(&d.dh[s], l.tiles)
        if grad_y is not None:
            d.dy = <char *>np.PyArray_DATA(grad_y) + i * H * size
            d.dy_t = B * D * H * size
            d.dy_b = D * H * size
        d.grad_x = <char *>np.PyArray_DATA(dx)
        d.gx_t = B * I * size
        d.gx_b = I * size
        a = make((l.cell.gates * H, I), x.dtype)
        d.grad_w_ih = <char *>np.PyArray_DATA(a)
        gw_ih = a
        a = make((l.cell.gates * H, H), x.dtype)
        d.grad_w_hh = <char *>np.PyArray_DATA(a)
        gw_hh = a
        a = numpy.zeros(l.cell.gates * H, x.dtype)
        d.grad_b_ih = <char *>np.PyArray_DATA(a)
        gb_ih = a
        a = numpy.zeros(l.cell.gates * H, x.dtype)
        d.grad_b_hh = <char *>np.PyArray_DATA(a)
        gb_hh = a
        h0 = numpy.empty((B, H), x.dtype)
        c0 = numpy.empty((B, H), x.dtype) if l.cell.states == 2 else None
        frame.owners.append((gb_ih, gb_hh))                     # written to even where nobody asks for them
        gradients.append((gw_ih, gw_hh, gb_ih if packed.has_b_ih else None, gb_hh if packed.has_b_hh else None, h0, c0))
    frame.owners.append((grad_y, gradients))
    execute(frame)
    for i in range(D):
        d = &run.direction[i]
        a = gradients[i][4]
        state_out(&d.layer, plan.order, B, d.d_h, <char *>np.PyArray_DATA(a))
        if d.layer.cell.states == 2:
            a = gradients[i][5]
            state_out(&d.layer, plan.order, B, d.d_c, <char *>np.PyArray_DATA(a))
    frame.owners.clear()
    return dx, tuple(gradients)


# ---------------------------------------------------------------------------------------------------------------
# Streams: the same loop over a single step, with everything laid out beforehand


@cython.final
cdef class Stream:
    """A stack of packed layers that takes one time step a call and keeps its state between calls."""
    cdef list packed
    cdef list frames
    cdef list states        # Memory: two of h, which change places every step, and c
    cdef object dtype
    cdef Py_ssize_t B, inputs, H
    cdef double work
    cdef int asked          # set_num_threads when the work was divided ...
    cdef int wanted         # ... threads worth calling then ...
    cdef int threads        # ... and those that the frames are laid out for
    cdef double patience
    cdef int type_number
    cdef bint busy          # a thread is in advance()
    cdef bint halfway       # the last one was interrupted: some layers are a step ahead of the others

    def __init__(self, tuple layers, Py_ssize_t batch_size):
        cdef Packed p
        cdef Frame frame
        cdef Direction *d
        cdef Plan plan = Plan(1, batch_size, None)
        cdef Memory memory
        cdef Py_ssize_t bytes
        if not layers:
            raise ValueError("layers: expected one or more, got none")
        self.packed = list(layers)
        self.frames = []
        self.states = []
        self.B = batch_size
        for p in self.packed:
            frame = Frame()
            frame.run.directions = 1
            d = &frame.run.direction[0]
            d.layer = p.layer
            d.packed = True
            d.steps = 1
            d.B = batch_size
            d.order = plan.order
            d.length = plan.length
            d.active = plan.active
            d.offset = plan.offset
            d.x_i = p.layer.tiles.itemsize
            # Python integers in Memory's argument: a size that overflows is refused there
            memory = Memory(<object>batch_size * p.layer.stride * p.layer.tiles.itemsize * (1 + p.layer.cell.states))
            bytes = batch_size * p.layer.stride * p.layer.tiles.itemsize
            d.h0 = memory.data
            d.y = d.h0 + bytes
            d.c0 = d.y + bytes
            d.x_b = d.y_b = p.layer.stride * p.layer.tiles.itemsize
            memset(memory.data, 0, (1 + p.layer.cell.states) * bytes)
            self.work += <double>batch_size * p.layer.cell.gates * p.layer.H * (p.layer.H + p.layer.inputs)
            frame.owners.extend((plan, memory, p))
            self.frames.append(frame)
        p = self.packed[0]
        self.inputs = p.layer.inputs
        frame = self.frames[0]
        frame.run.direction[0].x_b = p.layer.inputs * p.layer.tiles.itemsize
        p = self.packed[len(self.packed) - 1]
        self.H = p.layer.H
        self.dtype = p.dtype
        self.type_number = np.NPY_DOUBLE if p.layer.tiles.itemsize == 8 else np.NPY_FLOAT
        self.asked = THREADS
        self.partition(THREADS)

    cdef int partition(self, int threads) except -1:
        cdef Frame frame
        self.threads = 0                                        # until all is laid out: memory may run short
        for frame in self.frames:
            frame.open(threads)
        if threads == self.asked:
            self.wanted = 1
            self.patience = 0
            for frame in self.frames:
                self.wanted = max(self.wanted, frame.run.size)
                self.patience += frame.run.patience
            threads = self.wanted
        self.threads = threads
        return 0

    cdef int advance(self, const char *x) except -1:
        """One step of every layer; the new state takes the place of the old one."""
        cdef Frame frame, before = None
        cdef Direction *d
        cdef char *h
        cdef int granted
        if self.asked != THREADS:
            self.asked = THREADS
            self.partition(THREADS)
        granted = team_acquire(self.wanted, self.patience)
        try:
            if granted != self.threads:
                self.partition(granted)
            for frame in self.frames:
                d = &frame.run.direction[0]
                d.x = x if before is None else before.run.direction[0].h0
                if before is not None:
                    d.x_b = before.run.direction[0].y_b
                if self.work < 1e5:                             # a few microseconds: not worth letting the GIL go
                    frame.run.checked = 1e300
                    frame.go()
                else:
                    with nogil:
                        frame.run.checked = cpu_seconds()
                        frame.go()
                if frame.run.interrupted:
                    self.halfway = True
                    raise_pending()
                h = d.h0
                d.h0 = d.y
                d.y = h
                before = frame
        finally:
            team_release(granted)
        return 0

    def step(self, x_t, out=None):
        """Take x_t (B, I), return the last layer's h (B, H), written to `out` when given."""
        cdef np.ndarray x, y
        cdef Frame frame
        cdef Direction *d
        cdef Py_ssize_t b, size
        if not isinstance(x_t, np.ndarray):
            x_t = numpy.asarray(x_t)
        x = x_t
        if np.PyArray_TYPE(x) != self.type_number:
            raise TypeError(f"x_t: expected {self.dtype}, got {x.dtype}")
        if x.ndim != 2 or x.shape[0] != self.B or x.shape[1] != self.inputs:
            raise ValueError(f"x_t: expected shape {(self.B, self.inputs)}, got {x_t.shape}")
        if not np.PyArray_ISCARRAY_RO(x):
            x = numpy.require(x, self.dtype, "CA")
        if out is None:
            y = numpy.empty((self.B, self.H), self.dtype)
        else:
            if not isinstance(out, np.ndarray):
                raise TypeError(f"out: expected an ndarray of {self.dtype}, got {type(out).__name__}")
            y = out
            if np.PyArray_TYPE(y) != self.type_number:
                raise TypeError(f"out: expected {self.dtype}, got {y.dtype}")
            if y.ndim != 2 or y.shape[0] != self.B or y.shape[1] != self.H:
                raise ValueError(f"out: expected shape {(self.B, self.H)}, got {out.shape}")
            if not np.PyArray_ISWRITEABLE(y):
                raise ValueError("out: expected a writable array, got a read-only one")
        self.must_be_idle()
        if self.halfway:
            raise RuntimeError("stream: its last step was interrupted; set its state or reset() it")
        self.busy = True
        try:
            self.advance(<char *>np.PyArray_DATA(x))
        finally:
            self.busy = False
        frame = self.frames[len(self.frames) - 1]
        d = &frame.run.direction[0]
        size = self.H * d.layer.tiles.itemsize
        if np.PyArray_ISCARRAY(y):
            for b in range(self.B):
                memcpy(<char *>np.PyArray_DATA(y) + b * size, d.h0 + b * d.y_b, size)
        else:
            y[...] = self.state_of(len(self.frames) - 1, False)
        return y

    cdef int must_be_idle(self) except -1:
        if self.busy:
            raise RuntimeError("stream: another thread is in step(); give every thread a stream of its own")
        return 0

    cdef np.ndarray state_of(self, Py_ssize_t layer, bint of_c):
        cdef Frame frame = self.frames[layer]
        cdef Direction *d = &frame.run.direction[0]
        cdef np.ndarray a = numpy.empty((self.B, d.layer.H), self.dtype)
        state_out(&d.layer, d.order, self.B, d.c0 if of_c else d.h0, <char *>np.PyArray_DATA(a))
        return a

    @property
    def h(self):
        """The hidden state, (num_layers, B, H), a copy."""
        self.must_be_idle()
        return numpy.stack([self.state_of(i, False) for i in range(len(self.frames))])

    @property
    def c(self):
        """The cell state, (num_layers, B, H), a copy; None unless LSTM."""
        self.must_be_idle()
        if (<Packed>self.packed[0]).layer.cell.states == 1:
            return None
        return numpy.stack([self.state_of(i, True) for i in range(len(self.frames))])

    def set_state(self, h, c):
        """Go on from h (num_layers, B, H), and c for LSTM."""
        cdef Frame frame
        cdef Direction *d
        self.must_be_idle()
        self.halfway = False
        for i, frame in enumerate(self.frames):
            d = &frame.run.direction[0]
            state_in(&d.layer, d.order, self.B, h[i], d.h0)
            if d.layer.cell.states == 2:
                state_in(&d.layer, d.order, self.B, c[i], d.c0)

    def reset(self):
        """Go on from zeros."""
        cdef Frame frame
        cdef Direction *d
        self.must_be_idle()
        self.halfway = False
        for frame in self.frames:
            d = &frame.run.direction[0]
            state_in(&d.layer, d.order, self.B, None, d.h0)
            if d.layer.cell.states == 2:
                state_in(&d.layer, d.order, self.B, None, d.c0)


def stream(tuple layers, Py_ssize_t batch_size):
    """A stream over packed layers; see the backend protocol in fusedrnn.backends."""
    return Stream(layers, batch_size)


# ---------------------------------------------------------------------------------------------------------------
# Which instruction set, how many threads

cdef const tiles_t *ACTIVE = NULL
cdef int THREADS = 1


def available_isas():
    """Instruction sets that run on this CPU, best first."""
    cdef int i = 0
    found = []
    while cpu_isa(i) != NULL:
        found.append(cpu_isa(i).decode())
        i += 1
    return tuple(found)


def isa():
    """The instruction set in force for calls and for weights packed from now on."""
    return ACTIVE.isa.decode()


def set_isa(str name):
    """Force an instruction set by name."""
    global ACTIVE
    cdef const tiles_t *found = cpu_tiles(name.encode())
    if found == NULL:
        raise ValueError(f"isa: expected one of {', '.join(available_isas())}, got {name!r}")
    ACTIVE = found


def team():
    """Addresses of team_acquire, team_run and team_release, for the functions of another compiler."""
    return <size_t>&team_acquire, <size_t>&team_run, <size_t>&team_release


def available_cpus():
    """CPUs that this thread may run on."""
    return cpu_count()


def get_num_threads():
    """Threads of one call, the caller's among them."""
    return THREADS


def set_num_threads(n):
    """Set the threads of one call, 1 to 256."""
    global THREADS
    if not 1 <= n <= TEAM_MOST:
        raise ValueError(f"n: expected 1 to {TEAM_MOST} threads, got {n}")
    THREADS = n


def compiler():
    """The compiler that built this module."""
    return cpu_compiler().decode()


def sigmoid(np.ndarray a):
    """The kernels' sigmoid of a contiguous 1-D array."""
    cdef np.ndarray out = numpy.empty_like(a)
    elementwise(a, out, False)
    return out


def tanh(np.ndarray a):
    """The kernels' tanh of a contiguous 1-D array."""
    cdef np.ndarray out = numpy.empty_like(a)
    elementwise(a, out, True)
    return out


cdef struct Probe:                          # what a rank repeats: the first of these that is set
    const tiles_t *tiles
    Py_ssize_t repeats
    barrier_line *lines                     # meet the other ranks
    unsigned long epoch
    int threads
    const product_t *product                # one product
    const char *data                        # read `bytes` of its own
    Py_ssize_t bytes                        # and else multiply and add in registers


cdef void run_probe(void *arg, int rank) noexcept nogil:
    cdef Probe *p = <Probe *>arg
    cdef Py_ssize_t i, _
    if p.lines != NULL:
        for i in range(1, p.repeats + 1):
            team_barrier(p.lines, rank, p.threads, p.epoch + i)
    elif p.product != NULL:
        for _ in range(p.repeats):
            p.tiles.product(p.product)
    elif p.data != NULL:
        for _ in range(p.repeats):
            p.tiles.read(p.data + rank * p.bytes, p.bytes // p.tiles.itemsize)
    else:
        p.tiles.multiply_adds(p.repeats)


cdef double probe(Probe *p, int threads, double seconds):
    """Seconds of one repeat when `threads` threads run together: the best of eight parts, which take `seconds` in all.

    Whatever else runs on the machine only ever makes a part slower.
    """
    cdef int granted = team_acquire(threads, .005), parts = 8
    cdef double began, taken = 0, best = 0
    try:
        if granted < threads:
            raise RuntimeError(f"threads: expected {threads} to be free, got {granted}")
        with nogil:
            p.threads = threads
            p.repeats = 1
            while parts > 0:
                if taken > 0:
                    p.repeats *= 2
                began = cpu_seconds()
                team_run(threads, run_probe, p)
                taken = cpu_seconds() - began
                p.epoch += p.repeats
                if taken < seconds / 8:
                    continue
                parts -= 1
                if best == 0 or taken / p.repeats < best:
                    best = taken / p.repeats
                taken = 0
    finally:
        team_release(granted)
    return best


def peak(dtype, int threads=1, double seconds=.02):
    """Floating-point operations a second of multiply-adds that stay in registers, in the instruction set in force."""
    cdef Probe p
    memset(&p, 0, sizeof(p))
    p.tiles = tiles_for(numpy.dtype(dtype))
    return p.tiles.multiply_adds(1) * threads / probe(&p, threads, seconds)


def bandwidth(Py_ssize_t size, int threads=1, double seconds=.02):
    """Bytes a second of reading `size` bytes, each thread its own, over and over."""
    cdef Probe p
    memset(&p, 0, sizeof(p))
    size = max(4096, size // 4096 * 4096)
    cdef Memory memory = Memory(<object>size * threads)
    memset(memory.data, 0, size * threads)
    p.tiles = tiles_for(numpy.dtype(numpy.float32))
    p.data = memory.data
    p.bytes = size
    return <double>size * threads / probe(&p, threads, seconds)


def barrier_cost(int threads, double seconds=.02):
    """Seconds until `threads` threads have met at a barrier that they came to together."""
    cdef Probe p
    memset(&p, 0, sizeof(p))
    cdef Memory memory = Memory(threads * sizeof(barrier_line) + 64)
    p.lines = <barrier_line *>(memory.data + (<size_t>memory.data & 64))
    memset(p.lines, 0, threads * sizeof(barrier_line))
    return probe(&p, threads, seconds)


def latency(dtype, double seconds=.02):
    """Seconds that one multiply-add waits for the one before it: the slope of a single chain's time over its length."""
    cdef Probe p
    cdef product_t product
    cdef Py_ssize_t most = 128
    memset(&p, 0, sizeof(p))
    memset(&product, 0, sizeof(product))
    p.tiles = tiles_for(numpy.dtype(dtype))
    cdef Py_ssize_t a = most * p.tiles.itemsize, vector = p.tiles.lanes * p.tiles.itemsize
    cdef Memory memory = Memory(a + (most + 1) * vector)
    memset(memory.data, 0, a + (most + 1) * vector)
    cdef void *row = memory.data
    cdef void *out = memory.data + a + most * vector
    product.rows = product.a_step = product.segments = product.width = product.vectors = product.last = 1
    product.a = <const void **>&row
    product.out = &out
    product.w = memory.data + a
    product.out_step = p.tiles.lanes
    p.product = &product
    product.depth = most
    cdef double whole = probe(&p, 1, seconds)
    product.depth = most // 2
    return (whole - probe(&p, 1, seconds)) / (most - most // 2)


cdef struct Elementwise:
    const tiles_t *tiles
    const void *a
    void *out
    Py_ssize_t n
    bint is_tanh


cdef void run_elementwise(void *arg, int rank) noexcept nogil:
    cdef Elementwise *e = <Elementwise *>arg
    if e.is_tanh:
        e.tiles.tanh(e.a, e.out, e.n)
    else:
        e.tiles.sigmoid(e.a, e.out, e.n)


cdef int elementwise(np.ndarray a, np.ndarray out, bint is_tanh) except -1:
    cdef Elementwise e
    if a.ndim != 1 or not a.flags.c_contiguous or a.dtype not in (numpy.float32, numpy.float64):
        raise TypeError(f"a: expected a contiguous 1-D array of float32 or float64, got {a.ndim}-D {a.dtype}")
    e.tiles = tiles_for(a.dtype)
    e.a = np.PyArray_DATA(a)
    e.out = np.PyArray_DATA(out)
    e.n = a.shape[0]
    e.is_tanh = is_tanh
    with nogil:
        team_run(1, run_elementwise, &e)
    return 0


cdef int from_environment(str name, default, choose) except -1:
    """Apply an environment variable, naming it where its value does not fit."""
    try:
        choose(os.environ.get(name, default))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return 0


from_environment("FUSEDRNN_ISA", available_isas()[0], set_isa)
from_environment("FUSEDRNN_NUM_THREADS", min(cpu_count(), TEAM_MOST), lambda n: set_num_threads(int(n)))
