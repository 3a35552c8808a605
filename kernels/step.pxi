# AN OPEN STEP: a step of one stage, cut into blocks that whoever is there may take. The caller waits for nobody:
# helpers come when they have a CPU, and what one holds that has lost it again is made anew by the caller.
#
# A block is some units of some rows, from x W_ih to the end of its pointwise part, so there is nothing to meet for in
# between. A helper works aside, in memory of its own, and its h and c count only if the block is still its own by
# then; whatever a helper left behind reads that has been overwritten meanwhile, its results are dropped.

from tiles cimport (
    BLOCK_DONE, BLOCK_FREE, BLOCK_HELD, BLOCK_KEPT, block_change, block_is, block_line, block_set, epoch_begin,
    epoch_now, fp_flush_denormals, team_close, team_offer, team_open,
)


cdef struct Step:
    Run *run                    # of one direction with one step
    int size                    # ranks that may come, the caller among them
    unsigned long epoch         # this step: of all that helpers read, written last
    char *x                     # [B][x_b bytes], a copy: the caller's array may be gone before its last reader
    Py_ssize_t x_b
    Py_ssize_t strips, parts    # blocks = strips of units x parts of the batch, ...
    bint by_part                # ... part by part, or strip by strip
    Py_ssize_t blocks
    Py_ssize_t units, rows      # of a block; units in vectors
    Py_ssize_t stride           # of a segment of a block's gate rows, in elements
    char *bias                  # by strip, laid out like these rows
    block_line *block           # [blocks]
    char *own                   # per rank: row pointers, gate rows of a block, and a helper's h and c
    Py_ssize_t own_bytes
    bint streams                # the weights come from beyond L2


cdef struct Block:
    # Where a block lies, and where this rank puts its results.
    Py_ssize_t first, last      # units, in vectors
    Py_ssize_t row, rows
    Py_ssize_t at, bytes        # of its units in a row of a state
    char *bias                  # its own, from unit 0
    char *h                     # its first row, from unit 0; the next one lies `pitch` bytes on
    char *c
    Py_ssize_t pitch


cdef Block block_of(Step *t, Py_ssize_t which) noexcept nogil:
    cdef Direction *d = &t.run.direction[0]
    cdef Py_ssize_t lanes = d.layer.tiles.lanes, units = (d.layer.H + lanes - 1) // lanes
    cdef Py_ssize_t strip = which % t.strips if t.by_part else which // t.parts
    cdef Block b
    b.first = strip * t.units
    b.last = min(b.first + t.units, units)
    b.row = (which // t.strips if t.by_part else which % t.parts) * t.rows
    b.rows = min(t.rows, d.B - b.row)
    b.at = b.first * lanes * d.layer.tiles.itemsize
    b.bytes = (b.last - b.first) * lanes * d.layer.tiles.itemsize
    b.bias = t.bias + strip * d.layer.cell.segments * t.stride * d.layer.tiles.itemsize - b.at
    return b


cdef void make_block(Step *t, Block *b, char *own, char *h0) noexcept nogil:
    """gates = x W_ih + bias + h W_hh, then the pointwise part: a step of the time loop for a block."""
    cdef Direction *d = &t.run.direction[0]
    cdef Layer *l = &d.layer
    cdef Py_ssize_t size = l.tiles.itemsize, state = l.stride * size, segment = t.stride * size, i
    cdef Py_ssize_t plain = b.at + l.cell.plain * segment
    cdef void **x_row = <void **>own
    cdef void **gates = x_row + t.rows
    cdef void **h_prev = gates + t.rows
    cdef void **h = h_prev + t.rows
    cdef void **c_prev = h + t.rows
    cdef void **c = c_prev + t.rows
    cdef char *rows = own + gate_rows_at(t)
    cdef product_t p
    cdef pointwise_t q
    for i in range(b.rows):
        x_row[i] = t.x + (b.row + i) * t.x_b
        gates[i] = rows + i * l.cell.segments * segment - b.at
        h_prev[i] = h0 + (b.row + i) * state
        h[i] = b.h + i * b.pitch
        c_prev[i] = d.c0 + (b.row + i) * state
        c[i] = b.c + i * b.pitch
        if l.cell.plain >= 0:                                   # no share of x: starts from its own bias
            memcpy(<char *>gates[i] + plain, b.bias + plain, b.bytes)
    memset(&q, 0, sizeof(q))
    q.rows = b.rows
    q.first = b.first * l.tiles.lanes
    q.last = min(b.last * l.tiles.lanes, l.H)
    q.stride = t.stride
    q.gates = gates
    q.h_prev = <const void **>h_prev
    q.h = h
    q.c_prev = <const void **>c_prev
    q.c = c
    aim(t, b, &p, &l.x, &l.h[0], b.first)
    p.a = <const void **>x_row
    p.out = gates
    p.out_offset = l.cell.x.segment * t.stride
    p.init = b.bias
    l.tiles.product(&p)
    aim(t, b, &p, &l.h[0], &l.x, b.last if t.by_part or t.parts == 1 else b.first)
    p.a = <const void **>h_prev
    p.out = gates
    p.out_offset = l.cell.h[0].segment * t.stride
    p.accumulate = 1
    l.tiles.product(&p)
    l.tiles.forward[l.kind][0](&q)


cdef void aim(Step *t, Block *b, product_t *p, Matrix *m, Matrix *then, Py_ssize_t unit) noexcept nogil:
    """A product of the block's columns of m; where panels come from beyond L2, `then`'s at that unit come next."""
    cdef const tiles_t *tiles = t.run.direction[0].layer.tiles
    cdef Py_ssize_t each = m.width if m.gated else 1
    take(p, m, tiles)
    p.rows = b.rows
    p.first = b.first * each
    p.last = b.last * each
    if m.gated:
        p.out_step = t.stride
        p.out_panel = tiles.lanes
    p.prefetch = t.streams and b.rows >= FEW_ROWS
    if p.prefetch and unit * each < then.vectors:
        p.next = then.data + unit * each * then.depth * tiles.lanes * tiles.itemsize


cdef Py_ssize_t gate_rows_at(Step *t) noexcept nogil:
    return (6 * t.rows * <Py_ssize_t>sizeof(void *) + 63) // 64 * 64


cdef void help(void *arg, int rank) noexcept nogil:
    """A helper's share of whatever step is going on."""
    cdef Step *t = <Step *>arg
    cdef unsigned long epoch = epoch_now(&t.epoch)              # before all else that changes from step to step
    cdef Py_ssize_t i, j, which = part(t.blocks, rank, t.size)
    cdef Direction *d = &t.run.direction[0]
    cdef Layer *l = &d.layer
    cdef Py_ssize_t state = l.stride * l.tiles.itemsize
    cdef char *h0 = d.h0
    cdef char *y = d.y
    cdef char *own = t.own + rank * t.own_bytes
    cdef Block b
    for i in range(t.blocks):
        if block_change(&t.block[which], epoch, BLOCK_FREE, BLOCK_HELD):
            b = block_of(t, which)
            b.pitch = t.stride * l.tiles.itemsize
            b.h = own + gate_rows_at(t) + t.rows * l.cell.segments * b.pitch - b.at
            b.c = b.h + t.rows * b.pitch
            make_block(t, &b, own, h0)
            if not block_change(&t.block[which], epoch, BLOCK_HELD, BLOCK_KEPT):
                return                                          # the caller has been waiting too long
            for j in range(b.rows):
                memcpy(y + (b.row + j) * state + b.at, b.h + j * b.pitch + b.at, b.bytes)
                if l.cell.states == 2:
                    memcpy(d.c0 + (b.row + j) * state + b.at, b.c + j * b.pitch + b.at, b.bytes)
            block_set(&t.block[which], epoch, BLOCK_DONE)
        which = which + 1 if which + 1 < t.blocks else 0


cdef void own_block(Step *t, Py_ssize_t which) noexcept nogil:
    """One block by the caller, straight into the new state."""
    cdef Direction *d = &t.run.direction[0]
    cdef Layer *l = &d.layer
    cdef Run *run = t.run
    cdef Block b = block_of(t, which)
    b.pitch = l.stride * l.tiles.itemsize
    b.h = d.y + b.row * b.pitch
    b.c = d.c0 + b.row * b.pitch
    make_block(t, &b, t.own, d.h0)
    run.work += <double>b.rows * (b.last - b.first) * l.tiles.lanes * l.cell.gates * (l.H + l.inputs)
    if run.work > SIGNAL_WORK:
        look_for_signals(run)


cdef void open_step(Step *t) noexcept nogil:
    """A step by the caller and whoever comes; `run.interrupted` if it was not done."""
    cdef Run *run = t.run
    cdef Direction *d = &run.direction[0]
    cdef int size = team_open(t.size)
    cdef Py_ssize_t i, mine = 0
    cdef double began = cpu_seconds() if size > 1 else 0, deadline = 0
    run.interrupted = False
    run.work = 0
    run.outside = fp_flush_denormals()
    for i in range(d.B):
        memcpy(t.x + i * t.x_b, d.x + i * d.x_b, t.x_b)
    epoch_begin(&t.epoch)
    for i in range(t.blocks):
        block_set(&t.block[i], t.epoch, BLOCK_FREE)
    team_offer(size, help, t)
    for i in range(t.blocks):
        if not run.interrupted and block_change(&t.block[i], t.epoch, BLOCK_FREE, BLOCK_DONE):
            own_block(t, i)
            mine += 1
            team_offer(size, help, t)
    for i in range(t.blocks):                                   # what is not done by now is held, or nobody's any more
        while not block_is(&t.block[i], t.epoch, BLOCK_DONE):
            if deadline == 0:                                   # a helper gets the time that one takes here
                deadline = cpu_seconds()
                deadline += (deadline - began) / max(1, mine)
            if run.interrupted:
                block_change(&t.block[i], t.epoch, BLOCK_FREE, BLOCK_DONE)
                block_change(&t.block[i], t.epoch, BLOCK_HELD, BLOCK_DONE)
            elif cpu_seconds() > deadline and block_change(&t.block[i], t.epoch, BLOCK_HELD, BLOCK_DONE):
                own_block(t, i)
    team_close(size)
    fp_restore(run.outside)


@cython.final
@cython.internal
cdef class OpenLayer:
    """The memory of a layer's open steps."""
    cdef Step step
    cdef Frame frame            # whose direction it is
    cdef Memory memory

    def __cinit__(self, Frame frame):
        memset(&self.step, 0, sizeof(Step))
        self.frame = frame

    cdef int open(self, int threads) except -1:
        """Cut the step into blocks for up to so many ranks, and carve out memory; team_quiet() first."""
        cdef Step *t = &self.step
        cdef Run *run = &self.frame.run
        cdef Direction *d = &run.direction[0]
        cdef Layer *l = &d.layer
        cdef Py_ssize_t units = (l.H + l.tiles.lanes - 1) // l.tiles.lanes, state, at, bias, i, v
        cdef Block b
        cdef Py_ssize_t panel = 1 if l.h[0].gated else PANEL, size
        cdef double bytes                                       # of the weights of a unit vector
        divide(run, threads)
        size = run.size
        bytes = <double>l.cell.gates * l.tiles.lanes * (l.H + l.inputs) * l.tiles.itemsize
        t.run = run
        t.size = size
        t.streams = units * bytes > size * L2_SHARE
        t.by_part = run.groups > 1
        t.parts = max((d.B + CHUNK - 1) // CHUNK, run.groups)
        t.rows = max(1, (d.B + t.parts - 1) // t.parts)
        t.parts = (d.B + t.rows - 1) // t.rows
        t.units = panel if t.rows >= FEW_ROWS else 2 * panel    # one row takes two panels at a time
        t.strips = (units + t.units - 1) // t.units
        while t.strips > 1 and 2 * t.units * t.rows * bytes <= SIGNAL_WORK * l.tiles.itemsize and (
            size == 1 or t.strips * t.parts > MOST_BLOCKS * size
            or t.strips * t.parts >= 2 * LEAST_BLOCKS * size
            and t.units * max(bytes / RATE_L2, t.rows * bytes / 4 / RATE_FMA) < LEAST_TIME
        ):
            t.units *= 2
            t.strips = (units + t.units - 1) // t.units
        t.blocks = t.strips * t.parts
        t.stride = padded(t.units * l.tiles.lanes, l.tiles.itemsize)
        state = t.stride * l.tiles.itemsize
        t.own_bytes = (gate_rows_at(t) + t.rows * (l.cell.segments + l.cell.states) * state + 127) // 128 * 128
        at = t.blocks * <Py_ssize_t>sizeof(block_line)
        t.x_b = l.inputs * l.tiles.itemsize
        bias = t.strips * l.cell.segments * state
        self.memory = Memory(at + bias + size * t.own_bytes + <object>d.B * t.x_b)
        t.block = <block_line *>self.memory.data
        t.bias = self.memory.data + at
        t.own = t.bias + bias
        t.x = t.own + size * t.own_bytes
        memset(t.block, 0, at + bias)
        for i in range(t.blocks):
            b = block_of(t, i)
            for v in range(l.cell.segments):
                memcpy(b.bias + v * state + b.at, l.bias + v * l.stride * l.tiles.itemsize + b.at, b.bytes)
        return 0
