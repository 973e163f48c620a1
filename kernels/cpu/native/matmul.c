/* y = x W^T + bias for weights of 32 and 16 bits: one layout, one order of sums, any number of rows.

   Packed: float32 and float16 [out/64][in][64]; bfloat16 [out/64][in/2][64][2], pairs along `in` side by side, so that
   a cache line holds 16 outputs and widening is a shift and a mask. Sums are float32: y = 0, then
   y = fma(x[i], w[i], y) for i = 0, 1, ..., then the bias. (avx512bf16 and bfloat16: two products at a time by
   VDPBF16PS, x rounded to bfloat16.)

   Few rows: each thread streams its blocks once, in tiles of up to 6 rows x 64 outputs that stay in registers.
   Many rows: a chunk of a block is widened once, into a panel that stays in the cache for all rows; sums wait in y
   between chunks. Both orders of work make the same sums. */

#include "matmul.h"

enum { FLOAT32, BFLOAT16, FLOAT16 };

#define AHEAD 2048 /* bytes of weights that are asked for before they are needed */

#if defined(__AVX512BF16__)
#define PAIRED(kind) ((kind) == BFLOAT16)
#else
#define PAIRED(kind) 0
#endif

/* Bytes of one `in` position of a block; bfloat16 has two of them side by side. */
INLINE int64_t width_of(int kind) { return kind == FLOAT32 ? 4 * BLOCK : 2 * BLOCK; }
INLINE int64_t block_bytes(int kind, int64_t in) { return width_of(kind) * (kind == BFLOAT16 ? in + (in & 1) : in); }

typedef struct {
    const char *weights;  /* of the tile's first `in` position and output */
    int64_t depth;        /* `in` positions */
    const float *x;       /* row r at x + r * pitch; where PAIRED two bfloat16 in each word */
    int64_t pitch;
    float *y;             /* row r at y + r * stride */
    int64_t stride;
    int carry;            /* y holds the sums so far */
    const float *bias;    /* added at the end, or NULL */
    const char *ahead;    /* memory that is wanted next: `step` bytes of it for each turn of the loop */
    int64_t step;
} tile_t;

#define EACH(count, i) _Pragma("GCC unroll 8") for (int i = 0; i < (count); i++)
#define MULTIPLY(offset)                                                 \
    EACH(rows, r) {                                                      \
        vf broadcast = vset(x[r * pitch + (offset)]);                    \
        EACH(vectors, c) sums[r][c] = vfma(broadcast, w[c], sums[r][c]); \
    }

/* rows x vectors of sums in registers: kind, rows, vectors and lines are constants where this is inlined. */
INLINE void tile(const int kind, const int rows, const int vectors, const int lines, const tile_t *t) {
    vf sums[ROWS][8], w[8];
    const int64_t pitch = t->pitch, depth = t->depth, step = t->step;
    const char *weights = t->weights, *ahead = t->ahead;
    const float *x = t->x;
    EACH(rows, r) EACH(vectors, c)
        sums[r][c] = t->carry ? vload(t->y + r * t->stride + c * VL) : vzero();
    if (PAIRED(kind)) {
#if defined(__AVX512BF16__)
        for (int64_t i = 0; i < depth; i += 2, weights += 4 * BLOCK, ahead += step, x++) {
            EACH(lines, line) __builtin_prefetch(ahead + 64 * line, 0, 3);
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
            EACH(lines, line) __builtin_prefetch(ahead + 64 * line, 0, 3);
            EACH(vectors, c) raw[c] = vload_words(weights + 4 * VL * c);
            EACH(vectors, c) w[c] = vlow(raw[c]);
            MULTIPLY(0)
            EACH(vectors, c) w[c] = vhigh(raw[c]);
            MULTIPLY(1)
        }
        if (depth & 1) {
            EACH(vectors, c) w[c] = vlow(vload_words(weights + 4 * VL * c));
            MULTIPLY(0)
        }
    } else {
        for (int64_t i = 0; i < depth; i++, weights += width_of(kind), ahead += step, x++) {
            EACH(lines, line) __builtin_prefetch(ahead + 64 * line, 0, 3);
            EACH(vectors, c) {
                if (kind == FLOAT32) w[c] = vload((const float *)weights + c * VL);
                else w[c] = vload_f16((const uint16_t *)weights + c * VL);
            }
            MULTIPLY(0)
        }
    }
    EACH(rows, r) EACH(vectors, c) {
        vf sum = t->bias ? vadd(sums[r][c], vload(t->bias + c * VL)) : sums[r][c];
        vstore(t->y + r * t->stride + c * VL, sum);
    }
}

/* All 64 outputs of a block for 1 <= rows <= most <= ROWS. */
INLINE void tile_of_rows(const int kind, const int most, const int lines, int64_t rows, tile_t *t) {
#define CASE(n)                                                              \
    case n:                                                                  \
        for (int left = n > most ? 0 : BLOCK / VL; left; left -= VECTORS(n)) { \
            tile(kind, n, VECTORS(n), lines, t);                             \
            t->weights += VECTORS(n) * VL * (kind == FLOAT16 ? 2 : 4);       \
            t->y += VECTORS(n) * VL;                                         \
            if (t->bias) t->bias += VECTORS(n) * VL;                         \
        }                                                                    \
        break;
    switch (rows) { CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) }
#undef CASE
}

static void stream(int kind, int64_t rows, tile_t *t) {
    if (kind == FLOAT32) tile_of_rows(FLOAT32, FEW, 4, rows, t);
    else if (kind == BFLOAT16) tile_of_rows(BFLOAT16, FEW, 4, rows, t);
    else tile_of_rows(FLOAT16, FEW, 2, rows, t);
}

static void panel_tile(__attribute__((unused)) int kind, int64_t rows, tile_t *t) {
    if (PAIRED(kind)) tile_of_rows(BFLOAT16, ROWS, 2, rows, t);
    else tile_of_rows(FLOAT32, ROWS, 2, rows, t);
}

/* `depth` positions of a block as the panel's tiles read them; float32 is read where it lies. */
static const char *widen(int kind, const char *weights, int64_t depth, float *panel) {
    if (kind == FLOAT32 || PAIRED(kind)) return weights;
    for (int64_t i = 0; i < depth; i++)
        for (int c = 0; c < BLOCK; c += VL) {
            if (kind == FLOAT16) vstore(panel + i * BLOCK + c, vload_f16((const uint16_t *)weights + i * BLOCK + c));
            else {
                vi raw = vload_words(weights + i / 2 * 4 * BLOCK + 4 * c);
                vstore(panel + i * BLOCK + c, i & 1 ? vhigh(raw) : vlow(raw));
            }
        }
    return (const char *)panel;
}

/* One row's activations of `depth` positions as the tiles read them. */
static void place(__attribute__((unused)) int kind, const float *x, int64_t depth, float *to) {
    if (!PAIRED(kind)) memcpy(to, x, 4 * (size_t)depth);
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

typedef struct {
    int kind;
    const float *x;
    int64_t rows, in;
    const char *weights;
    const float *bias;
    float *y;
    int64_t out;
} linear_t;

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
    const int64_t blocks = blocks_of(l->out), bytes = block_bytes(l->kind, l->in);
    const float *x = l->x;
    int64_t pitch = l->in;
    if (PAIRED(l->kind)) {
        static _Thread_local scratch_t held;
        float *pairs = scratch(&held, 4 * (size_t)(l->rows * l->in));
        for (int64_t r = 0; r < l->rows; r++) place(l->kind, x + r * l->in, l->in, pairs + r * l->in);
        x = pairs;
    }
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks; b++) {
        const char *weights = l->weights + b * bytes;
        int64_t turn = width_of(l->kind) * (l->kind == BFLOAT16 ? 2 : 1);
        int64_t stride;
        float *sums = sums_of(l, b, l->rows, &stride);
        tile_t t = {.weights = weights, .depth = l->in, .x = x, .pitch = pitch, .y = sums, .stride = stride,
                    .bias = l->bias ? l->bias + b * BLOCK : NULL, .ahead = weights + AHEAD, .step = turn};
        stream(l->kind, l->rows, &t);
        finish(l, b, 0, l->rows, sums);
    }
}

/* One block for the tiles `from` .. `to` - 1 of the rows, whose activations lie in `x` as many_rows put them. */
static void block_of_rows(const linear_t *l, const float *x, int64_t b, int64_t from, int64_t to) {
    static _Thread_local scratch_t held;
    float *panel = scratch(&held, 4 * CHUNK * BLOCK);
    const int64_t tiles = tiles_of(l->rows), chunks = (l->in + CHUNK - 1) / CHUNK, width = width_of(l->kind);
    const char *weights = l->weights + b * block_bytes(l->kind, l->in);
    const int64_t top = first_of(l->rows, tiles, from), bottom = first_of(l->rows, tiles, to);
    int64_t stride;
    float *sums = sums_of(l, b, bottom - top, &stride), *y = sums == l->y + b * BLOCK ? sums + top * stride : sums;
    for (int64_t chunk = 0; chunk < chunks; chunk++, weights += CHUNK * width) {
        const int64_t depth = least(CHUNK, l->in - chunk * CHUNK);
        const char *wide = widen(l->kind, weights, depth, panel), *ahead = weights + CHUNK * width;
        const int64_t step = (width * (PAIRED(l->kind) ? 2 : 1) + to - from - 1) / (to - from);
        for (int64_t i = from; i < to; i++, ahead += step * CHUNK) {
            const int64_t row = first_of(l->rows, tiles, i), rows = first_of(l->rows, tiles, i + 1) - row;
            tile_t t = {.weights = wide, .depth = depth, .x = x + (row * chunks + chunk * rows) * CHUNK,
                        .pitch = CHUNK, .y = y + (row - top) * stride, .stride = stride, .carry = chunk > 0,
                        .bias = l->bias && chunk == chunks - 1 ? l->bias + b * BLOCK : NULL,
                        .ahead = ahead, .step = step};
            panel_tile(l->kind, rows, &t);
        }
    }
    finish(l, b, top, bottom - top, sums);
}

/* Activations are copied as [tile][chunk][row][CHUNK]: rows a power of two apart would share few cache sets. */
static void many_rows(const linear_t *l) {
    static _Thread_local scratch_t held;
    const int64_t tiles = tiles_of(l->rows), chunks = (l->in + CHUNK - 1) / CHUNK, blocks = blocks_of(l->out);
    const int64_t groups = groups_of(blocks, tiles);
    float *x = scratch(&held, 4 * (size_t)(l->rows * chunks * CHUNK));
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tiles; i++) {
            const int64_t row = first_of(l->rows, tiles, i), rows = first_of(l->rows, tiles, i + 1) - row;
            for (int64_t r = 0; r < rows; r++)
                for (int64_t chunk = 0; chunk < chunks; chunk++)
                    place(l->kind, l->x + (row + r) * l->in + chunk * CHUNK, least(CHUNK, l->in - chunk * CHUNK),
                          x + (row * chunks + chunk * rows + r) * CHUNK);
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

/* Bytes of a packed weight [out, in]. */
EXPORT int64_t FN(linear_bytes)(int kind, int64_t out, int64_t in) { return blocks_of(out) * block_bytes(kind, in); }

/* The word of `in` position i and lane o in a block. */
INLINE int64_t place_of(int kind, int64_t i, int64_t o) {
    return kind == BFLOAT16 ? i / 2 * 2 * BLOCK + 2 * o + (i & 1) : i * BLOCK + o;
}

/* Blocks first .. first + blocks_of(rows) - 1 of `packed` from weight [rows, in], words of the kind's own size. */
EXPORT void FN(linear_pack)(int kind, const void *weight, int64_t rows, int64_t in, void *packed, int64_t first) {
    const int64_t bytes = block_bytes(kind, in);
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks_of(rows); b++) {
        char *to = (char *)packed + (first + b) * bytes;
        const int64_t lanes = least(BLOCK, rows - b * BLOCK);
        if (lanes < BLOCK || (in & 1)) memset(to, 0, (size_t)bytes);
        for (int64_t from = 0; from < in; from += 64) /* a square at a time: both sides stay in the cache */
            for (int64_t o = 0; o < lanes; o++)
                for (int64_t i = from; i < least(from + 64, in); i++) {
                    int64_t source = (b * BLOCK + o) * in + i, target = place_of(kind, i, o);
                    if (kind == FLOAT32) ((uint32_t *)to)[target] = ((const uint32_t *)weight)[source];
                    else ((uint16_t *)to)[target] = ((const uint16_t *)weight)[source];
                }
    }
}

/* out [count, in] = the weight's rows ids[0 .. count - 1]. */
EXPORT void FN(linear_rows)(int kind, const void *packed, int64_t in, const int64_t *ids, int64_t count, float *out) {
#pragma omp parallel for schedule(static) if (count > 8)
    for (int64_t t = 0; t < count; t++) {
        const char *from = (const char *)packed + ids[t] / BLOCK * block_bytes(kind, in);
        for (int64_t i = 0; i < in; i++) {
            int64_t source = place_of(kind, i, ids[t] % BLOCK);
            if (kind == FLOAT32) out[t * in + i] = ((const float *)from)[source];
            else if (kind == BFLOAT16) out[t * in + i] = bf16_to_float(((const bf16 *)from)[source]);
            else out[t * in + i] = half_to_float(((const uint16_t *)from)[source]);
        }
    }
}
