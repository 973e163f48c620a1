/* Attention of one query token: as many rows as query heads share a kv head. What the sums are is said in attention.c;
   here keys and values come from the cache into registers and are used there, where many rows take them from panels.
   The same operations in the same order, so that nobody can tell from the bits which way a row went. */

#ifndef QUIRE_ATTENTION_FEW_H
#define QUIRE_ATTENTION_FEW_H

#include "attention_work.h"

#define FEW_ROWS 8

/* Float32 caches are for comparisons: panels will do. */
INLINE int is_few(const attention_t *p, int64_t rows, int64_t tokens) {
    return tokens == 1 && rows <= FEW_ROWS && p->cache.dim % VL == 0 && p->cache.kind != KV_FLOAT32;
}

/* The features in the next 4 * VL bytes of VL rows (`left` bytes are left of each), feature after feature: to [][VL]. */
static __attribute__((noinline)) void few_features(int kind, const char *const *from, int64_t byte, int64_t left, float *to) {
    vi words[VL];
    for (int i = 0; i < VL; i++) words[i] = kv_words(from[i] + byte, left);
    transpose(words);
    for (int i = 0; i < VL; i++) {
        if (kind == KV_BFLOAT16) vstore(to, bf16_low(words[i])), vstore(to + VL, bf16_high(words[i])), to += 2 * VL;
        if (kind == KV_FLOAT16) vstore(to, f16_low(words[i])), vstore(to + VL, f16_high(words[i])), to += 2 * VL;
        if (kind == KV_INT8) {
            vstore(to, I8_PART(words[i], 0)), vstore(to + VL, I8_PART(words[i], 1));
            vstore(to + 2 * VL, I8_PART(words[i], 2)), vstore(to + 3 * VL, I8_PART(words[i], 3)), to += 4 * VL;
        }
    }
}

/* scores [R][TILE] of the keys first .. end - 1: query [R][dim] times keys, sequential over the features. `ahead` [TILE],
   here and below: rows that are soon needed, fetched meanwhile. */
INLINE void few_scores_of(const int R, int kind, const char *const *rows, const char *const *ahead, int first, int end,
                          int64_t dim, const float *query, float *scores) {
    const int64_t size = kv_value_bytes(kind), bytes = dim * size;
    for (int group = first / VL * VL; group < end; group += VL) {
        const char *from[VL];
        vf sums[FEW_ROWS];
        for (int i = 0; i < VL; i++) from[i] = rows[group + i < first ? first : group + i < end ? group + i : end - 1];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) sums[r] = vzero();
        for (int64_t byte = 0; byte < bytes; byte += 4 * VL) {
            float keys[4 * VL * VL];
            const int64_t feature = byte / size, left = dim - feature < 4 * VL / size ? dim - feature : 4 * VL / size;
            few_features(kind, from, byte, bytes - byte, keys);
            for (int i = 0; byte % 64 == 0 && i < VL; i++) __builtin_prefetch(ahead[group + i] + byte, 0, 2);
            for (int64_t i = 0; i < left; i++) {
                const vf key = vload(keys + i * VL);
#pragma GCC unroll 8
                for (int r = 0; r < R; r++) sums[r] = vfma(vset(query[r * dim + feature + i]), key, sums[r]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) vstore(scores + r * TILE + group, sums[r]);
    }
}

/* sums [R][dim] = sums * rescale + weights [R][TILE] times the values first .. end - 1, N vectors of features at a time
   as long as there are so many; returns the features that were done. */
INLINE int64_t few_sums_of(const int kind, const int R, const int N, const char *const *rows, const char *const *ahead,
                           int first, int end, int64_t dim, const float *weights, const float *rescale, float *sums) {
    const int64_t size = kv_value_bytes(kind), bytes = N * VL * size;
    int64_t begin = 0;
    for (; begin + N * VL <= dim; begin += N * VL) {
        vf sum[FEW_ROWS][4];
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) sum[r][j] = vmul(vload(sums + r * dim + begin + j * VL), vset(rescale[r]));
        for (int key = first; key < end; key++) {
            const char *row = rows[key] + begin * size;
            vf value[4];
            if (ahead != NULL)
                for (int64_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(ahead[key] + begin * size + byte, 0, 2);
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) {
                value[j] = kv_load(kind, row + j * VL * size);
                if (kind == KV_INT8) value[j] = vmul(value[j], vset(kv_scale(rows[key], dim)));
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const vf weight = vset(weights[r * TILE + key]);
#pragma GCC unroll 4
                for (int j = 0; j < N; j++) sum[r][j] = vfma(weight, value[j], sum[r][j]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int j = 0; j < N; j++) vstore(sums + r * dim + begin + j * VL, sum[r][j]);
    }
    return begin;
}

/* The same for the features from `begin` on, of a head that is no multiple of what the registers take. */
static void few_rest(int kind, int64_t count, const char *const *rows, int first, int end, int64_t begin, int64_t dim,
                     const float *weights, const float *rescale, float *sums) {
    for (; begin < dim; begin += VL)
        for (int64_t r = 0; r < count; r++) {
            vf sum = vmul(vload(sums + r * dim + begin), vset(rescale[r]));
            for (int key = first; key < end; key++) {
                vf value = kv_load(kind, rows[key] + begin * kv_value_bytes(kind));
                if (kind == KV_INT8) value = vmul(value, vset(kv_scale(rows[key], dim)));
                sum = vfma(vset(weights[r * TILE + key]), value, sum);
            }
            vstore(sums + r * dim + begin, sum);
        }
}

#define EACH_KIND(CASES) CASES(KV_BFLOAT16) CASES(KV_FLOAT16) CASES(KV_INT8)
#define EACH_COUNT(kind)                                        \
    CASE(kind, 1) CASE(kind, 2) CASE(kind, 3) CASE(kind, 4)     \
    CASE(kind, 5) CASE(kind, 6) CASE(kind, 7) CASE(kind, 8)

static void few_scores(int kind, int64_t count, const char *const *rows, const char *const *ahead, int first, int end,
                       int64_t dim, const float *query, float *scores) {
#define CASE(kind_, R) case R: few_scores_of(R, kind, rows, ahead, first, end, dim, query, scores); break;
    switch (count) { EACH_COUNT(0) }
#undef CASE
}

/* As many vectors at a time as the registers hold beside those of the values. */
#define FEW_VECTORS(R) (VL == 16 ? ((R) <= 4 ? 4 : 2) : (R) <= 2 ? 4 : 1)
static void few_sums(int kind, int64_t count, const char *const *rows, const char *const *ahead, int first, int end,
                     int64_t dim, const float *weights, const float *rescale, float *sums) {
    int64_t done = 0;
#define CASE(kind, R)                                                                                             \
    case (kind) * 16 + (R):                                                                                       \
        done = few_sums_of(kind, R, FEW_VECTORS(R), rows, ahead, first, end, dim, weights, rescale, sums);        \
        break;
    switch (kind * 16 + count) { EACH_KIND(EACH_COUNT) }
#undef CASE
    few_rest(kind, count, rows, first, end, done, dim, weights, rescale, sums);
}

#endif
