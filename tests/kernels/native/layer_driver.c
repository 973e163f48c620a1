/* A whole layer in every precision: a prompt at once against its tokens one after the other, bit for bit. Every buffer is
   exactly as long as it is said to be. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

enum { HIDDEN = 40, HEADS = 3, KV_HEADS = 1, DIM = 16, INNER = 50, TOKENS = 530, BLOCK_SIZE = 16, KINDS = 6 };

typedef struct { const float *weight, *bias; int is_layer_norm; float eps; } norm_t;
typedef struct { int64_t kind, in, out; const void *weights; const float *bias; } matrix_t;
typedef struct {
    norm_t norms[2];
    matrix_t qkv, out, up, down;
    const float *head_norm, *turns;
    int64_t heads, kv_heads, dim, half, window, is_gated, activation;
    float head_eps, scale;
} layer_t;
typedef struct {
    const int64_t *positions, *slots;
    const int32_t *starts, *lens, *tables;
    int64_t table_stride, sequences, rows;
} step_t;

typedef int64_t bytes_t(int, int64_t, int64_t);
typedef void pack_t(int, const void *, int64_t, int64_t, void *, int64_t);
typedef int layer_call_t(const layer_t *, const step_t *, float *, char *, char *, int64_t, int64_t);

static float *noises(int64_t count, uint64_t seed) {
    float *values = malloc(4 * (size_t)count);
    for (int64_t i = 0; i < count; i++) values[i] = noise(&seed);
    return values;
}

/* Kinds 1 and 2 are packed from 16 bits: those of floats near 0.01, either way. */
static matrix_t matrix(find_t find, int kind, int64_t in, int64_t out) {
    float *source = noises(in * out, (uint64_t)(in + out));
    uint16_t *narrow = malloc(2 * (size_t)(in * out));
    for (int64_t i = 0; i < in * out; i++) narrow[i] = (uint16_t)((source[i] < 0 ? 0x8000 : 0) | (kind == 1 ? 0x3c20 : 0x2400));
    void *packed = malloc((size_t)((bytes_t *)find("linear_bytes"))(kind, out, in));
    ((pack_t *)find("linear_pack"))(kind, kind == 1 || kind == 2 ? (void *)narrow : source, out, in, packed, 0);
    free(source), free(narrow);
    return (matrix_t){kind, in, out, packed, noises((out + 63) / 64 * 64, 9)};
}

static void drop(matrix_t m) { free((void *)m.weights), free((void *)m.bias); }

static void run(find_t find, int kind, int64_t window, int is_gated) {
    layer_call_t *call = (layer_call_t *)find("layer");
    float *norm = noises(HIDDEN, 1), *head_norm = noises((HEADS + KV_HEADS) * DIM, 2), *turns = noises(TOKENS * DIM, 3);
    const layer_t layer = {
        .norms = {{norm, is_gated ? NULL : norm, !is_gated, 1e-5f}, {norm, NULL, 0, 1e-5f}},
        .qkv = matrix(find, kind, HIDDEN, (HEADS + 2 * KV_HEADS) * DIM), .out = matrix(find, kind, HEADS * DIM, HIDDEN),
        .up = matrix(find, kind, HIDDEN, INNER * (1 + is_gated)), .down = matrix(find, kind, INNER, HIDDEN),
        .head_norm = is_gated ? head_norm : NULL, .turns = turns, .heads = HEADS, .kv_heads = KV_HEADS, .dim = DIM,
        .half = DIM / 2, .window = window, .is_gated = is_gated, .activation = is_gated ? 0 : 2, .head_eps = 1e-6f, .scale = 0.25f};
    const int64_t blocks = (TOKENS + BLOCK_SIZE - 1) / BLOCK_SIZE;
    const size_t bytes = (size_t)(blocks * KV_HEADS * BLOCK_SIZE * DIM * 2);
    char *keys = malloc(bytes), *values = malloc(bytes);
    int32_t *table = malloc(4 * (size_t)blocks), starts[2] = {0, TOKENS}, length = TOKENS;
    int64_t *positions = malloc(8 * TOKENS), *slots = malloc(8 * TOKENS);
    for (int64_t i = 0; i < blocks; i++) table[i] = (int32_t)(blocks - 1 - i);
    for (int64_t i = 0; i < TOKENS; i++) {
        positions[i] = i;
        slots[i] = table[i / BLOCK_SIZE] * BLOCK_SIZE + i % BLOCK_SIZE;
    }
    float *whole = noises(TOKENS * HIDDEN, 5), *alone = noises(TOKENS * HIDDEN, 5);
    step_t step = {positions, slots, starts, &length, table, blocks, 1, TOKENS};
    CHECK(!call(&layer, &step, whole, keys, values, BLOCK_SIZE, 1), "no memory");
    starts[1] = 1, step.rows = 1;
    for (int64_t i = 0; i < TOKENS; i++) {
        length = (int32_t)i + 1, step.positions = positions + i, step.slots = slots + i;
        float *row = malloc(4 * HIDDEN);
        memcpy(row, alone + i * HIDDEN, 4 * HIDDEN);
        CHECK(!call(&layer, &step, row, keys, values, BLOCK_SIZE, 1), "no memory");
        for (int j = 0; j < HIDDEN; j++) CHECK(isfinite(row[j]), "kind %d: token %ld is no number", kind, (long)i);
        CHECK(!memcmp(row, whole + i * HIDDEN, 4 * HIDDEN), "kind %d, window %ld: token %ld differs alone", kind, (long)window, (long)i);
        free(row);
    }
    drop(layer.qkv), drop(layer.out), drop(layer.up), drop(layer.down);
    free(norm), free(head_norm), free(turns), free(keys), free(values), free(table), free(positions), free(slots);
    free(whole), free(alone);
}

void layer_cases(find_t find) {
    for (int kind = 0; kind < KINDS; kind++) {
        if (((bytes_t *)find("linear_bytes"))(kind, 1, 1) == 0) continue;
        run(find, kind, 0, 1);
        run(find, kind, 70, 0);
    }
}
