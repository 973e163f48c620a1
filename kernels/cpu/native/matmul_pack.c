/* Packing weights, and reading rows of a packed one (an embedding that is also the output layer). Layouts: matmul.h.

   int8: the scale is the largest of 64 over 127, rounded up to bfloat16, so that nothing is cut off. int4: of the
   scales that put the largest of 32, with its sign, on one of ANCHORS, the one with the least squared error. */

#include <sys/mman.h>

#include "matmul.h"

static const float ANCHORS[] = {-127, 113, -119, -135, 106, 121};

/* Bytes of a packed weight [out, in]; 0 where this instruction set has no such kind. */
EXPORT int64_t FN(linear_bytes)(int kind, int64_t out, int64_t in) {
    return kind == INT8_INT8 && !QUADS(INT8_INT8) ? 0 : blocks_of(out) * block_bytes(kind, in);
}

/* Asks for huge pages under memory that is not touched yet: streams of weights cross fewer page borders. */
EXPORT void FN(linear_huge_pages)(void *data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    const uintptr_t page = 2 << 20, from = ((uintptr_t)data + page - 1) / page * page;
    const uintptr_t to = ((uintptr_t)data + (uintptr_t)bytes) / page * page;
    if (from < to) madvise((void *)from, to - from, MADV_HUGEPAGE); /* where it is refused, small pages serve */
#else
    (void)data, (void)bytes;
#endif
}

/* The word of `in` position i and lane o in a block of floats. */
INLINE int64_t place_of(int kind, int64_t i, int64_t o) {
    return kind == BFLOAT16 ? i / 2 * 2 * BLOCK + 2 * o + (i & 1) : i * BLOCK + o;
}

/* Codes -127 .. 127 of w[0 .. n - 1]; returns their scale. */
static bf16 bytes_of(const float *w, int64_t n, int8_t *codes) {
    float largest = 0;
    for (int64_t i = 0; i < n; i++) largest = fabsf(w[i]) > largest ? fabsf(w[i]) : largest;
    const bf16 scale = bf16_of_float(largest / 127.0f * (1.0f + 0x1p-8f));
    const float inverse = bf16_to_float(scale) > 0 ? 1.0f / bf16_to_float(scale) : 0;
    for (int64_t i = 0; i < n; i++) {
        float q = rintf(w[i] * inverse);
        codes[i] = (int8_t)(q > 127 ? 127 : q > -127 ? q : -127);
    }
    return scale;
}

/* Codes 0 .. 15 of w[0 .. 31] at this scale; returns the sum of squared errors. */
static float codes_at(const float *w, float scale, int32_t *codes) {
    const float inverse = scale != 0 ? 1.0f / scale : 0;
    float error[32], sum = 0;
    for (int i = 0; i < 32; i++) {
        const float v = w[i] * inverse;
        int32_t code = 0;
        float value = CODES[0];
        for (int c = 1; c < 16; c++) {
            const int above = v > 0.5f * (CODES[c - 1] + CODES[c]);
            code = above ? c : code;
            value = above ? CODES[c] : value;
        }
        codes[i] = code;
        error[i] = value * scale - w[i];
    }
    for (int i = 0; i < 32; i++) sum += error[i] * error[i];
    return sum;
}

static bf16 nibbles_of(const float *w, int32_t *codes) {
    float largest = 0, least_error = INFINITY;
    bf16 best = 0;
    int32_t tried[32];
    for (int i = 0; i < 32; i++) largest = fabsf(w[i]) > fabsf(largest) ? w[i] : largest;
    memset(codes, 0, 32 * sizeof *codes);
    for (size_t a = 0; a < sizeof ANCHORS / sizeof *ANCHORS; a++) {
        const bf16 scale = bf16_of_float(largest / ANCHORS[a]);
        const float error = codes_at(w, bf16_to_float(scale), tried);
        if (error < least_error) {
            least_error = error, best = scale;
            memcpy(codes, tried, sizeof tried);
        }
    }
    return best;
}

static void pack_words(int kind, const void *weight, int64_t lanes, int64_t in, void *to) {
    for (int64_t from = 0; from < in; from += 64) /* a square at a time: both sides stay in the cache */
        for (int64_t o = 0; o < lanes; o++)
            for (int64_t i = from; i < least(from + 64, in); i++) {
                const int64_t target = place_of(kind, i, o);
                if (kind == FLOAT32) ((uint32_t *)to)[target] = ((const uint32_t *)weight)[o * in + i];
                else ((uint16_t *)to)[target] = ((const uint16_t *)weight)[o * in + i];
            }
}

static void pack_codes(int kind, const float *weight, int64_t lanes, int64_t in, char *to) {
    const unit_t unit = unit_of(kind);
    for (int64_t from = 0; from < in; from += unit.positions, to += unit.bytes)
        for (int64_t o = 0; o < lanes; o++) {
            float w[64] = {0};
            int8_t bytes[64];
            int32_t nibbles[32], sum = 0;
            memcpy(w, weight + o * in + from, 4 * (size_t)least(unit.positions, in - from));
            ((bf16 *)to)[o] = kind == INT4 ? nibbles_of(w, nibbles) : bytes_of(w, 64, bytes);
            for (int i = 0; kind == INT4 && i < 32; i++)
                ((uint32_t *)(to + 2 * BLOCK))[i / 8 * BLOCK + o] |= (uint32_t)nibbles[i] << i % 8 * 4;
            for (int i = 0; kind == INT8 && i < 64; i++) to[2 * BLOCK + i * BLOCK + o] = bytes[i];
            if (kind != INT8_INT8) continue;
            for (int i = 0; i < 64; i++) {
                to[6 * BLOCK + i / 4 * 4 * BLOCK + 4 * o + i % 4] = bytes[i];
                sum += bytes[i];
            }
            ((int32_t *)(to + 2 * BLOCK))[o] = -128 * sum;
        }
}

/* Blocks first .. first + blocks_of(rows) - 1 of `packed` from weight [rows, in]: words of the kind's own size, or
   float32 that is quantized here. */
EXPORT void FN(linear_pack)(int kind, const void *weight, int64_t rows, int64_t in, void *packed, int64_t first) {
    const int64_t bytes = block_bytes(kind, in), size = kind == BFLOAT16 || kind == FLOAT16 ? 2 : 4;
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks_of(rows); b++) {
        char *to = (char *)packed + (first + b) * bytes;
        const char *from = (const char *)weight + b * BLOCK * in * size;
        const int64_t lanes = least(BLOCK, rows - b * BLOCK);
        if (kind >= INT8 || lanes < BLOCK || (in & 1)) memset(to, 0, (size_t)bytes);
        if (kind >= INT8) pack_codes(kind, (const float *)from, lanes, in, to);
        else pack_words(kind, from, lanes, in, to);
    }
}

/* The same for q8_0 and q4_0, whose codes [rows, in] and scales (float16) [rows, in / 32] are there already. */
EXPORT void FN(linear_pack_codes)(int kind, const int8_t *codes, const uint16_t *scales, int64_t rows, int64_t in,
                                  void *packed, int64_t first) {
    const unit_t unit = unit_of(kind);
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < blocks_of(rows); b++) {
        char *to = (char *)packed + first * block_bytes(kind, in) + b * block_bytes(kind, in);
        memset(to, 0, (size_t)block_bytes(kind, in));
        for (int64_t from = 0; from < in; from += 32, to += unit.bytes)
            for (int64_t o = 0; o < least(BLOCK, rows - b * BLOCK); o++) {
                const int64_t row = b * BLOCK + o;
                ((uint16_t *)to)[o] = scales[row * (in / 32) + from / 32];
                for (int i = 0; i < 32; i++) {
                    const int8_t code = codes[row * in + from + i];
                    if (kind == Q8_0) to[2 * BLOCK + i * BLOCK + o] = code;
                    else ((uint32_t *)(to + 2 * BLOCK))[i / 8 * BLOCK + o] |= (uint32_t)(code + 8) << i % 8 * 4;
                }
            }
    }
}

/* The weight of `in` position i and lane o of a block. */
static float weight_at(int kind, const char *block, int64_t i, int64_t o) {
    const unit_t unit = unit_of(kind);
    if (kind == FLOAT32) return ((const float *)block)[place_of(kind, i, o)];
    if (kind == BFLOAT16) return bf16_to_float(((const bf16 *)block)[place_of(kind, i, o)]);
    if (kind == FLOAT16) return half_to_float(((const uint16_t *)block)[place_of(kind, i, o)]);
    block += i / unit.positions * unit.bytes;
    i %= unit.positions;
    const uint16_t stored = ((const uint16_t *)block)[o];
    const float scale = kind == Q8_0 || kind == Q4_0 ? half_to_float(stored) : bf16_to_float(stored);
    const char *codes = block + 2 * BLOCK;
    if (IS_BYTES(kind)) return (float)(int8_t)codes[i * BLOCK + o] * scale;
    if (IS_WORDS(kind)) return CODES_OF(kind)[((const uint32_t *)codes)[i / 8 * BLOCK + o] >> i % 8 * 4 & 15] * scale;
    return (float)(int8_t)codes[4 * BLOCK + i / 4 * 4 * BLOCK + 4 * o + i % 4] * scale;
}

/* out [count, in] = the weight's rows ids[0 .. count - 1]. */
EXPORT void FN(linear_rows)(int kind, const void *packed, int64_t in, const int64_t *ids, int64_t count, float *out) {
#pragma omp parallel for schedule(static) if (count > 8)
    for (int64_t t = 0; t < count; t++) {
        const char *block = (const char *)packed + ids[t] / BLOCK * block_bytes(kind, in);
        for (int64_t i = 0; i < in; i++) out[t * in + i] = weight_at(kind, block, i, ids[t] % BLOCK);
    }
}
