# Streams: single steps of a stack of layers, everything laid out beforehand.

from fusedrnn.checks import out as check_out, stream_busy, stream_halfway, x_t as check_x_t


@cython.final
cdef class Stream:
    """A stack of packed layers that takes one time step a call and keeps its state between calls."""
    cdef list layers        # OpenLayer
    cdef Plan plan
    cdef object dtype
    cdef Py_ssize_t B, inputs, H
    cdef double work
    cdef int asked          # set_num_threads when the steps were laid out; 0: they were not
    cdef int itemsize
    cdef int busy           # the flag of who may touch the state
    cdef bint halfway       # the last one was interrupted: some layers are a step ahead of the others

    def __init__(self, tuple layers, Py_ssize_t batch_size):
        cdef Packed p
        if not layers:
            raise ValueError("layers: expected one or more, got none")
        self.plan = Plan(1, batch_size, None)
        self.layers = [OpenLayer(p, self.plan) for p in layers]
        self.B = batch_size
        for p in layers:
            self.work += <double>batch_size * p.layer.cell.gates * p.layer.H * (p.layer.H + p.layer.inputs)
        self.H = p.layer.H
        self.dtype = p.dtype
        self.itemsize = p.layer.tiles.itemsize
        p = layers[0]
        self.inputs = p.layer.inputs
        self.lay_out()

    cdef int lay_out(self) except -1:
        cdef OpenLayer layer
        cdef int wanted = THREADS                               # which another thread may set meanwhile
        if self.asked:
            with nogil:
                team_quiet()                                    # nobody reads any more what is laid out anew
        self.asked = 0                                          # until all is done: memory may run short
        for layer in self.layers:
            layer.open(wanted)
        self.asked = wanted
        return 0

    cdef int advance(self, const char *x) except -1:
        """One step of every layer; the new state takes the place of the old one."""
        cdef OpenLayer layer
        cdef Direction *d
        cdef Py_ssize_t x_b = self.inputs * self.itemsize
        cdef char *h
        cdef double checked = cpu_seconds() if self.work >= 1e5 else 1e300
        if self.asked != THREADS:
            self.lay_out()
        for layer in self.layers:
            d = &layer.run.direction[0]
            d.x = x
            d.x_b = x_b
            layer.run.checked = checked
            if self.work < 1e5:                                 # a few microseconds: not worth letting the GIL go
                open_step(&layer.ways)
            else:
                with nogil:
                    open_step(&layer.ways)
            checked = layer.run.checked
            if layer.run.interrupted:
                self.halfway = True
                raise_pending()
            h = d.h0
            d.h0 = d.y
            d.y = h
            x = d.h0
            x_b = d.layer.stride * self.itemsize
        return 0

    def step(self, x_t, out=None):
        """Take x_t (B, I), return the last layer's h (B, H), written to `out` when given."""
        cdef np.ndarray x, y
        cdef OpenLayer layer
        cdef Direction *d
        cdef Py_ssize_t b, size
        if not self.fits(x_t, self.inputs):
            x_t = check_x_t(x_t, (self.B, self.inputs), self.dtype)
        x = x_t
        if not np.PyArray_ISCARRAY_RO(x):
            x = numpy.require(x, self.dtype, "CA")
        if out is None:
            y = new_array(self.itemsize, False, self.B, self.H)
        else:
            if not (self.fits(out, self.H) and np.PyArray_ISWRITEABLE(out)):
                check_out(out, (self.B, self.H), self.dtype)
            y = out
        self.take_it()
        try:
            if self.halfway:
                raise stream_halfway()
            self.advance(<char *>np.PyArray_DATA(x))
            layer = self.layers[len(self.layers) - 1]
            d = &layer.run.direction[0]
            size = self.H * self.itemsize
            if np.PyArray_ISCARRAY(y):
                for b in range(self.B):
                    memcpy(<char *>np.PyArray_DATA(y) + b * size, d.h0 + b * d.layer.stride * self.itemsize, size)
            else:
                y[...] = self.state_of(len(self.layers) - 1, False)
        finally:
            give_flag(&self.busy)
        return y

    cdef bint fits(self, a, Py_ssize_t columns) noexcept:
        """Whether it is an ndarray, no more and no less, of so many columns and the stream's batch and dtype."""
        if type(a) is not np.ndarray:
            return False
        cdef np.ndarray found = a
        return (same_type(found, self.itemsize) and found.ndim == 2 and found.shape[0] == self.B
                and found.shape[1] == columns)

    cdef int take_it(self) except -1:
        if not take_flag(&self.busy):
            raise stream_busy()
        return 0

    cdef np.ndarray state_of(self, Py_ssize_t which, bint of_c):
        cdef OpenLayer layer = self.layers[which]
        cdef Direction *d = &layer.run.direction[0]
        cdef np.ndarray a = new_array(self.itemsize, False, self.B, d.layer.H)
        state_out(&d.layer, self.plan.order, self.B, d.c0 if of_c else d.h0, <char *>np.PyArray_DATA(a))
        return a

    def get_state(self):
        """Copies of h and c, each (num_layers, B, H); None for c unless LSTM."""
        cdef OpenLayer layer = self.layers[0]
        cdef bint two = layer.packed.layer.cell.states == 2
        self.take_it()
        try:
            if self.halfway:
                raise stream_halfway()
            h = numpy.stack([self.state_of(i, False) for i in range(len(self.layers))])
            return h, numpy.stack([self.state_of(i, True) for i in range(len(self.layers))]) if two else None
        finally:
            give_flag(&self.busy)

    def set_state(self, h, c):
        """Go on from h (num_layers, B, H), and c for LSTM."""
        cdef OpenLayer layer
        cdef Direction *d
        self.take_it()
        try:
            self.halfway = True                                 # until all is in: memory may run short
            for i, layer in enumerate(self.layers):
                d = &layer.run.direction[0]
                state_in(&d.layer, self.plan.order, self.B, h[i], d.h0)
                if d.layer.cell.states == 2:
                    state_in(&d.layer, self.plan.order, self.B, c[i], d.c0)
            self.halfway = False
        finally:
            give_flag(&self.busy)

    def reset(self):
        """Go on from zeros."""
        cdef OpenLayer layer
        cdef Direction *d
        self.take_it()
        try:
            self.halfway = False
            for layer in self.layers:
                d = &layer.run.direction[0]
                state_in(&d.layer, self.plan.order, self.B, None, d.h0)
                if d.layer.cell.states == 2:
                    state_in(&d.layer, self.plan.order, self.B, None, d.c0)
        finally:
            give_flag(&self.busy)

    def ranks(self):
        """For each layer, how many ranks a step has at the moment, and how many if made any other way."""
        cdef OpenLayer layer
        cdef Ways *w
        cdef int i
        found = []
        for layer in self.layers:
            w = &layer.ways
            found.append(tuple([w.step[(w.way + i) % w.count].size for i in range(w.count)]))
        return found

    def forked(self):
        """In the child of a fork: a step that was under way has no thread any more, and counts as interrupted."""
        if self.busy:
            self.halfway = True
            self.asked = 0                                      # nor is there any end to a trial that it had begun
            self.busy = 0


def stream(tuple layers, Py_ssize_t batch_size):
    """A stream over packed layers; see the backend protocol in fusedrnn.backends."""
    return Stream(layers, batch_size)
