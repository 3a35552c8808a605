/* LSTM with forget gate (Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000), pointwise forward and
 * backward. Gate row: [i f g o], pre-activations in, activations on the tape, gradients of the pre-activations at last.
 */

static void N(lstm_forward)(const pointwise_t *p) {
    const ptrdiff_t S = p->stride;
    for (ptrdiff_t r = 0; r < p->rows; r++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            REAL *gate = (REAL *)p->gates[r] + u;
            const N(vec) i = N(sigmoid)(N(load)(gate));
            const N(vec) f = N(sigmoid)(N(load)(gate + S));
            const N(vec) g = N(tanh)(N(load)(gate + 2 * S));
            const N(vec) o = N(sigmoid)(N(load)(gate + 3 * S));
            const N(vec) c = N(fma)(f, N(load)((const REAL *)p->c_prev[r] + u), i * g);
            N(store)((REAL *)p->c[r] + u, c);
            N(store_upto)((REAL *)p->h[r] + u, o * N(tanh)(c), p->last - u);
            if (p->training) {
                N(store)(gate, i);
                N(store)(gate + S, f);
                N(store)(gate + 2 * S, g);
                N(store)(gate + 3 * S, o);
            }
        }
}

static void N(lstm_backward)(const pointwise_t *p) {
    const ptrdiff_t S = p->stride;
    for (ptrdiff_t r = 0; r < p->rows; r++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            REAL *gate = (REAL *)p->gates[r] + u;
            const N(vec) i = N(load)(gate), f = N(load)(gate + S), g = N(load)(gate + 2 * S), o = N(load)(gate + 3 * S);
            const N(vec) c_prev = N(load)((const REAL *)p->c_prev[r] + u);
            const N(vec) t = N(tanh)(N(load)((const REAL *)p->c[r] + u));
            N(vec) dh = N(load)((REAL *)p->dh[r] + u);
            if (p->dy) dh += N(load_upto)((const REAL *)p->dy[r] + u, p->last - u);
            const N(vec) dc = N(fma)(dh * o, 1 - t * t, N(load)((REAL *)p->dc[r] + u));
            N(store)(gate, dc * g * (i * (1 - i)));
            N(store)(gate + S, dc * c_prev * (f * (1 - f)));
            N(store)(gate + 2 * S, dc * i * (1 - g * g));
            N(store)(gate + 3 * S, dh * t * (o * (1 - o)));
            N(store)((REAL *)p->dc[r] + u, dc * f);
            N(store)((REAL *)p->dh[r] + u, N(all)(0));
        }
}
