"""Vanilla RNN (Elman 1990), pointwise forward and backward; steps (R*) of docs/math.md, those of the products excepted.
The twin of kernels/rnn.h, which says what a gate row holds.
"""

from fusedrnn.numba.activations import tanh
from fusedrnn.numba.jit import inner
from fusedrnn.numba.machine import at, get
from fusedrnn.numba.tile import POINTWISE, fetch_ahead
from fusedrnn.numba.vec import lanes, load, load_upto, positive_part, store, store_upto, zeros

__all__ = ["rnn_relu_backward", "rnn_relu_forward", "rnn_tanh_backward", "rnn_tanh_forward"]


@inner
def rnn_forward(p, relu, like):
    q = at(p, POINTWISE)
    L, first, last = lanes(like), q.first, q.last
    for j in range(q.rows):
        gate, h = get(q.gates, j), get(q.h, j)
        for u in range(first, last, L):
            a_s = load(gate, u, like)
            store_upto(h, u, positive_part(a_s, a_s) if relu else tanh(a_s), last - u)  # R3, A3 or A2


@inner
def rnn_backward(p, relu, like):
    q = at(p, POINTWISE)
    L, first, last = lanes(like), q.first, q.last
    for j in range(q.rows):
        gate, dh_row = get(q.gates, j), get(q.dh, j)
        for u in range(first, last, L):
            fetch_ahead(q, q.h, j, u, 1, like)
            h = load_upto(get(q.h, j), u, last - u, like)
            dh = load(dh_row, u, like)
            if q.dy:
                dh = dh + load_upto(get(q.dy, j), u, last - u, like)  # T2
            store(gate, u, positive_part(h, dh) if relu else dh * (1 - h * h))  # R3', A3' or A2'
            store(dh_row, u, zeros(like))  # R2' adds all of dh_prev


@inner
def rnn_tanh_forward(p, like):
    rnn_forward(p, False, like)


@inner
def rnn_tanh_backward(p, like):
    rnn_backward(p, False, like)


@inner
def rnn_relu_forward(p, like):
    rnn_forward(p, True, like)


@inner
def rnn_relu_backward(p, like):
    rnn_backward(p, True, like)
