/* AVX2 with FMA: 16 registers of 32 bytes. Compiled everywhere, run only where CPU and OS have it. */
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define ISA_AVX2
#define VECTOR_BYTES 32
#include "../table.h"
EXPORT_TABLES(avx2)
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
