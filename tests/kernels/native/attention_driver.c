/* Paged attention over odd shapes in every kind of cache: against sums in double, each row against the same row alone.
   Slots of nobody hold NaN, and a block table's entries beyond a sequence lead far out of the cache. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

typedef void write_t(const float *, int64_t, int64_t, const float *, int64_t, int64_t, char *, char *, const int64_t *,
                     int64_t, int64_t, int64_t, int64_t, int);
typedef int attend_t(const float *, int64_t, int64_t, const char *, const char *, float *, const float *,
                     const int32_t *, const int32_t *, const int32_t *, int64_t, int64_t, int64_t, int64_t, int64_t,
                     int64_t, int64_t, int64_t, float, float);

typedef struct {
    int64_t length, heads, kv_heads, dim, block_size, window;
    float softcap;
    int sinks;
} Case;

static const Case CASES[] = {
    {1, 1, 1, 1, 1, 0, 0, 0},      {70, 4, 2, 64, 16, 0, 0, 1},   {130, 7, 1, 80, 48, 0, 5, 0},
    {65, 6, 3, 33, 1, 9, 0, 1},    {64, 2, 2, 100, 128, 0, 0, 0}, {1100, 2, 1, 20, 16, 0, 0, 0},
    {700, 1, 1, 16, 7, 600, 3, 1}, {129, 130, 1, 5, 5, 64, 0, 0}, {90, 3, 3, 256, 16, 1, 0, 0},
};
#define NUM_KINDS 4
static const int VALUE_BYTES[NUM_KINDS] = {4, 2, 2, 1};
static const double UNIT[NUM_KINDS] = {1e-6, 1.0 / 256, 1.0 / 2048, 0.5 / 127};

static float *noises(int64_t count, uint64_t seed) {
    float *values = malloc(4 * (size_t)count);
    for (int64_t i = 0; i < count; i++) values[i] = noise(&seed);
    return values;
}

/* out [dim]: the answer of one query head at `position`. */
static void expect(const Case *c, const float *query, const float *key, const float *value, const float *sinks,
                   int64_t position, int64_t head, double *out) {
    const int64_t kv_head = head / (c->heads / c->kv_heads), low = c->window && position >= c->window ? position - c->window + 1 : 0;
    double total = sinks ? exp(sinks[head]) : 0;
    for (int64_t i = 0; i < c->dim; i++) out[i] = 0;
    for (int64_t at = low; at <= position; at++) {
        double score = 0;
        for (int64_t i = 0; i < c->dim; i++)
            score += (double)query[(position * c->heads + head) * c->dim + i] * key[(at * c->kv_heads + kv_head) * c->dim + i];
        score /= sqrt((double)c->dim);
        const double weight = exp(c->softcap > 0 ? c->softcap * tanh(score / c->softcap) : score);
        total += weight;
        for (int64_t i = 0; i < c->dim; i++) out[i] += weight * value[(at * c->kv_heads + kv_head) * c->dim + i];
    }
    for (int64_t i = 0; i < c->dim; i++) out[i] /= total;
}

static void run(find_t find, const Case *c, int kind) {
    attend_t *attend = (attend_t *)find("paged_attention");
    const int64_t blocks = (c->length + c->block_size - 1) / c->block_size, row = c->heads * c->dim;
    const int64_t row_bytes = c->dim * VALUE_BYTES[kind] + (kind == 3 ? 4 : 0);
    const size_t bytes = (size_t)((blocks + 1) * c->kv_heads * c->block_size * row_bytes);
    char *k_cache = malloc(bytes), *v_cache = malloc(bytes);
    memset(k_cache, 0xff, bytes), memset(v_cache, 0xff, bytes);
    int32_t *table = malloc(4 * (size_t)(blocks + 1));
    for (int64_t i = 0; i < blocks; i++) table[i] = (int32_t)(blocks - i); /* backwards; block 0 is nobody's */
    table[blocks] = INT32_MAX;
    int64_t *slots = malloc(8 * (size_t)c->length);
    for (int64_t i = 0; i < c->length; i++) slots[i] = table[i / c->block_size] * c->block_size + i % c->block_size;
    float *query = noises(c->length * row, 1), *key = noises(c->length * c->kv_heads * c->dim, 2);
    float *value = noises(c->length * c->kv_heads * c->dim, 3), *sinks = c->sinks ? noises(c->heads, 4) : NULL;
    ((write_t *)find("write_kv"))(key, c->kv_heads * c->dim, c->dim, value, c->kv_heads * c->dim, c->dim, k_cache, v_cache,
                                  slots, c->length, c->kv_heads, c->block_size, c->dim, kind);

    const float scale = 1 / sqrtf((float)c->dim);
    float *whole = malloc(4 * (size_t)(c->length * row)), *alone = malloc(4 * (size_t)row);
    double *sums = malloc(8 * (size_t)c->dim);
    int32_t starts[2] = {0, (int32_t)c->length}, length = (int32_t)c->length;
    CHECK(!attend(query, row, c->dim, k_cache, v_cache, whole, sinks, starts, &length, table, blocks + 1, 1, c->heads,
                  c->kv_heads, c->dim, c->block_size, kind, c->window, scale, c->softcap), "no memory");
    for (int64_t position = 0; position < c->length; position += position % 64 > 60 ? 1 : 7) {
        starts[1] = 1, length = (int32_t)position + 1;
        CHECK(!attend(query + position * row, row, c->dim, k_cache, v_cache, alone, sinks, starts, &length, table,
                      blocks + 1, 1, c->heads, c->kv_heads, c->dim, c->block_size, kind, c->window, scale, c->softcap),
              "no memory");
        CHECK(!memcmp(alone, whole + position * row, 4 * (size_t)row), "kind %d, dim %ld: position %ld differs alone",
              kind, (long)c->dim, (long)position);
        const int64_t head = position % c->heads;
        expect(c, query, key, value, sinks, position, head, sums);
        for (int64_t i = 0; i < c->dim; i++)
            CHECK(fabs(alone[head * c->dim + i] - sums[i]) <= 1e-5 + 4 * UNIT[kind], "kind %d, dim %ld, position %ld: %g is not %g",
                  kind, (long)c->dim, (long)position, alone[head * c->dim + i], sums[i]);
    }
    free(k_cache), free(v_cache), free(table), free(slots), free(query), free(key), free(value), free(sinks);
    free(whole), free(alone), free(sums);
}

void attention_cases(find_t find) {
    for (int kind = 0; kind < NUM_KINDS; kind++)
        for (size_t n = 0; n < sizeof CASES / sizeof *CASES; n++) run(find, &CASES[n], kind);
}
