/* Norms over the last dimension. A row's sum of squares is VL running sums, added in a tree at the end. */

#include "simd.h"

/* out[row] = x[row] / sqrt(mean(x[row]^2) + eps) * weight[row % weight_rows]. x and out [rows, size], x's rows `stride`
   floats apart (heads of a wider row: `inner` rows lie side by side in each). weight [weight_rows, size]. */
EXPORT void FN(rms_norm)(const float *x, int64_t stride, int64_t inner, const float *weight, int64_t weight_rows,
                         float *out, int64_t rows, int64_t size, float eps) {
#pragma omp parallel for schedule(static) if (rows * size > 1 << 15)
    for (int64_t row = 0; row < rows; row++) {
        const float *in = x + row / inner * stride + row % inner * size, *w = weight + row % weight_rows * size;
        float *to = out + row * size;
        vf squares = vzero();
        int64_t i = 0;
        for (; i + VL <= size; i += VL) { vf v = vload(in + i); squares = vfma(v, v, squares); }
        if (i < size) { vf v = vload_n(in + i, (int)(size - i)); squares = vfma(v, v, squares); }
        vf factor = vset(1.0f / sqrtf(vsum(squares) / (float)size + eps));
        for (i = 0; i + VL <= size; i += VL) vstore(to + i, vmul(vmul(vload(in + i), factor), vload(w + i)));
        if (i < size) {
            int n = (int)(size - i);
            vstore_n(to + i, vmul(vmul(vload_n(in + i, n), factor), vload_n(w + i, n)), n);
        }
    }
}
