/* Vanilla RNN (Elman 1990), pointwise forward and backward; steps (R*) of docs/math.md, those of the products excepted.
 * Gate row: [p], p = a + s going in and dp = da = ds at last; in between h itself, in y, is the tape.
 */

/* Units [u, u + L) of two rows at a time: beside a chain of operations that wait for each other there is time for another. */
INLINE void N(rnn_tanh_forward_rows)(const pointwise_t *p, const int rows, ptrdiff_t j, ptrdiff_t u) {
    N(vec) h[2];
    EACH(0, rows) h[i] = N(load)((REAL *)p->gates[j + i] + u);
    N(activate)(0, rows, h);                                                 /* A2 */
    EACH(0, rows) N(store_upto)((REAL *)p->h[j + i] + u, h[i], p->last - u); /* R3 */
}

static void N(rnn_tanh_forward)(const pointwise_t *p) {
    ptrdiff_t j = 0;
    for (; j + 2 <= p->rows; j += 2)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) N(rnn_tanh_forward_rows)(p, 2, j, u);
    for (ptrdiff_t u = p->first; j < p->rows && u < p->last; u += LANES) N(rnn_tanh_forward_rows)(p, 1, j, u);
}

static void N(rnn_relu_forward)(const pointwise_t *p) {
    for (ptrdiff_t j = 0; j < p->rows; j++)
        for (ptrdiff_t u = p->first; u < p->last; u += LANES) {
            const N(vec) a_s = N(load)((REAL *)p->gates[j] + u);
            const N(vec) h = (N(vec))((N(bits))a_s & ~(N(bits))(a_s <= 0)); /* A3: a NaN stays, -0 becomes 0 */
            N(store_upto)((REAL *)p->h[j] + u, h, p->last - u);             /* R3 */
        }
}

/* R3' with the slope written in h */
#define RNN_BACKWARD(NAME, DP)                                                                                         \
    INLINE void N(NAME##_at)(const pointwise_t *p, ptrdiff_t j, ptrdiff_t u) {                                         \
        const N(vec) h = N(load_upto)((REAL *)p->h[j] + u, p->last - u);                                               \
        N(vec) dh = N(load)((REAL *)p->dh[j] + u);                                                                     \
        if (p->dy) dh += N(load_upto)((const REAL *)p->dy[j] + u, p->last - u); /* T2 */                               \
        N(store)((REAL *)p->gates[j] + u, DP);                                  /* R3' */                              \
        N(store)((REAL *)p->dh[j] + u, N(all)(0));                              /* R2' adds all of dh_prev */          \
    }                                                                                                                  \
    BACKWARD(NAME, 1, h)
RNN_BACKWARD(rnn_tanh_backward, dh * (1 - h * h))                           /* A2' */
RNN_BACKWARD(rnn_relu_backward, (N(vec))((N(bits))dh & ~(N(bits))(h <= 0))) /* A3': a NaN lets its gradient pass */

#undef RNN_BACKWARD
