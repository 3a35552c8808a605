# Packed matrices: a layer as the tiles read it.

from tiles cimport LEFT_ROWS, LEFT_STRIP, PANEL, pack_t


cdef struct Matrix:
    char *data
    Py_ssize_t depth        # K
    Py_ssize_t width        # vectors in a full panel
    Py_ssize_t vectors
    Py_ssize_t columns
    Py_ssize_t narrow       # lanes of each gate in the last panel, where they lie side by side; 0: they do not
    Py_ssize_t gate_rows    # by rows: the source's rows are taken gate by gate, this many each
    bint gated
    bint transposed
    bint plain              # not packed at all: the source itself, which too few rows pass by to be worth it
    int late                # read once: packed panel by panel, each just before its product; places, one a rank, or 0
    int gate[4]
    const char *w           # the source, rows of ld elements
    Py_ssize_t ld


cdef Matrix forward_matrix(Share *s, Py_ssize_t H, Py_ssize_t K, Py_ssize_t lanes) noexcept:
    """Gate columns of W (G*H, K) transposed: gated panels, or linear ones of a single gate."""
    cdef Matrix m
    cdef Py_ssize_t rest = H % lanes
    memset(&m, 0, sizeof(m))
    m.depth = K
    m.gated = s.gates > 1
    m.width = s.gates if m.gated else PANEL
    m.vectors = (H + lanes - 1) // lanes * s.gates
    if m.gated and K >= NARROW_DEPTH and 0 < rest <= lanes // 2:
        m.narrow = lanes // 4 if rest <= lanes // 4 else lanes // 2
        m.vectors = H // lanes * s.gates + (s.gates * m.narrow + lanes - 1) // lanes
    m.columns = H
    m.transposed = True
    memcpy(m.gate, s.gate, sizeof(m.gate))
    return m


cdef inline Py_ssize_t panel_width(Py_ssize_t vectors, Py_ssize_t rows) noexcept nogil:
    """Of the linear panels of a product of so many rows: 3 where that makes the last one wider, for a tile of few
    vectors is not fed well. Few rows want the chains of 4."""
    return 3 if rows >= FEW_ROWS and (vectors - 1) % 3 > (vectors - 1) % PANEL else PANEL


cdef Matrix backward_matrix(Share *s, np.ndarray w, Py_ssize_t H, Py_ssize_t lanes,
                            Py_ssize_t times, Py_ssize_t rows) noexcept:
    """W (G*H, N) by rows: linear panels of its N columns, depth G*H gate by gate in the order of the gate row. It
    is read so many times, by so many rows."""
    cdef Py_ssize_t N = w.shape[1]
    cdef Matrix m
    memset(&m, 0, sizeof(m))
    m.w = <char *>np.PyArray_DATA(w)
    m.ld = N
    m.plain = times < PLAIN_TIMES and times * rows <= PLAIN_ROWS and N % lanes == 0
    m.depth = s.gates * H
    m.gate_rows = H
    m.vectors = (N + lanes - 1) // lanes
    m.width = panel_width(m.vectors, rows)
    m.columns = N
    memcpy(m.gate, s.gate, sizeof(m.gate))
    return m


cdef inline Py_ssize_t matrix_bytes(Matrix *m, const tiles_t *tiles) noexcept nogil:
    cdef Py_ssize_t vectors = 0 if m.plain else m.late * m.width if m.late else m.vectors
    return vectors * tiles.lanes * m.depth * tiles.itemsize


cdef void put_off(Matrix *m, const tiles_t *tiles, int ranks) noexcept:
    """Pack a large matrix only when it is read, for that will be once."""
    if m.vectors >= 2 * ranks * m.width and matrix_bytes(m, tiles) > LATE_BYTES * ranks:
        m.late = ranks


cdef void pack_matrix(Matrix *m, const tiles_t *tiles, int rank, int size, const void **rows) noexcept nogil:
    """The rank's share of the vectors. `rows` has room for `depth` pointers where the matrix is packed by rows."""
    if not m.plain and not m.late:
        pack_vectors(m, tiles, m.data, m.vectors * rank // size, m.vectors * (rank + 1) // size, rows)


cdef void pack_vectors(Matrix *m, const tiles_t *tiles, char *out, Py_ssize_t first, Py_ssize_t last,
                       const void **rows) noexcept nogil:
    """Vectors [first, last), where they would lie if the whole matrix were at `out`."""
    cdef pack_t p
    cdef Py_ssize_t k, g
    memset(&p, 0, sizeof(p))
    p.out = out
    p.depth = m.depth
    p.width = m.width
    p.vectors = m.vectors
    p.first = first
    p.last = last
    p.columns = m.columns
    p.gated = m.gated
    p.narrow = m.narrow
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
    Py_ssize_t units        # vectors of a state
    Matrix x
    Matrix h[2]
    char *bias


cdef inline Py_ssize_t gate_row_bytes(Layer *l) noexcept nogil:
    return l.cell.segments * l.stride * l.tiles.itemsize


# NumPy by its C functions: a call of numpy.empty is as long as a small step, and ten times that out of a cold cache.


cdef inline np.ndarray contiguous(w):
    return np.PyArray_GETCONTIGUOUS(w)


cdef inline int number_of(Py_ssize_t itemsize) noexcept nogil:
    """NumPy's number of the float type of this size."""
    return np.NPY_DOUBLE if itemsize == 8 else np.NPY_FLOAT


cdef inline bint same_type(np.ndarray a, Py_ssize_t itemsize) noexcept:
    """Whether its elements are of this type, by whatever number; asking NumPy takes 3 % of a small step."""
    cdef int number = number_of(itemsize)
    return np.PyArray_TYPE(a) == number or np.PyArray_EquivTypenums(np.PyArray_TYPE(a), number)


cdef np.ndarray new_array(Py_ssize_t itemsize, bint cleared, Py_ssize_t a, Py_ssize_t b=-1, Py_ssize_t c=-1):
    """An array of one to three axes, of floats of this size: zeros, or whatever its memory holds."""
    cdef np.npy_intp[3] shape = [a, b, c]
    cdef int axes = 1 if b < 0 else 2 if c < 0 else 3
    if cleared:
        return np.PyArray_ZEROS(axes, shape, number_of(itemsize), 0)
    if <double>a * (b if axes > 1 else 1) * (c if axes > 2 else 1) * itemsize >= SPARE_LEAST:
        return held_array(itemsize, axes, shape, 0)
    return np.PyArray_EMPTY(axes, shape, number_of(itemsize), 0)


cdef np.ndarray new_rows(Py_ssize_t itemsize, Py_ssize_t T, Py_ssize_t B, Py_ssize_t width):
    """An array (T, B, width) that begins on a cache line: threads that share the batch write neighbouring rows."""
    cdef np.npy_intp[3] shape = [T, B, width]
    return held_array(itemsize, 3, shape, 0)


cdef inline bint lends(Py_ssize_t bytes, Py_ssize_t packed) noexcept nogil:
    """Whether dW, of so many bytes, lends its memory to a packed matrix, all of it read before dW is written: to a
    large one that needs little more."""
    return LENT_LEAST <= packed <= bytes + bytes // 4


cdef np.ndarray new_gradient(Py_ssize_t itemsize, Py_ssize_t rows, Py_ssize_t columns, Py_ssize_t room):
    """An array for dW, with room for what it lends its memory to."""
    cdef np.npy_intp[2] shape = [rows, columns]
    if room == 0:
        return new_array(itemsize, False, rows, columns)
    return held_array(itemsize, 2, shape, room)


cdef np.ndarray held_array(Py_ssize_t itemsize, int axes, np.npy_intp *shape, Py_ssize_t least):
    """An array that begins on a cache line, in a block of so many bytes at least, which comes back if it is large."""
    cdef object size = itemsize                                 # a Python integer does not overflow
    cdef int i
    for i in range(axes):
        size = size * shape[i]
    cdef Memory memory = Memory(max(size, least), True)
    cdef np.ndarray a = np.PyArray_SimpleNewFromData(axes, shape, number_of(itemsize), memory.data)
    np.set_array_base(a, memory)
    return a


@cython.final
cdef class Packed:
    """Weights packed for the forward pass: immutable, shared freely between threads."""
    cdef Layer layer
    cdef Memory memory      # of the bias row and the recurrent matrices
    cdef Memory of_x
    cdef tuple sources      # what the matrices are packed from; None once they are
    cdef readonly str cell
    cdef readonly object dtype
    cdef bint has_b_ih, has_b_hh

    def __init__(self):
        raise TypeError("packed weights are made by pack()")

    @property
    def input_size(self):
        return self.layer.inputs

    @property
    def hidden_size(self):
        return self.layer.H


cdef const tiles_t *tiles_for(Py_ssize_t itemsize) noexcept:
    return &ACTIVE[1 if itemsize == 8 else 0]


cdef tuple DTYPES = (numpy.dtype(numpy.float32), numpy.dtype(numpy.float64))


cdef Packed prepare(str cell, w_ih, w_hh, b_ih, b_hh):
    """Lay a layer out; `place` finds room for it, and its matrices are packed by the team that needs them."""
    cdef Packed p = Packed.__new__(Packed)
    cdef Layer *l = &p.layer
    cdef np.ndarray wi = contiguous(w_ih), wh = contiguous(w_hh)
    cdef int s
    p.cell = cell
    p.dtype = DTYPES[wi.itemsize == 8]
    p.has_b_ih = b_ih is not None
    p.has_b_hh = b_hh is not None
    l.kind = CELL_NUMBER[cell]
    l.cell = &CELL[l.kind]
    l.tiles = tiles_for(wi.itemsize)
    l.inputs = wi.shape[1]
    l.H = wh.shape[1]
    l.stride = padded(l.H, l.tiles.itemsize)
    l.units = (l.H + l.tiles.lanes - 1) // l.tiles.lanes
    l.x = forward_matrix(&l.cell.x, l.H, l.inputs, l.tiles.lanes)
    l.x.w = <char *>np.PyArray_DATA(wi)
    l.x.ld = l.inputs
    for s in range(l.cell.stages):
        l.h[s] = forward_matrix(&l.cell.h[s], l.H, l.H, l.tiles.lanes)
        l.h[s].w = <char *>np.PyArray_DATA(wh)
        l.h[s].ld = l.H
    p.sources = (wi, wh)
    return p


cdef int place(Packed p, b_ih, b_hh) except -1:
    """Memory for a layer, and its bias row."""
    cdef Layer *l = &p.layer
    cdef Py_ssize_t bias = gate_row_bytes(l), size = bias
    cdef int s
    for s in range(l.cell.stages):
        size += matrix_bytes(&l.h[s], l.tiles)
    cdef bint apart = matrix_bytes(&l.x, l.tiles) >= LENT_LEAST     # dW_ih will find room there, dW_hh in the rest
    if apart:
        p.of_x = Memory(matrix_bytes(&l.x, l.tiles))
    p.memory = Memory(size if apart else size + matrix_bytes(&l.x, l.tiles))
    l.bias = p.memory.data
    l.x.data = p.of_x.data if apart else p.memory.data + size
    cdef char *at = l.bias + bias
    for s in range(l.cell.stages):
        l.h[s].data = at
        at += matrix_bytes(&l.h[s], l.tiles)
    memset(l.bias, 0, bias)
    if b_ih is not None:
        add_bias(l, contiguous(b_ih), l.cell.of_x)
    if b_hh is not None:
        add_bias(l, contiguous(b_hh), l.cell.of_h)
    return 0


cdef void unplace(Packed p) noexcept:
    """The matrices have been read. What follows, their gradients, takes their place."""
    p.memory.soon = True
    p.memory = None
    if p.of_x is not None:
        p.of_x.soon = True
        p.of_x = None


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


def pack(str cell, w_ih, w_hh, b_ih=None, b_hh=None):
    """Pack a layer's weights once; see the backend protocol in fusedrnn.backends."""
    cdef Packed p = prepare(cell, w_ih, w_hh, b_ih, b_hh)
    cdef Layer *l = &p.layer
    cdef int i, s, pieces = 1 + <int>(<double>l.cell.gates * l.H * (l.inputs + l.H) * l.tiles.itemsize / PIECE)
    place(p, b_ih, b_hh)
    for i in range(pieces):
        with nogil:
            pack_matrix(&l.x, l.tiles, i, pieces, NULL)
            for s in range(l.cell.stages):
                pack_matrix(&l.h[s], l.tiles, i, pieces, NULL)
        if run_signal_handlers():
            raise_pending()
    p.sources = None
    return p
