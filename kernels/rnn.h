/* Vanilla RNN (Elman 1990), pointwise forward and backward. Gate row: [a].  Steps as in docs/math.md. */

#define RNN_FORWARD(NAME, F)                                                                                           \
    static void N(NAME)(const pointwise_t *p) {                                                                        \
        for (ptrdiff_t r = 0; r < p->rows; r++)                                                                        \
            for (ptrdiff_t u = p->first; u < p->last; u += LANES) {                                                    \
                const N(vec) a = N(load)((REAL *)p->gates[r] + u);                                                     \
                N(store_upto)((REAL *)p->h[r] + u, F, p->last - u);                                                    \
            }                                                                                                          \
    }
RNN_FORWARD(rnn_tanh_forward, N(tanh)(a))
RNN_FORWARD(rnn_relu_forward, N(max)(N(all)(0), a))

/* da = dh * F'(a), written with h = F(a) */
#define RNN_BACKWARD(NAME, SLOPE)                                                                                      \
    static void N(NAME)(const pointwise_t *p) {                                                                        \
        for (ptrdiff_t r = 0; r < p->rows; r++)                                                                        \
            for (ptrdiff_t u = p->first; u < p->last; u += LANES) {                                                    \
                const N(vec) h = N(load_upto)((REAL *)p->h[r] + u, p->last - u);                                       \
                N(vec) dh = N(load)((REAL *)p->dh[r] + u);                                                             \
                if (p->dy) dh += N(load_upto)((const REAL *)p->dy[r] + u, p->last - u);                                \
                N(store)((REAL *)p->gates[r] + u, SLOPE);                                                              \
                N(store)((REAL *)p->dh[r] + u, N(all)(0));                                                             \
            }                                                                                                          \
    }
RNN_BACKWARD(rnn_tanh_backward, dh * (1 - h * h))
RNN_BACKWARD(rnn_relu_backward, (N(vec))((N(bits))dh & ~(N(bits))(h <= 0))) /* a NaN lets its gradient pass */

#undef RNN_FORWARD
#undef RNN_BACKWARD
