/* Holds every table of every instruction set that runs here against scalar loops: products and packing bit for bit,
 * activations within 2 ulp of libm, the pointwise parts of every cell within rounding, and the same bits from all sets
 * that fuse. Depends on C and POSIX alone, so that a cross-compiler and an emulator are enough (make tiles, make neon).
 * Refuses to test the time loop: tests/test_*.py do, through the compiled module.
 *
 * Every array ends at a page that may not be touched; what else a function must leave alone is compared bit for bit.
 */
#define _GNU_SOURCE
#include "cpu.h"

#include <float.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ARENA = 1 << 23, ARENAS = 16, SEGMENTS = 4 };

static const tiles_t *tiles;
static ptrdiff_t L;
static int wide, fused;   /* float64; with fused multiply-adds */
static uint64_t digest;   /* of all results that are promised to be the same on every set that fuses */
static char context[256]; /* what is being tried */
static char *fence[ARENAS];

static _Noreturn void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fprintf(stderr, "tiles_check: %s %s: %s: ", tiles->isa, wide ? "float64" : "float32", context);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(1);
}

static void on_fault(int number) { /* async-signal-safe but for the message, which is the last thing to happen */
    fprintf(stderr, "tiles_check: %s %s: %s: signal %d, out of bounds?\n", tiles->isa, wide ? "float64" : "float32",
            context, number);
    _exit(1);
}

#define TRY(...) snprintf(context, sizeof context, __VA_ARGS__)

/* --- numbers --- */

static uint64_t mixed(uint64_t x) { /* Steele, Lea and Flood 2014: SplitMix64 */
    x += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

static uint64_t seed;
static ptrdiff_t any(ptrdiff_t least, ptrdiff_t most) {
    return least + (ptrdiff_t)(mixed(++seed) % (uint64_t)(most - least + 1));
}
static double noise(uint64_t key) { return (double)(int32_t)(mixed(key) >> 32) * 0x1p-31; } /* in [-1, 1) */

static double get(const void *p, ptrdiff_t i) { return wide ? ((const double *)p)[i] : ((const float *)p)[i]; }
static void put(void *p, ptrdiff_t i, double x) {
    if (wide) ((double *)p)[i] = x;
    else ((float *)p)[i] = (float)x;
}
static void *past(const void *p, ptrdiff_t n) { return (char *)p + n * tiles->itemsize; }

static double multiply_add(double a, double b, double c) {
    if (fused) return wide ? fma(a, b, c) : fmaf((float)a, (float)b, (float)c);
    if (wide) return a * b + c;
    const float product = (float)a * (float)b;
    return product + (float)c;
}

static void note(double x) { /* into the digest */
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    digest = mixed(digest ^ (x == x ? bits : 1)); /* the sign of a NaN is the architecture's own */
}

/* --- memory --- */

static ptrdiff_t rounded(ptrdiff_t n, ptrdiff_t to) { return (n + to - 1) / to * to; }

/* n elements of noise; the one behind them may not be touched. */
static void *fenced(int arena, ptrdiff_t n) {
    if (n * tiles->itemsize > ARENA) fail("the test wants too large an array");
    return fence[arena] - n * tiles->itemsize;
}
static void *noisy(int arena, ptrdiff_t n) {
    void *p = fenced(arena, n);
    for (ptrdiff_t i = 0; i < n; i++) put(p, i, noise(++seed));
    return p;
}

static void same(const void *got, const void *want, ptrdiff_t n) {
    if (!memcmp(got, want, (size_t)(n * tiles->itemsize))) return;
    for (ptrdiff_t i = 0; i < n; i++)
        if (memcmp(past(got, i), past(want, i), (size_t)tiles->itemsize))
            fail("element %td is %.17g, expected %.17g", i, get(got, i), get(want, i));
}

/* Vectors of a packed panel that lie side by side, and where its vector `within` begins, in vectors. */
static ptrdiff_t side_by_side(ptrdiff_t full, ptrdiff_t K) { return full == 4 && K > tiles->undivided ? 2 : full; }

static ptrdiff_t packed_at(ptrdiff_t before, ptrdiff_t within, ptrdiff_t across, ptrdiff_t K) {
    return before * K + within / across * across * K + within % across;
}

/* --- products --- */

static void try_product(int gated, ptrdiff_t width, ptrdiff_t rows, ptrdiff_t depth) {
    const void *a[32];
    void *out[32], *want[32];
    const ptrdiff_t narrow = gated && width > 1 && any(0, 1) ? L / (L > 2 ? any(1, 2) * 2 : 2) : 0;
    const ptrdiff_t tail = (width * narrow + L - 1) / L,
                    whole = gated ? width * any(narrow ? 0 : 1, 7) : any(1, depth > 420 ? 11 : 30);
    const ptrdiff_t vectors = whole + tail;
    product_t p = {.rows = rows, .depth = depth, .width = width, .vectors = vectors, .a = a, .out = out};
    p.segments = any(0, 3) ? 1 : any(2, 3);
    p.a_step = any(0, 3) ? 1 : LEFT_ROWS;
    p.a_segment = depth * p.a_step + any(0, 5);
    p.first = any(0, 3) ? 0 : any(0, vectors);
    p.last = any(0, 3) ? vectors : any(p.first, vectors);
    p.narrow = narrow;
    if (p.first > whole) p.first = whole;
    if (p.last > whole) p.last = vectors;
    const ptrdiff_t stride = rounded(rounded(vectors, width) / width * L, 64 / tiles->itemsize);
    p.out_step = gated ? stride : L;
    p.out_panel = gated ? L : width * L;
    p.out_offset = any(0, 1) ? stride : 0;
    p.columns = gated || any(0, 1) ? 0 : vectors * L - any(0, L - 1);
    p.accumulate = any(0, 2) == 0;
    p.ld = gated || any(0, 2) ? 0 : vectors * L + any(0, 9);
    for (int s = 0, first = (int)any(0, 2); s < p.segments; s++) p.gate[s] = (first + s) % (int)p.segments;
    p.backwards = any(0, 2) == 0;
    p.prefetch = !p.ld && !p.backwards && any(0, 1);
    p.fetch_left = any(0, 1);
    p.whole = p.segments == 1 && any(0, 1);
    const ptrdiff_t K = p.segments * depth;
    TRY("product %s width=%td rows=%td depth=%td segments=%td a_step=%td vectors=%td [%td, %td) columns=%td narrow=%td "
        "ld=%td %s",
        gated ? "gated" : "linear", width, rows, depth, p.segments, p.a_step, vectors, p.first, p.last, p.columns,
        p.narrow, p.ld, p.accumulate ? "accumulate" : "");

    const ptrdiff_t a_length = (p.segments - 1) * p.a_segment + (depth - 1) * p.a_step + 1, a_pitch = a_length + 2;
    const ptrdiff_t length = p.out_offset + (gated ? width * stride : p.columns ? p.columns : vectors * L);
    const ptrdiff_t pitch = length + 3, total = rows ? rows * pitch - 3 : 0;
    char *const left = fenced(0, rows ? rows * a_pitch - 2 : 0), *const right =
                                                                     fenced(1, p.ld ? (K - 1) * p.ld + vectors * L
                                                                                    : K * vectors * L);
    char *const to = noisy(2, total), *const model = fenced(3, total);
    if (!p.accumulate && any(0, 1)) p.init = noisy(4, p.out_offset + (gated ? width * stride : vectors * L));
    memcpy(model, to, (size_t)(total * tiles->itemsize));
    p.w = right;
    p.next = any(0, 1) ? right : NULL;
    static const void *row[2 * DEPTH + 70];
    const ptrdiff_t ld = p.ld;
    if (ld && p.whole && any(0, 1)) { /* the same rows, the last one first */
        for (ptrdiff_t k = 0; k < K; k++) row[k] = past(right, (K - 1 - k) * ld);
        p.row = row;
        p.w = NULL;
        p.ld = 0;
    }
    for (ptrdiff_t r = 0; r < rows; r++) {
        a[r] = past(left, r * a_pitch);
        out[r] = past(to, r * pitch);
        want[r] = past(model, r * pitch);
    }
    for (ptrdiff_t v = p.first; v < p.last; v++)
        for (ptrdiff_t l = 0; l < L && (!p.columns || v * L + l < p.columns); l++) {
            const ptrdiff_t panel = v / width, within = v % width;
            const ptrdiff_t full = vectors - panel * width < width ? vectors - panel * width : width;
            const ptrdiff_t lane = v < whole ? l : (within * L + l) % narrow;
            const ptrdiff_t gate = v < whole ? within : (within * L + l) / narrow;
            const ptrdiff_t at = p.out_offset + panel * p.out_panel + gate * p.out_step + lane;
            for (ptrdiff_t r = 0; r < rows && gate < width; r++) {
                double sum = p.accumulate ? get(want[r], at) : p.init ? get(p.init, at) : 0;
                const ptrdiff_t across = side_by_side(full, K);
                ptrdiff_t from = packed_at(panel * width, within, across, K) * L + l;
                for (ptrdiff_t s = 0; s < p.segments; s++)
                    for (ptrdiff_t k = 0; k < depth; k++, from += across * L) {
                        if (ld) from = (p.row ? K - 1 - k : p.gate[s] * depth + k) * ld + v * L + l;
                        sum = multiply_add(get(a[r], s * p.a_segment + k * p.a_step), get(right, from), sum);
                    }
                put(want[r], at, sum);
            }
        }
    for (ptrdiff_t g = 0; p.last > whole && p.first <= whole && g < width && narrow; g++) /* whole vectors are stored */
        for (ptrdiff_t r = 0; r < rows; r++)
            for (ptrdiff_t l = narrow; l < L; l++)
                put(want[r], p.out_offset + whole / width * p.out_panel + g * p.out_step + l, 0);
    tiles->product(&p);
    same(to, model, total);
}

static void check_products(void) {
    TRY("product");
    noisy(0, ARENA / tiles->itemsize); /* the operands are windows of these */
    noisy(1, ARENA / tiles->itemsize);
    static const ptrdiff_t deep[] = {DEPTH, DEPTH + 1, 2 * DEPTH + 70};
    for (ptrdiff_t rows = 0; rows <= 17; rows++)
        for (ptrdiff_t width = 1; width <= PANEL + 1; width++) {
            const int gated = width <= PANEL;
            /* the widths share the depths: each rows and depth meet once or twice */
            for (ptrdiff_t depth = 1 + (rows + width) % 3; depth <= 70; depth += 3)
                try_product(gated, gated ? width : PANEL, rows, depth);
            for (int i = 0; i < 3; i++)
                if (rows % 3 == i) try_product(gated, gated ? width : PANEL, rows, deep[i]);
        }
    for (int i = 0; i < 200; i++) /* about where panels of four are worked off in halves */
        try_product(i % 2, PANEL, any(2, 12), any(150, 420));
}

/* --- packing --- */

static void check_packing(void) {
    for (int n = 0; n < 2000; n++) {
        const int by_rows = (int)any(0, 1), gated = !by_rows && any(0, 1);
        const ptrdiff_t width = gated ? any(1, 4) : PANEL, columns = any(1, 70);
        const ptrdiff_t rest = columns % L, half = rest && 2 * rest <= L ? L / 2 : 0;
        const ptrdiff_t narrow = gated && width > 1 && any(0, 1) ? 4 * rest <= L ? half / 2 : half : 0;
        const ptrdiff_t whole = (columns + (narrow ? 0 : L - 1)) / L * (gated ? width : 1);
        const ptrdiff_t vectors = whole + (width * narrow + L - 1) / L * (narrow > 0);
        const void *row[270];
        pack_t p = {.depth = any(0, 7) ? any(1, 70) : any(180, 270),
                    .width = width,
                    .vectors = vectors,
                    .columns = columns,
                    .gated = gated};
        p.narrow = narrow;
        p.first = any(0, 2) ? 0 : any(0, vectors);
        p.last = any(0, 2) ? vectors : any(p.first, vectors);
        TRY("pack_%s %s width=%td depth=%td columns=%td vectors=%td [%td, %td)", by_rows ? "rows" : "transposed",
            gated ? "gated" : "linear", width, p.depth, columns, vectors, p.first, p.last);
        const ptrdiff_t gates = gated ? 4 : 1, extra = any(0, 3);
        p.ld = (by_rows ? columns : p.depth) + extra;
        p.w = noisy(0, (by_rows ? p.depth : gates * columns) * p.ld - extra);
        p.row = row;
        for (ptrdiff_t k = 0; k < p.depth; k++) row[k] = by_rows ? past(p.w, k * p.ld) : NULL;
        for (int g = 0; g < 4; g++) p.gate[g] = (int)any(0, gates - 1);
        const ptrdiff_t total = vectors * L * p.depth;
        void *const model = fenced(2, total);
        p.out = noisy(1, total);
        memcpy(model, p.out, (size_t)(total * tiles->itemsize));
        for (ptrdiff_t v = p.first; v < p.last; v++)
            for (ptrdiff_t k = 0; k < p.depth; k++)
                for (ptrdiff_t l = 0; l < L; l++) {
                    const ptrdiff_t panel = v / width, within = v % width;
                    const ptrdiff_t full = vectors - panel * width < width ? vectors - panel * width : width;
                    const ptrdiff_t lane = v < whole ? l : (within * L + l) % narrow;
                    const ptrdiff_t gate = v < whole ? within : (within * L + l) / narrow;
                    const ptrdiff_t block = gated && gate < width ? p.gate[gate] * columns : 0;
                    const ptrdiff_t column = gate < width ? (gated ? panel : v) * L + lane : columns;
                    const ptrdiff_t from = by_rows ? k * p.ld + column : (block + column) * p.ld + k;
                    const ptrdiff_t across = side_by_side(full, p.depth);
                    put(model, (packed_at(panel * width, within, across, p.depth) + k * across) * L + l,
                        column < columns ? get(p.w, from) : 0);
                }
        (by_rows ? tiles->pack_rows : tiles->pack_transposed)(&p);
        same(p.out, model, total);
    }
    for (int n = 0; n < 2000; n++) {
        const ptrdiff_t depth = any(1, 70), columns = any(1, LEFT_STRIP), extra = any(0, 3), ld = columns + extra;
        const ptrdiff_t end = LEFT_ROWS * depth, step = end + any(2, 20), last = (columns - 1) / LEFT_ROWS;
        TRY("pack_left depth=%td columns=%td ld=%td step=%td", depth, columns, ld, step);
        /* the last group ends with its last column's last element, the others with room for two more */
        const ptrdiff_t total = last * step + end - LEFT_ROWS + (columns - 1) % LEFT_ROWS + 1;
        void *const from = noisy(0, depth * ld), *const to = noisy(1, total), *const model = fenced(2, total);
        void *const sum = noisy(3, columns), *const totals = fenced(4, columns);
        memcpy(model, to, (size_t)(total * tiles->itemsize));
        memcpy(totals, sum, (size_t)(columns * tiles->itemsize));
        const void *rows[70];
        for (ptrdiff_t k = 0; k < depth; k++) {
            const ptrdiff_t row = any(0, depth - 1) * ld;
            rows[k] = (const char *)from + row * tiles->itemsize;
            for (ptrdiff_t m = 0; m < columns; m++) {
                const double x = get(from, row + extra + m);
                put(model, m / LEFT_ROWS * step + k * LEFT_ROWS + m % LEFT_ROWS, x);
                put(totals, m, get(totals, m) + x); /* in double, rounded: as in float */
            }
        }
        tiles->pack_left(to, step, rows, extra, depth, columns, sum);
        for (ptrdiff_t g = 0; g < last; g++)
            for (ptrdiff_t i = 0; i < 2; i++) put(model, g * step + end + i, get(to, g * step + end + i));
        same(to, model, total);
        same(sum, totals, columns);
    }
}

/* --- activations --- */

/* `want` is of a longer type. Below the smallest normal number a result is zero, or that number itself. */
static void close_by(double x, double got, long double want) {
    const double least = wide ? DBL_MIN : (double)FLT_MIN;
    int exponent;
    frexpl(want, &exponent);
    const long double distance = fabsl(got - want);
    note(got);
    if (x != x                ? got == got
        : fabsl(want) < least ? got != 0 && fabs(got) != least
                              : !(distance <= ldexpl(LDBL_MANT_DIG > DBL_MANT_DIG || !wide ? 2 : 3,
                                                     exponent - (wide ? DBL_MANT_DIG : FLT_MANT_DIG))))
        fail("of %a is %a, expected %La", x, got, want);
}

static void check_activations(void) {
    enum { CHUNK = 1021, STEP = 1499 };
    const ptrdiff_t chunks = wide ? 100 : (ptrdiff_t)(UINT64_C(0x100000000) / ((uint64_t)CHUNK * STEP));
    void *const x = fenced(0, CHUNK), *const y = fenced(1, CHUNK);
    for (ptrdiff_t n = 0; n < chunks; n++) {
        for (ptrdiff_t i = 0; i < CHUNK; i++) {
            if (wide) {
                put(x, i, i % 8 ? noise((uint64_t)(n * CHUNK + i)) * (i % 8 < 4 ? 8 : 800) : 0);
                if (i % 8 == 0) memcpy(past(x, i), &(uint64_t){mixed((uint64_t)(n * CHUNK + i))}, sizeof(uint64_t));
            } else {
                memcpy(past(x, i), &(uint32_t){(uint32_t)((uint64_t)(n * CHUNK + i) * STEP)}, sizeof(uint32_t));
            }
        }
        for (int which = 0; which < 2; which++) {
            TRY("%s", which ? "tanh" : "sigmoid");
            const fp_state before = fp_flush_denormals();
            (which ? tiles->tanh : tiles->sigmoid)(x, y, CHUNK);
            fp_restore(before);
            for (ptrdiff_t i = 0; i < CHUNK; i++) {
                const double t = get(x, i);
                if (wide) close_by(t, get(y, i), which ? tanhl(t) : 1 / (1 + expl(-t)));
                else close_by(t, get(y, i), which ? tanh(t) : 1 / (1 + exp(-t)));
            }
        }
    }
    for (ptrdiff_t length = 1; length <= 40; length++) {
        TRY("activations of %td elements", length);
        void *const from = noisy(0, length), *const to = noisy(1, length + 1), *const model = fenced(2, length + 1);
        memcpy(model, to, (size_t)((length + 1) * tiles->itemsize));
        for (int which = 0; which < 2; which++) {
            void (*const f)(const void *, void *, ptrdiff_t) = which ? tiles->tanh : tiles->sigmoid;
            for (ptrdiff_t i = 0; i < length; i++) f(past(from, i), past(model, i), 1);
            f(from, to, length);
            same(to, model, length + 1);
        }
    }
}

/* --- pointwise parts --- */

/* The values of one unit. Gate rows hold four of them, every other array one. */
enum { G0, G1, G2, G3, H_PREV, H, DY, C_PREV, C, DH, DC, DQ, VALUES };
static const char *const value_names[] = {"gates[0]", "gates[1]", "gates[2]", "gates[3]", "h_prev", "h",
                                          "dy",       "c_prev",   "c",        "dh",       "dc",     "dq"};
static int is_padded(int value) { return value < H_PREV || value > DY; }

typedef long double real;
static real sigmoid(real x) { return 1 / (1 + expl(-x)); }

static void forward(cell_t cell, int stage, int training, real *u) {
    switch (cell) {
    case RNN_TANH:
        u[H] = tanhl(u[G0]);
        break;
    case RNN_RELU:
        u[H] = u[G0] > 0 ? u[G0] : 0;
        break;
    case LSTM: {
        const real i = sigmoid(u[G0]), f = sigmoid(u[G1]), g = tanhl(u[G2]), o = sigmoid(u[G3]);
        u[C] = f * u[C_PREV] + i * g;
        u[H] = o * tanhl(u[C]);
        if (training) u[G0] = i, u[G1] = f, u[G2] = g, u[G3] = o;
        break;
    }
    case GRU: {
        const real r = sigmoid(u[G1]), z = sigmoid(u[G2]), n = tanhl(u[G0] + r * u[G3]);
        u[H] = (1 - z) * n + z * u[H_PREV];
        if (training) u[G0] = n, u[G1] = r, u[G2] = z;
        break;
    }
    case GRU_RESET_BEFORE:
        if (stage == 0) {
            u[G1] = sigmoid(u[G1]);
            u[G2] = sigmoid(u[G2]);
            u[G3] = u[G1] * u[H_PREV];
        } else {
            u[G0] = tanhl(u[G0]);
            u[H] = (1 - u[G2]) * u[G0] + u[G2] * u[H_PREV];
        }
        break;
    case CELLS:
        break;
    }
}

static void backward(cell_t cell, int stage, real dy, real *u) {
    const real dh = u[DH] + dy, n = u[G0], r = u[G1], z = u[G2], q = u[G3], h = u[H_PREV];
    switch (cell) {
    case RNN_TANH:
    case RNN_RELU:
        u[G0] = cell == RNN_TANH ? dh * (1 - u[H] * u[H]) : u[H] > 0 ? dh : 0;
        u[DH] = 0;
        break;
    case LSTM: {
        const real i = u[G0], f = u[G1], g = u[G2], o = u[G3], t = tanhl(u[C]), dc = u[DC] + dh * o * (1 - t * t);
        u[G0] = dc * g * i * (1 - i);
        u[G1] = dc * u[C_PREV] * f * (1 - f);
        u[G2] = dc * i * (1 - g * g);
        u[G3] = dh * t * o * (1 - o);
        u[DC] = dc * f;
        u[DH] = 0;
        break;
    }
    case GRU:
        u[G0] = dh * (1 - z) * (1 - n * n);
        u[G1] = u[G0] * q * r * (1 - r);
        u[G2] = dh * (h - n) * z * (1 - z);
        u[G3] = u[G0] * r;
        u[DH] = dh * z;
        break;
    case GRU_RESET_BEFORE:
        if (stage == 0) {
            u[G0] = dh * (1 - z) * (1 - n * n);
            u[G2] = dh * (h - n) * z * (1 - z);
            u[DH] = dh * z;
        } else {
            u[G1] = u[DQ] * h * r * (1 - r);
            u[DH] += u[DQ] * r;
        }
        break;
    case CELLS:
        break;
    }
}

static void try_pointwise(cell_t cell, int stage, int back, ptrdiff_t units, ptrdiff_t first, int option) {
    enum { ROWS = 3 };
    const pointwise_fn f = back ? tiles->backward[cell][stage] : tiles->forward[cell][stage];
    if (!f) return;
    static const char *const names[CELLS] = {"rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before"};
    TRY("%s %s, stage %d, units [%td, %td), %s=%d", names[cell], back ? "backward" : "forward", stage, first, units,
        back ? "dy" : "training", option);
    const ptrdiff_t stride = rounded(units, 64 / tiles->itemsize), end = rounded(units, L);
    ptrdiff_t pitch[VALUES], length[VALUES];
    void *array[VALUES], *row[VALUES][ROWS];
    for (int v = 0; v < VALUES; v++) {
        const int arena = v < H_PREV ? 0 : v;
        length[v] = is_padded(v) ? end : units;
        pitch[v] = v < H_PREV ? SEGMENTS * stride : length[v] + 3;
        const ptrdiff_t total = v < H_PREV ? ROWS * pitch[v] : ROWS * pitch[v] - 3;
        array[v] = v < H_PREV ? past(fenced(arena, total), v * stride) : fenced(arena, total);
        const ptrdiff_t here = v < H_PREV ? stride : pitch[v];
        for (ptrdiff_t r = 0; r < ROWS; r++) {
            row[v][r] = past(array[v], r * pitch[v]);
            for (ptrdiff_t u = 0; u < here && r * pitch[v] + u < total; u++)
                put(row[v][r], u, (back || v > G3 ? 1 : 8) * noise((uint64_t)((((units * 16) + v) * 8 + r) * 64 + u)));
        }
    }
    static double before[VALUES][ROWS][128];
    for (int v = 0; v < VALUES; v++)
        for (ptrdiff_t r = 0; r < ROWS; r++)
            for (ptrdiff_t u = 0; u < (r < ROWS - 1 && v > G3 ? pitch[v] : length[v]); u++)
                before[v][r][u] = get(row[v][r], u);
    const pointwise_t p = {.rows = ROWS,
                           .first = first,
                           .last = units,
                           .stride = stride,
                           .training = !back && option,
                           .gates = row[G0],
                           .h_prev = (const void *const *)row[H_PREV],
                           .h = row[H],
                           .c_prev = (const void *const *)row[C_PREV],
                           .c = row[C],
                           .dy = back && option ? (const void *const *)row[DY] : NULL,
                           .dh = row[DH],
                           .dc = row[DC],
                           .dq = row[DQ]};
    const fp_state state = fp_flush_denormals();
    f(&p);
    fp_restore(state);
    const double epsilon = wide ? DBL_EPSILON : (double)FLT_EPSILON;
    for (ptrdiff_t r = 0; r < ROWS; r++)
        for (ptrdiff_t u = 0; u < end + 3; u++) {
            const int inside = u >= first && u < units;
            real want[VALUES] = {0};
            for (int v = 0; v < VALUES; v++) want[v] = before[v][r][u];
            if (inside && back) backward(cell, stage, option ? want[DY] : 0, want);
            else if (inside) forward(cell, stage, option, want);
            for (int v = 0; v < VALUES; v++) {
                if (u >= (r < ROWS - 1 && v > G3 ? pitch[v] : length[v])) continue;
                if (is_padded(v) && u >= units && u < end) continue; /* padding is the kernel's */
                const double got = get(row[v][r], u);
                const int written = inside && want[v] != before[v][r][u];
                if (written) note(got);
                if (written ? !(fabsl(got - want[v]) <= 32 * epsilon * fmaxl(1, fabsl(want[v])))
                            : got != before[v][r][u])
                    fail("%s of row %td, unit %td is %.17g, expected %.17Lg", value_names[v], r, u, got,
                         written ? want[v] : (real)before[v][r][u]);
            }
        }
}

static void check_pointwise(void) {
    const ptrdiff_t line = 64 / tiles->itemsize; /* a first unit that every instruction set can start from */
    for (int cell = 0; cell < CELLS; cell++)
        for (int stage = 0; stage < 2; stage++)
            for (int back = 0; back < 2; back++)
                for (ptrdiff_t units = 1; units <= 40; units++)
                    for (int option = 0; option < 2; option++)
                        for (ptrdiff_t first = 0; first < units; first += line)
                            try_pointwise((cell_t)cell, stage, back, units, first, option);
}

/* --- probes, floating-point state --- */

static void check_rest(void) {
    TRY("read");
    tiles->read(noisy(0, 32 * L), 32 * L);
    TRY("multiply_adds");
    const double flops = tiles->multiply_adds(10);
    if (flops != 2. * 48 * (double)L * 10) fail("counts %g operations", flops);
    TRY("fp_flush_denormals");
    volatile float tiny = FLT_MIN;
    const fp_state before = fp_flush_denormals();
    const volatile float flushed = tiny / 2;
    fp_restore(before);
    const volatile float kept = tiny / 2;
    if (flushed != 0 || kept == 0) fail("FLT_MIN / 2 is %a inside, %a after", (double)flushed, (double)kept);
}

int main(void) {
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (int i = 0; i < ARENAS; i++) {
        char *const start = mmap(NULL, ARENA + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (start == MAP_FAILED || mprotect(start + ARENA, page, PROT_NONE)) {
            perror("tiles_check: mmap");
            return 2;
        }
        fence[i] = start + ARENA;
    }
    signal(SIGSEGV, on_fault);
    signal(SIGBUS, on_fault);
    uint64_t first_digest[2] = {0, 0};
    printf("tiles_check (%s):", cpu_compiler());
    for (int i = 0; cpu_isa(i); i++) {
        for (wide = 0; wide < 2; wide++) {
            tiles = &cpu_tiles(cpu_isa(i))[wide];
            L = tiles->lanes;
            fused = strcmp(tiles->isa, "baseline") != 0;
            seed = digest = 0;
            TRY("table");
            if (strcmp(tiles->isa, cpu_isa(i)) || tiles->itemsize != (wide ? 8 : 4)) fail("is another one's");
            check_products();
            check_packing();
            check_activations();
            check_pointwise();
            check_rest();
            TRY("bits");
            if (fused && !first_digest[wide]) first_digest[wide] = digest;
            if (fused && digest != first_digest[wide])
                fail("activations or pointwise parts differ from those of %s", cpu_isa(0));
        }
        printf(" %s", cpu_isa(i));
        fflush(stdout);
    }
    printf(" pass; bits of those that fuse: %016llx %016llx\n", (unsigned long long)first_digest[0],
           (unsigned long long)first_digest[1]);
    return 0;
}
