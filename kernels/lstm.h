/* LSTM with forget gate (Hochreiter and Schmidhuber 1997; Gers, Schmidhuber and Cummins 2000), pointwise forward and
 * backward; steps (L*) of docs/math.md, those of the products excepted.
 * Gate row: [i f g o], pre-activations in, activations on the tape, gradients of the pre-activations at last.
 */

/* h = o * tanh(c) comes a turn late, beside the gates of the next vector: else its chain of operations would begin where
 * theirs ends, and what a core looks ahead is not long enough for the next ones to begin meanwhile. */
static void N(lstm_forward)(const pointwise_t *p) {
    const ptrdiff_t S = p->stride;
    N(vec) o_before = N(all)(0), c_before = o_before;
    REAL nowhere[LANES], *h = nowhere; /* always written: behind a condition the operations would not be side by side */
    ptrdiff_t left = LANES;
    for (ptrdiff_t j = 0; j < p->rows; j++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            REAL *gate = (REAL *)p->gates[j] + u;
            N(vec) a[5] = {N(load)(gate), N(load)(gate + S), N(load)(gate + 3 * S), N(load)(gate + 2 * S), c_before};
            N(activate)(3, 5, a); /* L3, L4, L6, L5, L8 */
            const N(vec) i = a[0], f = a[1], o = a[2], g = a[3];
            const N(vec) c = N(fma)(f, N(load)((const REAL *)p->c_prev[j] + u), i * g); /* L7 */
            N(store)((REAL *)p->c[j] + u, c);
            N(store_upto)(h, o_before * a[4], left); /* L9 */
            if (p->training) {
                N(store)(gate, i);
                N(store)(gate + S, f);
                N(store)(gate + 2 * S, g);
                N(store)(gate + 3 * S, o);
            }
            o_before = o;
            c_before = c;
            h = (REAL *)p->h[j] + u;
            left = p->last - u;
        }
    N(store_upto)(h, o_before * N(tanh)(c_before), left); /* L8, L9 of the last one */
}

INLINE void N(lstm_backward_at)(const pointwise_t *p, ptrdiff_t j, ptrdiff_t u) {
    const ptrdiff_t S = p->stride;
    REAL *gate = (REAL *)p->gates[j] + u;
    const N(vec) i = N(load)(gate), f = N(load)(gate + S), g = N(load)(gate + 2 * S), o = N(load)(gate + 3 * S);
    const N(vec) c_prev = N(load)((const REAL *)p->c_prev[j] + u);
    const N(vec) k = N(tanh)(N(load)((const REAL *)p->c[j] + u)); /* L8 */
    N(vec) dh = N(load)((REAL *)p->dh[j] + u);
    if (p->dy) dh += N(load_upto)((const REAL *)p->dy[j] + u, p->last - u);     /* T2 */
    const N(vec) dc = N(fma)(dh * o, 1 - k * k, N(load)((REAL *)p->dc[j] + u)); /* L9' dk, L8' */
    N(store)(gate, dc * g * (i * (1 - i)));                                     /* L7' di, L3' */
    N(store)(gate + S, dc * c_prev * (f * (1 - f)));                            /* L7' df, L4' */
    N(store)(gate + 2 * S, dc * i * (1 - g * g));                               /* L7' dg, L5' */
    N(store)(gate + 3 * S, dh * k * (o * (1 - o)));                             /* L9' do, L6' */
    N(store)((REAL *)p->dc[j] + u, dc * f);                                     /* L7' dc_prev */
    N(store)((REAL *)p->dh[j] + u, N(all)(0));                                  /* L2' adds all of dh_prev */
}
BACKWARD(lstm_backward, 4, c_prev)
