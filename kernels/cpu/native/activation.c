/* Activation functions, alone or times the other half of a gated feed-forward (Shazeer, 2020).

   gelu_tanh is x / (1 + e^(-2u)) with u = sqrt(2 / pi) (x + 0.044715 x^3): the same as x (1 + tanh u) / 2, without its
   cancellation. Where e^(-x) overflows, the quotient is -0, as it should be. */

#include "elementary.h"
#include "parts.h"

enum kind { SILU, GELU, GELU_TANH, RELU };

INLINE vf sigmoid_times(vf x, vf argument) {
    return vdiv(x, vadd(vset(1.0f), vexp_e(vsub(vzero(), argument))));
}

INLINE vf activate(vf x, enum kind kind) {
    switch (kind) {
        case SILU: return sigmoid_times(x, x);
        case GELU: return vmul(x, vnormal_cdf(x));
        case GELU_TANH: {
            vf inner = vfma(vmul(x, x), vset(0.044715f), vset(1.0f));
            return sigmoid_times(x, vmul(vmul(x, vset(1.5957691216f)), inner));
        }
        default: return vmax(vzero(), x); /* in this order NaN stays NaN */
    }
}

INLINE void activate_row(const float *gate, const float *up, float *out, int64_t size, enum kind kind) {
    int64_t i = 0;
    for (; i + VL <= size; i += VL) {
        vf y = activate(vload(gate + i), kind);
        vstore(out + i, up ? vmul(y, vload(up + i)) : y);
    }
    if (i < size) {
        int n = (int)(size - i);
        vf y = activate(vload_n(gate + i, n), kind);
        vstore_n(out + i, up ? vmul(y, vload_n(up + i, n)) : y, n);
    }
}

void FN(activate_row)(int kind, const float *gate, const float *up, float *out, int64_t size) {
    switch (kind) {
        case SILU: activate_row(gate, up, out, size, SILU); break;
        case GELU: activate_row(gate, up, out, size, GELU); break;
        case GELU_TANH: activate_row(gate, up, out, size, GELU_TANH); break;
        default: activate_row(gate, up, out, size, RELU);
    }
}

/* out [rows, size] = act(gate) * up; rows of gate and up have strides; up may be NULL: act(gate). */
EXPORT void FN(activation)(int kind, const float *gate, int64_t gate_stride, const float *up, int64_t up_stride,
                           float *out, int64_t rows, int64_t size) {
#pragma omp parallel for schedule(static) if (rows * size > 1 << 14)
    for (int64_t row = 0; row < rows; row++)
        FN(activate_row)(kind, gate + row * gate_stride, up ? up + row * up_stride : up, out + row * size, size);
}
