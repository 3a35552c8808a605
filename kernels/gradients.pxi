# After the backward loop the gate rows hold the gradients of the pre-activations: three large products remain.


cdef Py_ssize_t step_of(const Py_ssize_t *at, Py_ssize_t steps, Py_ssize_t row) noexcept nogil:
    """The step that a row belongs to, where they begin at these."""
    cdef Py_ssize_t low = 0, high = steps, middle
    while high - low > 1:
        middle = low + (high - low) // 2
        if at[middle] <= row:
            low = middle
        else:
            high = middle
    return low


cdef inline const Part *part_at(const Part *part, Py_ssize_t row) noexcept nogil:
    """The part of the tape in which a row is, this one or a later one."""
    while row >= part.at[part.steps]:
        part += 1
    return part


cdef void open_block(Worker *k, Direction *d, Py_ssize_t row0) noexcept nogil:
    """The operands of the block of dW that begins with this row: step by step, wherever on the tape the rows are."""
    cdef Py_ssize_t end = min(row0 + block_rows(d), d.offset[d.steps]), row = row0, j, i, count
    cdef Py_ssize_t s = step_of(d.offset, d.steps, row0)
    cdef Py_ssize_t bytes = gate_row_bytes(&d.layer)
    cdef const Part *part
    cdef const char *at
    cdef int which
    while row < end:
        j = row - d.offset[s]
        part = d.part_of[j]
        count = min(part.begin + part.rows - j, d.offset[s + 1] - row, end - row)
        at = tape_row(d, j, s)
        for i in range(count):
            k.left[row - row0 + i] = at + i * bytes
        row += count
        if row == d.offset[s + 1]:
            s += 1
    for which in range(1 + d.layer.cell.stages):
        open_right(k, d, which, row0, end)


cdef inline Py_ssize_t none_before(Direction *d, int which, Py_ssize_t row0, Py_ssize_t end) noexcept nogil:
    """How many rows of a block of dW_hh, its first ones, have no right operand: those of a first step without h0."""
    return max(<Py_ssize_t>0, min(d.offset[1], end) - row0) if which and d.fresh and end else 0


cdef void open_right(Worker *k, Direction *d, int which, Py_ssize_t row0, Py_ssize_t row_end) noexcept nogil:
    """A right operand: where its rows are, and if they are not read there, this rank's vectors packed."""
    cdef Layer *l = &d.layer
    cdef Right *right = &d.right[which]
    cdef Matrix *m = &right.m
    cdef const void **rows = k.right[which]
    cdef Py_ssize_t size = l.tiles.itemsize, skip = none_before(d, which, row0, row_end)
    cdef Py_ssize_t s = step_of(d.offset, d.steps, row0 + skip), j = row0 + skip - d.offset[s]
    cdef Py_ssize_t n = 0, i, count, apart
    cdef bint dense = d.offset[d.steps] == d.T * d.B
    cdef const char *row
    cdef pack_t p
    row0 += skip
    if which == 2:
        for n in range(row_end - row0):
            rows[n] = <const char *>k.left[skip + n] + l.cell.source[1] * l.stride * size
        n = row_end - row0
    while n < row_end - row0:                                   # step by step
        count = min(d.offset[s + 1] - d.offset[s] - j, row_end - row0 - n)
        if which == 1:
            row = y_row(d, j, s - 1)
            apart = d.y_b if s else l.stride * size
        else:
            row = x_row(d, j, s)
            apart = d.x_b
        if dense or (which == 1 and s == 0):
            for i in range(count):
                rows[n + i] = row + i * apart
        else:
            for i in range(count):
                rows[n + i] = y_row(d, j + i, s - 1) if which else x_row(d, j + i, s)
        n += count
        s += 1
        j = 0
    if which == 0 and d.x_i != size:
        for i in range(n):
            rows[i] = stage_row(d, <const char *>rows[i], k.buffer + i * l.inputs * size, l.inputs)
    for i in range(n if right.last != NULL else 0):
        if rows[i] == right.last:
            rows[i] = right.copy
    if right.in_place:
        k.right_ld[which] = evenly_apart(rows, n, size)
        return
    memset(&p, 0, sizeof(p))
    p.out = m.data
    p.depth = n
    p.width = m.width
    p.vectors = m.vectors
    p.columns = m.columns
    p.first = m.vectors * k.rank // k.run.size
    p.last = m.vectors * (k.rank + 1) // k.run.size
    p.row = rows
    if p.first < p.last:
        l.tiles.pack_rows(&p)


cdef Py_ssize_t evenly_apart(const void **rows, Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    """Elements from each row to the next; 0 where that differs or is none."""
    cdef Py_ssize_t apart = 0 if n < 2 else <const char *>rows[1] - <const char *>rows[0], i
    for i in range(2, n):
        if <const char *>rows[i] - <const char *>rows[i - 1] != apart:
            return 0
    return apart // size if apart > 0 and apart % size == 0 else 0


cdef inline Py_ssize_t block_rows(Direction *d) noexcept nogil:
    """Rows of the tape in a block of dW, all of them about the same."""
    cdef Layer *l = &d.layer
    cdef double of_dw = <double>l.cell.gates * l.H * (l.inputs + l.H) * l.tiles.itemsize
    cdef Py_ssize_t most = LEFT_DEPTH_FAR if of_dw > FAR_BYTES else LEFT_DEPTH
    cdef Py_ssize_t rows = d.offset[d.steps], blocks = max(<Py_ssize_t>1, (rows + most - 1) // most)
    return (rows + blocks - 1) // blocks


cdef Right right_operand(Direction *d, int which) noexcept nogil:
    """x (0), h_prev (1) or, for gru_reset_before, r*h (2): in place where rows are short and do not share few sets of
    the caches. Whole vectors are read, which reach less than a row further: past the end of the last row in memory, but
    of no other, since neither steps nor sequences are less than a row apart."""
    cdef Layer *l = &d.layer
    cdef Py_ssize_t size = l.tiles.itemsize, lanes = l.tiles.lanes
    cdef Py_ssize_t by_t = d.x_t if which == 0 else d.y_t, t = max(by_t, -by_t)
    cdef Py_ssize_t by_b = d.x_b if which == 0 else d.y_b, b = max(by_b, -by_b), bytes
    cdef Right r
    memset(&r, 0, sizeof(r))
    r.m.depth = block_rows(d)
    r.m.columns = l.H if which else l.inputs
    r.m.vectors = (r.m.columns + lanes - 1) // lanes
    r.m.width = panel_width(r.m.vectors, l.cell.gates * l.H)
    bytes = r.m.columns * size
    if which == 2:
        r.in_place = bytes < WAY_BYTES and gate_row_bytes(l) % WAY_BYTES != 0   # these are padded
        return r
    r.in_place = bytes < WAY_BYTES and 2 * r.m.columns > r.m.vectors * lanes and (which == 1 or d.x_i == size)
    if d.B > 1:
        r.in_place &= b >= bytes and b % WAY_BYTES != 0
    if d.T > 1:
        r.in_place &= t >= bytes and (t % WAY_BYTES != 0 or t == d.B * b)
    if r.in_place and r.m.vectors * lanes > r.m.columns and d.offset[d.steps]:
        r.last = (d.y if which else d.x) + max(<Py_ssize_t>0, (d.T - 1) * by_t) + max(<Py_ssize_t>0, (d.B - 1) * by_b)
    return r


cdef inline Py_ssize_t right_bytes(Right *r, const tiles_t *tiles) noexcept nogil:
    """Room for a packed block, or for the last row."""
    return r.m.vectors * tiles.lanes * tiles.itemsize if r.in_place else matrix_bytes(&r.m, tiles)


cdef void place_right(Right *r, Direction *d, char *at) noexcept nogil:
    """Give it that room."""
    r.m.data = at
    if r.last != NULL:
        r.copy = at
        memcpy(at, r.last, r.m.columns * d.layer.tiles.itemsize)


cdef inline bint all_in_place(Direction *d) noexcept nogil:
    """Whether no right operand of dW is packed."""
    return d.right[0].in_place and d.right[1].in_place and (d.layer.cell.stages == 1 or d.right[2].in_place)


cdef void weight_gradients(Worker *k, Direction *d) noexcept nogil:
    """dW_ih, dW_hh and both bias gradients: sums over all rows of the tape, step by step, block by
    block. A rank makes whole rows of dW; what is packed is packed together, for the first block already."""
    cdef Run *run = k.run
    cdef Layer *l = &d.layer
    cdef Cell *cell = l.cell
    cdef Py_ssize_t size = l.tiles.itemsize, H = l.H, rows = d.offset[d.steps], block = block_rows(d)
    cdef Py_ssize_t each = (H + run.size - 1) // run.size       # units of a rank ...
    cdef Py_ssize_t strips = (each + LEFT_STRIP - 1) // LEFT_STRIP      # ... and their strips
    cdef Py_ssize_t turn, strip, sixes, g, row0, end, u0, u1
    cdef int whose, i
    row0 = 0
    while row0 < rows:
        end = min(row0 + block, rows)
        turn = -1
        whose = k.rank
        while not run.interrupted and next_turn(k, 0, run.size * strips * cell.gates, &whose, &turn):
            strip = turn // cell.gates
            g = turn - strip * cell.gates
            i = strip // strips
            strip -= i * strips
            u0 = part(H, i, run.size)
            u1 = part(H, i + 1, run.size)
            sixes = (u1 - u0 + LEFT_ROWS - 1) // LEFT_ROWS
            u1 = min(u0 + LEFT_ROWS * (sixes * (strip + 1) // strips), u1)
            u0 += LEFT_ROWS * (sixes * strip // strips)
            if u0 < u1:
                strip_gradients(k, d, g, u0, u1, row0, end)
        row0 = end
        if row0 < rows:
            if meet(k):
                return
            open_block(k, d, row0)
            if not all_in_place(d) and meet(k):
                return


cdef void strip_gradients(Worker *k, Direction *d, Py_ssize_t g, Py_ssize_t u0, Py_ssize_t u1,
                          Py_ssize_t row0, Py_ssize_t end) noexcept nogil:
    """Units [u0, u1) of gate g in dW and in the bias gradients: the sums go on by the rows of a block."""
    cdef Layer *l = &d.layer
    cdef Cell *cell = l.cell
    cdef Py_ssize_t size = l.tiles.itemsize, H = l.H, depth = end - row0, skip, i
    cdef Py_ssize_t sixes_apart = LEFT_ROWS * depth + l.tiles.lanes     # 6 * 512 alone would be a multiple of 4 KB
    cdef int which, operand, segment, packed_segment = -1
    cdef Right *right
    cdef product_t p
    cdef char *grad
    cdef char *bias
    for which in range(2):
        segment = cell.of_h[g] if which else cell.of_x[g]
        operand = 0 if which == 0 else 1 if cell.right[g] < 0 else 2
        right = &d.right[operand]
        grad = d.grad_w_hh if which else d.grad_w_ih
        bias = (d.grad_b_hh if which else d.grad_b_ih) + (g * H + u0) * size
        if segment != packed_segment:
            l.tiles.pack_left(k.buffer, sixes_apart, k.left, segment * l.stride + u0, depth, u1 - u0, bias)
            packed_segment = segment
        else:
            memcpy(bias, d.grad_b_ih + (g * H + u0) * size, (u1 - u0) * size)
        aim_at(&p, &right.m, l.tiles)
        if right.in_place and k.right_ld[operand]:              # one load less a k: 3 % where vectors lie across lines
            p.w = k.right[operand][0]
            p.ld = k.right_ld[operand]
        elif right.in_place:
            p.row = k.right[operand]
        skip = none_before(d, operand, row0, end)
        if skip == depth and row0 > 0:
            continue
        p.depth = depth - skip
        p.a = <const void **>k.a
        p.a_step = LEFT_ROWS
        p.out = k.out
        p.rows = u1 - u0
        p.columns = right.m.columns
        p.accumulate = row0 > 0
        p.whole = True
        p.prefetch = not right.in_place
        for i in range(u1 - u0):
            k.a[i] = k.buffer + (i // LEFT_ROWS * sixes_apart + skip * LEFT_ROWS + i % LEFT_ROWS) * size
            k.out[i] = grad + (g * H + u0 + i) * p.columns * size
        l.tiles.product(&p)
        account(k, <double>p.rows * p.depth * p.columns)
        if k.run.interrupted:
            return


cdef void input_gradient(Worker *k, Direction *d, bint accumulate) noexcept nogil:
    """dx = gate gradients W_ih, if asked for: some rows a turn, as they lie on the tape, where those that a rank has
    made are neighbours; or all of them, few as they are, and some columns."""
    cdef Run *run = k.run
    cdef Layer *l = &d.layer
    cdef Cell *cell = l.cell
    cdef Py_ssize_t size = l.tiles.itemsize, rows = d.offset[d.steps]
    cdef Py_ssize_t blocks = min(rounded_up((rows + DX_ROWS - 1) // DX_ROWS, run.size), rows), parts = 1
    cdef Py_ssize_t turn = -1, block, row, end, s, n, b
    cdef int whose = k.rank
    cdef const Part *part
    cdef product_t p
    if d.grad_x == NULL:
        return
    if d.dx.plain:
        blocks = min(rows, 1)
        parts = run.size
    aim_at(&p, &d.dx, l.tiles)
    from_gates(&p, l, &cell.x)
    p.a = <const void **>k.a
    p.out = k.out
    p.columns = l.inputs
    p.accumulate = accumulate
    p.prefetch = not d.dx.plain
    if not accumulate:
        clear_padding(k, d, d.grad_x, d.gx_t, d.gx_b, l.inputs)
    while not run.interrupted and next_turn(k, 1, blocks * parts, &whose, &turn):
        block = turn // parts
        row = rows * block // blocks
        end = rows * (block + 1) // blocks
        part = part_at(d.part, row)
        s = step_of(part.at, part.steps, row)
        for n in range(end - row):
            if row + n == part.at[part.steps]:
                part = part_at(part, row + n)
                s = 0
            elif row + n == part.at[s + 1]:
                s += 1
            b = d.order[part.begin + row + n - part.at[s]]
            k.a[n] = d.gates + ((row + n) * cell.segments + cell.x.segment) * l.stride * size
            k.out[n] = d.grad_x + time_of(d, b, s) * d.gx_t + b * d.gx_b
        p.rows = end - row
        p.first = p.vectors * (turn - block * parts) // parts
        p.last = p.vectors * (turn - block * parts + 1) // parts
        l.tiles.product(&p)
        account(k, <double>p.rows * cell.gates * l.H * (p.last - p.first) * l.tiles.lanes)
