/* The product of attention: a register tile of 6 rows x PANEL floats, one float32 sum after the other; and tanh. */

#ifndef QUIRE_ATTENTION_PRODUCT_H
#define QUIRE_ATTENTION_PRODUCT_H

#include "kv.h"

#define ROWS 6

/* c [R][N * VL] = (first ? 0 : c * rescale[row] or c) + a [R][depth] x b [depth][PANEL], sequential over depth. */
INLINE void product_of(const int R, const int N, int first, const float *rescale, const float *a, int64_t a_stride,
                       const float *b, int64_t depth, float *c, int64_t c_stride) {
    vf sum[ROWS][PANEL_VECTORS];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) {
            if (first) sum[r][j] = vzero();
            else if (rescale) sum[r][j] = vmul(vload(c + r * c_stride + j * VL), vset(rescale[r]));
            else sum[r][j] = vload(c + r * c_stride + j * VL);
        }
    for (int64_t k = 0; k < depth; k++) {
        vf right[PANEL_VECTORS];
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) right[j] = vload(b + k * PANEL + j * VL);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            vf left = vset(a[r * a_stride + k]);
#pragma GCC unroll 8
            for (int j = 0; j < N; j++) sum[r][j] = vfma(left, right[j], sum[r][j]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) vstore(c + r * c_stride + j * VL, sum[r][j]);
}

static void product(int rows, int vectors, int first, const float *rescale, const float *a, int64_t a_stride,
                    const float *b, int64_t depth, float *c, int64_t c_stride) {
#define CASE(R, N) case (R) * 8 + (N): product_of(R, N, first, rescale, a, a_stride, b, depth, c, c_stride); break;
#define CASES(N) CASE(1, N) CASE(2, N) CASE(3, N) CASE(4, N) CASE(5, N) CASE(6, N)
    switch (rows * 8 + vectors) {
        CASES(1)
        CASES(2)
#if PANEL_VECTORS == 4
        CASES(3)
        CASES(4)
#endif
    }
#undef CASES
#undef CASE
}

/* tanh(x) = (e^2x - 1) / (e^2x + 1) with e^2x - 1 = 2^n (2^f - 1) + (2^n - 1), exact near 0; beyond 10 it is 1. */
INLINE vf vtanh_(vf x) {
    vf held = vmul(vmax(vmin(vset(10.0f), x), vset(-10.0f)), vset(2.0f * LOG2_E)); /* operands in this order keep a NaN */
    vf n = vround(held), f = vsub(held, n);
    vf p = vset(1.5252733804e-5f);
    p = vfma(p, f, vset(1.5403530393e-4f));
    p = vfma(p, f, vset(1.3333558146e-3f));
    p = vfma(p, f, vset(9.6181291076e-3f));
    p = vfma(p, f, vset(5.5504108665e-2f));
    p = vfma(p, f, vset(2.4022650696e-1f));
    p = vfma(p, f, vset(6.9314718056e-1f));
    vf e = vadd(vscale2(vmul(p, f), n), vsub(vscale2(vset(1.0f), n), vset(1.0f)));
    return vdiv(e, vadd(e, vset(2.0f)));
}

#endif
