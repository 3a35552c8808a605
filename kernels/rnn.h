/* Vanilla RNN (Elman 1990), pointwise forward and backward; steps (R*) of docs/math.md, those of the products excepted.
 * Gate row: [p], p = a + s going in and dp = da = ds at last; in between h itself, in y, is the tape.
 */

#define RNN_FORWARD(NAME, F)                                                                                           \
    static void N(NAME)(const pointwise_t *p) {                                                                        \
        for (ptrdiff_t j = 0; j < p->rows; j++)                                                                        \
            for (ptrdiff_t u = p->first; u < p->last; u += LANES) {                                                    \
                const N(vec) a_s = N(load)((REAL *)p->gates[j] + u);                                                   \
                N(store_upto)((REAL *)p->h[j] + u, F, p->last - u); /* R3 */                                           \
            }                                                                                                          \
    }
RNN_FORWARD(rnn_tanh_forward, N(tanh)(a_s)) /* A2 */
RNN_FORWARD(rnn_relu_forward,
            (N(vec))((N(bits))a_s & ~(N(bits))(a_s <= 0))) /* A3: a NaN stays, -0 becomes 0 everywhere */

/* R3' with the slope written in h */
#define RNN_BACKWARD(NAME, DP)                                                                                         \
    static void N(NAME)(const pointwise_t *p) {                                                                        \
        for (ptrdiff_t j = 0; j < p->rows; j++)                                                                        \
            for (ptrdiff_t u = p->first; u < p->last; u += LANES) {                                                    \
                const N(vec) h = N(load_upto)((REAL *)p->h[j] + u, p->last - u);                                       \
                N(vec) dh = N(load)((REAL *)p->dh[j] + u);                                                             \
                if (p->dy) dh += N(load_upto)((const REAL *)p->dy[j] + u, p->last - u); /* T2 */                       \
                N(store)((REAL *)p->gates[j] + u, DP);                                  /* R3' */                      \
                N(store)((REAL *)p->dh[j] + u, N(all)(0));                              /* R2' adds all of dh_prev */  \
            }                                                                                                          \
    }
RNN_BACKWARD(rnn_tanh_backward, dh * (1 - h * h))                           /* A2' */
RNN_BACKWARD(rnn_relu_backward, (N(vec))((N(bits))dh & ~(N(bits))(h <= 0))) /* A3': a NaN lets its gradient pass */

#undef RNN_FORWARD
#undef RNN_BACKWARD
