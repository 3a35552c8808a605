/* The contract between the time loop (time_loop.pxi) and the compiled tiles: one table of functions per
 * (instruction set, dtype). Refuses to know about time, threads or Python.
 *
 * Letters: T steps, B batch, I input, H hidden, G gates, L vector lanes; K is the depth of a product.
 * Every count is in elements of the table's dtype, never in bytes, unless its name says so.
 *
 * Matrices are packed into PANELS: `width` vectors side by side, `[K][width][L]`, contiguous.
 *   gated   panels hold L hidden units, vector v of a panel being gate v      (LSTM 4, GRU 3, ...)
 *           the last panel, where half of the lanes or fewer are units, may be narrow: all gates side by side in as few
 *           vectors as hold them, `narrow` lanes each
 *   linear  panels hold PANEL*L neighbouring columns, or fewer vectors of them, the last panel may be narrower
 * A panel of four vectors deeper than the table's `undivided` is packed as two of two, one behind the other: [2][K][2][L].
 * Gate rows of one (step, sequence) are `[segments][stride]`, stride >= H a multiple of 64 bytes; see README.md.
 */
#ifndef FUSEDRNN_TILES_H
#define FUSEDRNN_TILES_H

#include <stddef.h>

enum { PANEL = 4 };            /* vectors in a full linear panel: 6 rows x 4 vectors fill 24 of 32 registers */
enum { LEFT_ROWS = 6 };        /* rows that pack_left lays side by side: those of a full tile of that panel */
enum { LEFT_STRIP = 48 };      /* ... of so many at once, and no more: 96 KB, 8 tiles reuse every panel */
enum { DEPTH = 512 };          /* K block of a product: a panel's block stays in L2 while the rows pass by */
enum { TOGETHER = 2 * DEPTH }; /* ... or so much where that is several segments: what a tile adds to is read once */
/* ... of a matrix as it came: all columns of a few rows, which are few pages; of more, where tiles have much to load */
enum { PLAIN_DEPTH = 128, PLAIN_DEPTH_ALONE = 32 };

typedef enum { RNN_TANH, RNN_RELU, LSTM, GRU, GRU_RESET_BEFORE, CELLS } cell_t;

/* out[r][...] (+)= sum_k a[r][k] * w[k][...], one chain of fused multiply-adds in ascending k for every element. */
typedef struct {
    ptrdiff_t rows;       /* how many rows; 0 is allowed */
    const void *const *a; /* [rows] left operand; element k of segment s is a[r][s*a_segment + k*a_step] */
    ptrdiff_t a_step;
    ptrdiff_t a_segment;
    ptrdiff_t segments; /* K = segments * depth */
    ptrdiff_t depth;
    const void *w;         /* packed matrix, K rows; or as it came: */
    ptrdiff_t ld;          /* its rows are `ld` elements apart, whole vectors each (linear only); 0: packed ... */
    int gate[4];           /* ... and those of segment s begin at gate[s]*depth; or, if this is not NULL, ... */
    const void **row;      /* ... wherever they are: pointers to K rows of whole vectors (linear, one segment, whole) */
    ptrdiff_t width;       /* vectors in a full panel */
    ptrdiff_t vectors;     /* vectors in the whole matrix: tells how wide the last panel is */
    ptrdiff_t first, last; /* compute vectors [first, last) */
    void *const *out;      /* [rows] */
    ptrdiff_t out_offset;  /* added to every out row */
    ptrdiff_t out_panel;   /* from a panel to the next one, in an out row */
    ptrdiff_t out_step;    /* from a vector to the next one within a panel */
    ptrdiff_t columns;     /* linear only: valid columns of an unpadded out row; 0: rows are padded */
    ptrdiff_t narrow;      /* gated only: lanes of a gate in the last panel; 0: L. Then it is computed as a whole */
    const void *init;      /* start from this row, laid out like an out row (offset included) ... */
    int accumulate;        /* ... or from out itself (1), or from zero (0, init NULL) */
    int whole;             /* K is a block already: one pass, however deep */
    int backwards;         /* from the last vector to the first; nothing is fetched then */
    int fetch_left;        /* another core wrote the left operand: a tile fetches the next one's rows, not weights */
    int prefetch;          /* the matrix does not fit L2: fetch the next panel while this one works, at last ... */
    const void *next;      /* ... this one (NULL: none) */
} product_t;

/* Pointwise gate math for `rows` rows and units [first, last), first a multiple of L. Row pointers, unit 0.
 * Arrays marked padded may be touched up to the next multiple of L past H; the others not past H. */
typedef struct {
    ptrdiff_t rows, first, last;
    ptrdiff_t stride;          /* between the segments of a gate row */
    int training;              /* forward: leave the tape in the gate rows */
    void *const *gates;        /* in/out, padded: pre-activations, then the tape, then their gradients */
    const void *const *h_prev; /* in */
    void *const *h;            /* forward out, backward in */
    const void *const *c_prev; /* in, padded, LSTM */
    void *const *c;            /* forward out, backward in, padded, LSTM */
    const void *const *dy;     /* backward in; NULL: zeros */
    void *const *dh; /* backward in/out, padded: in, what later steps sent; out, the direct share of step t-1 */
    void *const *dc; /* backward in/out, padded, LSTM */
    void *const *dq; /* backward in, padded, GRU_RESET_BEFORE stage 1: gradient of q = r * h_prev */
} pointwise_t;

typedef void (*pointwise_fn)(const pointwise_t *);

/* Packing of vectors [first, last) of a matrix: out[panel][k][v][lane] = element(k, column of (panel, v, lane)). */
typedef struct {
    void *out;
    ptrdiff_t depth, width, vectors, first, last;
    ptrdiff_t columns; /* valid columns (units when gated); what lies past them becomes zero */
    const void *w;     /* transposed: column c of gate g at w + (gate[g]*columns + c)*ld, k contiguous */
    ptrdiff_t ld;
    const void *const *row; /* by rows: row k at row[k], columns contiguous */
    int gated;              /* transposed: vector v of a panel is gate v ... */
    ptrdiff_t narrow;       /* ... but in the last panel, lanes of each gate side by side; 0: none such */
    int gate[4];            /* which block of rows of w each gate is */
} pack_t;

typedef struct {
    const char *isa;
    int itemsize, lanes;
    ptrdiff_t undivided; /* k of a packed panel of four up to which its vectors lie side by side */
    void (*product)(const product_t *);
    void (*pack_transposed)(const pack_t *);
    void (*pack_rows)(const pack_t *);
    /* dst[m/LEFT_ROWS * step + k*LEFT_ROWS + m%LEFT_ROWS] = row[k][offset + m], m < columns <= LEFT_STRIP, k < depth;
     * sum[m] += row[k][offset + m] in ascending k. A group but the last has room for two elements more, which may be
     * anything then. */
    void (*pack_left)(void *dst, ptrdiff_t step, const void *const *row, ptrdiff_t offset, ptrdiff_t depth,
                      ptrdiff_t columns, void *sum);
    pointwise_fn forward[CELLS][2]; /* [cell][stage], NULL past the cell's last stage */
    pointwise_fn backward[CELLS][2];
    void (*sigmoid)(const void *x, void *y, ptrdiff_t n);
    void (*tanh)(const void *x, void *y, ptrdiff_t n);
    void (*read)(const void *from, ptrdiff_t n); /* reads n elements and nothing else: the bandwidth's probe */
    double (*multiply_adds)(
        ptrdiff_t repeats); /* runs a register-only chain; returns the flops done: the peak's probe */
} tiles_t;

/* [0] float32, [1] float64; NULL where the build has no such instruction set. */
extern const tiles_t fusedrnn_baseline[2];
#if defined(__x86_64__)
extern const tiles_t fusedrnn_avx2[2], fusedrnn_avx512[2];
#elif defined(__aarch64__)
extern const tiles_t fusedrnn_neon[2];
#endif

#endif
