/* GRU, pointwise forward and backward, in both forms; steps (G*) and (C*) of docs/math.md, those of the products
 * excepted. Gate row: [n r z q], so that the segments of W (n r z) and those of U (r z q) are neighbours.
 *   gru               q = U_n h_prev + v_n,  n = tanh(W_n x + b_n + r * q)       (PyTorch's, "reset after")
 *   gru_reset_before  q = r * h_prev,        n = tanh(W_n x + b_n + U_n q + v_n)  (Cho et al. 2014), two stages a step
 *   both              h = (1 - z) * n + z * h_prev
 */

/* n and h come a turn late, as LSTM's h does: n waits for r. */
static void N(gru_forward)(const pointwise_t *p) {
    const ptrdiff_t S = p->stride;
    REAL nowhere[LANES] = {0}, *tape = nowhere, *h = nowhere;
    const REAL *h_prev = nowhere;
    N(vec) z_before = N(all)(0), sum_before = z_before;
    ptrdiff_t left = LANES;
    for (ptrdiff_t j = 0; j < p->rows; j++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            REAL *gate = (REAL *)p->gates[j] + u;
            N(vec) a[3] = {N(load)(gate + S), N(load)(gate + 2 * S), sum_before};
            N(activate)(2, 3, a); /* G3, G4, G5 */
            const N(vec) r = a[0], z = a[1], n = a[2];
            N(store_upto)(h, N(fma)(z_before, N(load_upto)(h_prev, left), (1 - z_before) * n), left); /* G6 */
            sum_before = N(fma)(r, N(load)(gate + 3 * S), N(load)(gate));
            if (p->training) {
                N(store)(tape, n);
                N(store)(gate + S, r);
                N(store)(gate + 2 * S, z);
            }
            z_before = z;
            tape = gate;
            h_prev = (const REAL *)p->h_prev[j] + u;
            h = (REAL *)p->h[j] + u;
            left = p->last - u;
        }
    const N(vec) n = N(tanh)(sum_before); /* G5, G6 of the last one */
    N(store_upto)(h, N(fma)(z_before, N(load_upto)(h_prev, left), (1 - z_before) * n), left);
    if (p->training) N(store)(tape, n);
}

INLINE void N(gru_backward_at)(const pointwise_t *p, ptrdiff_t j, ptrdiff_t u) {
    const ptrdiff_t S = p->stride;
    REAL *gate = (REAL *)p->gates[j] + u;
    const N(vec) n = N(load)(gate), r = N(load)(gate + S), z = N(load)(gate + 2 * S), q = N(load)(gate + 3 * S);
    const N(vec) h_prev = N(load_upto)((const REAL *)p->h_prev[j] + u, p->last - u);
    N(vec) dh = N(load)((REAL *)p->dh[j] + u);
    if (p->dy) dh += N(load_upto)((const REAL *)p->dy[j] + u, p->last - u); /* T2 */
    const N(vec) dp_n = dh * (1 - z) * (1 - n * n);                         /* G6' dn, G5' */
    N(store)(gate, dp_n);
    N(store)(gate + S, dp_n * q * (r * (1 - r)));              /* G5' dr, G3' */
    N(store)(gate + 2 * S, dh * (h_prev - n) * (z * (1 - z))); /* G6' dz, G4' */
    N(store)(gate + 3 * S, dp_n * r);                          /* G5' dq */
    N(store)((REAL *)p->dh[j] + u, dh * z);                    /* G6' dh_prev; G2' adds to it */
}
BACKWARD(gru_backward, 4, h_prev)

/* Stage 0, before the product (C5): r, z and q. */
static void N(gru_before_forward_0)(const pointwise_t *p) {
    const ptrdiff_t S = p->stride;
    for (ptrdiff_t j = 0; j < p->rows; j++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            REAL *gate = (REAL *)p->gates[j] + u;
            N(vec) a[2] = {N(load)(gate + S), N(load)(gate + 2 * S)};
            N(activate)(2, 2, a); /* C3, C6 */
            N(store)(gate + S, a[0]);
            N(store)(gate + 2 * S, a[1]);
            N(store)(gate + 3 * S, a[0] * N(load_upto)((const REAL *)p->h_prev[j] + u, p->last - u)); /* C4 */
        }
}

/* Stage 1, after it: n and h. */
static void N(gru_before_forward_1)(const pointwise_t *p) {
    const ptrdiff_t S = p->stride;
    for (ptrdiff_t j = 0; j < p->rows; j++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            REAL *gate = (REAL *)p->gates[j] + u;
            const N(vec) n = N(tanh)(N(load)(gate)), z = N(load)(gate + 2 * S); /* C7 */
            const N(vec) h_prev = N(load_upto)((const REAL *)p->h_prev[j] + u, p->last - u);
            N(store_upto)((REAL *)p->h[j] + u, N(fma)(z, h_prev, (1 - z) * n), p->last - u); /* C8 */
            N(store)(gate, n);
        }
}

/* Stage 0, before the product (C5'): dp_n, dp_z and the direct share of dh_prev. */
INLINE void N(gru_before_backward_0_at)(const pointwise_t *p, ptrdiff_t j, ptrdiff_t u) {
    const ptrdiff_t S = p->stride;
    REAL *gate = (REAL *)p->gates[j] + u;
    const N(vec) n = N(load)(gate), z = N(load)(gate + 2 * S);
    const N(vec) h_prev = N(load_upto)((const REAL *)p->h_prev[j] + u, p->last - u);
    N(vec) dh = N(load)((REAL *)p->dh[j] + u);
    if (p->dy) dh += N(load_upto)((const REAL *)p->dy[j] + u, p->last - u); /* T2 */
    N(store)(gate, dh * (1 - z) * (1 - n * n));                             /* C8' dn, C7' */
    N(store)(gate + 2 * S, dh * (h_prev - n) * (z * (1 - z)));              /* C8' dz, C6' */
    N(store)((REAL *)p->dh[j] + u, dh * z);                                 /* C8' dh_prev */
}
BACKWARD(gru_before_backward_0, 4, h_prev)

/* Stage 1, after it: from dq, dp_r and the share of dh_prev that came through q. */
INLINE void N(gru_before_backward_1_at)(const pointwise_t *p, ptrdiff_t j, ptrdiff_t u) {
    const ptrdiff_t S = p->stride;
    REAL *gate = (REAL *)p->gates[j] + u;
    const N(vec) r = N(load)(gate + S), dq = N(load)((REAL *)p->dq[j] + u);
    const N(vec) h_prev = N(load_upto)((const REAL *)p->h_prev[j] + u, p->last - u);
    N(store)(gate + S, dq * h_prev * (r * (1 - r)));                              /* C4' dr, C3' */
    N(store)((REAL *)p->dh[j] + u, N(fma)(dq, r, N(load)((REAL *)p->dh[j] + u))); /* C4' dh_prev; C2' adds to it */
}
BACKWARD(gru_before_backward_1, 4, h_prev)
