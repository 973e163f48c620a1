/* What the matmuls share: the packed blocks, the split of rows into tiles, a place for activations and panels.

   A weight [out, in] is packed into blocks of 64 outputs (the last one padded with zeros). One lane is one output, and
   each output adds its products in the order of `in`, whatever the number of rows: that is the whole contract. */

#ifndef QUIRE_MATMUL_H
#define QUIRE_MATMUL_H

#include <omp.h>
#include <stdlib.h>

#include "simd.h"

#define BLOCK 64 /* outputs */
#define ROWS 6   /* rows of the largest register tile */
#define CHUNK 128 /* `in` positions of a panel: 32 KiB of floats */
#define SLAB 504 /* rows whose activations are copied at a time */

/* Vectors of outputs in a tile of so many rows: what the registers hold, a divisor of the block. */
#define VECTORS(rows) (VL == 16 ? 4 : (rows) == 1 ? 8 : (rows) <= 3 ? 4 : 2)
/* So many rows are worth no panel: the weights are widened as they come from memory. */
#define FEW (VL == 16 ? ROWS : 1)

INLINE int64_t blocks_of(int64_t out) { return (out + BLOCK - 1) / BLOCK; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Grows, is aligned to a cache line, and belongs to one thread for as long as that lives. */
typedef struct { void *data; size_t bytes; } scratch_t;
INLINE void *scratch(scratch_t *held, size_t bytes) {
    if (held->bytes < bytes) {
        free(held->data);
        held->bytes = 0;
        if (posix_memalign(&held->data, 64, bytes)) abort();
        held->bytes = bytes;
    }
    return held->data;
}

/* Rows in tiles of at most ROWS, as equal as they can be: tile t of `tiles` has rows first(t) .. first(t + 1) - 1. */
INLINE int64_t tiles_of(int64_t rows) { return (rows + ROWS - 1) / ROWS; }
INLINE int64_t first_of(int64_t rows, int64_t tiles, int64_t t) { return rows / tiles * t + least(t, rows % tiles); }

/* Into how many groups of tiles the rows are cut so that blocks x groups share out evenly over the threads. */
INLINE int64_t groups_of(int64_t blocks, int64_t tiles) {
    int64_t threads = omp_get_max_threads(), groups = 1;
    while (groups * 8 <= tiles) {
        int64_t units = blocks * groups, most = (units + threads - 1) / threads;
        if (most * threads * 15 <= units * 16) break;
        groups++;
    }
    return groups;
}

/* VL words of 32 bits, and the bfloat16 in their low and high halves. */
#if defined(__AVX512F__)
INLINE vi vload_words(const void *p) { return _mm512_loadu_si512(p); }
INLINE vf vlow(vi x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
INLINE vf vhigh(vi x) { return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000u))); }
#elif defined(__AVX2__)
INLINE vi vload_words(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE vf vlow(vi x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
INLINE vf vhigh(vi x) { return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000u))); }
#else
typedef uint32_t vu __attribute__((vector_size(16)));
INLINE vi vload_words(const void *p) { vi x; memcpy(&x, p, 16); return x; }
INLINE vf vlow(vi x) { return (vf)((vu)x << 16); }
INLINE vf vhigh(vi x) { return (vf)((vu)x & 0xffff0000u); }
#endif

#if defined(__F16C__)
#define half_to_float(x) _cvtsh_ss(x)
#else
#define half_to_float(x) f16_to_float(x)
#endif

#endif
