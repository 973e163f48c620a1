/* The KV cache as the kernels see it, and one tile of it brought into float32.

   A cache is [blocks, kv_heads, block_size, row]: a row is the D values of one slot and head, in int8 followed by their
   float32 scale. A tile is 64 absolute positions of one sequence, wherever its blocks lie. Products take their right
   side in panels, PANEL floats wide (see attention.c), so keys come transposed, values as they are:

       keys    [64 / PANEL][D][PANEL]      lanes are keys
       values  [D / PANEL][64][PANEL]      lanes are features; features beyond D are 0

   Keys are transposed four bytes at a time, one or more features of a key in each, and widened after that. */

#ifndef QUIRE_KV_H
#define QUIRE_KV_H

#include "simd.h"

enum { KV_FLOAT32, KV_BFLOAT16, KV_FLOAT16, KV_INT8 };

#define TILE 64
#if VL == 16
#define PANEL_VECTORS 4
#else
#define PANEL_VECTORS 2
#endif
#define PANEL (PANEL_VECTORS * VL)

INLINE int64_t kv_value_bytes(int kind) { return kind == KV_FLOAT32 ? 4 : kind == KV_INT8 ? 1 : 2; }
INLINE int64_t kv_row_bytes(int kind, int64_t dim) { return dim * kv_value_bytes(kind) + (kind == KV_INT8 ? 4 : 0); }

/* --- vectors of VL times four bytes --- */

#if VL == 16
INLINE vi wload(const char *p) { return _mm512_loadu_si512(p); }
INLINE vi wload_n(const char *p, int n) { return _mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1), p); }
INLINE vf bf16_low(vi x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
INLINE vf bf16_high(vi x) {
    return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32((int)0xffff0000u)));
}
INLINE vf f16_low(vi x) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)); }
INLINE vf f16_high(vi x) { return f16_low(_mm512_srli_epi32(x, 16)); }
#define I8_PART(x, i) _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(x, 24 - 8 * (i)), 24))
INLINE vf as_float(vi x) { return _mm512_castsi512_ps(x); }

INLINE void transpose(vi r[VL]) {
    vi t[16], u[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) { /* u[i + k], 128-bit lane j: column 4 j + k of rows i .. i + 3 */
        u[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int k = 0; k < 4; k++) {
        vi even = _mm512_shuffle_i32x4(u[k], u[k + 4], 0x88), even_below = _mm512_shuffle_i32x4(u[k + 8], u[k + 12], 0x88);
        vi odd = _mm512_shuffle_i32x4(u[k], u[k + 4], 0xdd), odd_below = _mm512_shuffle_i32x4(u[k + 8], u[k + 12], 0xdd);
        r[k] = _mm512_shuffle_i32x4(even, even_below, 0x88);
        r[k + 4] = _mm512_shuffle_i32x4(odd, odd_below, 0x88);
        r[k + 8] = _mm512_shuffle_i32x4(even, even_below, 0xdd);
        r[k + 12] = _mm512_shuffle_i32x4(odd, odd_below, 0xdd);
    }
}

#elif VL == 8
INLINE vi wload(const char *p) { return _mm256_loadu_si256((const __m256i *)p); }
INLINE vi wload_n(const char *p, int n) { return _mm256_maskload_epi32((const int *)p, vmask_n(n)); }
INLINE vf bf16_low(vi x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
INLINE vf bf16_high(vi x) {
    return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32((int)0xffff0000u)));
}
INLINE vf f16_high(vi x) {
    vi high = _mm256_srli_epi32(x, 16), packed = _mm256_packus_epi32(high, high);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
INLINE vf f16_low(vi x) { return f16_high(_mm256_slli_epi32(x, 16)); }
#define I8_PART(x, i) _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(x, 24 - 8 * (i)), 24))
INLINE vf as_float(vi x) { return _mm256_castsi256_ps(x); }

INLINE void transpose(vi r[VL]) {
    vi t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        u[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        u[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        u[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int k = 0; k < 4; k++) {
        r[k] = _mm256_permute2x128_si256(u[k], u[k + 4], 0x20);
        r[k + 4] = _mm256_permute2x128_si256(u[k], u[k + 4], 0x31);
    }
}

#else
INLINE vi wload(const char *p) { vi x; memcpy(&x, p, 16); return x; }
INLINE vi wload_n(const char *p, int n) { vi x = {0, 0, 0, 0}; memcpy(&x, p, 4 * (size_t)n); return x; }
INLINE vf bf16_low(vi x) { return (vf)((vi){x[0] & 0xffff, x[1] & 0xffff, x[2] & 0xffff, x[3] & 0xffff} << 16); }
INLINE vf bf16_high(vi x) { return (vf)(x & (vi){-65536, -65536, -65536, -65536}); }
INLINE vf f16_low(vi x) {
    return (vf){f16_to_float((uint16_t)x[0]), f16_to_float((uint16_t)x[1]), f16_to_float((uint16_t)x[2]),
                f16_to_float((uint16_t)x[3])};
}
INLINE vf f16_high(vi x) { return f16_low(x >> 16); }
#define I8_PART(x, i) \
    ((vf){(int8_t)((x)[0] >> 8 * (i)), (int8_t)((x)[1] >> 8 * (i)), (int8_t)((x)[2] >> 8 * (i)), (int8_t)((x)[3] >> 8 * (i))})
INLINE vf as_float(vi x) { return (vf)x; }

INLINE void transpose(vi r[VL]) {
    vi a = r[0], b = r[1], c = r[2], d = r[3];
    for (int i = 0; i < 4; i++) r[i] = (vi){a[i], b[i], c[i], d[i]};
}
#endif

/* --- one tile --- */

/* The rows of positions first .. end - 1 of a tile that begins at `base`: rows[i] is position base + i. */
INLINE void kv_rows(const char *cache, const int32_t *table, int64_t block_size, int64_t kv_heads, int64_t kv_head,
                    int64_t row_bytes, int64_t base, int64_t first, int64_t end, const char *rows[TILE]) {
    for (int64_t position = first; position < end;) {
        int64_t block = position / block_size, offset = position % block_size;
        int64_t stop = position + block_size - offset < end ? position + block_size - offset : end;
        const char *row = cache + (((int64_t)table[block] * kv_heads + kv_head) * block_size + offset) * row_bytes;
        for (; position < stop; position++, row += row_bytes) rows[position - base] = row;
    }
}

INLINE float kv_scale(const char *row, int64_t dim) {
    float scale;
    memcpy(&scale, row + dim, 4);
    return scale;
}

/* VL times four bytes of a row of which `bytes` are left. */
INLINE vi kv_words(const char *p, int64_t bytes) {
    if (bytes >= 4 * VL) return wload(p);
    if (bytes % 4 == 0) return wload_n(p, (int)(bytes / 4));
    char copy[4 * VL] = {0};
    memcpy(copy, p, (size_t)bytes);
    return wload(copy);
}

/* Features begin .. begin + dim - 1 of keys first .. end - 1 of a tile into `keys`; the other keys of their vectors are
   unspecified. `ahead`, if any: rows that are soon needed, fetched meanwhile. */
INLINE void kv_keys_of(int kind, const char *const rows[TILE], const char *const *ahead, int first, int end,
                       int64_t begin, int64_t dim, float *keys) {
    const int64_t bytes = dim * kv_value_bytes(kind), parts = 4 / kv_value_bytes(kind);
    const int64_t offset = begin * kv_value_bytes(kind);
    for (int group = first / VL * VL; group < end; group += VL) {
        const char *from[VL];
        for (int i = 0; i < VL; i++)
            from[i] = rows[group + i < first ? first : group + i < end ? group + i : end - 1] + offset;
        float *panel = keys + group / PANEL * PANEL * dim + group % PANEL;
        for (int64_t byte = 0; byte < bytes; byte += 4 * VL) {
            vi words[VL];
            for (int i = 0; i < VL; i++) words[i] = kv_words(from[i] + byte, bytes - byte);
            if (ahead != NULL)
                for (int i = 0; i < VL; i++)
                    if (byte % 64 == 0) __builtin_prefetch(ahead[group + i] + offset + byte, 0, 2);
            transpose(words);
            float *to = panel + byte / 4 * parts * PANEL;
            const int64_t left = dim - byte / 4 * parts;
#define PUT(part, value) if (i * parts + (part) < left) vstore(to + (i * parts + (part)) * PANEL, value)
            for (int i = 0; i < VL; i++) {
                if (kind == KV_FLOAT32) PUT(0, as_float(words[i]));
                if (kind == KV_BFLOAT16) { PUT(0, bf16_low(words[i])); PUT(1, bf16_high(words[i])); }
                if (kind == KV_FLOAT16) { PUT(0, f16_low(words[i])); PUT(1, f16_high(words[i])); }
                if (kind == KV_INT8) {
                    PUT(0, I8_PART(words[i], 0)); PUT(1, I8_PART(words[i], 1));
                    PUT(2, I8_PART(words[i], 2)); PUT(3, I8_PART(words[i], 3));
                }
            }
#undef PUT
        }
    }
}

static inline void kv_keys(int kind, const char *const rows[TILE], const char *const *ahead, int first, int end,
                           int64_t begin, int64_t dim, float *keys) {
    if (kind == KV_FLOAT32) kv_keys_of(KV_FLOAT32, rows, ahead, first, end, begin, dim, keys);
    if (kind == KV_BFLOAT16) kv_keys_of(KV_BFLOAT16, rows, ahead, first, end, begin, dim, keys);
    if (kind == KV_FLOAT16) kv_keys_of(KV_FLOAT16, rows, ahead, first, end, begin, dim, keys);
    if (kind == KV_INT8) kv_keys_of(KV_INT8, rows, ahead, first, end, begin, dim, keys);
}

INLINE vf kv_load(int kind, const char *p) {
    if (kind == KV_BFLOAT16) return vload_bf16((const bf16 *)p);
    if (kind == KV_FLOAT16) return vload_f16((const uint16_t *)p);
    if (kind == KV_INT8) return vload_i8((const int8_t *)p);
    return vload((const float *)p);
}

/* `vectors` vectors of a row's values, of which `left` <= vectors * VL are there. */
INLINE void kv_widen(int kind, const int vectors, const char *from, int64_t left, vf scale, float *to) {
    const int64_t size = kv_value_bytes(kind);
    char copy[4 * VL];
#pragma GCC unroll 4
    for (int i = 0; i < vectors; i++, left -= VL) {
        const char *source = from + i * VL * size;
        if (left < VL) {
            memset(copy, 0, sizeof copy);
            source = memcpy(copy, source, (size_t)(left * size));
        }
        const vf value = kv_load(kind, source);
        vstore(to + i * VL, kind == KV_INT8 ? vmul(value, scale) : value);
    }
}

/* Values first .. end - 1 of a tile into `values`, from its first row on. */
INLINE void kv_values_of(int kind, const char *const rows[TILE], const char *const *ahead, int first, int end,
                         int64_t dim, float *values) {
    const int64_t size = kv_value_bytes(kind);
    for (int key = first; key < end; key++) {
        const char *row = rows[key];
        float *to = values + (key - first) * PANEL;
        const vf scale = vset(kind == KV_INT8 ? kv_scale(row, dim) : 1.0f);
        if (ahead != NULL)
            for (int64_t byte = 0; byte < dim * size; byte += 64) __builtin_prefetch(ahead[key] + byte, 0, 2);
        int64_t i = 0;
        for (; i + PANEL <= dim; i += PANEL, to += PANEL * TILE)
            kv_widen(kind, PANEL_VECTORS, row + i * size, PANEL, scale, to);
        for (; i < dim; i += VL, to += VL) kv_widen(kind, 1, row + i * size, dim - i, scale, to);
    }
}

static inline void kv_values(int kind, const char *const rows[TILE], const char *const *ahead, int first, int end, int64_t dim,
                      float *values) {
    if (kind == KV_FLOAT32) kv_values_of(KV_FLOAT32, rows, ahead, first, end, dim, values);
    if (kind == KV_BFLOAT16) kv_values_of(KV_BFLOAT16, rows, ahead, first, end, dim, values);
    if (kind == KV_FLOAT16) kv_values_of(KV_FLOAT16, rows, ahead, first, end, dim, values);
    if (kind == KV_INT8) kv_values_of(KV_INT8, rows, ahead, first, end, dim, values);
}

#endif
