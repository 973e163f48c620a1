/* y = x W^T + bias, for every precision of weights and any number of rows.

   Few rows: each thread streams its blocks once, in tiles of up to 6 rows x 64 outputs that stay in registers.
   Many rows: a chunk of a block is widened once, into a panel that stays in the cache for all rows (what VDPBF16PS and
   VPDPBUSD read is its own panel); sums wait in y between chunks. Both orders of work make the same sums, those of
   matmul_tile.h, so that a row's answer does not depend on the rows beside it, nor on the number of threads. */

#include "matmul_tile.h"
#include "parts.h"
#include "scratch.h"

#define AHEAD 4096 /* bytes of weights that are asked for before they are needed */
#define PIECES 8 /* that a thread takes of a matrix, one after the other: the last ones even out who was held up */
#define UNUSED __attribute__((unused)) /* by the instruction sets that lack VDPBF16PS or VPDPBUSD */

/* A tile whose weights come from memory: alone, or one of two that share what is asked for ahead. Codes cost more to
   widen than to fetch, and two that both ask for all of it lose nothing. */
static void stream(int kind, int64_t rows, int is_alone, tile_t *t) {
#define ALONE(kind, bytes) \
    case kind: t->step = bytes; tile_of_rows(kind, 1, FEW, (bytes) < 64 ? 1 : (bytes) / 64, rows, t); break;
#define SHARED(kind, bytes) \
    case kind: t->step = bytes / 2; tile_of_rows(kind, 3, FEW, bytes / 128, rows, t); return;
    if (!is_alone && rows >= 3) switch (kind) { SHARED(FLOAT32, 256) SHARED(BFLOAT16, 256) SHARED(FLOAT16, 128) }
    switch (kind) {
        ALONE(FLOAT32, 256)
        ALONE(BFLOAT16, 256)
        ALONE(FLOAT16, 128)
        ALONE(INT8, 66)
        ALONE(INT4, 288)
        ALONE(Q8_0, 68)
        ALONE(Q4_0, 288)
#if defined(__AVX512VNNI__)
        ALONE(INT8_INT8, 280)
#endif
    }
#undef ALONE
#undef SHARED
}

static void panel_tile(int kind, int64_t rows, tile_t *t) {
    if (IS_GROUPS(kind)) tile_of_rows(PANEL, 1, ROWS, 2, rows, t);
#if defined(__AVX512BF16__)
    else if (PAIRED(kind)) tile_of_rows(BFLOAT16, 1, ROWS, 2, rows, t);
#endif
#if defined(__AVX512VNNI__)
    else if (QUADS(kind)) tile_of_rows(INT8_INT8, 1, ROWS, 2, rows, t);
#endif
    else tile_of_rows(FLOAT32, 1, ROWS, 2, rows, t);
}

/* Positions that one turn of a panel tile's loop takes. */
INLINE int64_t turn_of(UNUSED int kind) { return PAIRED(kind) ? 2 : QUADS(kind) ? 4 : 1; }
INLINE int64_t chunk_of(UNUSED int kind) { return QUADS(kind) ? CHUNK8 : CHUNK; }
/* Floats from one row of a chunk to the next: no power of two where rows would share few cache sets. */
INLINE int64_t pitch_of(UNUSED int kind) { return QUADS(kind) ? CHUNK8 / 4 + 16 : CHUNK; }

/* Codes of `depth` positions as floats, group after group, and the scales [groups][64]. */
static void widen_groups(int kind, const char *weights, int64_t depth, float *panel, float *scales) {
    const unit_t unit = unit_of(kind);
    const codes_t codes = codes_load(CODES_OF(kind));
    for (int64_t i = 0; i < depth; i += unit.positions, weights += unit.bytes, scales += BLOCK) {
        const char *from = weights + 2 * BLOCK;
        for (int c = 0; c < BLOCK; c += VL) vstore(scales + c, vload_scales(kind, weights + 2 * c));
        for (int64_t j = 0; j < unit.positions; j++, panel += BLOCK)
            for (int c = 0; c < BLOCK; c += VL) {
                if (IS_BYTES(kind)) vstore(panel + c, vload_i8((const int8_t *)from + j * BLOCK + c));
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
    if (IS_GROUPS(kind)) widen_groups(kind, weights, depth, panel, panel + CHUNK * BLOCK);
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

/* Where the sums of block b are made: in y, or beside it where that has fewer than 64 outputs left. NULL: no memory. */
static float *sums_of(const linear_t *l, int64_t b, int64_t rows, int64_t *stride) {
    const int whole = (b + 1) * BLOCK <= l->out;
    *stride = whole ? l->out : BLOCK;
    return whole ? l->y + b * BLOCK : quire_scratch(LAST_SUMS, 4 * (size_t)(rows * BLOCK));
}

static void finish(const linear_t *l, int64_t b, int64_t row, int64_t rows, const float *sums) {
    for (int64_t r = 0; r < rows && sums != l->y + b * BLOCK; r++)
        memcpy(l->y + (row + r) * l->out + b * BLOCK, sums + r * BLOCK, 4 * (size_t)(l->out - b * BLOCK));
}

/* Floats from one row of `placed` to the next where there are few rows; the scales lie from here - 16 - x_scales on. */
INLINE int64_t few_scales(int64_t in) { return (in + 63) / 64 * 16; }
INLINE int64_t few_pitch(int64_t in) { return (in + 63) / 64 * 64 + 16; }

static int few_rows(const crew_t *crew, const linear_t *l) {
    const int64_t blocks = blocks_of(l->out), bytes = block_bytes(l->kind, l->in), x_scales = few_scales(l->in);
    const float *x = l->x;
    int64_t pitch = l->in;
    if (PAIRED(l->kind) || QUADS(l->kind)) {
        pitch = few_pitch(l->in);
        int64_t from, to;
        my_share(crew, l->rows, &from, &to);
        for (int64_t r = from; r < to; r++) place(l->kind, x + r * l->in, l->in, l->placed + r * pitch, x_scales);
        x = l->placed;
        meet(crew);
    }
    const int64_t piece = larger(1, blocks / (PIECES * crew->threads));
    int failed = 0;
    for (int64_t first; !failed && (first = take_piece(crew) * piece) < blocks;)
        for (int64_t b = first; !failed && b < least(first + piece, blocks); b++) {
            const char *weights = (const char *)l->weights + b * bytes;
            int64_t stride;
            float *sums = sums_of(l, b, l->rows, &stride);
            tile_t t = {.weights = weights, .depth = l->in, .x = x, .pitch = pitch, .x_scales = x_scales, .y = sums,
                        .stride = stride, .bias = l->bias ? l->bias + b * BLOCK : NULL, .ahead = weights + AHEAD};
            failed = sums == NULL;
            if (failed) break;
            stream(l->kind, l->rows, 1, &t);
            finish(l, b, 0, l->rows, sums);
        }
    return failed;
}

/* One block for the tiles `from` .. `to` - 1 of the rows, whose activations lie in `placed` as many_rows put them. */
static int block_of_rows(const linear_t *l, int64_t b, int64_t from, int64_t to) {
    float *panel = quire_scratch(WIDE_PANEL, 4 * (CHUNK + CHUNK / 32) * BLOCK);
    const unit_t unit = unit_of(l->kind);
    const int64_t chunk = chunk_of(l->kind), pitch = pitch_of(l->kind), chunks = (l->in + chunk - 1) / chunk;
    const int64_t tiles = tiles_of(l->rows), bytes = chunk / unit.positions * unit.bytes, here = to - from;
    const int64_t step = (bytes * turn_of(l->kind) / chunk + here - 1) / here;
    const char *weights = (const char *)l->weights + b * block_bytes(l->kind, l->in);
    const int64_t top = first_of(l->rows, tiles, from), bottom = first_of(l->rows, tiles, to);
    int64_t stride;
    float *sums = sums_of(l, b, bottom - top, &stride), *y = sums == l->y + b * BLOCK ? sums + top * stride : sums;
    if (panel == NULL || sums == NULL) return 1;
    const int twice = FEW == ROWS && here <= 2; /* widening twice costs less than a panel */
    for (int64_t k = 0; k < chunks; k++, weights += bytes) {
        const int64_t depth = least(chunk, l->in - k * chunk);
        const char *wide = twice ? weights : widen(l->kind, weights, depth, panel), *ahead = weights + bytes;
        for (int64_t i = from; i < to; i++, ahead += twice ? bytes / here : step * (chunk / turn_of(l->kind))) {
            const int64_t row = first_of(l->rows, tiles, i), rows = first_of(l->rows, tiles, i + 1) - row;
            tile_t t = {.weights = wide, .scales = panel + CHUNK * BLOCK, .group = unit.positions, .depth = depth,
                        .x = l->placed + (row * chunks + k * rows) * pitch, .pitch = pitch, .x_scales = chunk / 4,
                        .y = y + (row - top) * stride, .stride = stride, .carry = k > 0,
                        .bias = l->bias && k == chunks - 1 ? l->bias + b * BLOCK : NULL, .ahead = ahead, .step = step};
            if (!twice) panel_tile(l->kind, rows, &t);
            else stream(l->kind, rows, here == 1, &t);
        }
    }
    finish(l, b, top, bottom - top, sums);
    return 0;
}

/* Activations are copied as [tile][chunk][row][pitch]: rows a power of two apart would share few cache sets. */
static int many_rows(const crew_t *crew, const linear_t *l) {
    const int64_t chunk = chunk_of(l->kind), pitch = pitch_of(l->kind), chunks = (l->in + chunk - 1) / chunk;
    const int64_t tiles = tiles_of(l->rows), blocks = blocks_of(l->out), groups = groups_of(blocks, tiles, crew->threads);
    int64_t first, last;
    my_share(crew, tiles, &first, &last);
    for (int64_t i = first; i < last; i++) {
        const int64_t row = first_of(l->rows, tiles, i), rows = first_of(l->rows, tiles, i + 1) - row;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t k = 0; k < chunks; k++)
                place(l->kind, l->x + (row + r) * l->in + k * chunk, least(chunk, l->in - k * chunk),
                      l->placed + (row * chunks + k * rows + r) * pitch, chunk / 4);
    }
    meet(crew);
    const int64_t units = blocks * groups, piece = larger(1, units / (PIECES * crew->threads));
    int failed = 0;
    for (int64_t unit; !failed && (unit = take_piece(crew) * piece) < units;)
        for (const int64_t end = least(unit + piece, units); !failed && unit < end; unit++) {
            const int64_t group = unit / blocks;
            failed = block_of_rows(l, unit % blocks, tiles * group / groups, tiles * (group + 1) / groups);
        }
    return failed;
}

size_t FN(placed_bytes)(int kind, int64_t rows, int64_t in) {
    const int64_t chunk = chunk_of(kind), chunks = (in + chunk - 1) / chunk;
    rows = least(rows, SLAB);
    if (rows > FEW) return 4 * (size_t)(rows * chunks * pitch_of(kind));
    return PAIRED(kind) || QUADS(kind) ? 4 * (size_t)(rows * few_pitch(in)) : 0;
}

int FN(linear_part)(const crew_t *crew, const linear_t *l) {
    return l->rows <= FEW ? few_rows(crew, l) : many_rows(crew, l);
}

/* x [rows, in] and y [rows, out] float32, rows side by side; bias [out, padded to 64] or NULL. Returns 0, or 1: no
   memory. */
EXPORT int FN(linear)(int kind, const float *x, int64_t rows, int64_t in, const void *weights, const float *bias,
                      float *y, int64_t out) {
    float *placed = quire_scratch(PLACED_ROWS, FN(placed_bytes)(kind, rows, in));
    int failed = 0;
    for (int64_t row = 0; row < rows; row += SLAB) {
        linear_t l = {kind, least(SLAB, rows - row), in, out, weights, bias, x + row * in, y + row * out, placed};
        if (l.rows > FEW && placed == NULL) return 1;
        AS_CREW(1, if (FN(linear_part)(&crew, &l)) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED));
    }
    return failed;
}
