# The order of a ragged batch: longest first, so that the sequences at work in a step are the first `active[s]`.

from tiles cimport fp_now, fp_restore, fp_state, team_turn


cdef struct Part:
    # Neighbours in that order: what one group works on, and what lies together on the tape.
    Py_ssize_t begin, rows      # of the batch; the first is the longest, ...
    Py_ssize_t steps            # ... of so many steps
    Py_ssize_t *at              # [steps + 1]  where on the tape a step begins, and where the last one ends


@cython.final
@cython.internal
cdef class Plan:
    cdef Py_ssize_t T, B, steps, rows
    cdef Memory memory, parted
    cdef Py_ssize_t *order      # [B]  row j of a step is sequence order[j]
    cdef Py_ssize_t *length     # [B]  by sequence
    cdef Py_ssize_t *active     # [steps]
    cdef Py_ssize_t *offset     # [steps + 1]  valid rows of the steps before
    cdef Part *part             # [parts]  of the tape
    cdef Part **part_of         # [B]  by row

    def __cinit__(self, Py_ssize_t T, Py_ssize_t B, np.ndarray lengths):
        cdef Py_ssize_t b, s, n, count
        cdef const np.int64_t *given
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
            given = <const np.int64_t *>np.PyArray_DATA(lengths)
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

    cdef void deal(self, Part *part, int parts) noexcept:
        """The batch in so many parts, at most as many as sequences. The longest come first, and all parts have about as
        many valid steps: few long sequences, or many short ones, which are few steps of many rows. Each has one at
        least: the caller, who alone looks for signals, is in the first group and must not sit idle."""
        cdef Py_ssize_t j = 0, before = 0
        cdef int i
        for i in range(parts):
            part[i].begin = j
            while j <= self.B - parts + i and (
                j == part[i].begin or (2 * before + self.length[self.order[j]]) * parts <= 2 * self.rows * (i + 1)
            ):
                before += self.length[self.order[j]]
                j += 1
            part[i].rows = j - part[i].begin
            part[i].steps = self.length[self.order[part[i].begin]] if part[i].rows else 0

    cdef int lay_tape(self, int parts) except -1:
        """Part by part, and each of them step by step. From row to row a CPU fetches ahead, and should find no row
        there that another group is writing."""
        cdef Py_ssize_t s, n, row = 0, *at
        cdef int i
        cdef Part *p
        self.parted = Memory(parts * sizeof(Part) + (self.B + self.rows + parts) * sizeof(Py_ssize_t))
        self.part = <Part *>self.parted.data
        self.part_of = <Part **>(self.part + parts)
        at = <Py_ssize_t *>(self.part_of + self.B)
        self.deal(self.part, parts)
        for i in range(parts):
            p = &self.part[i]
            p.at = at
            for s in range(p.steps):
                at[s] = row
                row += part_rows(p, self.active[s])
            at[p.steps] = row
            at += p.steps + 1
            for n in range(p.rows):
                self.part_of[p.begin + n] = p
        return 0


cdef inline Py_ssize_t part_rows(const Part *p, Py_ssize_t active) noexcept nogil:
    """Its rows at work in a step, of so many at work in all."""
    return max(<Py_ssize_t>0, min(active - p.begin, p.rows))


# ---------------------------------------------------------------------------------------------------------------
# A run: one call of the team over one or two directions.


cdef struct Right:
    # A right operand of dW, a row for each of the tape's: a block of it packed, or rows that are read where they lie.
    Matrix m
    bint in_place
    const char *last            # the last of these in memory, where whole vectors would reach past the array ...
    char *copy                  # ... so it is read here; NULL: there is none such


cdef struct Direction:
    Layer layer
    bint reverse, packed, training
    bint fresh                  # h0 is none: the first step has no product with W_hh, nor a part in dW_hh
    Py_ssize_t T, B, steps      # the longest sequence has `steps`
    Py_ssize_t chunk            # rows of x projected at once
    Py_ssize_t *order
    Py_ssize_t *length
    Py_ssize_t *active
    Py_ssize_t *offset
    Part *part                  # of the tape, ...
    Part **part_of              # [B]  ... and which of them a row belongs to
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
    bint lent                   # dx's matrix lies where dW will be
    Right right[3]              # of dW: x, h_prev or, for gru_reset_before, r*h
    const char *dy              # laid out like y
    char *d_h                   # [B][stride] running gradients, in plan order; dh_n in, dh0 out
    char *d_c
    char *d_q
    char *grad_x                # (T, B, I) contiguous; NULL: not asked for
    Py_ssize_t gx_t, gx_b
    char *grad_w_ih
    char *grad_w_hh
    char *grad_b_ih
    char *grad_b_hh


cdef struct Group:
    # A part of the batch, all steps of one direction, shared by `width` threads.
    Direction *direction
    Part *part
    Py_ssize_t units, most      # vectors of a state and of a rank at most; a division takes longer than a small tile
    Py_ssize_t even, even_panels    # ... and as many as can be dealt out evenly, one by one or by whole linear panels
    char *gates                 # inference: the gate rows of a chunk
    char *d_h                   # backward: its running gradients, ...
    char *d_c
    char *d_q
    bint own                    # ... which a rank that shares no row keeps apart from those of others
    barrier_line *lines


cdef struct Run:
    int size, width, groups
    double patience             # seconds worth waiting for the team: half of what it would save
    bint backward
    int directions
    Direction direction[2]
    Part *part                  # of the batch, one for each group of a direction
    Group *group
    barrier_line *lines         # of the whole team
    char *scratch               # per rank
    Py_ssize_t scratch_bytes
    bint interrupted
    fp_state outside            # the caller's, for its signal handlers
    char apart[64]              # rank 0 alone writes what follows, all the time; what is above is for all to read
    double checked              # when it last looked for signals
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
    char **y                    # h before the first step, if y went on that far
    void **gates
    void **h_prev
    void **h
    void **c_prev
    void **c
    void **dy
    void **dh
    void **dc
    void **dq
    const void **left           # gate rows of a block of dW, ...
    const void **right[3]       # ... rows of its right operands, ...
    Py_ssize_t right_ld[3]      # ... so many elements apart, all of them, or 0
    char *buffer                # staged x rows or packed left operands


cdef void look_for_signals(Run *run) noexcept nogil:
    cdef double now = cpu_seconds()
    run.work = 0
    if run.interrupted or now - run.checked < SIGNAL_SECONDS:
        return
    cdef fp_state inside = fp_now()
    fp_restore(run.outside)
    with gil:
        if run_signal_handlers():
            run.interrupted = True
    fp_restore(inside)
    run.checked = cpu_seconds()


cdef inline void account(Worker *k, double multiply_adds) noexcept nogil:
    """Called beside every product: rank 0 looks for signals now and then."""
    if k.rank == 0:
        k.run.work += multiply_adds
        if k.run.work > SIGNAL_WORK:
            look_for_signals(k.run)


cdef bint agreed(Run *run, barrier_line *lines, int rank, int size, unsigned long *epoch) noexcept nogil:
    """A barrier; True when all there agree to stop: the first of them decides before, the others read after."""
    if size == 1:
        return run.interrupted
    epoch[0] += 1
    if rank == 0:
        lines[0].stop[epoch[0] & 1] = run.interrupted
    team_barrier(lines, rank, size, epoch[0])
    return lines[0].stop[epoch[0] & 1]


cdef bint meet(Worker *k) noexcept nogil:
    """The whole team's barrier."""
    return agreed(k.run, k.run.lines, k.rank, k.run.size, &k.epoch)


cdef bint barrier(Worker *k) noexcept nogil:
    """The group's barrier."""
    return agreed(k.run, k.group.lines, k.seat, k.run.width, &k.group_epoch)


cdef bint next_turn(Worker *k, int job, Py_ssize_t total, int *whose, Py_ssize_t *turn) noexcept nogil:
    """The next of so many turns at a job between two of the team's barriers: out of the rank's own share, then of
    what the others have not come to. Start from its own rank and -1; False when there are no more."""
    cdef int size = k.run.size, line
    if size == 1:
        turn[0] += 1
        return turn[0] < total
    while whose[0] < k.rank + size:
        line = whose[0] % size
        turn[0] = part(total, line, size) + team_turn(&k.run.lines[line], k.epoch, job)
        if turn[0] < part(total, line + 1, size):
            return True
        whose[0] += 1
    return False


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


cdef inline Py_ssize_t tape_at(Direction *d, Py_ssize_t j, Py_ssize_t s) noexcept nogil:
    """Where on the tape step s of row j is."""
    cdef const Part *p = d.part_of[j]
    return p.at[s] + j - p.begin


cdef inline char *tape_c(Direction *d, Py_ssize_t j, Py_ssize_t s) noexcept nogil:
    if s < 0 or not d.training:
        return d.c0 + j * d.layer.stride * d.layer.tiles.itemsize
    return d.c + tape_at(d, j, s) * d.layer.stride * d.layer.tiles.itemsize


cdef inline char *tape_row(Direction *d, Py_ssize_t j, Py_ssize_t s) noexcept nogil:
    return d.gates + tape_at(d, j, s) * gate_row_bytes(&d.layer)


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


cdef void aim_at(product_t *p, Matrix *m, const tiles_t *tiles) noexcept nogil:
    """Aim a product at a matrix; a single segment of operand unless said otherwise."""
    memset(p, 0, sizeof(product_t))
    p.w = m.w if m.plain else m.data
    p.ld = m.ld if m.plain else 0
    memcpy(p.gate, m.gate, sizeof(m.gate))
    p.width = m.width
    p.vectors = m.vectors
    p.last = m.vectors
    p.narrow = m.narrow
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
    """The left operand is `gates` segments of a gate row, the row pointers being those of the first segment; a single
    one where they follow one another and so do the rows of the matrix."""
    cdef bint single = l.stride == l.H and p.ld == 0
    p.segments = 1 if single else s.gates
    p.depth = s.gates * l.H if single else l.H
    p.a_segment = l.stride
