/* The matmul over odd shapes in every precision: against sums in double, each row against the same row alone. */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "driver.h"

static const int64_t OUTS[] = {1, 65, 128}, INS[] = {1, 63, 130, 521}, ROWS[] = {1, 2, 5, 6, 7, 13, 70};
static const int ALL_ROWS = 70;
#define COUNT(list) (sizeof(list) / sizeof *(list))
#define KINDS 6

typedef int64_t bytes_t(int, int64_t, int64_t);
typedef void pack_t(int, const void *, int64_t, int64_t, void *, int64_t);
typedef void rows_t(int, const void *, int64_t, const int64_t *, int64_t, float *);
typedef void linear_t(int, const float *, int64_t, int64_t, const void *, const float *, float *, int64_t);

static float *noises(int64_t count, uint64_t seed) {
    float *values = malloc(4 * (size_t)count);
    for (int64_t i = 0; i < count; i++) values[i] = noise(&seed);
    return values;
}

/* The source of kinds 1 and 2 is 16 bits wide: whole numbers of 0 .. 15 there (0x3c00 .. is 1 and a little in float16). */
static void *source_of(int kind, int64_t count) {
    float *wide = noises(count, 7);
    if (kind != 1 && kind != 2) return wide;
    uint16_t *narrow = malloc(2 * (size_t)count);
    for (int64_t i = 0; i < count; i++) narrow[i] = (uint16_t)((wide[i] < 0 ? 0xbc00 : 0x3c00) | (i & 31));
    free(wide);
    return narrow;
}

static void shape(find_t find, int kind, int64_t out, int64_t in) {
    bytes_t *bytes = (bytes_t *)find("linear_bytes");
    linear_t *linear = (linear_t *)find("linear");
    if (bytes(kind, out, in) == 0) return;
    void *source = source_of(kind, out * in);
    void *packed = aligned_alloc(64, (size_t)bytes(kind, out, in));
    ((pack_t *)find("linear_pack"))(kind, source, out, in, packed, 0);
    int64_t *ids = malloc(8 * (size_t)out);
    for (int64_t o = 0; o < out; o++) ids[o] = o;
    float *kept = malloc(4 * (size_t)(out * in)), *x = noises(ALL_ROWS * in, 3), *bias = noises((out + 63) / 64 * 64, 5);
    ((rows_t *)find("linear_rows"))(kind, packed, in, ids, out, kept);

    float *alone = malloc(4 * (size_t)(ALL_ROWS * out));
    for (int r = 0; r < ALL_ROWS; r++) linear(kind, x + r * in, 1, in, packed, bias, alone + r * out, out);
    for (int r = 0; r < ALL_ROWS; r += 23)
        for (int64_t o = 0; o < out; o++) {
            double sum = bias[o], size = fabs(sum);
            for (int64_t i = 0; i < in; i++) {
                double product = (double)x[r * in + i] * kept[o * in + i];
                sum += product, size += fabs(product);
            }
            /* activations of 8 bits round at 1/254 of the largest, those of VDPBF16PS at 1/512 of themselves */
            double most = 1e-5 * size + (kind == 5 || kind == 1 ? 0.004 * (double)in : 0);
            CHECK(fabs(alone[r * out + o] - sum) <= most, "kind %d, %ld x %ld: %g is not %g", kind, (long)out, (long)in,
                  alone[r * out + o], sum);
        }
    for (size_t n = 0; n < COUNT(ROWS); n++) {
        float *y = malloc(4 * (size_t)(ROWS[n] * out)), *exact = malloc(4 * (size_t)(ROWS[n] * in));
        memcpy(exact, x, 4 * (size_t)(ROWS[n] * in));
        linear(kind, exact, ROWS[n], in, packed, bias, y, out);
        CHECK(!memcmp(y, alone, 4 * (size_t)(ROWS[n] * out)), "kind %d, %ld x %ld: %ld rows differ from rows alone", kind,
              (long)out, (long)in, (long)ROWS[n]);
        free(y), free(exact);
    }
    free(source), free(packed), free(ids), free(kept), free(x), free(bias), free(alone);
}

void matmul_cases(find_t find) {
    for (int kind = 0; kind < KINDS; kind++)
        for (size_t o = 0; o < COUNT(OUTS); o++)
            for (size_t i = 0; i < COUNT(INS); i++) shape(find, kind, OUTS[o], INS[i]);
}
