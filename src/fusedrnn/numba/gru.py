"""GRU, pointwise forward and backward, in both forms; steps (G*) and (C*) of docs/math.md, those of the products
excepted. The twin of kernels/gru.h, which says what a gate row holds and how the forms differ.
"""

from fusedrnn.numba.activations import sigmoid, tanh
from fusedrnn.numba.jit import inner
from fusedrnn.numba.machine import at, get
from fusedrnn.numba.tile import POINTWISE, fetch_ahead
from fusedrnn.numba.vec import fma, lanes, load, load_upto, store, store_upto

__all__ = ["gru_backward", "gru_before_backward", "gru_before_forward", "gru_forward"]


@inner
def gru_forward(p, like):
    q = at(p, POINTWISE)
    L, S, first, last = lanes(like), q.stride, q.first, q.last
    for j in range(q.rows):
        gate, h_row, h_prev_row = get(q.gates, j), get(q.h, j), get(q.h_prev, j)
        for u in range(first, last, L):
            r = sigmoid(load(gate, u + S, like))  # G3
            z = sigmoid(load(gate, u + 2 * S, like))  # G4
            n = tanh(fma(r, load(gate, u + 3 * S, like), load(gate, u, like)))  # G5
            h_prev = load_upto(h_prev_row, u, last - u, like)
            store_upto(h_row, u, fma(z, h_prev, (1 - z) * n), last - u)  # G6
            if q.training:
                store(gate, u, n)
                store(gate, u + S, r)
                store(gate, u + 2 * S, z)


@inner
def gru_backward(p, like):
    q = at(p, POINTWISE)
    L, S, first, last = lanes(like), q.stride, q.first, q.last
    for j in range(q.rows):
        gate, dh_row = get(q.gates, j), get(q.dh, j)
        for u in range(first, last, L):
            fetch_ahead(q, q.h_prev, j, u, 4, like)
            n, r = load(gate, u, like), load(gate, u + S, like)
            z, s = load(gate, u + 2 * S, like), load(gate, u + 3 * S, like)
            h_prev = load_upto(get(q.h_prev, j), u, last - u, like)
            dh = load(dh_row, u, like)
            if q.dy:
                dh = dh + load_upto(get(q.dy, j), u, last - u, like)  # T2
            dp_n = dh * (1 - z) * (1 - n * n)  # G6' dn, G5'
            store(gate, u, dp_n)
            store(gate, u + S, dp_n * s * (r * (1 - r)))  # G5' dr, G3'
            store(gate, u + 2 * S, dh * (h_prev - n) * (z * (1 - z)))  # G6' dz, G4'
            store(gate, u + 3 * S, dp_n * r)  # G5' dq
            store(dh_row, u, dh * z)  # G6' dh_prev; G2' adds to it


@inner
def gru_before_forward_0(p, like):
    """Before the product (C5): r, z and q."""
    q = at(p, POINTWISE)
    L, S, first, last = lanes(like), q.stride, q.first, q.last
    for j in range(q.rows):
        gate, h_prev_row = get(q.gates, j), get(q.h_prev, j)
        for u in range(first, last, L):
            r = sigmoid(load(gate, u + S, like))  # C3
            store(gate, u + S, r)
            store(gate, u + 2 * S, sigmoid(load(gate, u + 2 * S, like)))  # C6
            store(gate, u + 3 * S, r * load_upto(h_prev_row, u, last - u, like))  # C4


@inner
def gru_before_forward_1(p, like):
    """After it: n and h."""
    q = at(p, POINTWISE)
    L, S, first, last = lanes(like), q.stride, q.first, q.last
    for j in range(q.rows):
        gate, h_row, h_prev_row = get(q.gates, j), get(q.h, j), get(q.h_prev, j)
        for u in range(first, last, L):
            n, z = tanh(load(gate, u, like)), load(gate, u + 2 * S, like)  # C7
            h_prev = load_upto(h_prev_row, u, last - u, like)
            store_upto(h_row, u, fma(z, h_prev, (1 - z) * n), last - u)  # C8
            store(gate, u, n)


@inner
def gru_before_backward_0(p, like):
    """Before the product (C5'): dp_n, dp_z and the direct share of dh_prev."""
    q = at(p, POINTWISE)
    L, S, first, last = lanes(like), q.stride, q.first, q.last
    for j in range(q.rows):
        gate, dh_row = get(q.gates, j), get(q.dh, j)
        for u in range(first, last, L):
            fetch_ahead(q, q.h_prev, j, u, 4, like)
            n, z = load(gate, u, like), load(gate, u + 2 * S, like)
            h_prev = load_upto(get(q.h_prev, j), u, last - u, like)
            dh = load(dh_row, u, like)
            if q.dy:
                dh = dh + load_upto(get(q.dy, j), u, last - u, like)  # T2
            store(gate, u, dh * (1 - z) * (1 - n * n))  # C8' dn, C7'
            store(gate, u + 2 * S, dh * (h_prev - n) * (z * (1 - z)))  # C8' dz, C6'
            store(dh_row, u, dh * z)  # C8' dh_prev


@inner
def gru_before_backward_1(p, like):
    """After it: from dq, dp_r and the share of dh_prev that came through q."""
    q = at(p, POINTWISE)
    L, S, first, last = lanes(like), q.stride, q.first, q.last
    for j in range(q.rows):
        gate, dh_row, dq_row = get(q.gates, j), get(q.dh, j), get(q.dq, j)
        for u in range(first, last, L):
            fetch_ahead(q, q.h_prev, j, u, 4, like)
            r, dq = load(gate, u + S, like), load(dq_row, u, like)
            h_prev = load_upto(get(q.h_prev, j), u, last - u, like)
            store(gate, u + S, dq * h_prev * (r * (1 - r)))  # C4' dr, C3'
            store(dh_row, u, fma(dq, r, load(dh_row, u, like)))  # C4' dh_prev; C2' adds to it


@inner
def gru_before_forward(p, like):
    if at(p, POINTWISE).stage == 0:
        gru_before_forward_0(p, like)
    else:
        gru_before_forward_1(p, like)


@inner
def gru_before_backward(p, like):
    if at(p, POINTWISE).stage == 0:
        gru_before_backward_0(p, like)
    else:
        gru_before_backward_1(p, like)
