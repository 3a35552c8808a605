# The C side as the time loop sees it; tiles.h, team.h and cpu.h say what each thing promises.

cdef extern from "tiles.h" nogil:
    enum: PANEL
    enum: LEFT_ROWS
    enum: LEFT_STRIP
    enum: CELLS
    ctypedef enum cell_t:
        RNN_TANH
        RNN_RELU
        LSTM
        GRU
        GRU_RESET_BEFORE

    ctypedef struct product_t:
        Py_ssize_t rows
        const void **a
        Py_ssize_t a_step, a_segment, segments, depth
        const void *w
        Py_ssize_t ld
        int gate[4]
        const void **row
        Py_ssize_t width, vectors, first, last
        void **out
        Py_ssize_t out_offset, out_panel, out_step, columns, narrow
        const void *init
        int accumulate, whole, backwards, fetch_left, prefetch
        const void *next

    ctypedef struct pointwise_t:
        Py_ssize_t rows, first, last, stride
        int training
        void **gates
        const void **h_prev
        void **h
        const void **c_prev
        void **c
        const void **dy
        void **dh
        void **dc
        void **dq

    ctypedef void (*pointwise_fn)(const pointwise_t *) noexcept nogil

    ctypedef struct pack_t:
        void *out
        Py_ssize_t depth, width, vectors, first, last, columns
        const void *w
        Py_ssize_t ld
        const void **row
        int gated
        Py_ssize_t narrow
        int gate[4]

    ctypedef struct tiles_t:
        const char *isa
        int itemsize, lanes
        void (*product)(const product_t *) noexcept nogil
        void (*pack_transposed)(const pack_t *) noexcept nogil
        void (*pack_rows)(const pack_t *) noexcept nogil
        void (*pack_left)(void *, Py_ssize_t, const void **, Py_ssize_t, Py_ssize_t, Py_ssize_t, void *) noexcept nogil
        pointwise_fn forward[CELLS][2]
        pointwise_fn backward[CELLS][2]
        void (*sigmoid)(const void *, void *, Py_ssize_t) noexcept nogil
        void (*tanh)(const void *, void *, Py_ssize_t) noexcept nogil
        void (*read)(const void *, Py_ssize_t) noexcept nogil
        double (*multiply_adds)(Py_ssize_t) noexcept nogil

cdef extern from "team.h" nogil:
    enum: TEAM_MOST
    ctypedef void (*team_fn)(void *, int) noexcept nogil
    ctypedef struct barrier_line:
        unsigned long epoch
        int stop[2]
    int team_acquire(int wanted, double patience)
    int team_asleep()
    void team_run(int size, team_fn fn, void *arg)
    void team_release(int granted)
    int team_open(int wanted)
    void team_offer(int size, team_fn fn, void *arg)
    void team_close(int size)
    void team_quiet()
    enum: BLOCK_FREE, BLOCK_HELD, BLOCK_KEPT, BLOCK_DONE
    ctypedef struct block_line:
        pass
    void block_set(block_line *b, unsigned long epoch, int state)
    bint block_is(const block_line *b, unsigned long epoch, int state)
    bint block_change(block_line *b, unsigned long epoch, int before, int after)
    void epoch_begin(unsigned long *epoch)
    unsigned long epoch_now(const unsigned long *epoch)
    void team_barrier(barrier_line *lines, int rank, int size, unsigned long epoch)
    long team_turn(barrier_line *line, unsigned long epoch, int job)

cdef extern from "cpu.h" nogil:
    const char *cpu_isa(int index)
    const tiles_t *cpu_tiles(const char *isa)
    double cpu_seconds()
    ctypedef unsigned long fp_state
    fp_state fp_now()
    fp_state fp_flush_denormals()
    void fp_restore(fp_state state)
    void cpu_large_pages(void *block, size_t size)
    void cpu_spare_pages(void *block, size_t size)
    const char *cpu_compiler()
