"""LSTM with forget gate (Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000), pointwise forward and
backward; steps (L*) of docs/math.md, those of the products excepted. The twin of kernels/lstm.h, which says what a gate
row holds.
"""

from fusedrnn.numba.activations import sigmoid, tanh
from fusedrnn.numba.jit import inner
from fusedrnn.numba.machine import at, get
from fusedrnn.numba.tile import POINTWISE, fetch_ahead
from fusedrnn.numba.vec import fma, lanes, load, load_upto, store, store_upto, zeros

__all__ = ["lstm_backward", "lstm_forward"]


@inner
def lstm_forward(p, like):
    q = at(p, POINTWISE)
    L, S, first, last = lanes(like), q.stride, q.first, q.last
    for j in range(q.rows):
        gate, h_row, c_row, c_prev_row = get(q.gates, j), get(q.h, j), get(q.c, j), get(q.c_prev, j)
        for u in range(first, last, L):
            i = sigmoid(load(gate, u, like))  # L3
            f = sigmoid(load(gate, u + S, like))  # L4
            g = tanh(load(gate, u + 2 * S, like))  # L5
            o = sigmoid(load(gate, u + 3 * S, like))  # L6
            c = fma(f, load(c_prev_row, u, like), i * g)  # L7
            store(c_row, u, c)
            k = tanh(c)  # L8
            store_upto(h_row, u, o * k, last - u)  # L9
            if q.training:
                store(gate, u, i)
                store(gate, u + S, f)
                store(gate, u + 2 * S, g)
                store(gate, u + 3 * S, o)


@inner
def lstm_backward(p, like):
    q = at(p, POINTWISE)
    L, S, first, last = lanes(like), q.stride, q.first, q.last
    for j in range(q.rows):
        gate, dh_row, dc_row = get(q.gates, j), get(q.dh, j), get(q.dc, j)
        for u in range(first, last, L):
            fetch_ahead(q, q.c_prev, j, u, 4, like)
            i, f = load(gate, u, like), load(gate, u + S, like)
            g, o = load(gate, u + 2 * S, like), load(gate, u + 3 * S, like)
            c_prev = load(get(q.c_prev, j), u, like)
            k = tanh(load(get(q.c, j), u, like))  # L8
            dh = load(dh_row, u, like)
            if q.dy:
                dh = dh + load_upto(get(q.dy, j), u, last - u, like)  # T2
            dc = fma(dh * o, 1 - k * k, load(dc_row, u, like))  # L9' dk, L8'
            store(gate, u, dc * g * (i * (1 - i)))  # L7' di, L3'
            store(gate, u + S, dc * c_prev * (f * (1 - f)))  # L7' df, L4'
            store(gate, u + 2 * S, dc * i * (1 - g * g))  # L7' dg, L5'
            store(gate, u + 3 * S, dh * k * (o * (1 - o)))  # L9' do, L6'
            store(dc_row, u, dc * f)  # L7' dc_prev
            store(dh_row, u, zeros(like))  # L2' adds all of dh_prev
