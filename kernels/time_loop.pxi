# One stage of a step: the product of some panels, then the pointwise part on the rows they have just made.

from tiles cimport pointwise_fn, pointwise_t


cdef void stage(Worker *k, Matrix *m, product_t *x, product_t *p, pointwise_t *q, pointwise_fn f,
                bint shared, bint backwards) noexcept nogil:
    """The units of this rank and, where the stage is shared, what the others have not come to when it has done its own:
    one CPU is often slower than its neighbour. Panels that cannot be dealt out evenly are shared by rows.

    How many units go through a product and the pointwise part at a time:
    - all, of a matrix as it came, a few rows of which pass at a time;
    - a panel, of a late matrix, which is packed for it;
    - a panel, where the rows are many: what the product has made is still in L1 for the pointwise part. But all, where
      nobody shares the units and their weights are not far away: a row's part of a panel is far from that of the next
      row, and what CPUs fetch ahead from row to row reaches past the last one, into rows that another group is writing;
    - a few panels, of weights from beyond L2, where the rows are few: turning points for the serpentine;
    - all else.

    Serpentine: `backwards` on every other step, so that what is still in cache is used first. x: what the rows begin
    from, if that is not there yet; else NULL."""
    cdef Group *g = k.group
    cdef Layer *l = &g.direction.layer
    cdef Py_ssize_t lanes = l.tiles.lanes
    cdef Py_ssize_t each = m.width if m.gated else 1            # vectors a unit vector
    cdef Py_ssize_t panel = 1 if m.gated else m.width
    cdef int width = k.run.width, whose = k.seat, _
    cdef Py_ssize_t span = g.most, whole = g.units
    cdef Py_ssize_t first, last, origin, blocks, turn, a, b
    cdef Py_ssize_t rows = max(p.rows, q.rows)
    cdef double work = <double>p.rows * p.segments * p.depth * lanes * each
    cdef const char *data = <const char *>p.w
    cdef Py_ssize_t unit_bytes = each * m.depth * lanes * l.tiles.itemsize
    cdef Py_ssize_t weights = g.most * unit_bytes
    cdef bint streams = weights > (L2_STAYS if g.part.steps > 1 else L2_RETURNS)    # from beyond L2 in every step
    p.prefetch = False
    p.backwards = backwards and rows < FEW_ROWS and not m.late
    if m.plain:
        pass                                                    # all columns of a few rows at a time
    elif m.late:
        span = panel
    elif rows >= FEW_ROWS and (width > 1 or weights > L2_APART or f == NULL or work * g.units > SIGNAL_WORK):
        span = panel
        whole = g.even if m.gated else g.even_panels
        p.prefetch = streams or f == NULL                       # W_ih has to make room in L2 while the steps go on
    elif rows < FEW_ROWS and streams:
        span = 2 * panel                                        # one row takes two panels at a time
        span *= max(1, SERPENT // (span * unit_bytes))
    if whole < g.units:
        part_of_rows(k, x, p, q, f, whole, each, part(rows, whose, width), part(rows, whose + 1, width))
    for _ in range(width if shared else 1):
        first = part(whole, whose, width)
        last = part(whole, whose + 1, width)
        origin = first
        blocks = 1
        if span < last - first:
            origin = first // span * span                       # whole panels where the share allows
            blocks = (last - origin + span - 1) // span
        turn = -1
        while not k.run.interrupted:
            turn = team_turn(&g.lines[whose], k.group_epoch, 0) if shared else turn + 1
            if turn >= blocks:
                break
            a = origin + (blocks - 1 - turn if backwards else turn) * span
            b = min(a + span, last)
            a = max(a, first)
            p.first = a * each
            p.last = min(b * each, m.vectors)
            p.next = NULL
            p.fetch_left = turn == 0 and width > 1 and rows >= FEW_ROWS and f != NULL   # others wrote it a barrier ago
            if p.prefetch and turn + 1 < blocks:
                p.next = data + (a - span if backwards else b) * unit_bytes
            if m.late and p.rows:
                p.w = m.data + (k.rank - a // panel) * panel * unit_bytes   # always the same place, which stays in L2
                pack_vectors(m, l.tiles, <char *>p.w, p.first, p.last, NULL)
            if x != NULL:
                begin(k, x, a, b, 0, x.rows)
            l.tiles.product(p)
            if q.rows:
                q.first = a * lanes
                q.last = min(b * lanes, l.H)
                f(q)
            account(k, work * (b - a))
        whose = whose + 1 if whose + 1 < width else 0


cdef void from_x(product_t *p, Layer *l) noexcept nogil:
    """The product x W_ih + biases; its rows are still to be named."""
    aim_at(p, &l.x, l.tiles)
    into_gates(p, &l.x, l, l.cell.x.segment)
    p.init = l.bias


cdef inline void begin_plain(Layer *l, void *row, Py_ssize_t unit, Py_ssize_t last) noexcept nogil:
    """The segment of a gate row that has no share of x: it starts from its own bias."""
    cdef Py_ssize_t vector = l.tiles.lanes * l.tiles.itemsize, at = l.cell.plain * l.stride * l.tiles.itemsize, i
    for i in range(at + unit * vector, at + last * vector, 16):     # often a single vector: no call for that
        memcpy(<char *>row + i, l.bias + i, 16)


cdef void begin(Worker *k, const product_t *x, Py_ssize_t unit, Py_ssize_t last,
                Py_ssize_t row, Py_ssize_t end) noexcept nogil:
    """x W_ih + biases of units [unit, last) into the gate rows [row, end) of a step."""
    cdef Layer *l = &k.group.direction.layer
    cdef Py_ssize_t each = l.x.width if l.x.gated else 1, i
    cdef product_t p = x[0]
    for i in range(row, end if l.cell.plain >= 0 else 0):
        begin_plain(l, x.out[i], unit, last)
    p.rows = max(0, end - row)
    p.a += row
    p.out += row
    p.first = unit * each
    p.last = min(last * each, p.vectors)
    l.tiles.product(&p)
    account(k, <double>p.rows * p.depth * l.tiles.lanes * (p.last - p.first))


cdef void part_of_rows(Worker *k, const product_t *x, const product_t *all_rows, const pointwise_t *pointwise,
                       pointwise_fn f, Py_ssize_t unit, Py_ssize_t each, Py_ssize_t row, Py_ssize_t end) noexcept nogil:
    """All units from `unit` on, of rows [row, end)."""
    cdef Layer *l = &k.group.direction.layer
    cdef product_t p = all_rows[0]
    cdef pointwise_t q
    p.rows = max(0, min(p.rows, end) - row)
    p.a += row
    p.out += row
    p.first = unit * each
    p.last = p.vectors
    p.next = NULL
    if x != NULL:
        begin(k, x, unit, l.units, row, min(x.rows, end))
    l.tiles.product(&p)
    account(k, <double>p.rows * p.segments * p.depth * l.tiles.lanes * (p.last - p.first))
    if pointwise.rows == 0:
        return
    q = pointwise[0]
    q.rows = max(0, min(q.rows, end) - row)
    q.first = unit * l.tiles.lanes
    q.last = l.H
    q.gates += row
    q.h_prev += row
    q.h += row
    q.c_prev += row
    q.c += row
    q.dh += row
    q.dc += row
    q.dq += row
    if q.dy != NULL:
        q.dy += row
    f(&q)


cdef void project(Worker *k, Py_ssize_t start, Py_ssize_t end, bint shared) noexcept nogil:
    """x W_ih + biases into the gate rows of steps [start, end): the recurrent tiles go on from there."""
    cdef Group *g = k.group
    cdef Direction *d = g.direction
    cdef Layer *l = &d.layer
    cdef Py_ssize_t size = l.tiles.itemsize, row_bytes = gate_row_bytes(l)
    cdef Py_ssize_t s, i, j, n = 0, a, b
    cdef const char *row
    cdef product_t p
    cdef pointwise_t none
    a = part(g.units, k.seat, k.run.width)
    b = part(g.units, k.seat + 1, k.run.width)
    for s in range(start, end):
        for i in range(part_rows(g.part, d.active[s])):
            j = g.part.begin + i
            row = x_row(d, j, s)
            if d.x_i != size:
                row = stage_row(d, row, k.buffer + n * l.inputs * size, l.inputs)
            k.a[n] = <void *>row
            k.out[n] = tape_row(d, j, s) if d.training else g.gates + n * row_bytes
            if l.cell.plain >= 0:
                begin_plain(l, k.out[n], a, b)
            n += 1
    from_x(&p, l)
    p.a = <const void **>k.a
    p.out = k.out
    p.rows = n
    none.rows = 0
    stage(k, &l.x, NULL, &p, &none, NULL, shared, False)


# ---------------------------------------------------------------------------------------------------------------
# THE TIME LOOP


cdef void move_own(Group *g, bint out) noexcept nogil:
    """A group's running gradients from where those of all rows are to where its rank keeps its own, or out again."""
    cdef Direction *d = g.direction
    cdef Py_ssize_t row_bytes = d.layer.stride * d.layer.tiles.itemsize, bytes = g.part.rows * row_bytes
    cdef char *d_h = d.d_h + g.part.begin * row_bytes
    cdef char *d_c = d.d_c + g.part.begin * row_bytes
    memcpy(d_h if out else g.d_h, g.d_h if out else d_h, bytes)
    if d.layer.cell.states == 2:
        memcpy(d_c if out else g.d_c, g.d_c if out else d_c, bytes)


cdef void aim_stages(Worker *k, product_t *p) noexcept nogil:
    """The product of each stage of a step; how many rows it has is still to be said."""
    cdef Direction *d = k.group.direction
    cdef Layer *l = &d.layer
    cdef Cell *cell = l.cell
    cdef bint back = k.run.backward
    cdef int t
    for t in range(cell.stages):
        if back:
            aim_at(&p[t], &d.dh[t], l.tiles)
            from_gates(&p[t], l, &cell.dh[t])
            p[t].accumulate = t == 0
            p[t].out = k.dh if t == 0 else k.dq
        else:
            aim_at(&p[t], &l.h[t], l.tiles)
            into_gates(&p[t], &l.h[t], l, cell.h[t].segment)
            p[t].accumulate = 1
            p[t].out = k.gates
        p[t].a = <const void **>(k.h_prev if not back and cell.source[t] < 0 else k.a)


cdef void aim_pointwise(Worker *k, pointwise_t *q) noexcept nogil:
    """The pointwise part of a step; likewise."""
    cdef Direction *d = k.group.direction
    memset(q, 0, sizeof(pointwise_t))
    q.stride = d.layer.stride
    q.training = d.training
    q.gates = k.gates
    q.h_prev = <const void **>k.h_prev
    q.h = k.h
    q.c_prev = <const void **>k.c_prev
    q.c = k.c
    q.dy = <const void **>k.dy if d.dy else NULL
    q.dh = k.dh
    q.dc = k.dc
    q.dq = k.dq


cdef Py_ssize_t end_of_chunk(Group *g, Py_ssize_t s) noexcept nogil:
    """Behind the last step whose rows of x are projected together with those of step s: whole steps, one at least."""
    cdef Direction *d = g.direction
    cdef Py_ssize_t rows = part_rows(g.part, d.active[s])
    s += 1
    while s < g.part.steps:
        rows += part_rows(g.part, d.active[s])
        if rows > d.chunk:
            break
        s += 1
    return s


cdef inline void name_rows(Worker *k, Py_ssize_t s, Py_ssize_t n, Py_ssize_t at) noexcept nogil:
    """Where the n rows of step s are. Gate rows that do not stay begin with row `at` of their chunk."""
    cdef Group *g = k.group
    cdef Direction *d = g.direction
    cdef Layer *l = &d.layer
    cdef int states = l.cell.states, stages = l.cell.stages
    cdef Py_ssize_t i, j, row_bytes = gate_row_bytes(l), state_bytes = l.stride * l.tiles.itemsize
    cdef Py_ssize_t step = -d.y_t if d.reverse else d.y_t
    for i in range(n):
        j = g.part.begin + i
        k.gates[i] = tape_row(d, j, s) if d.training else g.gates + (at + i) * row_bytes
        k.h_prev[i] = k.y[i] + s * step if s else y_row(d, j, -1)
        k.h[i] = k.y[i] + (s + 1) * step
        if states == 2:
            k.c_prev[i] = tape_c(d, j, s - 1)
            k.c[i] = tape_c(d, j, s)
        if k.run.backward:
            k.dh[i] = g.d_h + i * state_bytes
            if states == 2:
                k.dc[i] = g.d_c + i * state_bytes
            if stages == 2:
                k.dq[i] = g.d_q + i * state_bytes
            if d.dy:
                k.dy[i] = <void *>(d.dy + (<char *>k.h[i] - d.y))


cdef inline void name_gradients(Worker *k, Py_ssize_t s, Py_ssize_t n, int t) noexcept nogil:
    """Where step s has the gate gradients that stage t sends back, for n rows of them."""
    cdef Group *g = k.group
    cdef Direction *d = g.direction
    cdef Py_ssize_t i, at = d.layer.cell.dh[t].segment * d.layer.stride * d.layer.tiles.itemsize
    for i in range(n):
        k.a[i] = tape_row(d, g.part.begin + i, s) + at


cdef bint time_loop(Worker *k, Group *g, int seat) noexcept nogil:
    """All steps of a group, forwards or backwards; True when interrupted.

    Forward step s:   gates = projection + operand W_hh, then the pointwise part makes h (and c), stage by stage. Where
                      there is no h0, the first step's operands are zeros, and its products are left out.
    Backward step s:  dh += gate gradients of step s+1 W_hh^T, then the pointwise part makes those of step s.
    After the last:   dh0 += gate gradients of step 0 W_hh^T.
    A block of units is one rank's from the product to the end of its pointwise part, so one barrier a stage is enough,
    and none between a chunk's projection and its steps as long as a rank keeps to its own units. Where a step has no
    fewer rows than x has features, the projection is a part of each block, too: gate rows need not leave L1 in between.
    """
    cdef Run *run = k.run
    cdef Direction *d = g.direction
    cdef Layer *l = &d.layer
    cdef Cell *cell = l.cell
    cdef const tiles_t *tiles = l.tiles
    cdef Py_ssize_t s, i, n, m, turn, chunk_end = 0, at = 0, source
    cdef Py_ssize_t step = -d.y_t if d.reverse else d.y_t
    cdef int t
    cdef bint back = run.backward, shared, uneven, at_once
    cdef product_t p[2]
    cdef product_t x
    cdef pointwise_t q
    at_once = not back and max(MANY_ROWS, l.inputs) <= g.part.rows <= d.chunk
    at_once &= d.x_i == tiles.itemsize and not l.x.late
    uneven = g.even < g.units or g.even_panels < g.units        # then a step's shares are not those of its projection
    k.group = g
    k.seat = seat
    k.group_epoch = 0
    aim_stages(k, p)
    aim_pointwise(k, &q)
    if at_once:
        from_x(&x, l)
        x.a = <const void **>k.a
        x.out = k.gates
    for i in range(part_rows(g.part, d.active[0]) if g.part.steps else 0):
        k.y[i] = y_row(d, g.part.begin + i, 0) - step
    if g.own:
        move_own(g, False)

    for turn in range(g.part.steps):
        s = g.part.steps - 1 - turn if back else turn
        n = part_rows(g.part, d.active[s])
        m = 0 if d.fresh and s == 0 else n
        shared = run.width > 1 and <double>n * l.H * tiles.lanes * PANEL > SHARED_WORK
        if back:
            m = part_rows(g.part, d.active[s + 1]) if turn else 0
        elif at_once:
            at = 0
            for i in range(n):
                k.a[i] = <void *>x_row(d, g.part.begin + i, s)
            x.rows = n
        elif s == chunk_end:
            chunk_end = end_of_chunk(g, s)
            project(k, s, chunk_end, shared)
            if (shared or uneven) and barrier(k):
                return True
            at = 0
        name_rows(k, s, n, at)
        at += n
        for t in range(cell.stages):
            q.rows = n
            p[t].rows = n if back and t else m
            if back:
                name_gradients(k, s + 1 if t == 0 else s, p[t].rows, t)
                stage(k, &d.dh[t], NULL, &p[t], &q, tiles.backward[l.kind][t], shared, turn & 1)
            else:
                source = cell.source[t] * l.stride * tiles.itemsize
                for i in range(n if source >= 0 else 0):
                    k.a[i] = <char *>k.gates[i] + source
                stage(k, &l.h[t], &x if at_once and t == 0 else NULL, &p[t], &q, tiles.forward[l.kind][t],
                      shared, turn & 1)
            if barrier(k):
                return True

    if back and g.part.steps:
        p[0].rows = part_rows(g.part, d.active[0])
        name_gradients(k, 0, p[0].rows, 0)                      # its rows of dh are those of the last turn
        q.rows = 0
        stage(k, &d.dh[0], NULL, &p[0], &q, NULL, False, g.part.steps & 1)
        if run.width == 1 and run.interrupted:
            return True
    if g.own:
        move_own(g, True)
    return False
