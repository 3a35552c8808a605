/* THE TILE: R rows x V vectors of accumulators in registers, K outermost, one broadcast a row and one fused
 * multiply-add an accumulator each step. Everything that is a matrix product here runs through it: x W_ih, h W_hh,
 * and in the backward pass dh, dx and dW. Around it: the product made of tiles, packing, two probes. Refuses to break a
 * chain: every element is one over ascending k, which a block of k takes up where the last one left it, so its bits do
 * not depend on R, V, the rows beside it, the team or the vector width.
 *
 * Accumulators, and why (two FMA ports of latency 4 want at least 8 chains; loads cost R + V for R*V multiply-adds):
 *   32 registers (AVX-512, NEON)   6x4 = 24   8x3 = 24   8x2 = 16   8x1 = 8      one row: 2 panels of 4 or 3, 4 of 2
 *   16 registers (AVX2, baseline)  3x4 = 12   4x3 = 12   6x2 = 12   8x1 = 8      one row: as above, weights from memory
 *                                  AVX2, 4 rows: 4x3 over three panels of 4
 */

#if defined(ISA_AVX512) || defined(ISA_NEON)
#define REGISTERS 32
#define ROWS_OF_4 6
#define ROWS_OF_3 8
#define ROWS_OF_2 8
#define UNDIVIDED PTRDIFF_MAX
#else
#define REGISTERS 16
#define ROWS_OF_3 4
#define ROWS_OF_2 6
#if defined(ISA_AVX2)
#define ROWS_OF_4 3
#define UNDIVIDED 192 /* k of a panel of 4: more of them would not stay in L1, and it is worked off in halves */
#else
#define ROWS_OF_4 1 /* a product that is rounded by itself takes a register, too, which three rows do not leave */
#define UNDIVIDED 0
#endif
#endif
#define MOST_ROWS 8
#define PLAIN 0 /* kinds of tiles */
#define FETCH 1
#define SEGMENTS 2
#define ROWS 3
#define WIDEST_NARROW 2  /* vectors of a narrow panel */
#define NEAR (64 * 1024) /* bytes of weights that are largely read from L1 */
#define ROWS_AT_ONCE 8   /* of a matrix that is packed by rows */
#define ROWS_AHEAD 16    /* of these that are on their way */
#define LEFT_AHEAD 32    /* ... and of the left operand of dW */
#define DEEP 384 /* tiles of fewer k are too short for two dozen prefetches, and what they add to is in L1 or near */

/* What stays the same over the tiles of one product. */
typedef struct {
    ptrdiff_t a_step, depth, segments, a_segment; /* so many segments of `depth` k, and from one to the next */
    ptrdiff_t w_step, w_panel; /* from k to k+1, from a panel to the next; ROWS: w_panel into a row */
    ptrdiff_t out_panel, out_step;
    const REAL *init;
    int accumulate;
    ptrdiff_t fetch_step; /* bytes from k to k+1 in the panel to come */
} N(walk);

/* One k of a tile. Where the registers do not hold all vectors of w beside the sums and one element of a row, they hold
 * the elements of all rows and one vector. */
INLINE void N(one_k)(const int R, const int C, const int V, const int S, N(vec) sum[][ROOM_FOR(C, 8)],
                     const REAL *const *left, ptrdiff_t at, const REAL *w, ptrdiff_t w_panel) {
    if (R > 1 && R * C + C + 1 > REGISTERS) {
        N(vec) x[ROOM_FOR(R, MOST_ROWS)];
        EACH_OF(r, 0, R) x[r] = N(all)(left[r][at]);
        EACH_OF(v, 0, C) {
            const N(vec) weight = N(load)(w + (S + v) / V * w_panel + (S + v) % V * LANES);
            EACH_OF(r, 0, R) sum[r][v] = N(fma)(x[r], weight, sum[r][v]);
            if (R * C + R + 1 == REGISTERS)
                EACH_OF(r, 0, R) IN_PLACE(sum[r][v]);
        }
        return;
    }
    N(vec) weight[8];
    EACH_OF(v, 0, C) weight[v] = N(load)(w + (S + v) / V * w_panel + (S + v) % V * LANES);
    EACH_OF(r, 0, R) {
        const N(vec) x = N(all)(left[r][at]);
        EACH_OF(v, 0, C) sum[r][v] = N(fma)(x, weight[v], sum[r][v]);
        if (R * C + C + 1 == REGISTERS)
            EACH_OF(v, 0, C) IN_PLACE(sum[r][v]);
    }
}

INLINE const char *N(fetch)(const char *line, ptrdiff_t step) {
    __builtin_prefetch(line, 0, 2);
    return line + step;
}

/* All k of one segment; steps that are constants take no instruction. Returns where w goes on. */
INLINE const REAL *N(all_k)(const int R, const int C, const int V, const int S, const int kind, const N(walk) *g,
                            N(vec) sum[][ROOM_FOR(C, 8)], const REAL *const *left, const ptrdiff_t a_step,
                            const REAL *w, const ptrdiff_t w_step, const char **next) {
    const REAL *const *row = (const REAL *const *)w; /* ROWS */
    const ptrdiff_t w_panel = g->w_panel, fetch_step = g->fetch_step;
    ptrdiff_t at = 0;
    UNROLLED_BY(4)
    for (ptrdiff_t k = g->depth; k > 0; k--) {
        if (kind == FETCH || kind == SEGMENTS) *next = N(fetch)(*next, fetch_step);
        const REAL *from = w;
        if (kind == ROWS) {
            from = *row++ + w_panel;
            __asm__("" : "+r"(from)); /* else GCC keeps w_panel plus each vector's place in registers it has not */
        } else w += w_step;
        N(one_k)(R, C, V, S, sum, left, at, from, w_panel);
        at += a_step;
        if (!__builtin_constant_p(a_step))
            __asm__("" : "+r"(at)); /* one index into all rows, not a pointer into each */
    }
    return w;
}

/* One tile: R rows of C vectors, from vector S of a panel on. V vectors of w lie side by side, and A are a panel of an
 * out row: V, or twice as many where w is divided. One kind fetches what comes next, another also goes through several
 * segments, to a third one w is pointers to rows. R, C, V, S, A and the kind are constants. */
INLINE void N(tile)(const int R, const int C, const int V, const int S, const int A, const int kind, const N(walk) *g,
                    const REAL *const *a, ptrdiff_t a_offset, const REAL *w, REAL *const *out, ptrdiff_t out_offset,
                    const char *next) {
    N(vec) sum[ROOM_FOR(R, MOST_ROWS)][ROOM_FOR(C, 8)];
    const REAL *left[MOST_ROWS];
    const ptrdiff_t out_panel = g->out_panel, out_step = g->out_step;
    EACH_OF(r, 0, R) {
        left[r] = a[r] + a_offset;
        __asm__("" : "+r"(left[r])); /* else GCC adds up its parts again and again */
        const REAL *const from = (!g->accumulate && g->init ? g->init : out[r]) + out_offset;
        EACH_OF(v, 0, C)
            sum[r][v] =
                g->accumulate || g->init ? N(load)(from + (S + v) / A * out_panel + (S + v) % A * out_step) : N(all)(0);
    }
    const ptrdiff_t a_step = g->a_step, w_step = g->w_step;
    for (ptrdiff_t more = kind == SEGMENTS ? g->segments : 1;;) {
        if (kind != ROWS && a_step == 1 && w_step == V * LANES) /* constants, which no instruction has to add */
            w = N(all_k)(R, C, V, S, kind, g, sum, left, 1, w, V * LANES, &next);
        else w = N(all_k)(R, C, V, S, kind, g, sum, left, a_step, w, w_step, &next);
        if (--more == 0) break;
        EACH_OF(r, 0, R) left[r] += g->a_segment;
    }
    EACH_OF(r, 0, R) {
        REAL *const to = out[r] + out_offset;
        EACH_OF(v, 0, C) N(store)(to + (S + v) / A * out_panel + (S + v) % A * out_step, sum[r][v]);
    }
}

typedef void (*N(tile_fn))(const N(walk) *, const REAL *const *, ptrdiff_t, const REAL *, REAL *const *, ptrdiff_t,
                           const char *);

#define TILE(R, C, V, S, A, KIND, NAME)                                                                                \
    NOINLINE void N(NAME)(const N(walk) *g, const REAL *const *a, ptrdiff_t a_offset, const REAL *w, REAL *const *out, \
                          ptrdiff_t out_offset, const char *next) {                                                    \
        N(tile)(R, C, V, S, A, KIND, g, a, a_offset, w, out, out_offset, next);                                        \
    }
#define TILES(R, V)                                                                                                    \
    TILE(R, V, V, 0, V, PLAIN, tile_##R##x##V)                                                                         \
    TILE(R, V, V, 0, V, FETCH, tile_##R##x##V##_fetch)                                                                 \
    TILE(R, V, V, 0, V, SEGMENTS, tile_##R##x##V##_segments)                                                           \
    TILE(R, V, V, 0, V, ROWS, tile_##R##x##V##_rows)
#define TILES_TO_3(V) TILES(1, V) TILES(2, V) TILES(3, V)
#define TILES_TO_4(V) TILES_TO_3(V) TILES(4, V)
#define TILES_TO_6(V) TILES_TO_4(V) TILES(5, V) TILES(6, V)
#define TILES_TO_8(V) TILES_TO_6(V) TILES(7, V) TILES(8, V)
TILES_TO_8(1)
#if REGISTERS == 32
TILES_TO_8(2)
TILES_TO_8(3)
TILES_TO_6(4)
#else
TILES_TO_6(2)
TILES_TO_4(3)
TILES_TO_3(4)
#endif
TILE(1, 8, 4, 0, 4, PLAIN, tile_1x4_two)
TILE(1, 6, 3, 0, 3, PLAIN, tile_1x3_two)
TILE(1, 8, 2, 0, 2, PLAIN, tile_1x2_four)
#if REGISTERS == 16
#define DIVIDED(R)                                                                                                     \
    TILE(R, 4, 2, 0, 4, PLAIN, tile_##R##x22)                                                                          \
    TILE(R, 4, 2, 0, 4, FETCH, tile_##R##x22_fetch)                                                                    \
    TILE(R, 4, 2, 0, 4, SEGMENTS, tile_##R##x22_segments)
DIVIDED(1)
DIVIDED(2)
DIVIDED(3)
TILE(1, 8, 2, 0, 4, PLAIN, tile_1x22_two)
#if defined(ISA_AVX2)
TILE(4, 3, 4, 0, 4, PLAIN, tile_4x3_from_0)
TILE(4, 3, 4, 1, 4, PLAIN, tile_4x3_from_1)
TILE(4, 3, 4, 2, 4, PLAIN, tile_4x3_from_2)
TILE(4, 3, 4, 3, 4, PLAIN, tile_4x3_from_3)
#endif
#else
#define tile_1x22_two_f32 tile_1x4_two_f32
#define tile_1x22_two_f64 tile_1x4_two_f64
#endif

#define TO_3(V, KIND) 0, N(tile_1x##V##KIND), N(tile_2x##V##KIND), N(tile_3x##V##KIND)
#define TO_4(V, KIND) TO_3(V, KIND), N(tile_4x##V##KIND)
#define TO_6(V, KIND) TO_4(V, KIND), N(tile_5x##V##KIND), N(tile_6x##V##KIND)
#define TO_8(V, KIND) TO_6(V, KIND), N(tile_7x##V##KIND), N(tile_8x##V##KIND)
#define DIVIDED_PANEL 5 /* takes the place of V where a panel of 4 is divided */
/* [kind][V][R] */
static const N(tile_fn) N(tiles_by_shape)[4][6][MOST_ROWS + 1] = {
#if REGISTERS == 32
    {{0}, {TO_8(1, )}, {TO_8(2, )}, {TO_8(3, )}, {TO_6(4, )}},
    {{0}, {TO_8(1, _fetch)}, {TO_8(2, _fetch)}, {TO_8(3, _fetch)}, {TO_6(4, _fetch)}},
    {{0}, {TO_8(1, _segments)}, {TO_8(2, _segments)}, {TO_8(3, _segments)}, {TO_6(4, _segments)}},
    {{0}, {TO_8(1, _rows)}, {TO_8(2, _rows)}, {TO_8(3, _rows)}, {TO_6(4, _rows)}},
#else
    {{0}, {TO_8(1, )}, {TO_6(2, )}, {TO_4(3, )}, {TO_3(4, )}, {TO_3(22, )}},
    {{0}, {TO_8(1, _fetch)}, {TO_6(2, _fetch)}, {TO_4(3, _fetch)}, {TO_3(4, _fetch)}, {TO_3(22, _fetch)}},
    {{0},
     {TO_8(1, _segments)},
     {TO_6(2, _segments)},
     {TO_4(3, _segments)},
     {TO_3(4, _segments)},
     {TO_3(22, _segments)}},
    {{0}, {TO_8(1, _rows)}, {TO_6(2, _rows)}, {TO_4(3, _rows)}, {TO_3(4, _rows)}},
#endif
};
static const int N(most_rows)[6] = {0, 8, ROWS_OF_2, ROWS_OF_3, ROWS_OF_4, ROWS_OF_4};

/* Rows of the left operand for the tile before to fetch, from where they begin; one line of them if they lie apart. */
static const char *N(next_left)(N(walk) *g, const REAL *const *a, ptrdiff_t a_offset, ptrdiff_t rows) {
    const ptrdiff_t used = (g->segments - 1) * g->a_segment + g->depth, span = a[rows - 1] - a[0] + used;
    const int near = span > 0 && span <= 2 * rows * used;
    g->fetch_step = near ? span * (ptrdiff_t)sizeof(REAL) / (g->segments * g->depth) : 0;
    return (const char *)(a[0] + a_offset);
}

/* Rows of the last columns of unpadded rows: by way of a padded copy. */
NOINLINE void N(by_copy)(N(tile_fn) tile, const N(walk) *g, const REAL *const *a, ptrdiff_t a_offset, const REAL *w,
                         REAL *const *out, ptrdiff_t out_offset, ptrdiff_t rows, ptrdiff_t columns, const char *ahead) {
    REAL copy[MOST_ROWS][4 * LANES] __attribute__((aligned(64)));
    REAL *to[MOST_ROWS] = {0};
    for (ptrdiff_t r = 0; r < rows; r++) {
        to[r] = copy[r] - out_offset;
        memset(copy[r], 0, sizeof copy[r]);
        if (g->accumulate) memcpy(copy[r], out[r] + out_offset, (size_t)columns * sizeof(REAL));
    }
    tile(g, a, a_offset, w, to, out_offset, ahead);
    for (ptrdiff_t r = 0; r < rows; r++) memcpy(out[r] + out_offset, copy[r], (size_t)columns * sizeof(REAL));
}

/* Pieces of a product that are worked off one after another: whole panels, or a part of one alone. */
typedef struct {
    ptrdiff_t count, shape; /* so many pieces for tiles of so many vectors, or of a DIVIDED_PANEL ... */
    int halves;             /* ... or each of two halves of so many */
    const REAL *w;          /* the first one; ROWS: w_panel is where it begins */
    ptrdiff_t w_next, w_half, out, out_next; /* from one to the next, from a half to the other */
    ptrdiff_t columns;                       /* of a piece that are written */
    const char *after;                       /* to fetch while the last one is at work; NULL: nothing is fetched */
} N(pieces);

/* All rows of some pieces, in balanced tiles: 32 rows are 6,6,5,5,5,5 and not 6,6,6,6,6,2. */
NOINLINE void N(rows_of_tiles)(const product_t *p, N(walk) *g, ptrdiff_t a_offset, const N(pieces) *s) {
    const ptrdiff_t shape = s->shape, width = shape == DIVIDED_PANEL ? 4 : shape, most = N(most_rows)[shape];
    const ptrdiff_t tiles = p->rows <= most ? 1 : (p->rows + most - 1) / most;
    const ptrdiff_t fewer = tiles == 1 ? p->rows : p->rows / tiles, longer = p->rows - fewer * tiles;
    const ptrdiff_t K = g->depth * g->segments, first = g->w_panel;
    const int left = p->fetch_left && tiles > 1, prepares = K >= DEEP || left;
    const int kind = p->row ? ROWS : g->segments > 1 ? SEGMENTS : s->after || left ? FETCH : PLAIN;
    const N(tile_fn) *const by_rows = N(tiles_by_shape)[kind][shape];
    /* the next panel is spread over the tiles: at a line a k the core's few fill buffers are never free. Where they are many
     * the first ones fetch all of it, a line in four k, and the others do nothing but multiply */
    const ptrdiff_t bytes = s->after ? VECTOR_BYTES * width : 0, even = (bytes + tiles - 1) / tiles;
    const ptrdiff_t step = even > 64 ? 64 : bytes && even < 16 ? 16 : even;
    const ptrdiff_t fetching = kind == FETCH && !left ? (bytes + step - 1) / step : tiles;
    for (ptrdiff_t i = 0; i < s->count << s->halves; i++) {
        const ptrdiff_t piece = i >> s->halves, half = s->halves ? p->backwards ? 1 - i % 2 : i % 2 : 0;
        const ptrdiff_t moved = piece * s->w_next + half * s->w_half;
        const ptrdiff_t at = s->out + piece * s->out_next + half * width * g->out_step;
        const REAL *const w = p->row ? s->w : s->w + moved, *const *a = (const REAL *const *)p->a;
        REAL *const *out = (REAL *const *)p->out;
        const char *next = (const char *)w; /* a line that is there is of no use, and of no harm */
        if (s->after)
            next = (const char *)((piece + 1 < s->count ? w + s->w_next : (const REAL *)s->after + half * s->w_half));
        if (p->row) g->w_panel = first + moved;
        g->fetch_step = step;
        for (ptrdiff_t t = 0; t < tiles; t++) {
            const ptrdiff_t rows = fewer + (t < longer), then = fewer + (t + 1 < longer);
            if (prepares) {
                if (K >= DEEP && t + 1 < tiles) /* what the next tile begins with is on its way while this one works */
                    for (ptrdiff_t r = rows; r < rows + fewer; r++)
                        for (ptrdiff_t v = 0; v < width; v++) __builtin_prefetch(out[r] + at + v * g->out_step, 1, 3);
                if (left && t + 1 < tiles) next = N(next_left)(g, a + rows, a_offset, then);
                if (left && t + 1 == tiles) g->fetch_step = 0;
            }
            const N(tile_fn) tile = (t < fetching ? by_rows : N(tiles_by_shape)[PLAIN][shape])[rows];
            if (s->columns >= width * LANES) tile(g, a, a_offset, w, out, at, next);
            else N(by_copy)(tile, g, a, a_offset, w, out, at, rows, s->columns, next);
            a += rows;
            out += rows;
            next += K * g->fetch_step;
        }
    }
}

/* All rows of a narrow panel, `vectors` wide, by way of rows in which the gates lie side by side too. */
static void N(narrow_tiles)(const product_t *p, const N(walk) *g, ptrdiff_t a_offset, const REAL *w, ptrdiff_t vectors,
                            ptrdiff_t out_offset) {
    REAL row[MOST_ROWS][WIDEST_NARROW * LANES] __attribute__((aligned(64)));
    REAL *to[MOST_ROWS];
    N(walk) here = *g;
    here.out_step = LANES;
    here.accumulate = 1;
    const N(tile_fn) *const by_rows = N(tiles_by_shape)[g->segments > 1 ? SEGMENTS : PLAIN][vectors];
    for (ptrdiff_t r0 = 0, rows; r0 < p->rows; r0 += rows) {
        REAL *const *const out = (REAL *const *)p->out + r0;
        rows = p->rows - r0 < N(most_rows)[vectors] ? p->rows - r0 : N(most_rows)[vectors];
        memset(row, 0, sizeof row);
        for (ptrdiff_t r = 0; r < rows; r++) {
            const REAL *const from = g->accumulate ? out[r] : g->init;
            to[r] = row[r];
            for (ptrdiff_t v = 0; from && v < p->width; v++)
                N(store_part)(row[r] + v * p->narrow, N(load_part)(from + out_offset + v * g->out_step, p->narrow),
                              p->narrow);
        }
        by_rows[rows](&here, (const REAL *const *)p->a + r0, a_offset, w, to, 0, (const char *)w);
        for (ptrdiff_t r = 0; r < rows; r++)
            for (ptrdiff_t v = 0; v < p->width; v++)
                N(store)(out[r] + out_offset + v * g->out_step, N(load_part)(row[r] + v * p->narrow, p->narrow));
    }
}

/* Divisions by constants: one by a variable takes dozens of cycles. */
static inline ptrdiff_t N(panel_of)(ptrdiff_t v, ptrdiff_t width) {
    return width == 4 ? v / 4 : width == 3 ? v / 3 : width == 2 ? v / 2 : v;
}

/* Whether a panel of so many vectors is packed in halves. */
INLINE int N(divided)(const product_t *p, ptrdiff_t full) {
    return full == 4 && !p->ld && !p->row && p->segments * p->depth > UNDIVIDED;
}

#if defined(ISA_AVX2)
/* How many rows of a product go into tiles of 4x3; those of 3x4 take the others, a multiple of three. */
INLINE ptrdiff_t N(in_fours)(const product_t *p, const N(walk) *g) {
    const ptrdiff_t rest = (-p->rows & 3) * 3;
    const int plain = !p->row && !p->prefetch && !p->fetch_left && g->segments == 1 && g->depth <= UNDIVIDED;
    return plain && p->a_step == 1 && p->rows > rest ? p->rows - rest : 0;
}

/* Panels of 4, three at a time: their 12 vectors are four tiles of 4x3, which have chains enough where 2x4 has not. */
NOINLINE void N(three_panels)(const product_t *p, const N(walk) *g, ptrdiff_t a_offset, const REAL *w, ptrdiff_t out,
                              ptrdiff_t panels, ptrdiff_t fours) {
    static const N(tile_fn) from[4] = {N(tile_4x3_from_0), N(tile_4x3_from_1), N(tile_4x3_from_2), N(tile_4x3_from_3)};
    const REAL *const *const a = (const REAL *const *)p->a;
    REAL *const *const to = (REAL *const *)p->out;
    for (ptrdiff_t i = 0; i < panels; i += 3) {
        const ptrdiff_t first = p->backwards ? panels - 3 - i : i;
        for (ptrdiff_t v = 4 * first; v < 4 * first + 12; v += 3)
            for (ptrdiff_t r = 0; r < fours; r += 4)
                from[v % 4](g, a + r, a_offset, w + v / 4 * g->w_panel, to + r, out + v / 4 * g->out_panel, NULL);
        for (ptrdiff_t panel = first; panel < first + 3; panel++)
            for (ptrdiff_t r = fours; r < p->rows; r += 3)
                N(tile_3x4)(g, a + r, a_offset, w + panel * g->w_panel, to + r, out + panel * g->out_panel, NULL);
    }
}
#endif

/* Whole panels [low, high) of one K block, from the first or from the last. */
INLINE void N(panels)(const product_t *p, N(walk) *g, ptrdiff_t a_offset, ptrdiff_t k0, ptrdiff_t low, ptrdiff_t high,
                      const char *after) {
    const ptrdiff_t width = p->width, depth = g->depth * g->segments, K = p->segments * p->depth;
    const ptrdiff_t w_next = width * LANES * (p->row || p->ld ? 1 : K); /* from panel to panel; ROWS: within a row */
    const int divided = N(divided)(p, width);
    const ptrdiff_t step = p->ld ? p->ld : (divided ? 2 : width) * LANES;
    const REAL *const w = p->row ? (const REAL *)(p->row + k0) : (const REAL *)p->w + k0 * step;
    g->w_step = step;
    g->w_panel = divided ? w_next / 2 : w_next;
    if (p->rows == 1) {
        /* two panels at a time, for enough chains; but four chains are enough for a single stream out of L2 */
        const ptrdiff_t count = width == 2 ? 4 : 2;
        const int pairs = !p->row && width > 1 &&
                          (VECTOR_BYTES < 64 || p->ld || width == 3 || p->last - p->first <= 4 * width ||
                           (p->last - p->first) * K * VECTOR_BYTES <= NEAR);
        const N(tile_fn) of_many = divided      ? N(tile_1x22_two)
                                   : width == 4 ? N(tile_1x4_two)
                                   : width == 3 ? N(tile_1x3_two)
                                                : N(tile_1x2_four);
        const N(tile_fn) of_one = N(tiles_by_shape)[p->row ? ROWS : PLAIN][divided ? DIVIDED_PANEL : width][1];
        while (low < high) {
            const int many = pairs && high - low >= count;
            const ptrdiff_t here = p->backwards ? high - (many ? count : 1) : low;
            if (p->row) g->w_panel = here * w_next;
            (many ? of_many : of_one)(g, (const REAL *const *)p->a, a_offset, p->row ? w : w + here * w_next,
                                      (REAL *const *)p->out, p->out_offset + here * p->out_panel, NULL);
            if (p->backwards) high = here;
            else low += many ? count : 1;
        }
        return;
    }
#if defined(ISA_AVX2)
    const ptrdiff_t fours = width == 4 && !divided ? N(in_fours)(p, g) : 0, threes = (high - low) / 3 * 3;
    if (fours && threes) {
        const ptrdiff_t begin = p->backwards ? high - threes : low;
        N(three_panels)(p, g, a_offset, w + begin * w_next, p->out_offset + begin * p->out_panel, threes, fours);
        if (p->backwards) high = begin;
        else low = begin + threes;
        if (low == high) return;
    }
#endif
    const ptrdiff_t first = p->backwards ? high - 1 : low, sign = p->backwards ? -1 : 1;
    N(pieces) s = {.count = high - low, .w = p->row ? w : w + first * w_next};
    s.halves = width == 4 && p->rows > ROWS_OF_4 && (divided || depth > UNDIVIDED);
    s.shape = s.halves ? 2 : divided ? DIVIDED_PANEL : width;
    s.w_half = divided ? g->w_panel : 2 * LANES;
    if (p->row) g->w_panel = first * w_next;
    s.w_next = sign * w_next;
    s.out = p->out_offset + first * p->out_panel;
    s.out_next = sign * p->out_panel;
    s.columns = width * LANES;
    if (p->prefetch) /* the next panel's, or what the caller knows */
        s.after = high * width < p->last ? (const char *)(w + high * w_next) : after ? after : (const char *)w;
    N(rows_of_tiles)(p, g, a_offset, &s);
}

/* Vectors [low, high) of one K block that are no whole panels, or cut off on the right. */
NOINLINE void N(parts)(const product_t *p, N(walk) *g, ptrdiff_t a_offset, ptrdiff_t k0, ptrdiff_t low,
                       ptrdiff_t high) {
    const ptrdiff_t width = p->width, K = p->segments * p->depth;
    while (low < high) {
        const ptrdiff_t panel = N(panel_of)(p->backwards ? high - 1 : low, width), begin = panel * width;
        const ptrdiff_t full = p->vectors - begin < width ? p->vectors - begin : width;
        ptrdiff_t v = begin > low ? begin : low, end = begin + full < high ? begin + full : high;
        const int divided = N(divided)(p, full);
        if (divided || (end - v == 4 && p->rows > ROWS_OF_4)) {
            if (p->backwards) v = v > begin + (end - begin - 1) / 2 * 2 ? v : begin + (end - begin - 1) / 2 * 2;
            else end = end < begin + ((v - begin) / 2 + 1) * 2 ? end : begin + ((v - begin) / 2 + 1) * 2;
        }
        const ptrdiff_t across = divided ? 2 : full, half = (v - begin) / across * across; /* vectors side by side */
        const N(pieces) s = {
            .count = 1,
            .shape = end - v,
            .w = p->row  ? (const REAL *)(p->row + k0)
                 : p->ld ? (const REAL *)p->w + k0 * p->ld + v * LANES
                         : (const REAL *)p->w + ((begin + half) * K + k0 * across + v - begin - half) * LANES,
            .out = p->out_offset + panel * p->out_panel + (v - begin) * p->out_step,
            .columns = (p->columns ? p->columns - v * LANES : (end - v) * LANES),
        };
        g->w_step = p->ld ? p->ld : across * LANES;
        g->w_panel = p->row ? v * LANES : 0;
        if (p->narrow && full < width) N(narrow_tiles)(p, g, a_offset, s.w, full, s.out);
        else N(rows_of_tiles)(p, g, a_offset, &s);
        if (p->backwards) high = v;
        else low = end;
    }
}

/* Vectors [first, last) of one K block, panel by panel, from the first or from the last. */
static void N(block)(const product_t *p, N(walk) *g, ptrdiff_t a_offset, ptrdiff_t k0, const char *after) {
    const ptrdiff_t width = p->width, written = p->columns ? p->columns / LANES : p->vectors; /* so many whole */
    const ptrdiff_t low = N(panel_of)(p->first + width - 1, width);
    const ptrdiff_t high = N(panel_of)(p->last < written ? p->last : written, width);
    if (low >= high) {
        N(parts)(p, g, a_offset, k0, p->first, p->last);
        return;
    }
    const ptrdiff_t begin = p->backwards ? high * width : p->first, end = p->backwards ? p->last : low * width;
    if (begin < end) N(parts)(p, g, a_offset, k0, begin, end);
    N(panels)(p, g, a_offset, k0, low, high, after);
    const ptrdiff_t then = p->backwards ? p->first : high * width, last = p->backwards ? low * width : p->last;
    if (then < last) N(parts)(p, g, a_offset, k0, then, last);
}

static void N(product)(const product_t *p) {
    if (p->rows <= 0) return;
    N(walk) g = {.a_step = p->a_step,
                 .depth = p->depth,
                 .segments = 1,
                 .a_segment = p->a_segment,
                 .out_panel = p->out_panel,
                 .out_step = p->out_step,
                 .init = p->init,
                 .accumulate = p->accumulate};
    if (p->segments == 1 && (p->whole || (p->depth <= DEPTH && !p->ld))) {
        N(block)(p, &g, 0, 0, p->next);
        return;
    }
    const ptrdiff_t most = !p->ld ? DEPTH : p->rows > 1 ? PLAIN_DEPTH : PLAIN_DEPTH_ALONE;
    const ptrdiff_t K = p->segments * p->depth, before = p->first / p->width * p->width; /* vectors left of the first */
    const ptrdiff_t full = p->vectors - before < p->width ? p->vectors - before : p->width;
    const ptrdiff_t across = N(divided)(p, full) ? 2 : full; /* vectors side by side */
    const char *const first = (const char *)((const REAL *)p->w + before * K * LANES);
    const ptrdiff_t together = p->rows == 1 || p->ld || p->depth > TOGETHER / 2 ? 1 : TOGETHER / p->depth;
    for (ptrdiff_t s = 0; s < p->segments; s += g.segments) {
        g.segments = p->segments - s < together ? p->segments - s : together;
        for (ptrdiff_t k = 0; k < p->depth; k += most) {
            g.depth = p->depth - k < most ? p->depth - k : most;
            const ptrdiff_t k0 = (p->ld ? p->gate[s] : s) * p->depth + k, end = k0 + g.segments * g.depth;
            const char *after = end == K ? p->next : first + end * across * LANES * sizeof(REAL);
            N(block)(p, &g, s * p->a_segment + k * p->a_step, k0, after);
            g.accumulate = 1;
        }
    }
}

/* --- packing --- */

static void N(pack_transposed)(const pack_t *p) {
    for (ptrdiff_t v = p->first; v < p->last; v++) {
        const ptrdiff_t panel = v / p->width, within = v % p->width;
        const ptrdiff_t full = p->vectors - panel * p->width < p->width ? p->vectors - panel * p->width : p->width;
        const ptrdiff_t column = (p->gated ? panel : v) * LANES;
        if (p->narrow && full < p->width) {
            REAL *to = (REAL *)p->out + (panel * p->width * p->depth + within) * LANES;
            for (ptrdiff_t l = 0; l < LANES; l++) {
                const ptrdiff_t g = (within * LANES + l) / p->narrow, unit = column + (within * LANES + l) % p->narrow;
                const int valid = g < p->width && unit < p->columns;
                const REAL *from = (const REAL *)p->w + (valid ? (p->gate[g] * p->columns + unit) * p->ld : 0);
                for (ptrdiff_t k = 0; k < p->depth; k++) to[k * full * LANES + l] = valid ? from[k] : 0;
            }
            continue;
        }
        const ptrdiff_t lanes = p->columns - column < LANES ? p->columns - column : LANES;
        const REAL *from = (const REAL *)p->w + ((p->gated ? p->gate[within] * p->columns : 0) + column) * p->ld;
        const ptrdiff_t across = full == 4 && p->depth > UNDIVIDED ? 2 : full; /* vectors side by side */
        const ptrdiff_t half = within / across * across, step = across * LANES;
        REAL *to = (REAL *)p->out + ((panel * p->width + half) * p->depth + within - half) * LANES;
        ptrdiff_t k = 0;
        for (; lanes >= LANES && k + LANES <= p->depth; k += LANES) N(transpose)(from + k, p->ld, to + k * step, step);
        for (; k < p->depth; k++)
            for (ptrdiff_t l = 0; l < LANES; l++) to[k * step + l] = l < lanes ? from[l * p->ld + k] : 0;
    }
}

/* All columns of a few rows, then of the next: down a panel would be a page a line, and no prefetcher follows that. */
static void N(pack_rows)(const pack_t *p) {
    const ptrdiff_t before = p->first / p->width * p->width; /* vectors of the panels before the first one here */
    for (ptrdiff_t k0 = 0; k0 < p->depth; k0 += ROWS_AT_ONCE) {
        const ptrdiff_t k1 = p->depth - k0 < ROWS_AT_ONCE ? p->depth : k0 + ROWS_AT_ONCE;
        for (ptrdiff_t panel = before, v = p->first, end; v < p->last; v = end) {
            const ptrdiff_t full = p->vectors - panel < p->width ? p->vectors - panel : p->width;
            const ptrdiff_t across = full == 4 && p->depth > UNDIVIDED ? 2 : full; /* vectors side by side */
            const ptrdiff_t begin = panel + (v - panel) / across * across;
            REAL *to = (REAL *)p->out + (begin * p->depth + k0 * across + v - begin) * LANES;
            end = begin + across < p->last ? begin + across : p->last;
            if (end == panel + full) panel += full;
            for (ptrdiff_t k = k0; k < k1; k++, to += across * LANES) {
                const REAL *from = (const REAL *)p->row[k] + v * LANES;
                const REAL *ahead = k + ROWS_AHEAD < p->depth ? (const REAL *)p->row[k + ROWS_AHEAD] + v * LANES : from;
                for (ptrdiff_t i = 0; i < end - v; i++) {
                    __builtin_prefetch(ahead + i * LANES);
                    const ptrdiff_t lanes = p->columns - (v + i) * LANES;
                    N(store)(to + i * LANES, lanes > 0 ? N(load_upto)(from + i * LANES, lanes) : N(all)(0));
                }
            }
        }
    }
}

/* The left operand of dW in groups of LEFT_ROWS rows side by side, so that a tile reads one short line a k; column sums
 * beside. Eight elements are one vector: six of them stay, the other two are overwritten by those of the next k. Rows
 * are far apart and far away, where no prefetcher follows. */
static void N(pack_left)(void *dst, ptrdiff_t step, const void *const *rows, ptrdiff_t offset, ptrdiff_t depth,
                         ptrdiff_t columns, void *sum) {
    N(vec) total[LEFT_STRIP / LANES];
    for (ptrdiff_t m = 0; m < columns; m += LANES) total[m / LANES] = N(load_upto)((REAL *)sum + m, columns - m);
    for (ptrdiff_t k = 0; k < depth; k++) {
        const REAL *const row = (const REAL *)rows[k] + offset;
        const REAL *const ahead = (const REAL *)rows[k + LEFT_AHEAD < depth ? k + LEFT_AHEAD : k] + offset;
        REAL *to = (REAL *)dst + k * LEFT_ROWS;
        ptrdiff_t m;
        for (m = 0; m < columns; m += 64 / (ptrdiff_t)sizeof(REAL)) __builtin_prefetch(ahead + m);
        __builtin_prefetch(ahead + columns - 1);
        for (m = 0; m < columns; m += LANES) total[m / LANES] += N(load_upto)(row + m, columns - m);
        for (m = 0; m + 8 <= columns; m += LEFT_ROWS, to += step) memcpy(to, row + m, 8 * sizeof(REAL));
        for (; m + LEFT_ROWS <= columns; m += LEFT_ROWS, to += step) memcpy(to, row + m, LEFT_ROWS * sizeof(REAL));
        for (; m < columns; m++) *to++ = row[m];
    }
    for (ptrdiff_t m = 0; m < columns; m += LANES) N(store_upto)((REAL *)sum + m, total[m / LANES], columns - m);
}

static double N(multiply_adds)(ptrdiff_t repeats) {
    N(vec) sum[12];
    EACH(0, 12) sum[i] = N(all)((REAL)(i + 2)); /* at 1 a chain would stay, which a compiler sees */
    N(vec) a = N(all)((REAL).999), b = N(all)((REAL).001);
    /* long enough for the loop's own instructions, and where they happen to lie, not to matter */
    for (ptrdiff_t k = 0; k < repeats; k++)
        EACH(0, 48) sum[i % 12] = N(fma)(sum[i % 12], a, b);
    N(vec) total = N(all)(0);
    EACH(0, 12) total += sum[i];
    volatile REAL keep = total[0];
    (void)keep;
    return 2. * 48 * LANES * (double)repeats;
}

/* Reads n elements (a multiple of 8 vectors): the bandwidth's probe. A few loads in its loop, not dozens, or a prefetcher
 * loses track, and L2 gives half of what it can. */
static void N(read)(const void *from, ptrdiff_t n) {
    N(vec) sum[8];
    EACH(0, 8) sum[i] = N(all)(0);
    for (ptrdiff_t k = 0; k < n; k += 8 * LANES)
        EACH(0, 8) sum[i] += N(load)((const REAL *)from + k + i * LANES);
    N(vec) total = N(all)(0);
    EACH(0, 8) total += sum[i];
    volatile REAL keep = total[0];
    (void)keep;
}

#undef REGISTERS
#undef ROWS_OF_4
#undef DIVIDED
#undef DIVIDED_PANEL
#undef ROWS_OF_3
#undef ROWS_OF_2
#undef MOST_ROWS
#undef PLAIN
#undef ROWS
#undef FETCH
#undef SEGMENTS
#undef WIDEST_NARROW
#undef DEEP
#undef ROWS_AHEAD
#undef LEFT_AHEAD
#undef ROWS_AT_ONCE
#undef NEAR
#undef TILE
#undef TILES
#undef TILES_TO_3
#undef TILES_TO_4
#undef TILES_TO_6
#undef TILES_TO_8
#undef TO_3
#undef TO_4
#undef TO_6
#undef TO_8
