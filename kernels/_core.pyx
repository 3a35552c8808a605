# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: auto_pickle=False, freethreading_compatible=True
# distutils: language=c
"""The compiled backend: forward, backward and streams around THE TIME LOOP, one for every cell and both passes. The
loop, the packing, the partition of work over the team and the parameter gradients are in files of their own, included
below. Arguments come checked: all this refuses to judge them (streams excepted: nothing stands before them), and holds
no gate math, which lives in the tiles."""

cimport cython
from libc.string cimport memcpy, memset

cimport numpy as np

import os

import numpy

from fusedrnn.threads import at_first, own_cache

from tiles cimport (
    TEAM_MOST, barrier_line, cpu_compiler, cpu_isa, cpu_seconds, cpu_tiles, product_t, team_acquire,
    team_asleep, team_barrier, team_release, team_run, tiles_t,
)

np.import_array()


cdef extern from "Python.h":
    int run_signal_handlers "PyErr_CheckSignals"()      # leaves the exception set; raised once the loop has ended


# ---------------------------------------------------------------------------------------------------------------
# Tunables, each with its reason.


cdef enum:
    CHUNK = 128             # rows of x projected at once: the gate rows stay in L2 until the recurrence reads them
    LEFT_DEPTH = 512        # rows of the tape that a block of dW sums at most, ...
    LEFT_DEPTH_FAR = 1024   # ... where dW is too large to stay near until the next block: half of its traffic; ...
    FAR_BYTES = 8 * 1024 * 1024     # ... so large
    DX_ROWS = 48            # rows of dx made at once: 8 tiles reuse every panel of W_ih
    SERPENT = 128 * 1024    # bytes of weights between two turning points where few rows stream more than L2 holds
    FEW_ROWS = 8            # below, all panels of a thread go through one product call and one pointwise call
    LATE_BYTES = 256 * 1024     # for each thread of a packed matrix that is read once: more has left L2 by then
    LATE_ROWS = 1024        # rows that pass by it at once, at most, nor more than its own: their gate rows leave L2
    PLAIN_TIMES = 9         # a matrix that is read less often, ...
    PLAIN_ROWS = 96         # ... and by no more rows in all, is not worth packing
    WAY_BYTES = 2048        # right operands of dW with shorter rows are read in place, if no multiple of it apart
    NARROW_DEPTH = 64       # k of a product from which on a panel of few units is worth rearranging
    LARGE_PAGE = 2 * 1024 * 1024    # a tape of 40 MB is 10,000 page faults otherwise
    SPARES = 32             # blocks of memory kept for the next call, ...
    SPARE_LEAST = 16 * 1024         # ... each so large at least, which C's heap gives back and faults in again, ...
    SPARE_MOST = 256 * 1024 * 1024  # ... and all together at most; ...
    OFFER_LEAST = 16 * 1024 * 1024  # ... so large, each is offered to the system: for smaller ones that costs 1 %
    LENT_LEAST = 256 * 1024         # bytes of a packed matrix to which dW lends its memory: fewer do not pay a barrier
    LEAST_BLOCKS = 2        # of an open step for each rank, where there are rows enough: one may be the slower by far
    MOST_BLOCKS = 16        # ... and at most: asking whose a block is takes some 0.1 us, ...
    LEAST_TIME = 4000       # ... so a block of fewer nanoseconds may as well be a larger one
    WAYS = 3                # to make a step of a stream
    TRIED = 7               # steps of a stream that are timed the other way and as before, for their medians, ...
    SETTLED = 2             # ... after so many that are not, ...
    TRIED_FIRST = 32        # ... after so many steps for the first time
    TRIED_WORK = 20000      # multiply-adds of a step, some half a microsecond, that are worth a trial
    PIECE = 16 * 1024 * 1024        # bytes of a matrix packed between two looks for signals, some milliseconds
    CLEARED = 32            # multiply-adds that take as long as clearing an element of a fresh page
    MANY_ROWS = 24          # of a step, worth reading W_ih for in each if I is no more than these
    APART = 4096            # bytes between what ranks write at the same time: so far a CPU may fetch ahead
    MEETINGS = 64           # barriers that are timed together
    SHARED_WORK = 300000    # multiply-adds of a block, some 5 us, worth asking whose turn it is


# Bytes of weights that stay in one core's L2: over the steps of a call, and from a call or a stream's step to the next,
# between which its caller is at work. And those that each rank rather reads for itself than what another has written,
# half of them from beyond L2: where threads are far apart, or vectors so short that arithmetic hides it.
cdef Py_ssize_t L2_STAYS, L2_RETURNS, L2_APART
cdef double PATIENCE = 1e-3                  # a worker that has not answered by then has lost its CPU
cdef double SIGNAL_SECONDS = 0.05           # Ctrl-C is looked for this often
cdef double SIGNAL_WORK = 2e7               # multiply-adds between two looks at the clock
cdef double FAIR = 1.05                     # of a share of units: one so much larger is worth taking panels two by two

# Trials of a stream's step, alone and with helpers, by units and by rows, in seconds.
cdef double WORTH_CHANGING = .95            # of the time of a step: no less is told from chance; ...
cdef double WORTH_DEALING = .98             # ... dealt to helpers in another way, which chance meets alike; ...
cdef double WORTH_LEAVING = .9              # ... alone where no helper came: in a moment he may have his CPU again
cdef double NO_QUESTION = 200e-6            # a step that takes so long alone is worth all helpers there are, ...
cdef double NO_QUESTION_TIMES = 500         # ... and is not tried again for so many
cdef double AWAKE = 200e-6                  # until one who is asleep has come, if he can
cdef double TRIED_AGAIN = 2e-3              # until the next trial: ten slow steps, and 10 us to wake a helper, ...
cdef double TRIED_AT_LAST = 16e-3           # ... twice as late each time, up to this, if nothing has changed, ...
cdef double TRIAL_TIMES = 200               # ... and so many times what one has lost, if that is more

# The cost model of `divide`, in nanoseconds and bytes per nanosecond; only ratios matter. A barrier and a call of two
# threads, measured; how both grow with them is a guess. A line is 64 bytes that another rank has written, between cores
# that share no cache. Between those that do it costs a tenth, and they lose little by what is best for the others.
cdef double COST_BARRIER = 350, COST_CALL = 2000, COST_LINE = 20
cdef Py_ssize_t MET_ROWS = 4                # h of so few rows is a part of the barrier
cdef double RATE_FMA = 55, RATE_L1 = 150, RATE_L2 = 80, RATE_L3 = 20
cdef double COST_BESIDE = 1000, COST_FAR = 2500     # a step, where threads share no cache: by rows, or units, apart
cdef double FAR_SECONDS = 120e-9        # which is so where a barrier takes that long; ...
cdef double LOOK_SECONDS = .1           # ... looked at so often, for the CPUs of a virtual machine come and go
cdef double LOOK_PATIENCE = 20e-6       # ... for so long a worker that is awake may take to answer
cdef double STREAMING = .25                 # of the time from beyond L2 does not hide behind the arithmetic


include "cell.pxi"          # what a cell is to the loop
include "memory.pxi"        # blocks of memory, some kept for the next call
include "matrix.pxi"        # packed matrices and layers
include "run.pxi"           # the order of a ragged batch, and what the ranks of a run share
include "time_loop.pxi"     # THE TIME LOOP
include "gradients.pxi"     # dW and dx, after the loop
include "frame.pxi"         # what every rank runs; the partition


# ---------------------------------------------------------------------------------------------------------------
# Forward and backward, as the backend protocol has them


@cython.final
cdef class Tape:
    """What a training forward pass keeps for one backward pass."""
    cdef list layers        # Packed, by direction
    cdef tuple weights      # (w_ih, w_hh) by direction
    cdef np.ndarray x
    cdef np.ndarray y
    cdef Frame frame

    def __init__(self):
        raise TypeError("a tape is made by forward()")


cdef int state_in(Layer *l, Py_ssize_t *order, Py_ssize_t B, object state, char *to) except -1:
    """A state (B, H), or zeros for None, into padded rows in plan order."""
    cdef Py_ssize_t j, size = l.tiles.itemsize
    cdef np.ndarray a
    memset(to, 0, B * l.stride * size)
    if state is None:
        return 0
    a = contiguous(state)
    for j in range(B):
        memcpy(to + j * l.stride * size, <char *>np.PyArray_DATA(a) + order[j] * l.H * size, l.H * size)
    return 0


cdef inline void state_out(Layer *l, Py_ssize_t *order, Py_ssize_t B, char *rows, char *to) noexcept:
    cdef Py_ssize_t j, size = l.tiles.itemsize
    for j in range(B):
        memcpy(to + order[j] * l.H * size, rows + j * l.stride * size, l.H * size)


cdef int open_forward(Frame frame, int i, Packed packed, tuple given, np.ndarray x, np.ndarray y, Plan plan,
                      bint training) except -1:
    """One direction of a forward run: arrays of the caller, order of the batch, states, and room for the tape."""
    cdef Direction *d = &frame.run.direction[i]
    cdef Layer *l = &d.layer
    cdef Memory memory
    cdef char *at
    _, h0, c0, reverse = given
    d.layer = packed.layer
    cdef Py_ssize_t size = l.tiles.itemsize, states = plan.B * l.stride * size
    d.reverse = reverse
    d.fresh = h0 is None
    d.packed = packed.sources is None
    d.training = training
    d.chunk = CHUNK
    d.T = plan.T
    d.B = plan.B
    d.steps = plan.steps
    d.order = plan.order
    d.length = plan.length
    d.active = plan.active
    d.offset = plan.offset
    d.x = <char *>np.PyArray_DATA(x)
    d.x_t = x.strides[0]
    d.x_b = x.strides[1]
    d.x_i = x.strides[2] if l.inputs > 1 else size
    d.y_b = frame.run.directions * l.H * size
    d.y_t = plan.B * d.y_b
    d.y = <char *>np.PyArray_DATA(y) + i * l.H * size
    rows = <object>plan.rows * (l.cell.segments + (l.cell.states == 2)) if training else 0
    memory = Memory((rows + l.cell.states * plan.B) * l.stride * size)
    frame.owners.append(memory)
    at = memory.data
    d.h0 = at
    at += states
    state_in(l, plan.order, plan.B, h0, d.h0)
    if l.cell.states == 2:
        d.c0 = at
        at += states
        state_in(l, plan.order, plan.B, c0, d.c0)
    if training:
        d.gates = at
        d.c = at + plan.rows * gate_row_bytes(l)
    return 0


cdef int open_weights(Frame frame, int i, Packed packed, tuple weights, Plan plan, int wanted) except -1:
    """Room for the packed matrices of a direction whose work is divided; late ones take little."""
    cdef Run *run = &frame.run
    cdef Direction *d = &run.direction[i]
    cdef Layer *l = &packed.layer
    cdef int s
    cdef bint late = plan.steps == 1 or plan.rows <= max(<Py_ssize_t>CHUNK, min(<Py_ssize_t>LATE_ROWS, l.inputs))
    if run.groups == run.directions and late:                   # else each group would pack its own
        put_off(&l.x, l.tiles, wanted)
        if l.x.late:
            d.chunk = max(d.chunk, plan.rows)
    if run.groups == run.directions and plan.steps == 1:
        for s in range(l.cell.stages):
            put_off(&l.h[s], l.tiles, wanted)
    place(packed, weights[2], weights[3])
    d.layer = l[0]
    return 0


def forward(str cell, np.ndarray x, tuple directions, lengths, bint training):
    """One layer, one or two directions; see the backend protocol in fusedrnn.backends."""
    cdef Py_ssize_t T = x.shape[0], B = x.shape[1], D = len(directions), size = x.itemsize, j, s, b
    cdef Plan plan = Plan(T, B, lengths)
    cdef Frame frame = Frame(plan)
    cdef Direction *d
    cdef Layer *l
    cdef Packed packed
    cdef list layers = []
    cdef list weights = []
    cdef int i, wanted = THREADS                                # which another thread may set meanwhile
    frame.run.directions = D
    for w, _, _, _ in directions:
        if isinstance(w, Packed):
            packed = w
            if training or packed.cell != cell:
                raise TypeError(f"weights: expected {cell} arrays, got {packed.cell} weights packed for inference")
        else:
            packed = prepare(cell, w[0], w[1], w[2], w[3])
            weights.append((w[0], w[1]))
        layers.append(packed)
    packed = layers[0]
    cdef Py_ssize_t H = packed.layer.H
    cdef bint one = wanted == 1 or plan.rows == 1
    cdef np.ndarray y = new_array(size, False, T, B, D * H) if one else new_rows(size, T, B, D * H)
    cdef np.ndarray h_n = new_array(size, False, D, B, H)
    cdef np.ndarray c_n = new_array(size, False, D, B, H) if packed.layer.cell.states == 2 else None
    for i in range(D):
        open_forward(frame, i, layers[i], directions[i], x, y, plan, training)
    divide(&frame.run, wanted)
    if training:
        plan.lay_tape(frame.run.groups // D)
        for i in range(D):
            frame.run.direction[i].part = plan.part
            frame.run.direction[i].part_of = plan.part_of
    for i in range(D):
        if not frame.run.direction[i].packed:
            open_weights(frame, i, layers[i], directions[i][0], plan, wanted)
    execute(frame)
    for i in range(D):
        d = &frame.run.direction[i]
        l = &d.layer
        for j in range(B):
            b = plan.order[j]
            s = plan.length[b] - 1
            memcpy(<char *>np.PyArray_DATA(h_n) + (i * B + b) * H * size, y_row(d, j, s), H * size)
            if l.cell.states == 2:
                memcpy(<char *>np.PyArray_DATA(c_n) + (i * B + b) * H * size, tape_c(d, j, s), H * size)
    if not training:
        return y, h_n, c_n, None
    cdef Tape tape = Tape.__new__(Tape)
    tape.layers = layers
    tape.weights = tuple(weights)
    tape.x = x
    tape.y = y
    tape.frame = frame
    for packed in layers:
        if packed.sources is not None:
            unplace(packed)
    frame.memory = None
    return y, h_n, c_n, tape


cdef tuple open_backward(Frame frame, int i, Packed packed, tuple weights, np.ndarray grad_y, dh_n, dc_n, np.ndarray dx,
                         Plan plan):
    """One direction of a backward run: its gradients, as the protocol has them, and room for its matrices. Where dx is
    None, the matrix that it is made of has no vectors."""
    cdef Direction *d = &frame.run.direction[i]
    cdef Layer *l = &d.layer
    cdef Py_ssize_t B = plan.B, H = l.H, I = l.inputs, size = l.tiles.itemsize, states = B * l.stride * size
    cdef Py_ssize_t GH = l.cell.gates * H, of_dx, of_dh = 0, need
    cdef np.ndarray w_ih = contiguous(weights[0]), w_hh = contiguous(weights[1])
    cdef bint as_dh, dh_lent, dx_lent
    cdef Memory memory
    cdef char *at
    cdef int s
    if dx is not None:
        d.dx = backward_matrix(&l.cell.x, w_ih, H, l.tiles.lanes, 1, plan.rows)
        d.grad_x = <char *>np.PyArray_DATA(dx)
    of_dx = matrix_bytes(&d.dx, l.tiles)
    for s in range(l.cell.stages):
        d.dh[s] = backward_matrix(&l.cell.dh[s], w_hh, H, l.tiles.lanes, plan.steps, B)
        of_dh += matrix_bytes(&d.dh[s], l.tiles)
    as_dh = of_dx <= of_dh                                      # then it takes that one's place, still in cache
    dh_lent = lends(GH * H * size, of_dh)
    dx_lent = not as_dh and lends(GH * I * size, of_dx)
    d.lent = of_dx > 0 and (dh_lent if as_dh else dx_lent)
    cdef np.ndarray g_w_ih = new_gradient(size, GH, I, of_dx if dx_lent else 0)
    cdef np.ndarray g_w_hh = new_gradient(size, GH, H, of_dh if dh_lent else 0)
    cdef np.ndarray g_b_ih = new_array(size, True, GH), g_b_hh = new_array(size, True, GH)
    d.grad_w_ih = <char *>np.PyArray_DATA(g_w_ih)
    d.grad_w_hh = <char *>np.PyArray_DATA(g_w_hh)
    d.grad_b_ih = <char *>np.PyArray_DATA(g_b_ih)
    d.grad_b_hh = <char *>np.PyArray_DATA(g_b_hh)
    need = (l.cell.states + (l.cell.stages == 2)) * states
    need += max(0 if dh_lent else of_dh, 0 if dx_lent or as_dh else of_dx)
    for s in range(1 + l.cell.stages):
        d.right[s] = right_operand(d, s)
        need += right_bytes(&d.right[s], l.tiles)
    memory = Memory(need)
    frame.owners.extend((memory, w_ih, w_hh, g_b_ih, g_b_hh))   # biases: written to even where nobody asks for them
    at = memory.data
    d.d_h = at
    at += states
    state_in(l, plan.order, B, None if dh_n is None else dh_n[i], d.d_h)
    if l.cell.states == 2:
        d.d_c = at
        at += states
        state_in(l, plan.order, B, None if dc_n is None else dc_n[i], d.d_c)
    if l.cell.stages == 2:
        d.d_q = at
        at += states
    for s in range(1 + l.cell.stages):
        place_right(&d.right[s], d, at)
        at += right_bytes(&d.right[s], l.tiles)
    d.dh[0].data = d.grad_w_hh if dh_lent else at
    d.dh[1].data = d.dh[0].data + matrix_bytes(&d.dh[0], l.tiles)
    d.dx.data = d.dh[0].data if as_dh else d.grad_w_ih if dx_lent else at
    if grad_y is not None:
        d.dy = <char *>np.PyArray_DATA(grad_y) + i * H * size
    d.gx_t = B * I * size
    d.gx_b = I * size
    return (
        g_w_ih, g_w_hh, g_b_ih if packed.has_b_ih else None, g_b_hh if packed.has_b_hh else None,
        new_array(size, False, B, H), new_array(size, False, B, H) if l.cell.states == 2 else None,
    )


def backward(Tape tape, dy, dh_n, dc_n, bint of_x=True):
    """Gradients of everything that went into a training forward pass; see the backend protocol."""
    if tape.frame is None:
        raise RuntimeError("tape: expected one backward pass, got a second")
    cdef Frame frame = tape.frame
    tape.frame = None                                           # its memory is overwritten and then let go
    cdef Plan plan = frame.plan
    cdef int D = frame.run.directions, i
    cdef Direction *d
    cdef np.ndarray grad_y = None if dy is None else contiguous(dy)
    cdef np.ndarray a
    cdef list gradients = []
    cdef Layer *l = &frame.run.direction[0].layer
    cdef Py_ssize_t row = l.cell.gates * l.H * l.tiles.itemsize
    cdef np.ndarray dx = new_array(l.tiles.itemsize, False, plan.T, plan.B, l.inputs) if of_x else None
    frame.run.backward = True
    for i in range(D):
        gradients.append(open_backward(frame, i, tape.layers[i], tape.weights[i], grad_y, dh_n, dc_n, dx, plan))
    divide(&frame.run, THREADS)
    execute(frame)
    for i in range(D):
        d = &frame.run.direction[i]
        if plan.rows == 0:                                      # nobody summed anything
            memset(d.grad_w_ih, 0, row * l.inputs)
            memset(d.grad_w_hh, 0, row * l.H)
        a = gradients[i][4]
        state_out(l, plan.order, plan.B, d.d_h, <char *>np.PyArray_DATA(a))
        if l.cell.states == 2:
            a = gradients[i][5]
            state_out(l, plan.order, plan.B, d.d_c, <char *>np.PyArray_DATA(a))
    frame.owners.clear()
    return dx, tuple(gradients)


include "step.pxi"          # a step by whoever is there
include "stream.pxi"        # streams of such steps


# ---------------------------------------------------------------------------------------------------------------
# Which instruction set, how many threads

cdef const tiles_t *ACTIVE = NULL
cdef int THREADS = 1


def available_isas():
    """Instruction sets that run on this CPU, best first."""
    cdef int i = 0
    found = []
    while cpu_isa(i) != NULL:
        found.append(cpu_isa(i).decode())
        i += 1
    return tuple(found)


def isa():
    """The instruction set in force for calls and for weights packed from now on."""
    return ACTIVE.isa.decode()


def set_isa(str name):
    """Force an instruction set by name."""
    global ACTIVE
    cdef const tiles_t *found = cpu_tiles(name.encode(errors="replace"))
    if found == NULL:
        raise ValueError(f"expected an instruction set of this CPU, {', '.join(available_isas())}, got {name!r}")
    ACTIVE = found


def team():
    """Addresses of team_acquire, team_run, team_release and team_asleep, for the functions of another compiler."""
    return <size_t>&team_acquire, <size_t>&team_run, <size_t>&team_release, <size_t>&team_asleep


def get_num_threads():
    """Threads of one call, the caller's among them."""
    return THREADS


def set_num_threads(n):
    """Set the threads of one call, 1 to 256."""
    global THREADS
    if not 1 <= n <= TEAM_MOST:
        raise ValueError(f"expected 1 to {TEAM_MOST} threads, got {n}")
    THREADS = n


def compiler():
    """The compiler that built this module."""
    return cpu_compiler().decode()


include "probe.pxi"


cdef int choose_isa() except -1:
    """FUSEDRNN_ISA, or the best one; an empty one counts as none."""
    try:
        set_isa(os.environ.get("FUSEDRNN_ISA") or available_isas()[0])
    except ValueError as error:
        raise ValueError(f"FUSEDRNN_ISA: {error}") from None
    return 0


near(own_cache())
choose_isa()
set_num_threads(at_first())
