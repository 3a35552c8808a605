/* One vector type per (instruction set, dtype) and the handful of operations that the language has no operator for.
 * Included once per dtype with BITS (32 or 64) and VECTOR_BYTES set; every name carries the dtype: N(vec) is vec_f32.
 * Refuses reassociation: a fused multiply-add is written where it is meant, and -ffp-contract=off keeps it so.
 */
#include <stdint.h>
#include <string.h>

#undef N
#undef REAL
#undef INT
#undef UINT
#undef LANES
#define LANES (VECTOR_BYTES * 8 / BITS)
#if BITS == 32
#define N(name) name##_f32
#define REAL float
#define INT int32_t
#define UINT uint32_t
#else
#define N(name) name##_f64
#define REAL double
#define INT int64_t
#define UINT uint64_t
#endif

#ifndef INLINE
#define INLINE static inline __attribute__((always_inline))
#define NOINLINE static __attribute__((noinline))
#endif

/* Loops over registers have to be gone before a compiler decides what lives in memory, or a tile has a fifth of its speed.
 * Those of a constant number of turns, 48 at most, are unrolled whole, others by a few: clang has words of its own for the
 * first, and told to do the second it leaves the loops within as they are. */
#ifndef EACH
#define PRAGMA(text) _Pragma(#text)
#ifdef __clang__
#pragma clang diagnostic ignored "-Wpass-failed" /* of a loop of one turn its words are left to the next one outside */
#define EACH_OF(i, first, end) PRAGMA(clang loop unroll(full)) for (int i = first; i < (end); i++)
#define UNROLLED_BY(times)
#define ROOM_FOR(n, most) n /* clang 14 writes the sums of one row to memory in every k where an array has more */
#else
#define EACH_OF(i, first, end) PRAGMA(GCC unroll 48) for (int i = first; i < (end); i++)
#define UNROLLED_BY(times) PRAGMA(GCC unroll times)
#define ROOM_FOR(n, most) most /* GCC moves sums from register to register where a size is no plain constant */
#endif
#define EACH(first, end) EACH_OF(i, first, end)
/* In a tile that fills all registers clang 18 to 22 move every accumulator from one to another, and one to the stack and
 * back, in each k: half the speed. They leave them alone where someone might look at them. */
#if defined(__clang__) && defined(__x86_64__)
#define IN_PLACE(x) __asm__ volatile("" : "+x"(x))
#else
#define IN_PLACE(x)
#endif
#endif

typedef REAL N(vec) __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL N(vec_any) __attribute__((vector_size(VECTOR_BYTES), aligned(BITS / 8), may_alias));
typedef UINT N(bits) __attribute__((vector_size(VECTOR_BYTES)));
typedef INT N(signed) __attribute__((vector_size(VECTOR_BYTES)));

INLINE N(vec) N(load)(const REAL *p) { return *(const N(vec_any) *)p; }
INLINE void N(store)(REAL *p, N(vec) x) { *(N(vec_any) *)p = x; }
INLINE N(vec) N(all)(REAL x) { return x - (N(vec)){0}; }

/* a where x's sign bit is set, b elsewhere; and a where the mask is (all bits of a lane, or none). */
#if defined(ISA_AVX2) && BITS == 32
INLINE vec_f32 where_negative_f32(vec_f32 x, vec_f32 a, vec_f32 b) {
    return (vec_f32)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)x);
}
INLINE vec_f32 where_f32(bits_f32 mask, vec_f32 a, vec_f32 b) { return where_negative_f32((vec_f32)mask, a, b); }
#elif defined(ISA_AVX2)
INLINE vec_f64 where_negative_f64(vec_f64 x, vec_f64 a, vec_f64 b) {
    return (vec_f64)_mm256_blendv_pd((__m256d)b, (__m256d)a, (__m256d)x);
}
INLINE vec_f64 where_f64(bits_f64 mask, vec_f64 a, vec_f64 b) { return where_negative_f64((vec_f64)mask, a, b); }
#else
INLINE N(vec) N(where)(N(bits) mask, N(vec) a, N(vec) b) {
    return (N(vec))((mask & (N(bits))a) | (~mask & (N(bits))b));
}
INLINE N(vec) N(where_negative)(N(vec) x, N(vec) a, N(vec) b) {
    return N(where)((N(bits))((N(signed))x >> (BITS - 1)), a, b);
}
#endif

/* fma(a, b, c) = a*b + c rounded once; max(a, b) is NaN when b is (a never is where it is used). */
#if defined(ISA_AVX512) && BITS == 32
INLINE vec_f32 fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) {
    return (vec_f32)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
INLINE vec_f32 max_f32(vec_f32 a, vec_f32 b) { return (vec_f32)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vec_f32 load_part_f32(const float *p, ptrdiff_t n) {
    return (vec_f32)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
}
INLINE void store_part_f32(float *p, vec_f32 x, ptrdiff_t n) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
}
#elif defined(ISA_AVX512)
INLINE vec_f64 fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) {
    return (vec_f64)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
INLINE vec_f64 max_f64(vec_f64 a, vec_f64 b) { return (vec_f64)_mm512_max_pd((__m512d)a, (__m512d)b); }
INLINE vec_f64 load_part_f64(const double *p, ptrdiff_t n) {
    return (vec_f64)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
}
INLINE void store_part_f64(double *p, vec_f64 x, ptrdiff_t n) {
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)x);
}
#elif defined(ISA_AVX2) && BITS == 32
INLINE vec_f32 fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) {
    return (vec_f32)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
INLINE vec_f32 max_f32(vec_f32 a, vec_f32 b) { return (vec_f32)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE __m256i first_lanes_f32(ptrdiff_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vec_f32 load_part_f32(const float *p, ptrdiff_t n) { return (vec_f32)_mm256_maskload_ps(p, first_lanes_f32(n)); }
INLINE void store_part_f32(float *p, vec_f32 x, ptrdiff_t n) { _mm256_maskstore_ps(p, first_lanes_f32(n), (__m256)x); }
#elif defined(ISA_AVX2)
INLINE vec_f64 fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) {
    return (vec_f64)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
INLINE vec_f64 max_f64(vec_f64 a, vec_f64 b) { return (vec_f64)_mm256_max_pd((__m256d)a, (__m256d)b); }
INLINE __m256i first_lanes_f64(ptrdiff_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
INLINE vec_f64 load_part_f64(const double *p, ptrdiff_t n) {
    return (vec_f64)_mm256_maskload_pd(p, first_lanes_f64(n));
}
INLINE void store_part_f64(double *p, vec_f64 x, ptrdiff_t n) {
    _mm256_maskstore_pd(p, first_lanes_f64(n), (__m256d)x);
}
#else
#if defined(ISA_NEON) && BITS == 32
INLINE vec_f32 fma_f32(vec_f32 a, vec_f32 b, vec_f32 c) {
    return (vec_f32)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
INLINE vec_f32 max_f32(vec_f32 a, vec_f32 b) { return (vec_f32)vmaxq_f32((float32x4_t)a, (float32x4_t)b); }
#elif defined(ISA_NEON)
INLINE vec_f64 fma_f64(vec_f64 a, vec_f64 b, vec_f64 c) {
    return (vec_f64)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
INLINE vec_f64 max_f64(vec_f64 a, vec_f64 b) { return (vec_f64)vmaxq_f64((float64x2_t)a, (float64x2_t)b); }
#else /* baseline: the language alone; a product and a sum, rounded twice */
INLINE N(vec) N(fma)(N(vec) a, N(vec) b, N(vec) c) { return a * b + c; }
INLINE N(vec) N(max)(N(vec) a, N(vec) b) { return N(where)((N(bits))(a > b), a, b); }
#endif
INLINE N(vec) N(load_part)(const REAL *p, ptrdiff_t n) {
    N(vec) x = {0};
    for (ptrdiff_t l = 0; l < LANES; l++)
        if (l < n) x[l] = p[l];
    return x;
}
INLINE void N(store_part)(REAL *p, N(vec) x, ptrdiff_t n) {
    for (ptrdiff_t l = 0; l < LANES; l++)
        if (l < n) p[l] = x[l];
}
#endif

/* Lanes of two vectors taken alternately, from the first half of them or from the second: a0 b0 a1 b1 ... */
#undef FIRST
#undef SECOND
#if LANES == 2
#define FIRST 0, 2
#define SECOND 1, 3
#elif LANES == 4
#define FIRST 0, 4, 1, 5
#define SECOND 2, 6, 3, 7
#elif LANES == 8
#define FIRST 0, 8, 1, 9, 2, 10, 3, 11
#define SECOND 4, 12, 5, 13, 6, 14, 7, 15
#else
#define FIRST 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SECOND 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#endif
#ifndef ALTERNATE
#ifdef __clang__
#define ALTERNATE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define ALTERNATE(a, b, ...) __builtin_shuffle(a, b, (N(signed)){__VA_ARGS__})
#endif
#endif

/* A square of LANES rows, transposed. Laid out in one line, an element's place is (row, column), two numbers of as many
 * bits; one round rotates these bits by one place, and after half of them row and column have changed places. */
INLINE void N(transpose)(const REAL *from, ptrdiff_t ld, REAL *to, ptrdiff_t step) {
    N(vec) v[LANES], u[LANES];
    EACH_OF(i, 0, LANES) v[i] = N(load)(from + i * ld);
    EACH_OF(round, 0, __builtin_ctz(LANES)) {
        EACH_OF(i, 0, LANES / 2) {
            u[2 * i] = ALTERNATE(v[i], v[i + LANES / 2], FIRST);
            u[2 * i + 1] = ALTERNATE(v[i], v[i + LANES / 2], SECOND);
        }
        EACH_OF(i, 0, LANES) v[i] = u[i];
    }
    EACH_OF(i, 0, LANES) N(store)(to + i * step, v[i]);
}

/* Up to `n` elements (n >= 1), all of them when n >= L: the last vector of a row that is not padded. */
INLINE N(vec) N(load_upto)(const REAL *p, ptrdiff_t n) { return n >= LANES ? N(load)(p) : N(load_part)(p, n); }
INLINE void N(store_upto)(REAL *p, N(vec) x, ptrdiff_t n) {
    if (n >= LANES) N(store)(p, x);
    else N(store_part)(p, x, n);
}
