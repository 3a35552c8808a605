# What a cell is to the loop. A gate row has `segments` segments of H (padded): its pre-activations going in, the
# tape after the forward pass, the gradients of the pre-activations after the backward pass.

from tiles cimport CELLS, GRU, GRU_RESET_BEFORE, LSTM, RNN_RELU, RNN_TANH


cdef struct Share:
    # A product within the cell: which gates (rows of W) and which segments of the gate row take part.
    int gates               # 0: no such product
    int gate[4]             # forward: which gate vector v of a panel is. backward: whose rows of W come in turn
    int segment             # first segment written (forward) or read (backward)


cdef struct Cell:
    int gates               # G, as PyTorch counts
    int segments            # of a gate row
    int stages              # products and pointwise parts a step
    int states              # 2 with c, else 1
    Share x                 # x W_ih -> gate row
    Share h[2]              # h W_hh -> gate row, by stage
    int source[2]           # left operand of h[stage]: -1 is h, otherwise a segment of the gate row
    Share dh[2]             # gate row -> dh, by backward stage
    int of_x[4]             # segment that holds the gradient of gate g as W_ih sees it
    int of_h[4]             # ... and as W_hh sees it
    int right[4]            # right operand of dW_hh of gate g: -1 is h_prev, otherwise a segment
    int plain               # the segment of h W_hh alone, without a share of x; -1: none

cdef Cell[CELLS] CELL
cdef dict CELL_NUMBER = {
    "rnn_tanh": RNN_TANH, "rnn_relu": RNN_RELU, "lstm": LSTM, "gru": GRU, "gru_reset_before": GRU_RESET_BEFORE,
}


cdef Share share(gates, int segment):
    cdef Share s
    memset(&s, 0, sizeof(s))
    s.gates = len(gates)
    s.segment = segment
    for v, g in enumerate(gates):
        s.gate[v] = g
    return s


cdef void describe(int kind, int segments, list stages, Share x, of_x, of_h, right, int plain=-1, int states=1):
    cdef Cell *c = &CELL[kind]
    memset(c, 0, sizeof(Cell))
    c.gates = x.gates
    c.segments = segments
    c.stages = len(stages)
    c.states = states
    c.plain = plain
    c.x = x
    for s, (forward_gates, forward_segment, source, backward_gates, backward_segment) in enumerate(stages):
        c.h[s] = share(forward_gates, forward_segment)
        c.source[s] = source
        c.dh[s] = share(backward_gates, backward_segment)
    for g in range(c.gates):
        c.of_x[g] = of_x[g]
        c.of_h[g] = of_h[g]
        c.right[g] = right[g]


# kind, segments, stages (h W_hh: gates -> segment, operand; dh: gates <- segment), x W_ih, segments of the gradients
describe(RNN_TANH, 1, [([0], 0, -1, [0], 0)], share([0], 0), [0], [0], [-1])
describe(RNN_RELU, 1, [([0], 0, -1, [0], 0)], share([0], 0), [0], [0], [-1])
describe(LSTM, 4, [([0, 1, 2, 3], 0, -1, [0, 1, 2, 3], 0)], share([0, 1, 2, 3], 0),
         [0, 1, 2, 3], [0, 1, 2, 3], [-1] * 4, -1, 2)
describe(GRU, 4, [([0, 1, 2], 1, -1, [0, 1, 2], 1)], share([2, 0, 1], 0), [1, 2, 0], [1, 2, 3], [-1] * 3, 3)
describe(GRU_RESET_BEFORE, 4, [([0, 1], 1, -1, [0, 1], 1), ([2], 0, 3, [2], 0)], share([2, 0, 1], 0),
         [1, 2, 0], [1, 2, 0], [-1, -1, 3])
