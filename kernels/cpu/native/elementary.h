/* Elementary functions to about one unit in the last place, over the whole range of float.

   simd.h has 2^x, which is all that a softmax needs; e^x here splits ln 2 in two, so that large arguments do not lose
   digits. The polynomials were fitted at Chebyshev nodes in 40 digits. */

#ifndef QUIRE_ELEMENTARY_H
#define QUIRE_ELEMENTARY_H

#include "simd.h"

/* a < b ? x : y, lane by lane; y where a or b is NaN. */
#if defined(__AVX512F__)
INLINE vf vif_less(vf a, vf b, vf x, vf y) {
    return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), y, x);
}
#elif defined(__AVX2__)
INLINE vf vif_less(vf a, vf b, vf x, vf y) { return _mm256_blendv_ps(y, x, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
#else
INLINE vf vif_less(vf a, vf b, vf x, vf y) { vi m = a < b; return (vf)((m & (vi)x) | (~m & (vi)y)); }
#endif

/* e^x; 0 from -104 on down, infinite from 89 on up, NaN stays NaN.
   x = n ln 2 + f with |f| <= ln 2 / 2; ln 2 = 355 / 512 - 2.1219e-4, of which n times the first part is exact. */
INLINE vf vexp_e(vf x) {
    vf held = vmax(vset(-104.0f), vmin(vset(89.0f), x));
    vf n = vround(vmul(held, vset(LOG2_E)));
    vf f = vfma(n, vset(-0.693359375f), held);
    f = vfma(n, vset(2.12194440e-4f), f);
    vf p = vset(1.9841270e-4f);
    p = vfma(p, f, vset(1.3888889e-3f));
    p = vfma(p, f, vset(8.3333333e-3f));
    p = vfma(p, f, vset(4.1666667e-2f));
    p = vfma(p, f, vset(1.6666667e-1f));
    p = vfma(p, f, vset(0.5f));
    p = vfma(vmul(p, f), f, f); /* e^f - 1 without its own 1 keeps the small digits */
    return vscale2(vadd(p, vset(1.0f)), n);
}

/* The share of a normal distribution below x: (1 + erf(x / sqrt 2)) / 2, accurate in the lower tail as well.
   |x| < sqrt 2: an odd polynomial; beyond: erfc(z) = e^(-z^2) t R(t), t = 1 / (1 + z / 2), z = |x| / sqrt 2. */
INLINE vf vnormal_cdf(vf x) {
    vf y = vmul(x, vset(0.70710678f)), square = vmul(y, y);
    vf p = vset(7.875875063e-5f);
    p = vfma(p, square, vset(-8.016864287e-4f));
    p = vfma(p, square, vset(5.189087423e-3f));
    p = vfma(p, square, vset(-2.685421201e-2f));
    p = vfma(p, square, vset(1.128359472e-1f));
    p = vfma(p, square, vset(-3.761262667e-1f));
    p = vfma(p, square, vset(1.128379166f));
    vf near = vfma(vmul(y, vset(0.5f)), p, vset(0.5f));

    vf z = vmax(vsub(vzero(), y), y);
    vf t = vdiv(vset(1.0f), vfma(z, vset(0.5f), vset(1.0f)));
    vf r = vset(9.430970078e-2f);
    r = vfma(r, t, vset(-2.286956096e-1f));
    r = vfma(r, t, vset(8.547563853e-2f));
    r = vfma(r, t, vset(5.898886471e-2f));
    r = vfma(r, t, vset(1.795616954e-1f));
    r = vfma(r, t, vset(2.467884480e-1f));
    r = vfma(r, t, vset(2.820606177e-1f));
    r = vfma(r, t, vset(2.820973704e-1f));
    vf tail = vmul(vmul(vexp_e(vsub(vzero(), square)), vset(0.5f)), vmul(t, r));
    vf far = vif_less(x, vzero(), tail, vsub(vset(1.0f), tail));
    return vif_less(z, vset(1.0f), near, far);
}

#endif
