/* Fills the tables of one instruction set: every source of a tile, once per dtype. Included by the stubs in isa/. */
#include "tiles.h"

/* A pointwise function of the backward pass: NAME_at does units [u, u + L) of row j. What it reads has left the near
 * caches, and no prefetcher follows from row to row: the gate row, a state and dy are fetched AHEAD rows before. */
#define AHEAD 4
#define BACKWARD(NAME, SEGMENTS, STATE)                                                                                \
    static void N(NAME)(const pointwise_t *p) {                                                                        \
        for (ptrdiff_t j = 0; j < p->rows; j++)                                                                        \
            for (ptrdiff_t u = p->first; u < p->last; u += LANES) {                                                    \
                if (j + AHEAD < p->rows) {                                                                             \
                    const REAL *gate = (const REAL *)p->gates[j + AHEAD] + u;                                          \
                    EACH(0, SEGMENTS) __builtin_prefetch(gate + i * p->stride, 1);                                     \
                    __builtin_prefetch((const REAL *)p->STATE[j + AHEAD] + u);                                         \
                    if (p->dy) __builtin_prefetch((const REAL *)p->dy[j + AHEAD] + u);                                 \
                }                                                                                                      \
                N(NAME##_at)(p, j, u);                                                                                 \
            }                                                                                                          \
    }

#define BITS 32
#include "vec.h"
#include "activations.h"
#include "tile.h"
#include "rnn.h"
#include "lstm.h"
#include "gru.h"
#undef BITS
#define BITS 64
#include "vec.h"
#include "activations.h"
#include "tile.h"
#include "rnn.h"
#include "lstm.h"
#include "gru.h"

#define TABLE(NAME, TYPE, REAL_TYPE)                                                                                   \
    {.isa = NAME,                                                                                                      \
     .itemsize = sizeof(REAL_TYPE),                                                                                    \
     .lanes = VECTOR_BYTES / sizeof(REAL_TYPE),                                                                        \
     .undivided = UNDIVIDED,                                                                                           \
     .product = product_##TYPE,                                                                                        \
     .pack_transposed = pack_transposed_##TYPE,                                                                        \
     .pack_rows = pack_rows_##TYPE,                                                                                    \
     .pack_left = pack_left_##TYPE,                                                                                    \
     .forward = {[RNN_TANH] = {rnn_tanh_forward_##TYPE},                                                               \
                 [RNN_RELU] = {rnn_relu_forward_##TYPE},                                                               \
                 [LSTM] = {lstm_forward_##TYPE},                                                                       \
                 [GRU] = {gru_forward_##TYPE},                                                                         \
                 [GRU_RESET_BEFORE] = {gru_before_forward_0_##TYPE, gru_before_forward_1_##TYPE}},                     \
     .backward = {[RNN_TANH] = {rnn_tanh_backward_##TYPE},                                                             \
                  [RNN_RELU] = {rnn_relu_backward_##TYPE},                                                             \
                  [LSTM] = {lstm_backward_##TYPE},                                                                     \
                  [GRU] = {gru_backward_##TYPE},                                                                       \
                  [GRU_RESET_BEFORE] = {gru_before_backward_0_##TYPE, gru_before_backward_1_##TYPE}},                  \
     .sigmoid = sigmoid_array_##TYPE,                                                                                  \
     .tanh = tanh_array_##TYPE,                                                                                        \
     .read = read_##TYPE,                                                                                              \
     .multiply_adds = multiply_adds_##TYPE}

#define EXPORT_TABLES(ISA) const tiles_t fusedrnn_##ISA[2] = {TABLE(#ISA, f32, float), TABLE(#ISA, f64, double)};
