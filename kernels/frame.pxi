# What every rank runs, how the work is divided, and the frame that a call and its tape share.


cdef void run_rank(void *arg, int rank) noexcept nogil:
    cdef Run *run = <Run *>arg
    cdef Worker k
    cdef int i, s
    cdef bint packing = run.backward
    cdef Direction *d
    open_worker(&k, run, rank)
    for i in range(run.directions):
        d = &run.direction[i]
        if run.backward:
            for s in range(d.layer.cell.stages):
                pack_share(&k, &d.dh[s], d.layer.tiles)
        elif not d.packed:
            packing = True
            pack_share(&k, &d.layer.x, d.layer.tiles)
            for s in range(d.layer.cell.stages if d.steps > 1 or not d.fresh else 0):
                pack_share(&k, &d.layer.h[s], d.layer.tiles)
    if packing and meet(&k):
        return
    if run.size == 1:
        for i in range(run.groups):
            if time_loop(&k, &run.group[i], 0):
                return
    elif time_loop(&k, &run.group[rank // run.width], rank % run.width) and run.groups == 1:
        return
    if not run.backward:
        for i in range(run.directions):
            clear_padding(&k, &run.direction[i], run.direction[i].y, run.direction[i].y_t, run.direction[i].y_b,
                          run.direction[i].layer.H)
        return
    if meet(&k):
        return
    for i in range(run.directions):
        d = &run.direction[i]
        pack_share(&k, &d.dx, d.layer.tiles)
        open_block(&k, d, 0)
        if meet(&k):
            return
        if d.lent:                                              # what dx is made of makes room for dW
            input_gradient(&k, d, i > 0)
            if meet(&k):
                return
        weight_gradients(&k, d)
        if not d.lent:
            input_gradient(&k, d, i > 0)


cdef void pack_share(Worker *k, Matrix *m, const tiles_t *tiles) noexcept nogil:
    """This rank's share of a matrix, large ones piece by piece: signals are looked for in between."""
    cdef double bytes = <double>matrix_bytes(m, tiles) / k.run.size
    cdef int pieces = 1 + <int>(bytes / PIECE), i
    for i in range(pieces):
        if not k.run.interrupted:
            pack_matrix(m, tiles, k.rank * pieces + i, k.run.size * pieces, <const void **>k.a)
            account(k, CLEARED * bytes / pieces / tiles.itemsize)


cdef void clear_padding(Worker *k, Direction *d, char *rows, Py_ssize_t by_t, Py_ssize_t by_b,
                        Py_ssize_t columns) noexcept nogil:
    """Zeros past the end of every sequence, the steps shared out among the ranks."""
    cdef Py_ssize_t t, j
    if d.offset[d.steps] == d.T * d.B:
        return
    t = k.rank
    while t < d.T and not k.run.interrupted:
        account(k, <double>CLEARED * columns * d.B)
        for j in range(d.active[t] if t < d.steps else 0, d.B):
            memset(rows + t * by_t + d.order[j] * by_b, 0, columns * d.layer.tiles.itemsize)
        t += k.run.size


cdef Py_ssize_t rows_at_once(Run *run) noexcept nogil:
    """Rows that a rank may have before it at once: a chunk, a batch or a block of the tape."""
    cdef Direction *d = &run.direction[0]
    return max(<Py_ssize_t>LEFT_DEPTH_FAR, d.B, d.chunk, run.direction[run.directions - 1].chunk)


cdef Py_ssize_t pointer_rows(Run *run) noexcept nogil:
    """Row pointers that a rank may need at once: those, or of the rows of a matrix."""
    cdef Layer *l = &run.direction[0].layer
    return max(rows_at_once(run), l.cell.gates * l.H) if run.backward else rows_at_once(run)


cdef inline Py_ssize_t operand_rows(Run *run) noexcept nogil:
    """... and for each operand of dW."""
    return block_rows(&run.direction[0]) if run.backward else 0


cdef Py_ssize_t worker_bytes(Run *run) noexcept nogil:
    cdef Direction *d = &run.direction[0]
    cdef Py_ssize_t size = d.layer.tiles.itemsize, staged = 0
    if d.x_i != size:
        staged = rows_at_once(run) * d.layer.inputs * size
    if run.backward:
        staged = max(staged, LEFT_STRIP * (block_rows(d) + 64) * size)
    cdef Py_ssize_t pointers = 2 * pointer_rows(run) + 4 * operand_rows(run) + 10 * d.B
    return pointers * <Py_ssize_t>sizeof(void *) + rounded_up(staged, 64) + 64


cdef void open_worker(Worker *k, Run *run, int rank) noexcept nogil:
    cdef Py_ssize_t B = run.direction[0].B
    cdef int i
    memset(k, 0, sizeof(Worker))
    k.run = run
    k.rank = rank
    k.a = <void **>(run.scratch + rank * run.scratch_bytes)
    k.out = k.a + pointer_rows(run)
    k.y = <char **>(k.out + pointer_rows(run))
    k.gates = <void **>(k.y + B)
    k.h_prev = k.gates + B
    k.h = k.h_prev + B
    k.c_prev = k.h + B
    k.c = k.c_prev + B
    k.dy = k.c + B
    k.dh = k.dy + B
    k.dc = k.dh + B
    k.dq = k.dc + B
    k.left = <const void **>(k.dq + B)
    for i in range(3):
        k.right[i] = k.left + (i + 1) * operand_rows(run)
    k.buffer = <char *>rounded_up(<Py_ssize_t><size_t>(k.right[2] + operand_rows(run)), 64)


# ---------------------------------------------------------------------------------------------------------------
# The partition: rows of the batch over `groups`, the units of a group over `width` threads


cdef double step_cost(Direction *d, int groups, int width, bint far) noexcept:
    """Nanoseconds a step, roughly: arithmetic or the stream of the weights, whichever is slower, the barriers, and,
    where no rank has to share the weights, what one reads of another's."""
    cdef Layer *l = &d.layer
    cdef double size = l.tiles.itemsize
    cdef Py_ssize_t rows = (d.B + groups - 1) // groups
    cdef double panel = l.tiles.lanes * l.cell.gates, even = l.units * panel / width    # panels are shared by rows too
    cdef double columns = even if rows >= FEW_ROWS else (l.units + width - 1) // width * panel  # where rows are many
    cdef double weights = columns * size * (l.H + l.inputs if d.steps == 1 else l.H)  # a chunk shares W_ih
    cdef double stays = L2_RETURNS if d.steps == 1 else L2_APART if far else L2_STAYS
    cdef double hides = L2_APART if d.steps > 1 and l.tiles.lanes * size < 64 else stays    # by slower arithmetic
    cdef double rate = RATE_L1 if weights < 24e3 else RATE_L2 if weights < stays else RATE_L3
    cdef double of_x = (even if d.steps > 1 else columns) * l.inputs
    cdef double arithmetic = rows * (columns * l.H + of_x) * size / 4 / RATE_FMA
    cdef double pointwise = rows * columns * size / 4 * .3
    cdef double streaming = STREAMING * weights / rate if weights > hides else 0
    cdef double meeting = COST_BARRIER * l.cell.stages * (width + 2) / 4 if width > 1 else 0
    if width > 1 and rows > MET_ROWS and d.steps > 1 and l.units * panel * l.H * size <= hides:
        meeting += COST_LINE * rows * l.H * size / 64 * (width - 1) / width             # h of the others
    return max(arithmetic, weights / rate) + streaming + pointwise + meeting


cdef void divide(Run *run, int wanted):
    """The cheapest way to use up to `wanted` threads, as they stand to one another at the moment."""
    divide_for(run, wanted, False, False)
    if run.size > 1 and far_apart():
        divide_for(run, wanted, True, False)


cdef void divide_for(Run *run, int wanted, bint far, bint shared):
    """Fill size, width, groups (of all directions) and patience: the cheapest way, where threads share a cache or are
    far apart. `shared`: with more than one thread, even if alone would be as cheap."""
    cdef Direction *d = &run.direction[0]
    cdef Layer *l = &d.layer
    cdef int directions = run.directions
    cdef int each = max(1, wanted // directions), width, groups, size
    cdef double scale = 3 if run.backward else 1, cost
    cdef double alone = scale * directions * d.steps * step_cost(d, 1, 1, far), best = 1e300 if shared else alone
    run.size = run.width = 1
    run.groups = directions
    run.patience = 0
    if wanted <= 1 or d.B == 0:
        return
    for width in range(1, min(each, l.units) + 1):
        groups = min(each // width, d.B)
        while groups * width * directions > 1:
            size = groups * width * directions
            cost = COST_CALL * (size + 6) / 8 + scale * d.steps * step_cost(d, groups, width, far)
            if far:
                cost += scale * d.steps * (COST_FAR if width > 1 else COST_BESIDE)
            if cost < best:
                best = cost
                run.patience = min(.5e-9 * (alone - best), PATIENCE)
                run.size = size
                run.width = width
                run.groups = groups * directions
            groups //= 2                                        # all, half, a quarter of them: it need not be exact


cdef inline Py_ssize_t chunk_rows(Direction *d) noexcept nogil:
    """Gate rows of a group, where they do not stay."""
    return max(d.chunk, d.B) if d.steps > 1 else d.B


cdef inline Py_ssize_t own_bytes(Run *run) noexcept nogil:
    """Running gradients of a row that a rank keeps to itself, where each has rows of its own: from row to row, and past
    the last one, CPUs fetch ahead, and side by side that would be lines which another rank writes."""
    cdef Layer *l = &run.direction[0].layer
    if not run.backward or run.size == 1 or run.width > 1:
        return 0
    return (l.cell.states + l.cell.stages - 1) * l.stride * l.tiles.itemsize


@cython.final
@cython.internal
cdef class Frame:
    """Everything a run needs besides its directions; keeps their memory alive."""
    cdef Run run
    cdef Plan plan
    cdef Memory memory
    cdef list owners

    def __cinit__(self, Plan plan):
        memset(&self.run, 0, sizeof(Run))
        self.plan = plan
        self.owners = []

    cdef int open(self, int granted) except -1:
        """Divide the work anew where fewer came than it was divided for; carve out barriers, scratch and gate rows."""
        cdef Run *run = &self.run
        cdef Direction *d
        cdef Group *g
        cdef int i, per
        cdef Py_ssize_t size, at, panel, state
        for i in range(run.directions):                         # Python integers: these do not overflow
            d = &run.direction[i]
            if d.x_i != d.layer.tiles.itemsize and <object>max(LEFT_DEPTH_FAR, d.B) * d.layer.inputs > 2**56:
                raise MemoryError("x: a step of it is more than this machine can address")
        if granted != run.size:
            divide_for(run, granted, FAR, False)
        per = run.groups // run.directions
        run.scratch_bytes = rounded_up(worker_bytes(run), 128)
        size = rounded_up(run.groups * sizeof(Group) + per * sizeof(Part), 128)
        size += (run.groups * run.width + run.size) * sizeof(barrier_line)
        size += run.size * run.scratch_bytes
        cdef object extra = 0                                   # Python integers: no overflow
        for i in range(run.directions):
            d = &run.direction[i]
            if not run.backward and not d.training:
                extra = extra + <object>chunk_rows(d) * gate_row_bytes(&d.layer) * per
            if own_bytes(run):
                extra = extra + <object>own_bytes(run) * d.B + per * APART
        self.memory = Memory(size + extra + 128)
        cdef char *base = self.memory.data
        run.group = <Group *>base
        run.part = <Part *>(run.group + run.groups)
        at = rounded_up(run.groups * <Py_ssize_t>sizeof(Group) + per * <Py_ssize_t>sizeof(Part), 128)
        at += (-<Py_ssize_t><size_t>(base + at)) & 127
        run.lines = <barrier_line *>(base + at)
        at += run.size * sizeof(barrier_line)
        for i in range(run.groups):
            g = &run.group[i]
            memset(g, 0, sizeof(Group))
            g.direction = &run.direction[i // per]
            g.part = &run.part[i % per]
            g.units = g.direction.layer.units
            g.most = (g.units + run.width - 1) // run.width
            g.even = g.units // run.width * run.width
            panel = g.direction.dh[0].width if run.backward else PANEL
            g.even_panels = g.units if run.width == 1 else g.units // (panel * run.width) * panel * run.width
            g.lines = <barrier_line *>(base + at)
            at += run.width * sizeof(barrier_line)
        self.plan.deal(run.part, per)
        run.scratch = base + at
        at += run.size * run.scratch_bytes
        if not run.backward:
            for i in range(run.groups):
                g = &run.group[i]
                d = g.direction
                if not d.training:
                    g.gates = base + at
                    at += chunk_rows(d) * gate_row_bytes(&d.layer)
        for i in range(run.groups if run.backward else 0):
            g = &run.group[i]
            d = g.direction
            state = d.layer.stride * d.layer.tiles.itemsize
            g.own = own_bytes(run) > 0
            if g.own:
                g.d_h = base + at
                g.d_c = g.d_h + g.part.rows * state
                g.d_q = g.d_h + d.layer.cell.states * g.part.rows * state
                at += own_bytes(run) * g.part.rows + APART
            else:
                g.d_h = d.d_h + g.part.begin * state
                g.d_c = d.d_c + g.part.begin * state
                g.d_q = d.d_q + g.part.begin * state
        return 0

    cdef void go(self) noexcept nogil:
        cdef Run *run = &self.run
        if run.size > 1:
            memset(run.lines, 0, (run.groups * run.width + run.size) * sizeof(barrier_line))
        run.interrupted = False
        run.outside = fp_now()
        run.work = 0
        team_run(run.size, run_rank, run)


cdef int raise_pending() except -1:
    """An exception is set already: look_for_signals left it there."""
    return -1


cdef int execute(Frame frame) except -1:
    """Run a frame, its work divided, on as much of the team as can be had."""
    cdef int granted = team_acquire(frame.run.size, frame.run.patience)
    try:
        frame.open(granted)
        with nogil:
            frame.run.checked = cpu_seconds()
            frame.go()
    finally:
        if granted > 1 and cpu_seconds() - LOOKED > LOOK_SECONDS:
            look()
        team_release(granted)
    if frame.run.interrupted:
        raise_pending()
    return 0
