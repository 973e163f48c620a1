/* y = x W^T + bias, for every precision of weights and any number of rows.

   Few rows: each thread streams its blocks once, in tiles of up to 6 rows x 64 outputs that stay in registers.
   Many rows: a chunk of a block is widened once, into a panel that stays in the cache for all rows (what VDPBF16PS and
   VPDPBUSD read is its own panel); sums wait in y between chunks. Both orders of work make the same sums, those of
   matmul_tile.h, so that a row's answer does not depend on the rows beside it, nor on the number of threads. */

#include "matmul_tile.h"

#define AHEAD 4096 /* bytes of weights that are asked for before they are needed */
#define UNUSED __attribute__((unused)) /* by the instruction sets that lack VDPBF16PS or VPDPBUSD */

typedef struct {
    int kind;
    const float *x;
    int64_t rows, in;
    const char *weights;
    const float *bias;
    float *y;
    int64_t out;
} linear_t;

static void stream(int kind, int64_t rows, tile_t *t) {
    switch (kind) {
    case FLOAT32: t->step = 256; tile_of_rows(FLOAT32, FEW, 4, rows, t); break;
    case BFLOAT16: t->step = 256; tile_of_rows(BFLOAT16, FEW, 4, rows, t); break;
    case FLOAT16: t->step = 128; tile_of_rows(FLOAT16, FEW, 2, rows, t); break;
    case INT8: t->step = 66; tile_of_rows(INT8, FEW, 1, rows, t); break;
    case INT4: t->step = 288; tile_of_rows(INT4, FEW, 4, rows, t); break;
#if defined(__AVX512VNNI__)
    case INT8_INT8: t->step = 280; tile_of_rows(INT8_INT8, FEW, 4, rows, t); break;
#endif
    }
}

static void panel_tile(int kind, int64_t rows, tile_t *t) {
    if (kind == INT8 || kind == INT4) tile_of_rows(PANEL, ROWS, 2, rows, t);
#if defined(__AVX512BF16__)
    else if (PAIRED(kind)) tile_of_rows(BFLOAT16, ROWS, 2, rows, t);
#endif
#if defined(__AVX512VNNI__)
    else if (QUADS(kind)) tile_of_rows(INT8_INT8, ROWS, 2, rows, t);
#endif
    else tile_of_rows(FLOAT32, ROWS, 2, rows, t);
}

/* Positions that one turn of a panel tile's loop takes. */
INLINE int64_t turn_of(UNUSED int kind) { return PAIRED(kind) ? 2 : QUADS(kind) ? 4 : 1; }
INLINE int64_t chunk_of(UNUSED int kind) { return QUADS(kind) ? CHUNK8 : CHUNK; }
/* Floats from one row of a chunk to the next: no power of two where rows would share few cache sets. */
INLINE int64_t pitch_of(UNUSED int kind) { return QUADS(kind) ? CHUNK8 / 4 + 16 : CHUNK; }

/* Codes of `depth` positions as floats, group after group, and the scales [groups][64]. */
static void widen_groups(int kind, const char *weights, int64_t depth, float *panel, float *scales) {
    const unit_t unit = unit_of(kind);
    const codes_t codes = codes_load(CODES);
    for (int64_t i = 0; i < depth; i += unit.positions, weights += unit.bytes, scales += BLOCK) {
        const char *from = weights + 2 * BLOCK;
        for (int c = 0; c < BLOCK; c += VL) vstore(scales + c, vload_bf16((const bf16 *)weights + c));
        for (int64_t j = 0; j < unit.positions; j++, panel += BLOCK)
            for (int c = 0; c < BLOCK; c += VL) {
                if (kind == INT8) vstore(panel + c, vload_i8((const int8_t *)from + j * BLOCK + c));
                else if (j % 8 == 0) {
                    vi raw = vload_words(from + j / 2 * BLOCK + 4 * c);
                    for (int k = 0; k < 8; k++, raw = vnext_code(raw)) vstore(panel + k * BLOCK + c, vcodes(codes, raw));
                }
            }
    }
}

/* `depth` positions of a block as the panel's tiles read them; what they can read where it lies stays there. */
static const char *widen(int kind, const char *weights, int64_t depth, float *panel) {
    if (kind == FLOAT32 || PAIRED(kind) || QUADS(kind)) return weights;
    if (kind == INT8 || kind == INT4) widen_groups(kind, weights, depth, panel, panel + CHUNK * BLOCK);
    else if (kind == FLOAT16)
        for (int64_t i = 0; i < depth * BLOCK; i += VL) vstore(panel + i, vload_f16((const uint16_t *)weights + i));
    else
        for (int64_t i = 0; i < depth; i += 2)
            for (int c = 0; c < BLOCK; c += VL) {
                vi raw = vload_words(weights + i * 2 * BLOCK + 4 * c);
                vstore(panel + i * BLOCK + c, vlow(raw));
                vstore(panel + (i + 1) * BLOCK + c, vhigh(raw));
            }
    return (const char *)panel;
}

#if defined(__AVX512VNNI__)
/* 64 activations as bytes, 128 more than themselves over their scale, which is returned; NaN and infinity make it NaN. */
static float quantize64(const float *x, int64_t depth, uint8_t *to) {
    vf v[4], largest = vzero(), poison = vzero();
    for (int i = 0; i < 4; i++) {
        const int64_t left = depth - i * VL;
        v[i] = left >= VL ? vload(x + i * VL) : left > 0 ? vload_n(x + i * VL, (int)left) : vzero();
        largest = vmax(largest, vmax(v[i], vsub(vzero(), v[i])));
        poison = vfma(v[i], vzero(), poison);
    }
    const float most = vmaximum(largest);
    const vf inverse = vset(most > 0 ? 127.0f / most : 0);
    for (int i = 0; i < 4; i++) {
        __m128i bytes = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(vmul(v[i], inverse)));
        _mm_storeu_si128((__m128i *)(to + i * VL), _mm_xor_si128(bytes, _mm_set1_epi8((char)0x80)));
    }
    return most / 127.0f + vsum(poison);
}
#endif

/* One row's activations of `depth` positions as the tiles read them; scales from to + x_scales on. */
static void place(UNUSED int kind, const float *x, int64_t depth, float *to, UNUSED int64_t x_scales) {
    if (!PAIRED(kind) && !QUADS(kind)) memcpy(to, x, 4 * (size_t)depth);
#if defined(__AVX512VNNI__)
    for (int64_t i = 0; QUADS(kind) && i < depth; i += 64)
        to[x_scales + i / 64] = quantize64(x + i, least(64, depth - i), (uint8_t *)to + i);
#endif
#if defined(__AVX512BF16__)
    for (int64_t i = 0; PAIRED(kind) && i < depth; i += 32) {
        int n = (int)least(32, depth - i);
        vf low = n >= 16 ? vload(x + i) : vload_n(x + i, n);
        vf high = n >= 32 ? vload(x + i + 16) : n > 16 ? vload_n(x + i + 16, n - 16) : vzero();
        __m512i pairs = (__m512i)_mm512_cvtne2ps_pbh(high, low);
        _mm512_mask_storeu_epi32(to + i / 2, (__mmask16)((1u << ((n + 1) / 2)) - 1), pairs);
    }
#endif
}

/* Where the sums of block b are made: in y, or beside it where that has fewer than 64 outputs left. */
static float *sums_of(const linear_t *l, int64_t b, int64_t rows, int64_t *stride) {
    static _Thread_local scratch_t held;
    const int whole = (b + 1) * BLOCK <= l->out;
    *stride = whole ? l->out : BLOCK;
    return whole ? l->y + b * BLOCK : scratch(&held, 4 * (size_t)(rows * BLOCK));
}

static void finish(const linear_t *l, int64_t b, int64_t row, int64_t rows, const float *sums) {
    for (int64_t r = 0; r < rows && sums != l->y + b * BLOCK; r++)
        memcpy(l->y + (row + r) * l->out + b * BLOCK, sums + r * BLOCK, 4 * (size_t)(l->out - b * BLOCK));
}

static void few_rows(const linear_t *l) {
    static _Thread_local scratch_t held;
    const int64_t blocks = blocks_of(l->out), bytes = block_bytes(l->kind, l->in), x_scales = (l->in + 63) / 64 * 16;
    const float *x = l->x;
    int64_t pitch = l->in;
    if (PAIRED(l->kind) || QUADS(l->kind)) {
        pitch = x_scales / 16 * 64 + 16;
        float *placed = scratch(&held, 4 * (size_t)(l->rows * pitch));
        for (int64_t r = 0; r < l->rows; r++) place(l->kind, x + r * l->in, l->in, placed + r * pitch, x_scales);
        x = placed;
    }
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        const char *weights = l->weights + b * bytes;
        int64_t stride;
        float *sums = sums_of(l, b, l->rows, &stride);
        tile_t t = {.weights = weights, .depth = l->in, .x = x, .pitch = pitch, .x_scales = x_scales, .y = sums,
                    .stride = stride, .bias = l->bias ? l->bias + b * BLOCK : NULL, .ahead = weights + AHEAD};
        stream(l->kind, l->rows, &t);
        finish(l, b, 0, l->rows, sums);
    }
}

/* One block for the tiles `from` .. `to` - 1 of the rows, whose activations lie in `x` as many_rows put them. */
static void block_of_rows(const linear_t *l, const float *x, int64_t b, int64_t from, int64_t to) {
    static _Thread_local scratch_t held;
    float *panel = scratch(&held, 4 * (CHUNK + CHUNK / 32) * BLOCK);
    const unit_t unit = unit_of(l->kind);
    const int64_t chunk = chunk_of(l->kind), pitch = pitch_of(l->kind), chunks = (l->in + chunk - 1) / chunk;
    const int64_t tiles = tiles_of(l->rows), bytes = chunk / unit.positions * unit.bytes;
    const int64_t step = (bytes * turn_of(l->kind) / chunk + to - from - 1) / (to - from);
    const char *weights = l->weights + b * block_bytes(l->kind, l->in);
    const int64_t top = first_of(l->rows, tiles, from), bottom = first_of(l->rows, tiles, to);
    int64_t stride;
    float *sums = sums_of(l, b, bottom - top, &stride), *y = sums == l->y + b * BLOCK ? sums + top * stride : sums;
    const int twice = FEW == ROWS && to - from <= 2; /* widening twice costs less than a panel */
    for (int64_t k = 0; k < chunks; k++, weights += bytes) {
        const int64_t depth = least(chunk, l->in - k * chunk);
        const char *wide = twice ? weights : widen(l->kind, weights, depth, panel), *ahead = weights + bytes;
        for (int64_t i = from; i < to; i++, ahead += step * (chunk / turn_of(l->kind))) {
            const int64_t row = first_of(l->rows, tiles, i), rows = first_of(l->rows, tiles, i + 1) - row;
            tile_t t = {.weights = wide, .scales = panel + CHUNK * BLOCK, .group = unit.positions, .depth = depth,
                        .x = x + (row * chunks + k * rows) * pitch, .pitch = pitch, .x_scales = chunk / 4,
                        .y = y + (row - top) * stride, .stride = stride, .carry = k > 0,
                        .bias = l->bias && k == chunks - 1 ? l->bias + b * BLOCK : NULL, .ahead = ahead, .step = step};
            if (!twice) panel_tile(l->kind, rows, &t);
            else stream(l->kind, rows, &t);
        }
    }
    finish(l, b, top, bottom - top, sums);
}

/* Activations are copied as [tile][chunk][row][pitch]: rows a power of two apart would share few cache sets. */
static void many_rows(const linear_t *l) {
    static _Thread_local scratch_t held;
    const int64_t chunk = chunk_of(l->kind), pitch = pitch_of(l->kind), chunks = (l->in + chunk - 1) / chunk;
    const int64_t tiles = tiles_of(l->rows), blocks = blocks_of(l->out), groups = groups_of(blocks, tiles);
    float *x = scratch(&held, 4 * (size_t)(l->rows * chunks * pitch));
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tiles; i++) {
            const int64_t row = first_of(l->rows, tiles, i), rows = first_of(l->rows, tiles, i + 1) - row;
            for (int64_t r = 0; r < rows; r++)
                for (int64_t k = 0; k < chunks; k++)
                    place(l->kind, l->x + (row + r) * l->in + k * chunk, least(chunk, l->in - k * chunk),
                          x + (row * chunks + k * rows + r) * pitch, chunk / 4);
        }
#pragma omp for schedule(static)
        for (int64_t unit = 0; unit < blocks * groups; unit++) {
            const int64_t group = unit % groups;
            block_of_rows(l, x, unit / groups, tiles * group / groups, tiles * (group + 1) / groups);
        }
    }
}

/* x [rows, in] and y [rows, out] float32, rows side by side; bias [out, padded to 64] or NULL. */
EXPORT void FN(linear)(int kind, const float *x, int64_t rows, int64_t in, const void *weights, const float *bias,
                       float *y, int64_t out) {
    for (int64_t row = 0; row < rows; row += SLAB) {
        linear_t l = {kind, x + row * in, least(SLAB, rows - row), in, weights, bias, y + row * out, out};
        if (l.rows <= FEW) few_rows(&l);
        else many_rows(&l);
    }
}
