# Blocks of memory: each lives as long as its owner, and a few of the large ones are kept for whoever comes next.

from libc.stdlib cimport free
from posix.stdlib cimport posix_memalign

from tiles cimport cpu_large_pages


cdef struct Spare:
    char *data
    Py_ssize_t size

cdef Spare[SPARES + 1] SPARE    # touched with the GIL held; the oldest first
cdef int KEPT = 0


cdef Spare take_spare(int i) noexcept:
    global KEPT
    cdef Spare taken = SPARE[i]
    KEPT -= 1
    memmove(&SPARE[i], &SPARE[i + 1], (KEPT - i) * sizeof(Spare))
    return taken


cdef Py_ssize_t class_of(Py_ssize_t size) noexcept nogil:
    """A large size rounded up to the next quarter of a power of two: the matrices of a backward pass then find room in
    the block of the forward ones, which is a few rows smaller. Pages that nobody touches take no memory."""
    cdef Py_ssize_t quarter = SPARE_LEAST // 4
    if size < SPARE_LEAST:
        return size
    while size > 8 * quarter:
        quarter *= 2
    return (size + quarter - 1) // quarter * quarter


@cython.final
@cython.internal
cdef class Memory:
    """A block of 64-byte aligned memory that lives as long as its owner. A few large ones are kept for whoever comes
    next, the latest where all are too much: fresh pages have to be cleared by the system, 2 to 6 % of a training step.
    What callers hold, as long as they like, is none of these (`spare` false)."""
    cdef char *data
    cdef Py_ssize_t size
    cdef bint spare

    def __cinit__(self, size, bint spare=True):
        cdef int i
        cdef Spare found
        if size > 2**62:
            raise MemoryError(f"a work area of {size} bytes is more than this machine can address")
        self.spare = spare
        self.size = class_of(max(64, size)) if spare else max(64, size)
        for i in range(KEPT if spare else 0):
            if self.size <= SPARE[i].size <= 2 * self.size:
                found = take_spare(i)
                self.data = found.data
                self.size = found.size
                return
        cdef bint large = self.size >= 2 * LARGE_PAGE
        if posix_memalign(<void **>&self.data, LARGE_PAGE if large else 64, self.size):
            self.data = NULL
            raise MemoryError(f"no memory for a work area of {size} bytes")
        if large:
            cpu_large_pages(self.data, self.size // LARGE_PAGE * LARGE_PAGE)

    def __dealloc__(self):
        cdef int i, least = 0
        cdef Py_ssize_t bytes = 0
        if not self.spare or not SPARE_LEAST <= self.size <= SPARE_MOST:
            free(self.data)
            return
        global KEPT
        SPARE[KEPT].data = self.data
        SPARE[KEPT].size = self.size
        KEPT += 1
        for i in range(KEPT):
            bytes += SPARE[i].size
            if SPARE[i].size < SPARE[least].size:
                least = i
        if KEPT > SPARES:
            bytes -= SPARE[least].size
            free(take_spare(least).data)
        while bytes > SPARE_MOST:
            bytes -= SPARE[0].size
            free(take_spare(0).data)


cdef inline Py_ssize_t padded(Py_ssize_t n, Py_ssize_t itemsize) noexcept nogil:
    """n rounded up to 64 bytes; an odd number of lines where rows would otherwise share their cache sets."""
    cdef Py_ssize_t lane = 64 // itemsize
    n = (n + lane - 1) // lane * lane
    return n + lane if n * itemsize % 1024 == 0 else n
