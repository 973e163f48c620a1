/* Norms over the last dimension. Two passes over a row that is in the cache: its sum (row_sums.h), then the values. */

#include "parts.h"
#include "row_sums.h"

#define MANY (1 << 15) /* values from which threads pay */

INLINE void scale_row(const float *in, float factor, const float *w, float *to, int64_t size) {
    vf by = vset(factor);
    int64_t i = 0;
    for (; i + VL <= size; i += VL) vstore(to + i, vmul(vmul(vload(in + i), by), vload(w + i)));
    if (i < size) {
        int n = (int)(size - i);
        vstore_n(to + i, vmul(vmul(vload_n(in + i, n), by), vload_n(w + i, n)), n);
    }
}

/* out[row] = x[row] / sqrt(mean(x[row]^2) + eps) * weight[row % weight_rows]. x and out [rows, size], x's rows `stride`
   floats apart (heads of a wider row: `inner` rows lie side by side in each). weight [weight_rows, size]. */
EXPORT void FN(rms_norm)(const float *x, int64_t stride, int64_t inner, const float *weight, int64_t weight_rows,
                         float *out, int64_t rows, int64_t size, float eps) {
#pragma omp parallel for schedule(static) if (rows * size > MANY)
    for (int64_t row = 0; row < rows; row++) {
        const float *in = x + row / inner * stride + row % inner * size;
        scale_row(in, rms_factor(in, size, eps), weight + row % weight_rows * size, out + row * size, size);
    }
}

/* sum[row] = x[row] + residual[row]; out[row] = rms_norm(sum[row]). Rows of x and of the residual have strides. */
EXPORT void FN(add_rms_norm)(const float *x, int64_t x_stride, const float *residual, int64_t residual_stride,
                             const float *weight, float *sum, float *out, int64_t rows, int64_t size, float eps) {
#pragma omp parallel for schedule(static) if (rows * size > MANY)
    for (int64_t row = 0; row < rows; row++) {
        const float *a = x + row * x_stride, *b = residual + row * residual_stride;
        float *to = sum + row * size;
        int64_t i = 0;
        for (; i + VL <= size; i += VL) vstore(to + i, vadd(vload(a + i), vload(b + i)));
        if (i < size) {
            int n = (int)(size - i);
            vstore_n(to + i, vadd(vload_n(a + i, n), vload_n(b + i, n)), n);
        }
        scale_row(to, rms_factor(to, size, eps), weight, out + row * size, size);
    }
}

/* The row's values minus `mean` into `to`. */
INLINE void centre(const float *in, float mean, float *to, int64_t size) {
    vf by = vset(mean);
    int64_t i = 0;
    for (; i + VL <= size; i += VL) vstore(to + i, vsub(vload(in + i), by));
    if (i < size) vstore_n(to + i, vsub(vload_n(in + i, (int)(size - i)), by), (int)(size - i));
}

/* to = (in - mean) / sqrt(mean((in - mean)^2) + eps) * weight + bias; bias may be NULL. */
INLINE void layer_norm_row(const float *in, const float *weight, const float *bias, float *to, int64_t size, float eps) {
    centre(in, sum_of(in, size) / (float)size, to, size);
    centre(to, sum_of(to, size) / (float)size, to, size); /* what rounding left of a mean far from 0 */
    scale_row(to, rms_factor(to, size, eps), weight, to, size);
    if (!bias) return;
    int64_t i = 0;
    for (; i + VL <= size; i += VL) vstore(to + i, vadd(vload(to + i), vload(bias + i)));
    if (i < size) {
        int n = (int)(size - i);
        vstore_n(to + i, vadd(vload_n(to + i, n), vload_n(bias + i, n)), n);
    }
}

/* out[row] = (x[row] - mean) / sqrt(mean((x[row] - mean)^2) + eps) * weight + bias; bias may be NULL. */
EXPORT void FN(layer_norm)(const float *x, int64_t stride, const float *weight, const float *bias, float *out,
                           int64_t rows, int64_t size, float eps) {
#pragma omp parallel for schedule(static) if (rows * size > MANY)
    for (int64_t row = 0; row < rows; row++) layer_norm_row(x + row * stride, weight, bias, out + row * size, size, eps);
}

void FN(norm_row)(const norm_t *norm, const float *x, float *out, int64_t size) {
    if (norm->is_layer_norm) layer_norm_row(x, norm->weight, norm->bias, out, size, norm->eps);
    else scale_row(x, rms_factor(x, size, norm->eps), norm->weight, out, size);
}
