/* GRU, pointwise forward and backward, in both forms. Gate row: [n r z q], so that the segments of W_ih (n r z) and
 * those of W_hh (r z q) are neighbours.
 *   gru               q = U_n h + c_n,  n = tanh(W_n x + b_n + r*q)                  (PyTorch's, "reset after")
 *   gru_reset_before  q = r*h,          n = tanh(W_n x + b_n + U_n q + c_n)          (Cho et al. 2014), two stages a step
 *   both              h' = (1 - z)*n + z*h
 */

static void N(gru_forward)(const pointwise_t *p) {
    const ptrdiff_t S = p->stride;
    for (ptrdiff_t k = 0; k < p->rows; k++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            REAL *gate = (REAL *)p->gates[k] + u;
            const N(vec) r = N(sigmoid)(N(load)(gate + S));
            const N(vec) z = N(sigmoid)(N(load)(gate + 2 * S));
            const N(vec) n = N(tanh)(N(fma)(r, N(load)(gate + 3 * S), N(load)(gate)));
            const N(vec) h = N(load_upto)((const REAL *)p->h_prev[k] + u, p->last - u);
            N(store_upto)((REAL *)p->h[k] + u, N(fma)(z, h, (1 - z) * n), p->last - u);
            if (p->training) {
                N(store)(gate, n);
                N(store)(gate + S, r);
                N(store)(gate + 2 * S, z);
            }
        }
}

static void N(gru_backward)(const pointwise_t *p) {
    const ptrdiff_t S = p->stride;
    for (ptrdiff_t k = 0; k < p->rows; k++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            REAL *gate = (REAL *)p->gates[k] + u;
            const N(vec) n = N(load)(gate), r = N(load)(gate + S), z = N(load)(gate + 2 * S), q = N(load)(gate + 3 * S);
            const N(vec) h = N(load_upto)((const REAL *)p->h_prev[k] + u, p->last - u);
            N(vec) dh = N(load)((REAL *)p->dh[k] + u);
            if (p->dy) dh += N(load_upto)((const REAL *)p->dy[k] + u, p->last - u);
            const N(vec) dn = dh * (1 - z) * (1 - n * n);
            N(store)(gate, dn);
            N(store)(gate + S, dn * q * (r * (1 - r)));
            N(store)(gate + 2 * S, dh * (h - n) * (z * (1 - z)));
            N(store)(gate + 3 * S, dn * r);
            N(store)((REAL *)p->dh[k] + u, dh * z);
        }
}

/* Stage 0: r, z and q = r*h. */
static void N(gru_before_forward_0)(const pointwise_t *p) {
    const ptrdiff_t S = p->stride;
    for (ptrdiff_t k = 0; k < p->rows; k++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            REAL *gate = (REAL *)p->gates[k] + u;
            const N(vec) r = N(sigmoid)(N(load)(gate + S));
            N(store)(gate + S, r);
            N(store)(gate + 2 * S, N(sigmoid)(N(load)(gate + 2 * S)));
            N(store)(gate + 3 * S, r * N(load_upto)((const REAL *)p->h_prev[k] + u, p->last - u));
        }
}

/* Stage 1: n and h'. */
static void N(gru_before_forward_1)(const pointwise_t *p) {
    const ptrdiff_t S = p->stride;
    for (ptrdiff_t k = 0; k < p->rows; k++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            REAL *gate = (REAL *)p->gates[k] + u;
            const N(vec) n = N(tanh)(N(load)(gate)), z = N(load)(gate + 2 * S);
            const N(vec) h = N(load_upto)((const REAL *)p->h_prev[k] + u, p->last - u);
            N(store_upto)((REAL *)p->h[k] + u, N(fma)(z, h, (1 - z) * n), p->last - u);
            N(store)(gate, n);
        }
}

/* Stage 0: dn, dz and the direct share of dh. */
static void N(gru_before_backward_0)(const pointwise_t *p) {
    const ptrdiff_t S = p->stride;
    for (ptrdiff_t k = 0; k < p->rows; k++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            REAL *gate = (REAL *)p->gates[k] + u;
            const N(vec) n = N(load)(gate), z = N(load)(gate + 2 * S);
            const N(vec) h = N(load_upto)((const REAL *)p->h_prev[k] + u, p->last - u);
            N(vec) dh = N(load)((REAL *)p->dh[k] + u);
            if (p->dy) dh += N(load_upto)((const REAL *)p->dy[k] + u, p->last - u);
            N(store)(gate, dh * (1 - z) * (1 - n * n));
            N(store)(gate + 2 * S, dh * (h - n) * (z * (1 - z)));
            N(store)((REAL *)p->dh[k] + u, dh * z);
        }
}

/* Stage 1: from dq = dn U_n, dr and the share of dh that came through r*h. */
static void N(gru_before_backward_1)(const pointwise_t *p) {
    const ptrdiff_t S = p->stride;
    for (ptrdiff_t k = 0; k < p->rows; k++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            REAL *gate = (REAL *)p->gates[k] + u;
            const N(vec) r = N(load)(gate + S), dq = N(load)((REAL *)p->drh[k] + u);
            const N(vec) h = N(load_upto)((const REAL *)p->h_prev[k] + u, p->last - u);
            N(store)(gate + S, dq * h * (r * (1 - r)));
            N(store)((REAL *)p->dh[k] + u, N(fma)(dq, r, N(load)((REAL *)p->dh[k] + u)));
        }
}
