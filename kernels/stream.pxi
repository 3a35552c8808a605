# Streams: the same loop over a single step, with everything laid out beforehand.


cdef void take_step(Frame frame, Step *step) noexcept nogil:
    if step:
        open_step(step)
    else:
        frame.go()


@cython.final
cdef class Stream:
    """A stack of packed layers that takes one time step a call and keeps its state between calls."""
    cdef list packed
    cdef list frames        # by layer, ...
    cdef list opened        # ... and where a step is one stage, OpenLayer
    cdef object dtype
    cdef Py_ssize_t B, inputs, H
    cdef double work
    cdef int asked          # set_num_threads when the work was divided ...
    cdef int wanted         # ... threads worth calling then ...
    cdef int threads        # ... and those that the frames are laid out for
    cdef double patience
    cdef int itemsize
    cdef bint busy          # a thread is in advance()
    cdef bint halfway       # the last one was interrupted: some layers are a step ahead of the others

    def __init__(self, tuple layers, Py_ssize_t batch_size):
        cdef Packed p
        cdef Frame frame
        cdef Direction *d
        cdef Plan plan = Plan(1, batch_size, None)
        cdef Memory memory
        cdef Py_ssize_t bytes
        if not layers:
            raise ValueError("layers: expected one or more, got none")
        self.packed = list(layers)
        self.frames = []
        self.opened = []
        self.B = batch_size
        for p in self.packed:
            frame = Frame()
            frame.run.directions = 1
            d = &frame.run.direction[0]
            d.layer = p.layer
            d.packed = True
            d.steps = 1
            d.B = batch_size
            d.order = plan.order
            d.length = plan.length
            d.active = plan.active
            d.offset = plan.offset
            d.x_i = p.layer.tiles.itemsize
            # Python integers in Memory's argument: a size that overflows is refused there
            memory = Memory(<object>batch_size * p.layer.stride * p.layer.tiles.itemsize * (1 + p.layer.cell.states))
            bytes = batch_size * p.layer.stride * p.layer.tiles.itemsize
            d.h0 = memory.data
            d.y = d.h0 + bytes
            d.c0 = d.y + bytes
            d.x_b = d.y_b = p.layer.stride * p.layer.tiles.itemsize
            memset(memory.data, 0, (1 + p.layer.cell.states) * bytes)
            self.work += <double>batch_size * p.layer.cell.gates * p.layer.H * (p.layer.H + p.layer.inputs)
            frame.owners.extend((plan, memory, p))
            self.frames.append(frame)
            if p.layer.cell.stages == 1:
                self.opened.append(OpenLayer(frame))
        p = self.packed[0]
        self.inputs = p.layer.inputs
        frame = self.frames[0]
        frame.run.direction[0].x_b = p.layer.inputs * p.layer.tiles.itemsize
        p = self.packed[len(self.packed) - 1]
        self.H = p.layer.H
        self.dtype = p.dtype
        self.itemsize = p.layer.tiles.itemsize
        self.asked = THREADS
        self.partition(THREADS)

    cdef int partition(self, int threads) except -1:
        cdef Frame frame
        cdef OpenLayer layer
        self.threads = 0                                        # until all is laid out: memory may run short
        team_quiet()                                            # nobody reads any more what is laid out anew
        for layer in self.opened:
            layer.open(threads)
        if self.opened:
            self.threads = self.wanted = 1                      # each step asks for helpers by itself
            return 0
        for frame in self.frames:
            frame.open(threads)
        if threads == self.asked:
            self.wanted = 1
            self.patience = 0
            for frame in self.frames:
                self.wanted = max(self.wanted, frame.run.size)
                self.patience += frame.run.patience
            threads = self.wanted
        self.threads = threads
        return 0

    cdef int advance(self, const char *x) except -1:
        """One step of every layer; the new state takes the place of the old one."""
        cdef Frame frame, before = None
        cdef Step *step = NULL
        cdef Direction *d
        cdef char *h
        cdef int granted
        cdef Py_ssize_t i
        if self.asked != THREADS:
            self.asked = THREADS
            self.partition(THREADS)
        granted = team_acquire(self.wanted, self.patience)
        try:
            if granted != self.threads:
                self.partition(self.asked if self.opened else granted)
            for i in range(len(self.frames)):
                frame = self.frames[i]
                if self.opened:
                    step = &(<OpenLayer>self.opened[i]).step
                d = &frame.run.direction[0]
                d.x = x if before is None else before.run.direction[0].h0
                if before is not None:
                    d.x_b = before.run.direction[0].y_b
                if self.work < 1e5:                             # a few microseconds: not worth letting the GIL go
                    frame.run.checked = 1e300
                    take_step(frame, step)
                else:
                    with nogil:
                        frame.run.checked = cpu_seconds()
                        take_step(frame, step)
                if frame.run.interrupted:
                    self.halfway = True
                    raise_pending()
                h = d.h0
                d.h0 = d.y
                d.y = h
                before = frame
        finally:
            team_release(granted)
        return 0

    def step(self, x_t, out=None):
        """Take x_t (B, I), return the last layer's h (B, H), written to `out` when given."""
        cdef np.ndarray x, y
        cdef Frame frame
        cdef Direction *d
        cdef Py_ssize_t b, size
        if not isinstance(x_t, np.ndarray):
            x_t = numpy.asarray(x_t)
        x = x_t
        if np.PyArray_TYPE(x) != number_of(self.itemsize):
            raise TypeError(f"x_t: expected {self.dtype}, got {x.dtype}")
        if x.ndim != 2 or x.shape[0] != self.B or x.shape[1] != self.inputs:
            raise ValueError(f"x_t: expected shape {(self.B, self.inputs)}, got {x_t.shape}")
        if not np.PyArray_ISCARRAY_RO(x):
            x = numpy.require(x, self.dtype, "CA")
        if out is None:
            y = new_array(self.itemsize, False, self.B, self.H)
        else:
            if not isinstance(out, np.ndarray):
                raise TypeError(f"out: expected an ndarray of {self.dtype}, got {type(out).__name__}")
            y = out
            if np.PyArray_TYPE(y) != number_of(self.itemsize):
                raise TypeError(f"out: expected {self.dtype}, got {y.dtype}")
            if y.ndim != 2 or y.shape[0] != self.B or y.shape[1] != self.H:
                raise ValueError(f"out: expected shape {(self.B, self.H)}, got {out.shape}")
            if not np.PyArray_ISWRITEABLE(y):
                raise ValueError("out: expected a writable array, got a read-only one")
        self.must_be_idle()
        if self.halfway:
            raise RuntimeError("stream: its last step was interrupted; set its state or reset() it")
        self.busy = True
        try:
            self.advance(<char *>np.PyArray_DATA(x))
        finally:
            self.busy = False
        frame = self.frames[len(self.frames) - 1]
        d = &frame.run.direction[0]
        size = self.H * d.layer.tiles.itemsize
        if np.PyArray_ISCARRAY(y):
            for b in range(self.B):
                memcpy(<char *>np.PyArray_DATA(y) + b * size, d.h0 + b * d.y_b, size)
        else:
            y[...] = self.state_of(len(self.frames) - 1, False)
        return y

    cdef int must_be_idle(self) except -1:
        if self.busy:
            raise RuntimeError("stream: another thread is in step(); give every thread a stream of its own")
        return 0

    cdef np.ndarray state_of(self, Py_ssize_t layer, bint of_c):
        cdef Frame frame = self.frames[layer]
        cdef Direction *d = &frame.run.direction[0]
        cdef np.ndarray a = new_array(self.itemsize, False, self.B, d.layer.H)
        state_out(&d.layer, d.order, self.B, d.c0 if of_c else d.h0, <char *>np.PyArray_DATA(a))
        return a

    @property
    def h(self):
        """The hidden state, (num_layers, B, H), a copy."""
        self.must_be_idle()
        return numpy.stack([self.state_of(i, False) for i in range(len(self.frames))])

    @property
    def c(self):
        """The cell state, (num_layers, B, H), a copy; None unless LSTM."""
        self.must_be_idle()
        if (<Packed>self.packed[0]).layer.cell.states == 1:
            return None
        return numpy.stack([self.state_of(i, True) for i in range(len(self.frames))])

    def set_state(self, h, c):
        """Go on from h (num_layers, B, H), and c for LSTM."""
        cdef Frame frame
        cdef Direction *d
        self.must_be_idle()
        self.halfway = False
        for i, frame in enumerate(self.frames):
            d = &frame.run.direction[0]
            state_in(&d.layer, d.order, self.B, h[i], d.h0)
            if d.layer.cell.states == 2:
                state_in(&d.layer, d.order, self.B, c[i], d.c0)

    def reset(self):
        """Go on from zeros."""
        cdef Frame frame
        cdef Direction *d
        self.must_be_idle()
        self.halfway = False
        for frame in self.frames:
            d = &frame.run.direction[0]
            state_in(&d.layer, d.order, self.B, None, d.h0)
            if d.layer.cell.states == 2:
                state_in(&d.layer, d.order, self.B, None, d.c0)


def stream(tuple layers, Py_ssize_t batch_size):
    """A stream over packed layers; see the backend protocol in fusedrnn.backends."""
    return Stream(layers, batch_size)
