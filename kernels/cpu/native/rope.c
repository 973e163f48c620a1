/* Rotary embedding in halves: feature i of a head turns with feature i + half (Su et al., 2021), alone or in one pass
   with the norm of each head that some models put before it. The same operations in the same order either way. */

#include "parts.h"
#include "row_sums.h"

INLINE vf take(const float *p, int n) { return n == VL ? vload(p) : vload_n(p, n); }
INLINE void put(float *p, vf x, int n) {
    if (n == VL) vstore(p, x);
    else vstore_n(p, x, n);
}
/* in * factor * weight; as it is without a weight. */
INLINE vf normed(const float *in, float factor, const float *weight, int64_t i, int n, int with_norm) {
    return with_norm ? vmul(vmul(take(in + i, n), vset(factor)), take(weight + i, n)) : take(in + i, n);
}

/* One head of `size` features, of which the first 2 * half turn by (cosines, sines). */
INLINE void turn(const float *in, float factor, const float *weight, const float *turns, float *to, int64_t half,
                 int64_t size, int with_norm) {
    for (int64_t i = 0; i < half; i += VL) {
        int n = half - i < VL ? (int)(half - i) : VL;
        vf a = normed(in, factor, weight, i, n, with_norm), b = normed(in, factor, weight, half + i, n, with_norm);
        vf cosine = take(turns + i, n), sine = take(turns + half + i, n);
        put(to + i, vsub(vmul(a, cosine), vmul(b, sine)), n);
        put(to + half + i, vfma(b, cosine, vmul(a, sine)), n);
    }
    for (int64_t i = 2 * half; i < size; i += VL) {
        int n = size - i < VL ? (int)(size - i) : VL;
        put(to + i, normed(in, factor, weight, i, n, with_norm), n);
    }
}

void FN(norm_rope_row)(const float *x, const float *weight, int64_t weight_rows, float eps, const float *turns, float *out,
                       int64_t heads, int64_t half, int64_t size) {
    for (int64_t head = 0; head < heads; head++) {
        const float *in = x + head * size;
        float *to = out + head * size;
        if (weight) turn(in, rms_factor(in, size, eps), weight + head % weight_rows * size, turns, to, half, size, 1);
        else turn(in, 1.0f, in, turns, to, half, size, 0);
    }
}

/* out [rows, heads, size] of x, whose heads lie side by side in rows `stride` floats apart. positions [rows];
   table [positions, 2, half]: cosines, then sines. weight [weight_rows, size], or NULL: no norm before. */
EXPORT void FN(norm_rope)(const float *x, int64_t stride, const float *weight, int64_t weight_rows, float eps,
                          const int64_t *positions, const float *table, float *out, int64_t rows, int64_t heads,
                          int64_t half, int64_t size) {
#pragma omp parallel for schedule(static) if (rows * heads * size > 1 << 15)
    for (int64_t row = 0; row < rows; row++)
        FN(norm_rope_row)(x + row * stride, weight, weight_rows, eps, table + positions[row] * 2 * half,
                          out + row * heads * size, heads, half, size);
}
