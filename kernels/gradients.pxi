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


cdef void pack_rights(Worker *k, Direction *d, Py_ssize_t row0) noexcept nogil:
    """The right operands of the block of dW that begins with this row of the tape, this rank's vectors."""
    cdef Py_ssize_t end = min(row0 + block_rows(d), d.offset[d.steps])
    pack_right(k, d, -2, &d.right[0], row0, end)
    pack_right(k, d, -1, &d.right[1], row0, end)
    if d.layer.cell.stages == 2:
        pack_right(k, d, d.layer.cell.source[1], &d.right[2], row0, end)


cdef void pack_right(Worker *k, Direction *d, int operand, Right *right,
                     Py_ssize_t row0, Py_ssize_t row_end) noexcept nogil:
    """One of them: x (-2), h_prev (-1) or a segment."""
    cdef Layer *l = &d.layer
    cdef Matrix *m = &right.m
    cdef Py_ssize_t size = l.tiles.itemsize
    cdef Py_ssize_t s = 0, j, i, n = 0
    cdef const char *row
    cdef pack_t p
    if right.in_place:
        return
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
    """Rows of the tape in a block of dW, all of them about the same."""
    cdef Layer *l = &d.layer
    cdef double of_dw = <double>l.cell.gates * l.H * (l.inputs + l.H) * l.tiles.itemsize
    cdef Py_ssize_t most = LEFT_DEPTH_FAR if of_dw > FAR_BYTES else LEFT_DEPTH
    cdef Py_ssize_t rows = d.offset[d.steps], blocks = max(<Py_ssize_t>1, (rows + most - 1) // most)
    return (rows + blocks - 1) // blocks


cdef Right right_operand(Direction *d, int which) noexcept nogil:
    """x (0), h_prev (1) or, for gru_reset_before, r*h (2): in place where rows are short and evenly spaced. Whole
    vectors are read, and so the beginning of the row behind; behind x's last row there is none, so that is copied."""
    cdef Layer *l = &d.layer
    cdef Py_ssize_t size = l.tiles.itemsize, lanes = l.tiles.lanes, rows = d.offset[d.steps], apart = 0, past
    cdef bint dense = rows > 0 and rows == d.T * d.B and (d.T == 1 or not d.reverse)
    cdef Right r
    memset(&r, 0, sizeof(r))
    r.m.depth = block_rows(d)
    r.m.width = PANEL
    r.m.columns = l.H if which else l.inputs
    r.m.vectors = (r.m.columns + lanes - 1) // lanes
    past = r.m.vectors * lanes - r.m.columns
    if which == 2:
        r.row[1] = d.gates + l.cell.source[1] * l.stride * size
        apart = gate_row_bytes(l)
    elif which == 1:
        if dense and (d.B >= FEW_ROWS or d.T == 1):             # a run of fewer rows takes longer than packing
            apart = d.y_b
        r.split = min(d.B, rows)
        r.row[0] = d.h0
        r.ld[0] = l.stride
        r.row[1] = d.y
    elif dense and d.x_i == size and (d.T == 1 or d.x_t == d.B * d.x_b):
        r.split = rows - (past > 0)
        r.row[0] = d.x
        apart = d.x_b
        r.ld[0] = apart // size
    r.ld[1] = apart // size
    r.in_place = past * size <= apart and r.m.columns * size <= apart and apart % size == 0 and apart % WAY_BYTES != 0
    r.in_place &= r.m.columns * size < WAY_BYTES
    return r


cdef inline Py_ssize_t right_bytes(Right *r, const tiles_t *tiles) noexcept nogil:
    """Room for a packed block, or for a copied row."""
    return r.m.vectors * tiles.lanes * tiles.itemsize if r.in_place else matrix_bytes(&r.m, tiles)


cdef void place_right(Right *r, Direction *d, char *at) noexcept nogil:
    """Give it that room."""
    cdef Py_ssize_t size = d.layer.tiles.itemsize
    r.m.data = at
    if r.in_place and r.row[1] == NULL and r.split < d.offset[d.steps]:
        r.row[1] = at
        memcpy(at, r.row[0] + r.split * r.ld[0] * size, r.m.columns * size)


cdef inline bint in_place(Direction *d) noexcept nogil:
    """Whether no right operand of dW is packed."""
    return d.right[0].in_place and d.right[1].in_place and (d.layer.cell.stages == 1 or d.right[2].in_place)


cdef void weight_gradients(Worker *k, Direction *d) noexcept nogil:
    """dW_ih, dW_hh and both bias gradients: sums over all rows of the tape in ascending order, block by
    block. A rank makes whole rows of dW; what is packed is packed together, for the first block already."""
    cdef Run *run = k.run
    cdef Layer *l = &d.layer
    cdef Cell *cell = l.cell
    cdef Py_ssize_t size = l.tiles.itemsize, H = l.H, rows = d.offset[d.steps], block = block_rows(d)
    cdef Py_ssize_t sixes = (H + LEFT_ROWS - 1) // LEFT_ROWS
    cdef Py_ssize_t strips = min(rounded_up((H + LEFT_STRIP - 1) // LEFT_STRIP, run.size), sixes)
    cdef Py_ssize_t turn, strip, g, row0, end, u0, u1
    cdef int whose
    row0 = 0
    while row0 < rows:
        end = min(row0 + block, rows)
        turn = -1
        whose = k.rank
        while not run.interrupted and next_turn(k, 0, strips * cell.gates, &whose, &turn):
            strip = turn // cell.gates
            g = turn - strip * cell.gates
            u0 = LEFT_ROWS * (sixes * strip // strips)
            u1 = min(LEFT_ROWS * (sixes * (strip + 1) // strips), H)
            strip_gradients(k, d, g, u0, u1, row0, end - row0)
        row0 = end
        if row0 < rows:
            if meet(k):
                return
            if not in_place(d):
                pack_rights(k, d, row0)
                if meet(k):
                    return


cdef void strip_gradients(Worker *k, Direction *d, Py_ssize_t g, Py_ssize_t u0, Py_ssize_t u1,
                          Py_ssize_t row, Py_ssize_t depth) noexcept nogil:
    """Units [u0, u1) of gate g in dW and in the bias gradients: the sums go on by so many rows of the tape."""
    cdef Layer *l = &d.layer
    cdef Cell *cell = l.cell
    cdef Py_ssize_t size = l.tiles.itemsize, H = l.H, i, middle
    cdef Py_ssize_t sixes_apart = LEFT_ROWS * depth + l.tiles.lanes     # 6 * 512 alone would be a multiple of 4 KB
    cdef int which, segment, packed_segment = -1
    cdef Right *right
    cdef product_t p
    cdef char *tape = d.gates + row * gate_row_bytes(l) + u0 * size
    cdef char *grad
    cdef char *bias
    for which in range(2):
        segment = cell.of_h[g] if which else cell.of_x[g]
        right = &d.right[0 if which == 0 else 1 if cell.right[g] < 0 else 2]
        grad = d.grad_w_hh if which else d.grad_w_ih
        bias = (d.grad_b_hh if which else d.grad_b_ih) + (g * H + u0) * size
        if segment != packed_segment:
            l.tiles.pack_left(k.buffer, sixes_apart, tape + segment * l.stride * size, cell.segments * l.stride, depth,
                              u1 - u0, bias)
            packed_segment = segment
        else:
            memcpy(bias, d.grad_b_ih + (g * H + u0) * size, (u1 - u0) * size)
        take(&p, &right.m, l.tiles)
        p.a = <const void **>k.a
        p.a_step = LEFT_ROWS
        p.out = k.out
        p.rows = u1 - u0
        p.columns = right.m.columns
        p.accumulate = row > 0
        p.whole = True
        p.prefetch = not right.in_place
        for i in range(u1 - u0):
            k.a[i] = k.buffer + (i // LEFT_ROWS * sixes_apart + i % LEFT_ROWS) * size
            k.out[i] = grad + (g * H + u0 + i) * p.columns * size
        if right.in_place:
            middle = max(row, min(right.split, row + depth))
            go_on(k, &p, l.tiles, right.row[0] + row * right.ld[0] * size, right.ld[0], middle - row)
            go_on(k, &p, l.tiles, right.row[1] + (middle - right.split) * right.ld[1] * size, right.ld[1],
                  row + depth - middle)
        else:
            go_on(k, &p, l.tiles, right.m.data, 0, depth)
        account(k, <double>p.rows * depth * p.columns)
        if k.run.interrupted:
            return


cdef void go_on(Worker *k, product_t *p, const tiles_t *tiles, const char *rows, Py_ssize_t ld,
                Py_ssize_t depth) noexcept nogil:
    """Add these rows of the right operand, if any, times as many of the left one, and pass by the latter."""
    cdef Py_ssize_t i
    if depth == 0:
        return
    p.w = rows
    p.ld = ld
    p.depth = depth
    tiles.product(p)
    p.accumulate = 1
    for i in range(p.rows):
        k.a[i] = <char *>k.a[i] + depth * LEFT_ROWS * tiles.itemsize


cdef void input_gradient(Worker *k, Direction *d, bint accumulate) noexcept nogil:
    """dx = gate gradients W_ih, so many rows of the tape a turn; or all of them, few as they are, and some columns."""
    cdef Run *run = k.run
    cdef Layer *l = &d.layer
    cdef Cell *cell = l.cell
    cdef Py_ssize_t size = l.tiles.itemsize, rows = d.offset[d.steps]
    cdef Py_ssize_t blocks = min(rounded_up((rows + DX_ROWS - 1) // DX_ROWS, run.size), rows), parts = 1
    cdef Py_ssize_t turn = -1, block, row, end, s, n, b
    cdef int whose = k.rank
    cdef product_t p
    if d.dx.plain:
        blocks = min(rows, 1)
        parts = run.size
    take(&p, &d.dx, l.tiles)
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
        p.first = p.vectors * (turn - block * parts) // parts
        p.last = p.vectors * (turn - block * parts + 1) // parts
        l.tiles.product(&p)
        account(k, <double>n * cell.gates * l.H * (p.last - p.first) * l.tiles.lanes)
