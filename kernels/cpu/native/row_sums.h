/* Sums over one row of floats: four times VL running sums, so that long rows lose little, added in a fixed tree. */

#ifndef QUIRE_ROW_SUMS_H
#define QUIRE_ROW_SUMS_H

#include "simd.h"

/* Calls TERM(vector, n) for each vector of the row in order, n of it valid, with sums[0..3] taken in turn. */
#define SUM_OF_ROW(x, size, TERM)                                                          \
    vf sums[4] = {vzero(), vzero(), vzero(), vzero()};                                     \
    int64_t i = 0;                                                                         \
    for (; i + 4 * VL <= (size); i += 4 * VL)                                              \
        for (int lane = 0; lane < 4; lane++) sums[lane] = TERM(vload((x) + i + lane * VL), sums[lane], VL); \
    for (int lane = 0; i < (size); i += VL, lane++) {                                      \
        int n = (size) - i < VL ? (int)((size) - i) : VL;                                  \
        sums[lane] = TERM(n == VL ? vload((x) + i) : vload_n((x) + i, n), sums[lane], n);  \
    }                                                                                      \
    return vsum(vadd(vadd(sums[0], sums[1]), vadd(sums[2], sums[3])));

#define SQUARE(v, sum, n) vfma(v, v, sum)
INLINE float sum_of_squares(const float *x, int64_t size) { SUM_OF_ROW(x, size, SQUARE) }

#define PLAIN(v, sum, n) vadd(sum, v)
INLINE float sum_of(const float *x, int64_t size) { SUM_OF_ROW(x, size, PLAIN) }

/* 1 / sqrt(mean(x^2) + eps). */
INLINE float rms_factor(const float *x, int64_t size, float eps) {
    return 1.0f / sqrtf(sum_of_squares(x, size) / (float)size + eps);
}

#endif
