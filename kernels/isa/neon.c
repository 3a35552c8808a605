/* NEON on 64-bit ARM: 32 registers of 16 bytes with fused multiply-add. */
#if defined(__aarch64__)
#include <arm_neon.h>
#define ISA_NEON
#define VECTOR_BYTES 16
#include "../table.h"
EXPORT_TABLES(neon)
#endif
