# AN OPEN STEP: a step of one layer, stage by stage, each cut into blocks that whoever is there may take. Helpers
# come when they have a CPU, and what one holds that has lost it again the caller makes anew. Whether they are called at
# all is tried now and then.
#
# A block is some units of some rows, from the products to the end of the pointwise part, so there is nothing to meet
# for in between. A helper makes it aside, in memory of its own, and delivers it only if the block is still its own by
# then; whatever a helper left behind reads that has been overwritten meanwhile, its results are dropped.

from tiles cimport (
    BLOCK_DONE, BLOCK_FREE, BLOCK_HELD, BLOCK_KEPT, block_change, block_is, block_line, block_set, epoch_begin,
    epoch_now, fp_flush_denormals, team_close, team_offer, team_open, team_quiet,
)


cdef struct Step:
    Run *run                    # of one direction with one step
    int size                    # ranks that may come, the caller among them
    unsigned long epoch         # stages so far: of all that helpers read, written last
    int stage
    bint backwards              # every other step goes through the blocks the other way: what is still in cache first
    char *x                     # [B][x_b bytes], a copy: the caller's array may be gone before its last reader
    Py_ssize_t x_b
    char *gates                 # [B] gate rows, which the first of two stages leaves to the second
    Py_ssize_t strips, parts    # blocks = strips of units x parts of the batch, ...
    bint by_part                # ... part by part, or strip by strip
    Py_ssize_t blocks
    Py_ssize_t pieces, piece    # all units are so many pieces of so many vectors: strips consist of whole ones
    Py_ssize_t units, rows      # of a block, at most; units in vectors
    Py_ssize_t stride           # of a segment of a block's gate rows, in elements
    char *bias                  # by strip, laid out like these rows
    block_line *block           # [blocks]
    char *own                   # per rank: row pointers, gate rows of a block, and a helper's h and c
    Py_ssize_t own_bytes
    bint streams                # the weights come from beyond L2


cdef struct Ways:
    # A step alone, cut into as few blocks as may be, and with helpers, by units or by rows, as the cost model has it or
    # the other way round: the one that was fastest when they were last tried.
    Step step[WAYS]
    int count
    int way                     # the one that steps are made by
    int other                   # the one that the next trial is of
    Py_ssize_t pause            # steps until then
    double period               # seconds from one to the next
    double since                # when the steps of a trial began that are made the way it is tried; 0: they have not
    int settling                # of these, not to be timed yet
    int timed                   # ... that were: first TRIED the other way, then as many as before
    int came                    # ... as before, in which somebody helped
    double seconds[2][TRIED]


cdef struct Block:
    # What a block is, and where a rank makes it. All rows as if they began with unit 0.
    Py_ssize_t strip
    Py_ssize_t first, last      # units, in vectors
    Py_ssize_t row, rows
    Py_ssize_t at, bytes        # of its units in a row of a state
    char *bias
    char *gates                 # rows of segments, `t.stride` apart
    char *h                     # rows `pitch` bytes apart
    char *c
    Py_ssize_t pitch


cdef Py_ssize_t largest_share(Py_ssize_t units, Py_ssize_t piece, int shares) noexcept nogil:
    """How many of the units fall to one of so many, where whole pieces do."""
    cdef Py_ssize_t pieces = (units + piece - 1) // piece, most = 0
    cdef int i
    for i in range(shares):
        most = max(most, min(part(pieces, i + 1, shares) * piece, units) - part(pieces, i, shares) * piece)
    return most


cdef inline Py_ssize_t strip_begin(Step *t, Py_ssize_t strip) noexcept nogil:
    """The first unit of a strip: those of a rank, and its strips among them, have all about as many."""
    return t.pieces * strip // t.strips * t.piece


cdef Block block_of(Step *t, Py_ssize_t which, int rank) noexcept nogil:
    cdef Layer *l = &t.run.direction[0].layer
    cdef Py_ssize_t size = l.tiles.itemsize, lanes = l.tiles.lanes
    cdef Py_ssize_t strip = which % t.strips if t.by_part else which // t.parts
    cdef Block b
    b.strip = strip
    b.first = strip_begin(t, strip)
    b.last = min(strip_begin(t, strip + 1), l.units)
    b.row = (which // t.strips if t.by_part else which % t.parts) * t.rows
    b.rows = min(t.rows, t.run.direction[0].B - b.row)
    b.at = b.first * lanes * size
    b.bytes = (b.last - b.first) * lanes * size
    b.bias = t.bias + strip * l.cell.segments * t.stride * size - b.at
    b.pitch = t.stride * size
    b.gates = t.own + rank * t.own_bytes + gate_rows_at(t) - b.at
    b.h = b.gates + t.rows * l.cell.segments * b.pitch
    b.c = b.h + t.rows * b.pitch
    return b


cdef Py_ssize_t first_block(Step *t, int rank, bint backwards) noexcept nogil:
    """Where a rank begins to ask: at the near end of its own share."""
    return max(0, part(t.blocks, rank + 1, t.size) - 1) if backwards else part(t.blocks, rank, t.size)


cdef inline Py_ssize_t next_block(Step *t, Py_ssize_t which, bint backwards) noexcept nogil:
    """The one that comes after, through all of them."""
    if backwards:
        return which - 1 if which > 0 else t.blocks - 1
    return which + 1 if which + 1 < t.blocks else 0


cdef void make_block(Step *t, Block *b, int rank, int stage, bint backwards, char *h0) noexcept nogil:
    """gates = x W_ih + bias, gates += operand W_hh, then the pointwise part: a stage of the time loop for a block."""
    cdef Direction *d = &t.run.direction[0]
    cdef Layer *l = &d.layer
    cdef Py_ssize_t size = l.tiles.itemsize, state = l.stride * size, segment = t.stride * size, i, v
    cdef Py_ssize_t plain = b.at + l.cell.plain * segment, source = l.cell.source[stage]
    cdef void **a = <void **>(t.own + rank * t.own_bytes)
    cdef void **gates = a + t.rows
    cdef void **h_prev = gates + t.rows
    cdef void **h = h_prev + t.rows
    cdef void **c_prev = h + t.rows
    cdef void **c = c_prev + t.rows
    cdef char *left
    cdef product_t p
    cdef pointwise_t q
    for i in range(b.rows):
        a[i] = t.x + (b.row + i) * t.x_b
        gates[i] = b.gates + i * l.cell.segments * segment
        h_prev[i] = h0 + (b.row + i) * state
        h[i] = b.h + i * b.pitch
        c_prev[i] = d.c0 + (b.row + i) * state
        c[i] = b.c + i * b.pitch
    if stage == 0:
        for i in range(b.rows if l.cell.plain >= 0 else 0):     # no share of x: starts from its own bias
            memcpy(<char *>gates[i] + plain, b.bias + plain, b.bytes)
        aim(t, b, &p, &l.x, &l.h[0], b.first)
        p.a = <const void **>a
        p.out = gates
        p.out_offset = l.cell.x.segment * t.stride
        p.init = b.bias
        l.tiles.product(&p)
    else:
        for i in range(b.rows):                                 # what the first stage has left
            left = t.gates + (b.row + i) * l.cell.segments * state
            for v in range(l.cell.segments):
                memcpy(<char *>gates[i] + v * segment + b.at, left + v * state + b.at, b.bytes)
            a[i] = left + source * state
    aim(t, b, &p, &l.h[stage], &l.x if stage == 0 else &l.h[stage],
        b.first if not t.by_part and t.parts > 1 else b.last if not backwards
        else strip_begin(t, b.strip - 1) if b.strip else -1)
    p.a = <const void **>(h_prev if source < 0 else a)
    p.out = gates
    p.out_offset = l.cell.h[stage].segment * t.stride
    p.accumulate = 1
    l.tiles.product(&p)
    memset(&q, 0, sizeof(q))
    q.rows = b.rows
    q.first = b.first * l.tiles.lanes
    q.last = min(b.last * l.tiles.lanes, l.H)
    q.stride = t.stride
    q.gates = gates
    q.h_prev = <const void **>h_prev
    q.h = h
    q.c_prev = <const void **>c_prev
    q.c = c
    l.tiles.forward[l.kind][stage](&q)


cdef void aim(Step *t, Block *b, product_t *p, Matrix *m, Matrix *then, Py_ssize_t unit) noexcept nogil:
    """A product of the block's columns of m; where panels come from beyond L2, `then`'s at that unit come next."""
    cdef const tiles_t *tiles = t.run.direction[0].layer.tiles
    cdef Py_ssize_t each = m.width if m.gated else 1
    aim_at(p, m, tiles)
    p.rows = b.rows
    p.first = b.first * each
    p.last = min(b.last * each, m.vectors)
    if m.gated:
        p.out_step = t.stride
        p.out_panel = tiles.lanes
    p.prefetch = t.streams and b.rows >= FEW_ROWS
    each = then.width if then.gated else 1
    if p.prefetch and 0 <= unit * each < then.vectors:
        p.next = then.data + unit * each * then.depth * tiles.lanes * tiles.itemsize


cdef void deliver(Step *t, Block *b, int stage, char *y) noexcept nogil:
    """A block that was made aside into its place: gate rows between two stages, h and c after the last one."""
    cdef Direction *d = &t.run.direction[0]
    cdef Layer *l = &d.layer
    cdef Py_ssize_t state = l.stride * l.tiles.itemsize, i, v
    for i in range(b.rows):
        if stage + 1 < l.cell.stages:
            for v in range(l.cell.segments):
                memcpy(t.gates + ((b.row + i) * l.cell.segments + v) * state + b.at,
                       b.gates + (i * l.cell.segments + v) * b.pitch + b.at, b.bytes)
            continue
        memcpy(y + (b.row + i) * state + b.at, b.h + i * b.pitch + b.at, b.bytes)
        if l.cell.states == 2:
            memcpy(d.c0 + (b.row + i) * state + b.at, b.c + i * b.pitch + b.at, b.bytes)


cdef Py_ssize_t gate_rows_at(Step *t) noexcept nogil:
    return rounded_up(6 * t.rows * <Py_ssize_t>sizeof(void *), 64)


cdef void help(void *arg, int rank) noexcept nogil:
    """A helper's share of whatever stage is going on."""
    cdef Step *t = <Step *>arg
    cdef unsigned long epoch = epoch_now(&t.epoch)              # before all else that changes from stage to stage
    cdef int stage = t.stage
    cdef bint backwards = t.backwards
    cdef char *h0 = t.run.direction[0].h0
    cdef char *y = t.run.direction[0].y
    cdef Py_ssize_t which = first_block(t, rank, backwards), _
    cdef Block b
    for _ in range(t.blocks):
        if block_change(&t.block[which], epoch, BLOCK_FREE, BLOCK_HELD):
            b = block_of(t, which, rank)
            make_block(t, &b, rank, stage, backwards, h0)
            if not block_change(&t.block[which], epoch, BLOCK_HELD, BLOCK_KEPT):
                return                                          # the caller has been waiting too long
            deliver(t, &b, stage, y)
            block_set(&t.block[which], epoch, BLOCK_DONE)
        which = next_block(t, which, backwards)


cdef void own_block(Step *t, Py_ssize_t which) noexcept nogil:
    """One block by the caller, who puts h and c where they belong at once."""
    cdef Run *run = t.run
    cdef Direction *d = &run.direction[0]
    cdef Layer *l = &d.layer
    cdef Block b = block_of(t, which, 0)
    cdef bint last = t.stage + 1 == l.cell.stages
    if last:
        b.pitch = l.stride * l.tiles.itemsize
        b.h = d.y + b.row * b.pitch
        b.c = d.c0 + b.row * b.pitch
    make_block(t, &b, 0, t.stage, t.backwards, d.h0)
    if not last:
        deliver(t, &b, t.stage, d.y)
    run.work += <double>b.rows * (b.last - b.first) * l.tiles.lanes * l.cell.gates * (l.H + l.inputs)
    if run.work > SIGNAL_WORK:
        look_for_signals(run)


cdef bint take_step(Step *t) noexcept nogil:
    """A step by the caller and whoever comes; whether somebody did. `run.interrupted` if it was not done."""
    cdef Run *run = t.run
    cdef Direction *d = &run.direction[0]
    cdef int size = team_open(t.size), stage
    cdef bint helped = False
    cdef Py_ssize_t i
    run.interrupted = False
    run.work = 0
    run.outside = fp_flush_denormals()
    for i in range(d.B):
        memcpy(t.x + i * t.x_b, d.x + i * d.x_b, t.x_b)
    t.backwards = not t.backwards
    for stage in range(d.layer.cell.stages):
        t.stage = stage
        if open_stage(t, size):
            helped = True
        if run.interrupted:
            break
    team_close(size)
    fp_restore(run.outside)
    return helped


cdef bint open_stage(Step *t, int size) noexcept nogil:
    """Whether a helper made a block."""
    cdef Run *run = t.run
    cdef Py_ssize_t i, which = first_block(t, 0, t.backwards), mine = 0
    cdef double began = cpu_seconds() if size > 1 else 0, deadline = 0
    epoch_begin(&t.epoch)
    for i in range(t.blocks):
        block_set(&t.block[i], t.epoch, BLOCK_FREE)
    team_offer(size, help, t)
    for i in range(t.blocks):
        if not run.interrupted and block_change(&t.block[which], t.epoch, BLOCK_FREE, BLOCK_DONE):
            own_block(t, which)
            mine += 1
            team_offer(size, help, t)
        which = next_block(t, which, t.backwards)
    for i in range(t.blocks):                                   # what is not done by now is held, or nobody's any more
        while not block_is(&t.block[i], t.epoch, BLOCK_DONE):
            if deadline == 0:                                   # a helper gets the time that one takes here
                deadline = cpu_seconds()
                deadline += (deadline - began) / max(1, mine)
            if run.interrupted:
                block_change(&t.block[i], t.epoch, BLOCK_FREE, BLOCK_DONE)
                block_change(&t.block[i], t.epoch, BLOCK_HELD, BLOCK_DONE)
            elif cpu_seconds() > deadline:
                if block_change(&t.block[i], t.epoch, BLOCK_HELD, BLOCK_DONE):
                    own_block(t, i)
                    mine += 1
                else:
                    sched_yield()                               # kept, by a helper that may need this CPU
    return mine < t.blocks


# ---------------------------------------------------------------------------------------------------------------
# Alone or with helpers. How long they take to come nobody can say beforehand: who is spinning still answers within a
# tenth of a microsecond, or a whole one, as CPUs are far from one another; who has fallen asleep since the last step
# takes fifty, and waking him costs the caller ten.


cdef void open_step(Ways *w) noexcept nogil:
    """A step by the way that was fastest, or one of a trial."""
    cdef Step *t = &w.step[w.way]
    if w.count == 1:
        take_step(t)
    elif w.pause == 0:
        try_step(w)
    elif take_step(t) or t.size == 1:
        w.pause -= 1
    else:
        w.pause //= 2                                           # nobody came: it may be time to do without


cdef void try_step(Ways *w) noexcept nogil:
    """One step of a trial: first some the other way, then as many as before, and by the faster one from then on."""
    cdef int turn = w.timed // TRIED
    cdef Step *other = &w.step[w.other]
    cdef Step *way = &w.step[w.way]
    cdef Step *t = way if turn else other
    cdef double began = cpu_seconds(), seconds, tried, before, worth
    cdef bint helped = take_step(t)
    seconds = cpu_seconds() - began
    if w.since == 0:
        w.since = began
        w.settling = SETTLED
    if turn == 0 and seconds > NO_QUESTION and (other.size == 1 or way.size == 1):
        end_trial(w, NO_QUESTION_TIMES * seconds, seconds)
    elif t.size > 1 and w.settling == SETTLED and not helped and began - w.since < AWAKE:
        pass                                                    # until they have woken up ...
    elif w.settling:
        w.settling -= 1                                         # ... and the weights are where this way wants them
    else:
        w.seconds[turn][w.timed % TRIED] = seconds
        w.timed += 1
        if helped:
            w.came += turn
        if w.timed == TRIED:
            w.since = 0
        elif w.timed == 2 * TRIED:
            tried = median(w.seconds[0])
            before = median(w.seconds[1])
            worth = WORTH_CHANGING
            if way.size > 1 and other.size > 1:
                worth = WORTH_DEALING
            elif way.size > 1 and w.came <= TRIED // 2:
                worth = WORTH_LEAVING
            if tried < worth * before:
                w.way = w.other
                end_trial(w, TRIED_AGAIN, tried)
            else:
                w.period = min(2 * w.period, TRIED_AT_LAST)
                end_trial(w, max(w.period, TRIAL_TIMES * (TRIED + SETTLED) * (tried - before)), before)


cdef void end_trial(Ways *w, double period, double step) noexcept nogil:
    """Steps of so many seconds until the next one, of the next way."""
    w.other = (w.other + 1) % w.count
    if w.other == w.way:
        w.other = (w.other + 1) % w.count
    w.period = min(period, TRIED_AT_LAST)
    w.pause = 1 + <Py_ssize_t>(period / max(step, 1e-8))
    w.since = 0
    w.timed = 0
    w.came = 0


cdef double median(double *a) noexcept nogil:
    """... of TRIED numbers, which it sorts."""
    cdef double x
    cdef int i, j
    for i in range(1, TRIED):
        x = a[i]
        j = i
        while j > 0 and a[j - 1] > x:
            a[j] = a[j - 1]
            j -= 1
        a[j] = x
    return a[TRIED // 2]


@cython.final
@cython.internal
@cython.no_gc       # all that it has is there until its end
cdef class OpenLayer:
    """A layer of a stream: its states, and the memory of its steps."""
    cdef Packed packed
    cdef Run run
    cdef Ways ways
    cdef Memory states          # two of h, which change places every step, and c
    cdef list memory            # of a step by each of the ways

    def __cinit__(self, Packed packed, Plan plan):
        cdef Direction *d = &self.run.direction[0]
        cdef Layer *l = &packed.layer
        cdef Py_ssize_t bytes
        memset(&self.run, 0, sizeof(Run))
        memset(&self.ways, 0, sizeof(Ways))
        self.packed = packed
        # Python integers in Memory's argument: a size that overflows is refused there
        self.states = Memory(<object>plan.B * l.stride * l.tiles.itemsize * (1 + l.cell.states))
        bytes = plan.B * l.stride * l.tiles.itemsize
        memset(self.states.data, 0, (1 + l.cell.states) * bytes)
        self.run.directions = 1
        d.layer = packed.layer
        d.steps = 1
        d.B = plan.B
        d.h0 = self.states.data
        d.y = d.h0 + bytes
        d.c0 = d.y + bytes

    def __dealloc__(self):
        with nogil:
            team_quiet()                                        # a helper left behind may still read what is freed next

    cdef int open(self, int threads) except -1:
        """Lay out the ways to make a step with up to so many ranks; team_quiet() first."""
        cdef Ways *w = &self.ways
        cdef Run *run = &self.run
        cdef Layer *l = &self.packed.layer
        cdef Py_ssize_t B = run.direction[0].B
        cdef bint helped
        w.count = 0
        self.memory = []
        divide_for(run, 1, False, False)
        self.cut()
        divide_for(run, threads, False, False)
        helped = run.size > 1
        if not helped and <double>B * l.cell.gates * l.H * (l.H + l.inputs) > TRIED_WORK:
            divide_for(run, threads, False, True)
        if run.size > 1:
            self.cut()
        if run.size > 1 and B >= max(FEW_ROWS, run.size) and l.units >= run.size:
            run.width = run.size if run.groups > 1 else 1
            run.groups = run.size // run.width
            self.cut()
        w.way = w.other = helped and w.count > 1                # to begin with
        end_trial(w, TRIED_AGAIN, 1)
        w.pause = TRIED_FIRST
        return 0

    cdef int cut(self) except -1:
        """One more way: cut a step into blocks as the run is divided, and carve out its memory. None where there would
        be but one block for helpers."""
        cdef Step *t = &self.ways.step[self.ways.count]
        cdef Direction *d = &self.run.direction[0]
        cdef Layer *l = &d.layer
        cdef Py_ssize_t pitch, state = l.stride * l.tiles.itemsize
        cdef Py_ssize_t panel = 1 if l.h[l.cell.stages - 1].gated else PANEL, even, fewer, at, bias, i, v
        cdef int size, shares
        cdef bint pairs, small
        cdef double bytes                                       # of the weights of a unit vector
        cdef Block b
        cdef Memory memory
        t.run = &self.run
        size = self.run.size
        shares = 1 if self.run.groups > 1 else size             # of the units
        bytes = <double>l.cell.gates * l.tiles.lanes * (l.H + l.inputs) * l.tiles.itemsize
        t.size = size
        t.streams = l.units * bytes > size * L2_RETURNS
        t.by_part = self.run.groups > 1
        t.parts = max((d.B + CHUNK - 1) // CHUNK, self.run.groups)
        t.rows = max(1, (d.B + t.parts - 1) // t.parts)
        t.parts = (d.B + t.rows - 1) // t.rows
        even = largest_share(l.units, panel, shares)
        pairs = t.rows < FEW_ROWS and largest_share(l.units, 2 * panel, shares) <= FAIR * even
        t.piece = 2 * panel if pairs else panel                 # one row takes two panels at a time
        t.pieces = (l.units + t.piece - 1) // t.piece
        t.strips = t.pieces
        while True:
            t.units = (t.pieces + t.strips - 1) // t.strips * t.piece
            fewer = ((t.strips + 1) // 2 + shares - 1) // shares * shares       # half of them, as many for every rank
            small = size == 1 or t.strips * t.parts > MOST_BLOCKS * size or (
                fewer * t.parts >= LEAST_BLOCKS * size
                and t.units * max(bytes / RATE_L2, t.rows * bytes / 4 / RATE_FMA) < LEAST_TIME
            )
            if fewer >= t.strips or not small or 2 * t.units * t.rows * bytes > SIGNAL_WORK * l.tiles.itemsize:
                break
            t.strips = fewer
        t.blocks = t.strips * t.parts
        if t.blocks == 1 and size > 1:
            return 0
        t.stride = padded(t.units * l.tiles.lanes, l.tiles.itemsize)
        pitch = t.stride * l.tiles.itemsize
        t.own_bytes = rounded_up(gate_rows_at(t) + t.rows * (l.cell.segments + l.cell.states) * pitch, 128)
        t.x_b = l.inputs * l.tiles.itemsize
        at = t.blocks * <Py_ssize_t>sizeof(block_line)
        bias = t.strips * l.cell.segments * pitch
        memory = Memory(at + bias + size * t.own_bytes + <object>d.B * t.x_b
                        + (<object>d.B * l.cell.segments * state if l.cell.stages > 1 else 0))
        t.block = <block_line *>memory.data
        t.bias = memory.data + at
        t.own = t.bias + bias
        t.gates = t.own + size * t.own_bytes
        t.x = t.gates + (d.B * l.cell.segments * state if l.cell.stages > 1 else 0)
        memset(t.block, 0, at + bias)
        for i in range(t.blocks):
            b = block_of(t, i, 0)
            for v in range(l.cell.segments):
                memcpy(b.bias + v * pitch + b.at, l.bias + v * state + b.at, b.bytes)
        self.memory.append(memory)
        self.ways.count += 1
        return 0
