/* A register tile: rows x vectors of sums that stay in registers along `in`. kind, rows, vectors and lines are constants
   wherever these functions are inlined.

   Plain kinds: sum = fma(x[i], w[i], sum) for i = 0, 1, ... Groups (int8, int4, q8_0, q4_0): part =
   fma(x[i], q[i], part) from 0 within a group, then sum = fma(part, scale, sum). int8-w8a8: the part is a whole number, exact, and
   sum = fma(part, weight scale * activation scale, sum). A PANEL holds the same q, widened to floats before. */

#ifndef QUIRE_MATMUL_TILE_H
#define QUIRE_MATMUL_TILE_H

#include "matmul.h"

typedef struct {
    const char *weights;  /* of the first unit, or a panel */
    const float *scales;  /* of a PANEL in groups: [groups][64] */
    int64_t group;        /* its positions */
    int64_t lane;         /* the tile's first output in the block */
    int64_t depth;        /* `in` positions */
    const float *x;       /* row r at x + r * pitch: floats, or (PAIRED, QUADS) words of two bfloat16, four bytes */
    int64_t pitch;
    int64_t x_scales;     /* QUADS: where in a row of x its scales are */
    float *y;             /* row r at y + r * stride */
    int64_t stride;
    int carry;            /* y holds the sums so far */
    const float *bias;    /* added at the end, or NULL */
    const char *ahead;    /* memory that is wanted next: `step` bytes of it for each turn of the loop */
    int64_t step;
} tile_t;

#define EACH(count, i) _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++)
#define ASK_AHEAD EACH(lines, line) __builtin_prefetch(ahead + 64 * line, 0, 3);
#define MULTIPLY(sums, offset)                                           \
    EACH(rows, r) {                                                      \
        vf broadcast = vset(x[r * pitch + (offset)]);                    \
        EACH(vectors, c) sums[r][c] = vfma(broadcast, w[c], sums[r][c]); \
    }

INLINE void plain_sums(const int kind, const int rows, const int vectors, const int lines, const tile_t *t,
                       vf (*sums)[8]) {
    const int64_t pitch = t->pitch, depth = t->depth, step = t->step;
    const char *weights = t->weights + t->lane * (kind == FLOAT16 ? 2 : 4), *ahead = t->ahead;
    const float *x = t->x;
    vf w[8];
    if (PAIRED(kind)) {
#if defined(__AVX512BF16__)
        for (int64_t i = 0; i < depth; i += 2, weights += 4 * BLOCK, ahead += step, x++) {
            ASK_AHEAD
            EACH(vectors, c) w[c] = vload((const float *)weights + c * VL);
            EACH(rows, r) {
                __m512bh pair = (__m512bh)vset(x[r * pitch]);
                EACH(vectors, c) sums[r][c] = _mm512_dpbf16_ps(sums[r][c], pair, (__m512bh)w[c]);
            }
        }
#endif
    } else if (kind == BFLOAT16) {
        vi raw[8];
        for (int64_t i = 0; i + 2 <= depth; i += 2, weights += 4 * BLOCK, ahead += step, x += 2) {
            ASK_AHEAD
            EACH(vectors, c) raw[c] = vload_words(weights + 4 * VL * c);
            EACH(vectors, c) w[c] = vlow(raw[c]);
            MULTIPLY(sums, 0)
            EACH(vectors, c) w[c] = vhigh(raw[c]);
            MULTIPLY(sums, 1)
        }
        if (depth & 1) {
            EACH(vectors, c) w[c] = vlow(vload_words(weights + 4 * VL * c));
            MULTIPLY(sums, 0)
        }
    } else {
        for (int64_t i = 0; i < depth; i++, weights += kind == FLOAT16 ? 2 * BLOCK : 4 * BLOCK, ahead += step, x++) {
            ASK_AHEAD
            EACH(vectors, c) {
                if (kind == FLOAT16) w[c] = vload_f16((const uint16_t *)weights + c * VL);
                else w[c] = vload((const float *)weights + c * VL);
            }
            MULTIPLY(sums, 0)
        }
    }
}

INLINE void group_sums(const int kind, const int rows, const int vectors, const int lines, const tile_t *t,
                       vf (*sums)[8]) {
    const int64_t pitch = t->pitch, step = t->step, group = kind == PANEL ? t->group : unit_of(kind).positions;
    const char *weights = t->weights, *ahead = t->ahead;
    const float *x = t->x, *scales = t->scales;
    const codes_t codes = codes_load(CODES_OF(kind));
    for (int64_t left = t->depth; left > 0; left -= group) {
        const int64_t depth = least(group, left);
        vf parts[ROWS][8], w[8];
        EACH(rows, r) EACH(vectors, c) parts[r][c] = vzero();
        if (IS_WORDS(kind)) {
            const char *from = weights + 2 * BLOCK + 4 * t->lane;
            for (int64_t i = 0; i < depth; i += 8, from += 4 * BLOCK, ahead += step) {
                const int64_t eight = least(8, depth - i);
                vi raw[8];
                ASK_AHEAD
                EACH(vectors, c) raw[c] = vload_words(from + 4 * VL * c);
                for (int64_t j = 0; j < eight; j++, x++) {
                    EACH(vectors, c) w[c] = vcodes(codes, raw[c]);
                    EACH(vectors, c) raw[c] = vnext_code(raw[c]);
                    MULTIPLY(parts, 0)
                }
            }
        } else {
            const char *from = weights + (kind == PANEL ? 4 * t->lane : 2 * BLOCK + t->lane);
            for (int64_t i = 0; i < depth; i++, from += kind == PANEL ? 4 * BLOCK : BLOCK, ahead += step, x++) {
                ASK_AHEAD
                EACH(vectors, c) {
                    if (kind == PANEL) w[c] = vload((const float *)from + c * VL);
                    else w[c] = vload_i8((const int8_t *)from + c * VL);
                }
                MULTIPLY(parts, 0)
            }
        }
        EACH(vectors, c) w[c] = kind == PANEL ? vload(scales + t->lane + c * VL)
                                              : vload_scales(kind, weights + 2 * (t->lane + c * VL));
        EACH(rows, r) EACH(vectors, c) sums[r][c] = vfma(parts[r][c], w[c], sums[r][c]);
        if (kind == PANEL) weights += group * 4 * BLOCK, scales += BLOCK;
        else weights += unit_of(kind).bytes;
    }
}

#if defined(__AVX512VNNI__)
INLINE void quad_sums(const int rows, const int vectors, const int lines, const tile_t *t, vf (*sums)[8]) {
    const int64_t pitch = t->pitch, step = t->step;
    const char *weights = t->weights, *ahead = t->ahead;
    const float *x = t->x, *x_scale = t->x + t->x_scales;
    for (int64_t left = t->depth; left > 0; left -= 64, weights += 70 * BLOCK, x_scale++) {
        vi parts[ROWS][8], raw[8];
        vf scale[8];
        EACH(rows, r) EACH(vectors, c) parts[r][c] = vload_words(weights + 2 * BLOCK + 4 * VL * c);
        for (int64_t i = 0; i < 16; i++, ahead += step, x++) {
            ASK_AHEAD
            EACH(vectors, c) raw[c] = vload_words(weights + 6 * BLOCK + i * 4 * BLOCK + 4 * VL * c);
            EACH(rows, r) {
                vi quad = _mm512_castps_si512(vset(x[r * pitch]));
                EACH(vectors, c) parts[r][c] = _mm512_dpbusd_epi32(parts[r][c], quad, raw[c]);
            }
        }
        EACH(vectors, c) scale[c] = vload_bf16((const bf16 *)weights + c * VL);
        EACH(rows, r) EACH(vectors, c)
            sums[r][c] = vfma(_mm512_cvtepi32_ps(parts[r][c]), vmul(scale[c], vset(x_scale[r * pitch])), sums[r][c]);
    }
}
#endif

INLINE void tile(const int kind, const int rows, const int vectors, const int lines, const tile_t *t) {
    vf sums[ROWS][8];
    float *y = t->y + t->lane;
    EACH(rows, r) EACH(vectors, c) sums[r][c] = t->carry ? vload(y + r * t->stride + c * VL) : vzero();
    if (IS_GROUPS(kind) || kind == PANEL) group_sums(kind, rows, vectors, lines, t, sums);
#if defined(__AVX512VNNI__)
    else if (kind == INT8_INT8) quad_sums(rows, vectors, lines, t, sums);
#endif
    else plain_sums(kind, rows, vectors, lines, t, sums);
    EACH(rows, r) EACH(vectors, c) {
        vf sum = t->bias ? vadd(sums[r][c], vload(t->bias + t->lane + c * VL)) : sums[r][c];
        vstore(y + r * t->stride + c * VL, sum);
    }
}

/* All 64 outputs of a block for fewest <= rows <= most <= ROWS. */
INLINE void tile_of_rows(const int kind, const int fewest, const int most, const int lines, int64_t rows, tile_t *t) {
#define CASE(n)                                                                             \
    case n:                                                                                 \
        for (t->lane = 0; n >= fewest && n <= most && t->lane < BLOCK; t->lane += VECTORS(n) * VL)         \
            tile(kind, n, VECTORS(n), lines, t);                                            \
        break;
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
}

#endif
