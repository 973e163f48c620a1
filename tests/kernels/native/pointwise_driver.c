/* Norms, rotary embedding, activations, sampling and log probabilities over odd sizes, every buffer exactly as long as it
   is said to be: against sums in double, and each sampled token against every column's noisy score. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

typedef void norm_t(const float *, int64_t, int64_t, const float *, int64_t, float *, int64_t, int64_t, float);
typedef void add_norm_t(const float *, int64_t, const float *, int64_t, const float *, float *, float *, int64_t, int64_t, float);
typedef void layer_norm_t(const float *, int64_t, const float *, const float *, float *, int64_t, int64_t, float);
typedef void norm_rope_t(const float *, int64_t, const float *, int64_t, float, const int64_t *, const float *, float *,
                         int64_t, int64_t, int64_t, int64_t);
typedef void activation_t(int, const float *, int64_t, const float *, int64_t, float *, int64_t, int64_t);
typedef struct {
    uint64_t seed;
    int64_t choice, top_k;
    double temperature, top_p, min_p;
} parameters;
typedef void sample_t(int64_t, int64_t, const int64_t *, const parameters *, int64_t *);
typedef void logprobs_t(int64_t, int64_t, const int64_t *, const int64_t *, float *, int64_t *, int64_t, float *, int64_t *);

static const int64_t SIZES[] = {1, 2, 5, 8, 15, 16, 17, 33, 63, 64, 65, 127, 1000, 1025};
#define NUM_SIZES ((int)(sizeof SIZES / sizeof *SIZES))
#define ROWS 3

static float *noises(int64_t count, uint64_t seed) {
    float *values = malloc(4 * (size_t)count);
    for (int64_t i = 0; i < count; i++) values[i] = noise(&seed);
    return values;
}

static void near(double found, double expected, const char *what, int64_t size) {
    CHECK(fabs(found - expected) <= 1e-5 * (1 + fabs(expected)), "%s of %ld: %g, not %g", what, (long)size, found, expected);
}

static void norms(find_t find, int64_t size) {
    float *x = noises(ROWS * size, 1), *y = noises(ROWS * size, 2), *weight = noises(size, 3), *out = noises(ROWS * size, 4);
    float *sum = noises(ROWS * size, 5), *bias = noises(size, 6);
    ((norm_t *)find("rms_norm"))(x, size, 1, weight, 1, out, ROWS, size, 1e-5f);
    for (int64_t row = 0; row < ROWS; row++) {
        double squares = 0;
        for (int64_t i = 0; i < size; i++) squares += (double)x[row * size + i] * x[row * size + i];
        for (int64_t i = 0; i < size; i++)
            near(out[row * size + i], x[row * size + i] / sqrt(squares / (double)size + 1e-5) * weight[i], "rms_norm", size);
    }
    ((add_norm_t *)find("add_rms_norm"))(x, size, y, size, weight, sum, out, ROWS, size, 1e-5f);
    for (int64_t i = 0; i < ROWS * size; i++) CHECK(sum[i] == x[i] + y[i], "add_rms_norm of %ld", (long)size);
    ((layer_norm_t *)find("layer_norm"))(x, size, weight, bias, out, ROWS, size, 1e-3f);
    for (int64_t row = 0; row < ROWS; row++) {
        double mean = 0, squares = 0;
        for (int64_t i = 0; i < size; i++) mean += x[row * size + i] / (double)size;
        for (int64_t i = 0; i < size; i++) squares += pow(x[row * size + i] - mean, 2);
        for (int64_t i = 0; i < size; i++)
            near(out[row * size + i], (x[row * size + i] - mean) / sqrt(squares / (double)size + 1e-3) * weight[i] + bias[i],
                 "layer_norm", size);
    }
    free(x), free(y), free(weight), free(out), free(sum), free(bias);
}

static void ropes(find_t find, int64_t size) {
    const int64_t heads = 2, halves[] = {size / 2, size / 3}, positions[ROWS] = {4, 0, 2};
    float *x = noises(ROWS * heads * size, 1), *weight = noises(heads * size, 2), *out = noises(ROWS * heads * size, 3);
    for (int which = 0; which < 2; which++) {
        const int64_t half = halves[which];
        float *table = noises(5 * 2 * half, 4);
        norm_rope_t *norm_rope = (norm_rope_t *)find("norm_rope");
        norm_rope(x, heads * size, weight, heads, 1e-6f, positions, table, out, ROWS, heads, half, size);
        norm_rope(x, heads * size, NULL, 1, 0.0f, positions, table, out, ROWS, heads, half, size);
        for (int64_t row = 0; row < ROWS; row++)
            for (int64_t i = 0; i < half; i++) {
                const float *in = x + row * heads * size, *turn = table + positions[row] * 2 * half;
                near(out[row * heads * size + i], (double)in[i] * turn[i] - (double)in[half + i] * turn[half + i], "rope", size);
            }
        free(table);
    }
    free(x), free(weight), free(out);
}

static void activations(find_t find, int64_t size) {
    float *gate = noises(ROWS * size, 1), *up = noises(ROWS * size, 2), *out = noises(ROWS * size, 3);
    for (int64_t i = 0; i < ROWS * size; i++) gate[i] *= i % 7 ? 9.0f : 1e30f;
    for (int kind = 0; kind < 4; kind++) {
        ((activation_t *)find("activation"))(kind, gate, size, up, size, out, ROWS, size);
        ((activation_t *)find("activation"))(kind, gate, size, NULL, 0, out, ROWS, size);
        for (int64_t i = 0; i < ROWS * size; i++) {
            const double x = gate[i], inner = x * (1 + 0.044715 * x * x) * sqrt(2 / M_PI);
            const double expected[] = {x / (1 + exp(-x)), x * 0.5 * erfc(-x / M_SQRT2), x / (1 + exp(-2 * inner)), x > 0 ? x : 0};
            near(out[i], expected[kind], "activation", kind);
        }
    }
    free(gate), free(up), free(out);
}

static uint64_t mix(uint64_t bits) {
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9u;
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBu;
    return bits ^ (bits >> 31);
}

static void samples(find_t find, int64_t size) {
    static const parameters asked[] = {{1, 0, 0, 1.0, 1.0, 0.0}, {2, 3, 5, 0.7, 1.0, 0.0},  {3, 0, 0, 1.5, 0.8, 0.0},
                                       {4, 1, 7, 0.9, 0.3, 0.2}, {5, 0, -1, 0.0, 1.0, 0.0}, {6, 0, 0, 1e-300, 1.0, 0.0}};
    enum { N = sizeof asked / sizeof *asked };
    const uint64_t step = 0x9E3779B97F4A7C15u;
    float *logits = noises(N * size, 9);
    int64_t facts[3 * N], tokens[N], addresses[N], ranks[N];
    for (int64_t row = 0; row < N; row++) {
        addresses[row] = facts[3 * row] = (int64_t)(uintptr_t)(logits + row * size);
        facts[3 * row + 1] = 10 + row;
        facts[3 * row + 2] = row % 2;
        for (int64_t i = 0; i < size; i++) logits[row * size + i] *= 5;
    }
    ((sample_t *)find("sample"))(N, size, facts, asked, tokens);
    for (int64_t row = 0; row < N; row++) {
        CHECK(tokens[row] >= 0 && tokens[row] < size, "token %ld of %ld", (long)tokens[row], (long)size);
        if (asked[row].temperature < 1e-3)
            for (int64_t i = 0; i < size; i++)
                CHECK(logits[row * size + i] <= logits[row * size + tokens[row]], "not the largest of %ld", (long)size);
    }
    uint64_t key = mix(asked[0].seed + step);
    key = mix((key ^ mix(1)) + step);
    key = mix((key ^ 10) + step);
    double found = 0, best = -INFINITY;
    for (int64_t i = 0; i < size; i++) {
        const double uniform = ((double)(mix(key + (uint64_t)(i + 1) * step) >> 11) + 0.5) * 0x1p-53;
        const double noisy = logits[i] - log(-log1p(-uniform));
        if (i == tokens[0]) found = noisy;
        if (noisy > best) best = noisy;
    }
    CHECK(best - found < 1e-4, "a sample of %ld columns is %g below the best", (long)size, best - found);
    for (int64_t k = 0; k <= size && k <= 20; k += 4) {
        float *logprob = noises(N, 1), *values = noises(N * k, 2);
        int64_t *ids = malloc(8 * (size_t)(N * k));
        ((logprobs_t *)find("logprobs"))(N, size, addresses, tokens, logprob, ranks, k, values, ids);
        double total = 0;
        for (int64_t i = 0; i < size; i++) total += exp(logits[i]);
        near(logprob[0], logits[tokens[0]] - log(total), "logprob", size);
        if (k) CHECK(values[0] >= logprob[0] && ranks[4] == 1, "the most likely of %ld", (long)size);
        free(logprob), free(values), free(ids);
    }
    logits[size - 1] = NAN;
    ((sample_t *)find("sample"))(1, size, facts, asked, tokens);
    CHECK(tokens[0] == -1, "NaN among %ld columns gave token %ld", (long)size, (long)tokens[0]);
    free(logits);
}

void pointwise_cases(find_t find) {
    for (int i = 0; i < NUM_SIZES; i++) {
        norms(find, SIZES[i]);
        ropes(find, SIZES[i]);
        activations(find, SIZES[i]);
        samples(find, SIZES[i]);
    }
}
