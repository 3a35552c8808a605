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


cdef void pack_right(Worker *k, Direction *d, int operand, Matrix *m,
                     Py_ssize_t row0, Py_ssize_t row_end) noexcept nogil:
    """One of them: x (-2), h_prev (-1) or a segment."""
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
    """Rows of the tape in a block of dW, all of them about the same."""
    cdef Layer *l = &d.layer
    cdef double of_dw = <double>l.cell.gates * l.H * (l.inputs + l.H) * l.tiles.itemsize
    cdef Py_ssize_t most = LEFT_DEPTH_FAR if of_dw > FAR_BYTES else LEFT_DEPTH
    cdef Py_ssize_t rows = d.offset[d.steps], blocks = max(<Py_ssize_t>1, (rows + most - 1) // most)
    return (rows + blocks - 1) // blocks


cdef Matrix right_matrix(Direction *d, int which) noexcept nogil:
    """A right operand of dW, a block of it: x (0), h_prev (1) or, for gru_reset_before, r*h (2)."""
    cdef Matrix m
    memset(&m, 0, sizeof(m))
    m.depth = block_rows(d)
    m.width = PANEL
    m.columns = d.layer.H if which else d.layer.inputs
    m.vectors = (m.columns + d.layer.tiles.lanes - 1) // d.layer.tiles.lanes
    return m


cdef void weight_gradients(Worker *k, Direction *d) noexcept nogil:
    """dW_ih, dW_hh and both bias gradients: sums over all rows of the tape in ascending order, block by
    block. A rank makes whole rows of dW; the right operands are packed together, those of the first block already."""
    cdef Run *run = k.run
    cdef Layer *l = &d.layer
    cdef Cell *cell = l.cell
    cdef Py_ssize_t size = l.tiles.itemsize, lanes = l.tiles.lanes, H = l.H
    cdef Py_ssize_t rows = d.offset[d.steps], ld = cell.segments * l.stride
    cdef Py_ssize_t sixes = (H + LEFT_ROWS - 1) // LEFT_ROWS
    cdef Py_ssize_t strips = min(rounded_up((H + LEFT_STRIP - 1) // LEFT_STRIP, run.size), sixes)
    cdef Py_ssize_t total = strips * cell.gates, turn, strip, g, u0, u1, i, row0, depth, sixes_apart
    cdef int which, segment, operand, packed_segment, whose
    cdef product_t p
    cdef char *grad
    cdef char *bias
    row0 = 0
    while row0 < rows:
        depth = min(block_rows(d), rows - row0)
        sixes_apart = LEFT_ROWS * depth + lanes                         # 6 * 512 alone would be a multiple of 4 KB
        turn = -1
        whose = k.rank
        while not run.interrupted and next_turn(k, 0, total, &whose, &turn):
            strip = turn // cell.gates
            g = turn - strip * cell.gates
            u0 = LEFT_ROWS * (sixes * strip // strips)
            u1 = min(LEFT_ROWS * (sixes * (strip + 1) // strips), H)
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
                take(&p, &d.right[operand], l.tiles)
                p.depth = depth
                p.a = <const void **>k.a
                p.a_step = LEFT_ROWS
                p.out = k.out
                p.rows = u1 - u0
                p.columns = d.right[operand].columns
                p.accumulate = row0 > 0
                p.whole = True
                p.prefetch = 1
                for i in range(u1 - u0):
                    k.a[i] = k.buffer + (i // LEFT_ROWS * sixes_apart + i % LEFT_ROWS) * size
                    k.out[i] = grad + (g * H + u0 + i) * p.columns * size
                l.tiles.product(&p)
                account(k, <double>p.rows * depth * p.columns)
                if run.interrupted:
                    break
        row0 += depth
        if row0 < rows:
            if meet(k):
                return
            pack_rights(k, d, row0)
            if meet(k):
                return


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
