# The gate math, and how a batch is dealt to groups, by themselves, for their tests; the probes of the machine's limits.


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


cdef int check_threads(int threads) except -1:
    if not 1 <= threads <= TEAM_MOST:
        raise ValueError(f"threads: expected 1 to {TEAM_MOST}, got {threads}")
    return 0


cdef double probe(Probe *p, int threads, double seconds):
    """Seconds of one repeat when `threads` threads run together: the best of eight parts, which take `seconds` in all.

    Whatever else runs on the machine only ever makes a part slower. How many repeats make a part is found by one thread
    alone, where it can be: one that waits for another's CPU would take a single repeat for a whole part.
    """
    cdef int granted = team_acquire(threads, .005), _
    cdef int alone = threads if p.lines != NULL else 1
    cdef double began, taken = 0, best = 0
    try:
        if granted < threads:
            raise RuntimeError(f"threads: expected {threads} to be free, got {granted}")
        with nogil:
            p.threads = threads
            p.repeats = 1
            while taken < seconds / 8:
                p.repeats *= 2
                began = cpu_seconds()
                team_run(alone, run_probe, p)
                taken = cpu_seconds() - began
                p.epoch += p.repeats
            for _ in range(8):
                began = cpu_seconds()
                team_run(threads, run_probe, p)
                taken = cpu_seconds() - began
                p.epoch += p.repeats
                if best == 0 or taken / p.repeats < best:
                    best = taken / p.repeats
    finally:
        team_release(granted)
    return best


def peak(dtype, int threads=1, double seconds=.02):
    """Floating-point operations a second of multiply-adds that stay in registers, in the instruction set in force."""
    cdef Probe p
    check_threads(threads)
    memset(&p, 0, sizeof(p))
    p.tiles = tiles_for(numpy.dtype(dtype).itemsize)
    return p.tiles.multiply_adds(1) * threads / probe(&p, threads, seconds)


def bandwidth(Py_ssize_t size, int threads=1, double seconds=.02):
    """Bytes a second of reading `size` bytes, each thread its own, over and over."""
    cdef Probe p
    check_threads(threads)
    memset(&p, 0, sizeof(p))
    size = max(4096, size // 4096 * 4096)
    cdef Memory memory = Memory(<object>size * threads)
    memset(memory.data, 0, size * threads)
    p.tiles = tiles_for(4)
    p.data = memory.data
    p.bytes = size
    return <double>size * threads / probe(&p, threads, seconds)


def barrier_cost(int threads, double seconds=.02):
    """Seconds until `threads` threads have met at a barrier that they came to together."""
    cdef Probe p
    check_threads(threads)
    memset(&p, 0, sizeof(p))
    cdef Memory memory = Memory(threads * sizeof(barrier_line) + 64)
    p.lines = <barrier_line *>(memory.data + (<size_t>memory.data & 64))
    memset(p.lines, 0, threads * sizeof(barrier_line))
    return probe(&p, threads, seconds)


cdef double LOOKED = -1     # when it was last looked at ...
cdef bint FAR = False       # ... whether threads share no cache
cdef barrier_line MEETING_LINES[2]
cdef unsigned long MEETING_EPOCH = 0


cdef void look() noexcept:
    """Whether two threads share no cache, by the time in which they meet. The caller has the team, two or more of it.
    Who has to wait for a CPU is far enough: no more runs."""
    global LOOKED, FAR, MEETING_EPOCH
    cdef double began = 0, took, best = 1
    cdef Probe p
    cdef int _
    memset(&p, 0, sizeof(Probe))
    p.threads = 2
    p.lines = MEETING_LINES
    p.epoch = MEETING_EPOCH
    p.repeats = MEETINGS
    with nogil:
        for _ in range(3):
            began = cpu_seconds()
            team_run(2, run_probe, &p)
            took = (cpu_seconds() - began) / p.repeats
            p.epoch += p.repeats
            best = min(best, took)
            if took > 8 * FAR_SECONDS:
                break
    MEETING_EPOCH = p.epoch
    LOOKED = began
    FAR = best > FAR_SECONDS


cdef bint far_apart():
    """Whether threads share no cache, as far as is known. A call of several threads looks when it is done. Where calls
    are made alone for that very reason, they look again here, or forget about it where the other thread has fallen
    asleep meanwhile: the next call of several threads will see."""
    global LOOKED, FAR
    cdef int granted
    cdef double now
    if FAR:
        now = cpu_seconds()
        if now - LOOKED > LOOK_SECONDS:
            if team_asleep():
                FAR = False
            else:
                LOOKED = now
                granted = team_acquire(2, LOOK_PATIENCE)
                if granted == 2:
                    look()
                team_release(granted)
    return FAR


def near(Py_ssize_t size):
    """From now on a core's L2 counts as so many bytes. Not while a call is under way, nor for streams that are open."""
    global L2_STAYS, L2_RETURNS, L2_APART
    L2_STAYS = 15 * size // 16
    L2_RETURNS = 3 * size // 5
    L2_APART = 11 * size // 5


def far(seconds=None):
    """Whether threads count as far apart; with `seconds`, they do from now on where a barrier takes longer, and it is
    time to look."""
    global FAR_SECONDS, LOOKED
    if seconds is not None:
        FAR_SECONDS = seconds
        LOOKED = -1
    return FAR


def divided(str cell, w_ih, w_hh, Py_ssize_t T, Py_ssize_t B, int threads, bint far):
    """The groups, and the threads of each, of a forward pass whose threads share a cache or are far apart."""
    cdef Frame frame = Frame(None)
    cdef Direction *d = &frame.run.direction[0]
    frame.run.directions = 1
    d.layer = prepare(cell, w_ih, w_hh, None, None).layer
    d.steps = T
    d.B = B
    divide_for(&frame.run, threads, far, False)
    return frame.run.groups, frame.run.width


def latency(dtype, double seconds=.02):
    """Seconds that one multiply-add waits for the one before it: the slope of a single chain's time over its length."""
    cdef Probe p
    cdef product_t product
    cdef Py_ssize_t most = 128
    memset(&p, 0, sizeof(p))
    memset(&product, 0, sizeof(product))
    p.tiles = tiles_for(numpy.dtype(dtype).itemsize)
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


def dealt(lengths, int groups):
    """How a batch of sequences so long is dealt to groups, as many as sequences at most: the lengths of each."""
    cdef np.ndarray given = numpy.asarray(lengths, numpy.int64)
    cdef Plan plan = Plan(given.max(), given.shape[0], given)
    cdef Memory memory = Memory(groups * sizeof(Part))
    cdef Part *part = <Part *>memory.data
    cdef int i
    plan.deal(part, groups)
    return [[plan.length[plan.order[part[i].begin + j]] for j in range(part[i].rows)] for i in range(groups)]


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
    e.tiles = tiles_for(a.itemsize)
    e.a = np.PyArray_DATA(a)
    e.out = np.PyArray_DATA(out)
    e.n = a.shape[0]
    e.is_tanh = is_tanh
    with nogil:
        team_run(1, run_elementwise, &e)
    return 0
