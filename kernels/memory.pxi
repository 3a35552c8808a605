# Blocks of memory: each lives as long as its owner, and some are kept for whoever comes next. The largest of these are
# the system's to take when it is short of memory, until they are written to again.

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdlib cimport free
from libc.string cimport memmove
from posix.stdlib cimport posix_memalign

from tiles cimport cpu_large_pages, cpu_spare_pages


cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef extern from * nogil:
    """
    /* Take what one thread may have, and give it back. A lock of Python's own would do, but for a fork: a free-threaded
     * Python may give such a lock to a thread that the child does not have. Who holds a flag runs until it is back. */
    static inline int take_flag(int *flag) {
    #ifdef Py_GIL_DISABLED
        return !__atomic_exchange_n(flag, 1, __ATOMIC_ACQUIRE);
    #else
        const int taken = !*flag;
        *flag = 1;
        return taken;
    #endif
    }
    static inline void give_flag(int *flag) { __atomic_store_n(flag, 0, __ATOMIC_RELEASE); }
    """
    bint take_flag(int *flag)
    void give_flag(int *flag)


cdef struct Spare:
    char *data
    Py_ssize_t size

cdef Spare[SPARES + 1] SPARE    # the oldest first
cdef int KEPT = 0
cdef int STORE = 0              # the flag of both


cdef void open_store() noexcept:
    while not take_flag(&STORE):
        sched_yield()


cdef Spare take_out(int i) noexcept:
    """The store is open."""
    global KEPT
    cdef Spare taken = SPARE[i]
    KEPT -= 1
    memmove(&SPARE[i], &SPARE[i + 1], (KEPT - i) * sizeof(Spare))
    return taken


cdef Spare take_fitting(Py_ssize_t least, Py_ssize_t most) noexcept:
    """The latest block of such a size, which is the likeliest to be in cache; no data where there is none."""
    cdef Spare found
    cdef int i
    found.data = NULL
    open_store()
    for i in range(KEPT - 1, -1, -1):
        if least <= SPARE[i].size <= most:
            found = take_out(i)
            break
    give_flag(&STORE)
    return found


cdef bint free_oldest() noexcept:
    """Whether there was one."""
    cdef char *data = NULL
    open_store()
    if KEPT:
        data = take_out(0).data
    give_flag(&STORE)
    free(data)
    return data != NULL


cdef void keep(char *data, Py_ssize_t size, bint soon) noexcept:
    """For whoever comes next: of too many the smallest goes, where all are too much the oldest."""
    global KEPT
    cdef Py_ssize_t bytes = 0
    cdef int i, least = 0
    if size >= OFFER_LEAST and not soon:
        cpu_spare_pages(data, size // LARGE_PAGE * LARGE_PAGE)
    open_store()
    SPARE[KEPT].data = data
    SPARE[KEPT].size = size
    KEPT += 1
    for i in range(KEPT):
        bytes += SPARE[i].size
        if SPARE[i].size < SPARE[least].size:
            least = i
    if KEPT > SPARES:
        bytes -= SPARE[least].size
        free(take_out(least).data)
    while bytes > SPARE_MOST:
        bytes -= SPARE[0].size
        free(take_out(0).data)
    give_flag(&STORE)


cdef Py_ssize_t class_of(Py_ssize_t size) noexcept nogil:
    """A large size rounded up to the next quarter of a power of two: what is a little larger next time finds room then.
    Pages that nobody touches take no memory."""
    cdef Py_ssize_t quarter = SPARE_LEAST // 4
    if size < SPARE_LEAST:
        return size
    while size > 8 * quarter:
        quarter *= 2
    return rounded_up(size, quarter)


@cython.final
@cython.internal
cdef class Memory:
    """A block of 64-byte aligned memory that lives as long as its owner. Some are kept for whoever comes next: fresh
    pages have to be cleared by the system, 2 to 14 % of a training step. What callers hold, as long as they like
    (`held`), is at most a quarter larger than they asked for."""
    cdef char *data
    cdef Py_ssize_t size
    cdef bint soon              # it will be taken again before long, and is not for the system in between

    def __cinit__(self, size, bint held=False):
        cdef Spare found
        if size > 2**62:
            raise MemoryError(f"a work area of {size} bytes is more than this machine can address")
        self.size = max(64, size) if held else class_of(max(64, size))
        found = take_fitting(self.size, self.size + self.size // 4 if held else 2 * self.size)
        if found.data != NULL:
            self.data = found.data
            self.size = found.size
            return
        cdef bint large = self.size >= 2 * LARGE_PAGE
        while posix_memalign(<void **>&self.data, LARGE_PAGE if large else 64, self.size):
            self.data = NULL
            if not free_oldest():                               # they may be all that is missing
                raise MemoryError(f"no memory for a work area of {size} bytes")
        if large:
            cpu_large_pages(self.data, self.size // LARGE_PAGE * LARGE_PAGE)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        """NumPy asks for it before an array is made writable again."""
        PyBuffer_FillInfo(buffer, self, self.data, self.size, False, flags)

    def __dealloc__(self):
        if self.data != NULL and SPARE_LEAST <= self.size <= SPARE_MOST:     # NULL: there was no memory for it
            keep(self.data, self.size, self.soon)
        else:
            free(self.data)


cdef inline Py_ssize_t rounded_up(Py_ssize_t n, Py_ssize_t to) noexcept nogil:
    """To a multiple."""
    return (n + to - 1) // to * to


cdef inline Py_ssize_t padded(Py_ssize_t n, Py_ssize_t itemsize) noexcept nogil:
    """n rounded up to 64 bytes; an odd number of lines where rows would otherwise share their cache sets."""
    cdef Py_ssize_t lane = 64 // itemsize
    n = rounded_up(n, lane)
    return n + lane if n * itemsize % 1024 == 0 else n
