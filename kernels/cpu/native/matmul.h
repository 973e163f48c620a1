/* The packed weights of the matmul, and what its files share.

   A weight [out, in] is packed into blocks of 64 outputs (the last one padded with zeros). One lane is one output, and
   each output adds its products in the order of `in`, whatever the number of rows: that is the whole contract.
   A block is a row of units along `in` (the last one padded with zeros):

   float32    1 position    [64] floats
   bfloat16   2 positions   [64][2]: pairs side by side, a cache line is 16 outputs; widened by a shift and a mask
   float16    1 position    [64]
   int8       64 positions  [64] scales in bfloat16, [64][64] bytes, a position after the other
   int4       32 positions  [64] scales in bfloat16, [4][64] words of eight codes each, the first position lowest
   q8_0       32 positions  [64] scales in float16, [32][64] bytes: what GGUF files call so, code by code
   q4_0       32 positions  [64] scales in float16, [4][64] words of eight codes each, of -8 .. 7
   int8-w8a8  64 positions  [64] scales in bfloat16, [64] int32 -128 * sum of the bytes, [16][64][4] bytes */

#ifndef QUIRE_MATMUL_H
#define QUIRE_MATMUL_H

#include "simd.h"

#define BLOCK 64 /* outputs */
#define ROWS 6   /* rows of the largest register tile */
#define CHUNK 128 /* `in` positions of a panel: 32 KiB of floats */
#define CHUNK8 512 /* of int8-w8a8: 32 KiB of bytes */

/* Vectors of outputs in a tile of so many rows: what the registers hold, a divisor of the block. */
#define VECTORS(rows) (VL == 16 ? 4 : (rows) == 1 ? 8 : (rows) <= 3 ? 4 : 2)
/* So many rows are worth no panel: the weights are widened as they come from memory. */
#define FEW (VL == 16 ? ROWS : 1)

enum { FLOAT32, BFLOAT16, FLOAT16, INT8, INT4, INT8_INT8, Q8_0, Q4_0, PANEL };
#define IS_BYTES(kind) ((kind) == INT8 || (kind) == Q8_0)
#define IS_WORDS(kind) ((kind) == INT4 || (kind) == Q4_0)
#define IS_GROUPS(kind) (IS_BYTES(kind) || IS_WORDS(kind))

#if defined(__AVX512BF16__) /* two products at a time by VDPBF16PS, activations rounded to bfloat16 */
#define PAIRED(kind) ((kind) == BFLOAT16)
#else
#define PAIRED(kind) 0
#endif
#if defined(__AVX512VNNI__) /* four at a time by VPDPBUSD, activations as int8 with a scale for 64 */
#define QUADS(kind) ((kind) == INT8_INT8)
#else
#define QUADS(kind) 0
#endif

typedef struct { int64_t positions, bytes; } unit_t;
INLINE unit_t unit_of(int kind) {
    switch (kind) {
    case FLOAT32: return (unit_t){1, 4 * BLOCK};
    case BFLOAT16: return (unit_t){2, 4 * BLOCK};
    case FLOAT16: return (unit_t){1, 2 * BLOCK};
    case INT8: return (unit_t){64, 66 * BLOCK};
    case INT4: case Q4_0: return (unit_t){32, 18 * BLOCK};
    case Q8_0: return (unit_t){32, 34 * BLOCK};
    default: return (unit_t){64, 70 * BLOCK};
    }
}
INLINE int64_t block_bytes(int kind, int64_t in) {
    unit_t unit = unit_of(kind);
    return (in + unit.positions - 1) / unit.positions * unit.bytes;
}

INLINE int64_t blocks_of(int64_t out) { return (out + BLOCK - 1) / BLOCK; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Rows in tiles of at most ROWS, as equal as they can be: tile t of `tiles` has rows first(t) .. first(t + 1) - 1. */
INLINE int64_t tiles_of(int64_t rows) { return (rows + ROWS - 1) / ROWS; }
INLINE int64_t first_of(int64_t rows, int64_t tiles, int64_t t) { return rows / tiles * t + least(t, rows % tiles); }

/* Into how many groups of tiles the rows are cut so that blocks x groups share out evenly over the threads. */
INLINE int64_t groups_of(int64_t blocks, int64_t tiles, int64_t threads) {
    int64_t groups = 1;
    while (groups * 8 <= tiles) {
        int64_t units = blocks * groups, most = (units + threads - 1) / threads;
        if (most * threads * 15 <= units * 16) break;
        groups++;
    }
    return groups;
}

/* What int4's codes stand for, times the scale of their group: fitted to gaussian weights whose largest in 32, with its
   sign, is -127 (Lloyd's algorithm); whole numbers that fit a byte. */
static const float CODES[16] = {-127, -107, -88, -70, -53, -38, -24, -11, 2, 15, 27, 40, 54, 71, 89, 112};
static const float CODES_Q4_0[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
#define CODES_OF(kind) ((kind) == Q4_0 ? CODES_Q4_0 : CODES)

/* Scales of a group, in the width of theirs. */
INLINE vf vload_scales(int kind, const char *p) {
    return kind == Q8_0 || kind == Q4_0 ? vload_f16((const uint16_t *)p) : vload_bf16((const bf16 *)p);
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

/* The code in the lowest four bits of each word, from a table of 16 floats. */
#if defined(__AVX512F__)
typedef struct { vf all; } codes_t;
INLINE codes_t codes_load(const float *p) { return (codes_t){vload(p)}; }
INLINE vf vcodes(codes_t t, vi x) { return _mm512_permutexvar_ps(x, t.all); }
INLINE vi vnext_code(vi x) { return _mm512_srli_epi32(x, 4); }
#elif defined(__AVX2__)
typedef struct { vf low, high; } codes_t;
INLINE codes_t codes_load(const float *p) { return (codes_t){vload(p), vload(p + 8)}; }
INLINE vf vcodes(codes_t t, vi x) {
    vf low = _mm256_permutevar8x32_ps(t.low, x), high = _mm256_permutevar8x32_ps(t.high, x);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(x, 28)));
}
INLINE vi vnext_code(vi x) { return _mm256_srli_epi32(x, 4); }
#else
typedef struct { const float *table; } codes_t;
INLINE codes_t codes_load(const float *p) { return (codes_t){p}; }
INLINE vf vcodes(codes_t t, vi x) {
    return (vf){t.table[x[0] & 15], t.table[x[1] & 15], t.table[x[2] & 15], t.table[x[3] & 15]};
}
INLINE vi vnext_code(vi x) { return (vi)((vu)x >> 4); }
#endif

#if defined(__F16C__)
#define half_to_float(x) _cvtsh_ss(x)
#else
#define half_to_float(x) f16_to_float(x)
#endif

#endif
