/* Writing keys and values into the cache: each row rounded to the cache's kind, to nearest even; int8 has one scale for
   each row, its largest magnitude / 127. A row that is not finite reads as NaN. */

#include <float.h>

#include "kv.h"
#include "parts.h"

INLINE void store_bf16(bf16 *to, const float *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, from + i, 4);
        uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, nan = (bits >> 16) | 0x40u;
        to[i] = (bf16)((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
    }
}

/* To nearest even in integers: below 2^-14 the unit is 2^-24, and adding 1/2 as a float rounds to it. */
INLINE uint16_t f16_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (rest >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
    if (rest >= 0x38800000u) return (uint16_t)(sign | ((rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13));
    float magnitude;
    memcpy(&magnitude, &rest, 4);
    magnitude += 0.5f;
    memcpy(&rest, &magnitude, 4);
    return (uint16_t)(sign | (rest - 0x3f000000u));
}

INLINE void store_f16(uint16_t *to, const float *from, int64_t n) {
    int64_t i = 0;
#if VL == 16
    for (; i + VL <= n; i += VL)
        _mm256_storeu_si256((__m256i *)(to + i), _mm512_cvtps_ph(vload(from + i), _MM_FROUND_TO_NEAREST_INT));
#elif VL == 8
    for (; i + VL <= n; i += VL)
        _mm_storeu_si128((__m128i *)(to + i), _mm256_cvtps_ph(vload(from + i), _MM_FROUND_TO_NEAREST_INT));
#endif
    for (; i < n; i++) to[i] = f16_of_float(from[i]);
}

INLINE void store_int8(int8_t *to, const float *from, int64_t n) {
    float largest = 0.0f, scale, inverse;
    int finite = 1;
    for (int64_t i = 0; i < n; i++) {
        float magnitude = fabsf(from[i]);
        finite &= magnitude <= FLT_MAX;
        largest = magnitude > largest ? magnitude : largest;
    }
    if (!finite) {
        scale = NAN, inverse = 0.0f;
    } else if (largest < 1e-30f) { /* 127 / largest may overflow, and nobody misses these */
        scale = 0.0f, inverse = 0.0f;
    } else {
        scale = largest / 127.0f, inverse = 127.0f / largest;
    }
    for (int64_t i = 0; i < n; i++) to[i] = finite ? (int8_t)(int32_t)rintf(from[i] * inverse) : 0;
    memcpy(to + n, &scale, 4);
}

INLINE void store_row(int kind, char *to, const float *from, int64_t dim) {
    if (kind == KV_FLOAT32) memcpy(to, from, 4 * (size_t)dim);
    if (kind == KV_BFLOAT16) store_bf16((bf16 *)to, from, dim);
    if (kind == KV_FLOAT16) store_f16((uint16_t *)to, from, dim);
    if (kind == KV_INT8) store_int8((int8_t *)to, from, dim);
}

void FN(write_kv_row)(const float *key, const float *value, int64_t key_head_stride, int64_t value_head_stride,
                      const cache_t *cache, int64_t slot) {
    const int64_t row_bytes = kv_row_bytes((int)cache->kind, cache->dim), size = cache->block_size;
    if (slot < 0) return;
    for (int64_t head = 0; head < cache->kv_heads; head++) {
        const int64_t at = ((slot / size * cache->kv_heads + head) * size + slot % size) * row_bytes;
        store_row((int)cache->kind, cache->keys + at, key + head * key_head_stride, cache->dim);
        store_row((int)cache->kind, cache->values + at, value + head * value_head_stride, cache->dim);
    }
}

/* key, value [tokens, kv_heads, dim], tokens and heads `*_stride` and `*_head_stride` floats apart, into slots
   [tokens] (block * block_size + offset) of the caches; a slot below 0 is not written. */
EXPORT void FN(write_kv)(const float *key, int64_t key_stride, int64_t key_head_stride, const float *value,
                         int64_t value_stride, int64_t value_head_stride, char *k_cache, char *v_cache,
                         const int64_t *slots, int64_t tokens, int64_t kv_heads, int64_t block_size, int64_t dim,
                         int kind) {
    const cache_t cache = {k_cache, v_cache, kv_heads, block_size, dim, kind};
#pragma omp parallel for schedule(static) if (tokens * kv_heads * dim > 1 << 15)
    for (int64_t token = 0; token < tokens; token++)
        FN(write_kv_row)(key + token * key_stride, value + token * value_stride, key_head_stride, value_head_stride, &cache,
                         slots[token]);
}
