/* One vocabulary of vector operations for every instruction set; each kernel file is compiled once for each of them.

   vf is VL floats. Every operation is one rounding, and sums are written out where they are made, so that the order of
   additions is what the source says: the build turns the compiler's own contraction off (see ../build.py).
   Instruction sets: avx512bf16, avx512vnni, avx512, avx2, neon, plain. */

#ifndef QUIRE_SIMD_H
#define QUIRE_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* quire_avx2_rms_norm is FN(rms_norm) in the file compiled with -DISA=avx2. */
#define FN_(isa, name) quire_##isa##_##name
#define FN__(isa, name) FN_(isa, name)
#define FN(name) FN__(ISA, name)

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;

INLINE float bf16_to_float(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

/* Round to nearest even; NaN stays NaN. */
INLINE bf16 bf16_of_float(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)((bits >> 16) | 0x40u);
    return (bf16)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

#if defined(__AVX512F__)

#include <immintrin.h>
#define VL 16
typedef __m512 vf;
typedef __m512i vi;

INLINE vf vzero(void) { return _mm512_setzero_ps(); }
INLINE vf vset(float x) { return _mm512_set1_ps(x); }
INLINE vf vload(const float *p) { return _mm512_loadu_ps(p); }
INLINE void vstore(float *p, vf x) { _mm512_storeu_ps(p, x); }
/* The first n < VL floats; the rest reads as 0 and is not written. */
INLINE vf vload_n(const float *p, int n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
INLINE void vstore_n(float *p, vf x, int n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), x); }
INLINE vf vadd(vf a, vf b) { return _mm512_add_ps(a, b); }
INLINE vf vsub(vf a, vf b) { return _mm512_sub_ps(a, b); }
INLINE vf vmul(vf a, vf b) { return _mm512_mul_ps(a, b); }
INLINE vf vdiv(vf a, vf b) { return _mm512_div_ps(a, b); }
INLINE vf vmax(vf a, vf b) { return _mm512_max_ps(a, b); }
INLINE vf vmin(vf a, vf b) { return _mm512_min_ps(a, b); }
INLINE vf vfma(vf a, vf b, vf c) { return _mm512_fmadd_ps(a, b, c); } /* a * b + c */
INLINE vf vround(vf a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* a * 2^n for integral n within float's exponents. */
INLINE vf vscale2(vf a, vf n) { return _mm512_scalef_ps(a, n); }
INLINE vf vload_bf16(const bf16 *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
INLINE vf vload_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
INLINE vf vload_i8(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}

#elif defined(__AVX2__)

#include <immintrin.h>
#define VL 8
typedef __m256 vf;
typedef __m256i vi;

INLINE vi vmask_n(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE vf vzero(void) { return _mm256_setzero_ps(); }
INLINE vf vset(float x) { return _mm256_set1_ps(x); }
INLINE vf vload(const float *p) { return _mm256_loadu_ps(p); }
INLINE void vstore(float *p, vf x) { _mm256_storeu_ps(p, x); }
INLINE vf vload_n(const float *p, int n) { return _mm256_maskload_ps(p, vmask_n(n)); }
INLINE void vstore_n(float *p, vf x, int n) { _mm256_maskstore_ps(p, vmask_n(n), x); }
INLINE vf vadd(vf a, vf b) { return _mm256_add_ps(a, b); }
INLINE vf vsub(vf a, vf b) { return _mm256_sub_ps(a, b); }
INLINE vf vmul(vf a, vf b) { return _mm256_mul_ps(a, b); }
INLINE vf vdiv(vf a, vf b) { return _mm256_div_ps(a, b); }
INLINE vf vmax(vf a, vf b) { return _mm256_max_ps(a, b); }
INLINE vf vmin(vf a, vf b) { return _mm256_min_ps(a, b); }
INLINE vf vfma(vf a, vf b, vf c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vf vround(vf a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vf vscale2(vf a, vf n) { /* in two halves: n may reach below the smallest normal exponent */
    vf half = _mm256_round_ps(_mm256_mul_ps(n, vset(0.5f)), _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vi first = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(half), _mm256_set1_epi32(127)), 23);
    vi second = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(vsub(n, half)), _mm256_set1_epi32(127)), 23);
    return vmul(vmul(a, _mm256_castsi256_ps(first)), _mm256_castsi256_ps(second));
}
INLINE vf vload_bf16(const bf16 *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
INLINE vf vload_f16(const uint16_t *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)); }
INLINE vf vload_i8(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}

#else /* neon, plain: what the compiler makes of vectors of four floats */

#define VL 4
typedef float vf __attribute__((vector_size(16)));
typedef int32_t vi __attribute__((vector_size(16)));

INLINE vf vzero(void) { return (vf){0, 0, 0, 0}; }
INLINE vf vset(float x) { return (vf){x, x, x, x}; }
INLINE vf vload(const float *p) { vf x; memcpy(&x, p, 16); return x; }
INLINE void vstore(float *p, vf x) { memcpy(p, &x, 16); }
INLINE vf vload_n(const float *p, int n) { vf x = vzero(); memcpy(&x, p, 4 * (size_t)n); return x; }
INLINE void vstore_n(float *p, vf x, int n) { memcpy(p, &x, 4 * (size_t)n); }
INLINE vf vadd(vf a, vf b) { return a + b; }
INLINE vf vsub(vf a, vf b) { return a - b; }
INLINE vf vmul(vf a, vf b) { return a * b; }
INLINE vf vdiv(vf a, vf b) { return a / b; }
INLINE vf vmax(vf a, vf b) { vi m = a > b; return (vf)((m & (vi)a) | (~m & (vi)b)); }
INLINE vf vmin(vf a, vf b) { vi m = a < b; return (vf)((m & (vi)a) | (~m & (vi)b)); }
#if defined(__ARM_NEON)
#include <arm_neon.h>
INLINE vf vfma(vf a, vf b, vf c) { return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
INLINE vf vfma(vf a, vf b, vf c) { return a * b + c; } /* two roundings: there is no instruction for one */
#endif
INLINE vf vround(vf a) { return (vf){rintf(a[0]), rintf(a[1]), rintf(a[2]), rintf(a[3])}; }
INLINE vf vscale2(vf a, vf n) {
    return (vf){ldexpf(a[0], (int)n[0]), ldexpf(a[1], (int)n[1]), ldexpf(a[2], (int)n[2]), ldexpf(a[3], (int)n[3])};
}
INLINE vf vload_bf16(const bf16 *p) {
    return (vf){bf16_to_float(p[0]), bf16_to_float(p[1]), bf16_to_float(p[2]), bf16_to_float(p[3])};
}
INLINE float f16_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = h & 0x7fffu, bits;
    float out;
    if (rest >= 0x7c00u) bits = 0x7f800000u | ((rest & 0x3ffu) << 13);
    else if (rest >= 0x400u) bits = (rest + 0x1c000u) << 13;
    else { out = (float)rest * 0x1p-24f; memcpy(&bits, &out, 4); }
    bits |= sign;
    memcpy(&out, &bits, 4);
    return out;
}
INLINE vf vload_f16(const uint16_t *p) {
    return (vf){f16_to_float(p[0]), f16_to_float(p[1]), f16_to_float(p[2]), f16_to_float(p[3])};
}
INLINE vf vload_i8(const int8_t *p) { return (vf){p[0], p[1], p[2], p[3]}; }

#endif

/* Lane 0 + lane VL/2, and so on: a binary tree, the same on every path of one instruction set. */
#if VL >= 8
#if VL == 16
#define HALVES(op, x) op(_mm512_extractf32x8_ps(x, 1), _mm512_castps512_ps256(x))
#else
#define HALVES(op, x) (x)
#endif
#define TREE(name, op, op_256) \
    INLINE float name(vf x) { \
        __m256 eight = HALVES(op_256, x); \
        __m128 four = op(_mm256_extractf128_ps(eight, 1), _mm256_castps256_ps128(eight)); \
        __m128 two = op(_mm_movehl_ps(four, four), four); \
        return _mm_cvtss_f32(op(_mm_shuffle_ps(two, two, 1), two)); \
    }
TREE(vsum, _mm_add_ps, _mm256_add_ps)
TREE(vmaximum, _mm_max_ps, _mm256_max_ps)
#undef TREE
#undef HALVES
#else
INLINE float vsum(vf x) {
    return (x[0] + x[2]) + (x[1] + x[3]);
}

INLINE float vmaximum(vf x) {
    float even = x[2] > x[0] ? x[2] : x[0], odd = x[3] > x[1] ? x[3] : x[1];
    return odd > even ? odd : even;
}
#endif

/* 2^x to about one unit in the last place; 0 from -150 on down, so that exp2(-inf) is exactly 0. NaN stays NaN.
   x = n + f with |f| <= 1/2; 2^f by the Taylor polynomial of degree 7, whose error is below 2^-26. */
INLINE vf vexp2(vf x) {
    vf held = vmax(vset(-150.0f), vmin(vset(128.0f), x)); /* x second each time: that keeps a NaN */
    vf n = vround(held), f = vsub(held, n);
    vf p = vset(1.5252733804e-5f);
    p = vfma(p, f, vset(1.5403530393e-4f));
    p = vfma(p, f, vset(1.3333558146e-3f));
    p = vfma(p, f, vset(9.6181291076e-3f));
    p = vfma(p, f, vset(5.5504108665e-2f));
    p = vfma(p, f, vset(2.4022650696e-1f));
    p = vfma(p, f, vset(6.9314718056e-1f));
    p = vfma(p, f, vset(1.0f));
    return vscale2(p, n);
}

#define LOG2_E 1.4426950408889634f
INLINE vf vexp(vf x) { return vexp2(vmul(x, vset(LOG2_E))); }

#endif
