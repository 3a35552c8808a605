/* AVX-512 (F, VL, BW, DQ) with FMA: 32 registers of 64 bytes. Compiled everywhere, run only where CPU and OS have it. */
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma"))),                   \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")
#endif
#define ISA_AVX512
#define VECTOR_BYTES 64
#include "../table.h"
EXPORT_TABLES(avx512)
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
