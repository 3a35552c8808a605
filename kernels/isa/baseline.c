/* What every CPU of the architecture has: vectors of 16 bytes in the language alone, products and sums rounded apart. */
#define ISA_BASELINE
#define VECTOR_BYTES 16
#include "../table.h"
EXPORT_TABLES(baseline)
