/* From a row of logits to its token, in one or two passes.

   The token is argmax((x - max) / T + Gumbel noise) over what the filters keep, the noise a function of (key, token id)
   (quire/kernels/noise.py has the same integers). g = -log(-log1p(-u)) is at most -log(u), so a column can only win if
   u <= e^((x - max) / T - best): that comparison needs the integers and one exponential of a few digits, and the two
   logarithms (in double, rounded once) are left for the dozen columns that pass it. The best so far begins with the
   largest logit's own. Which columns are looked at never changes the answer.

   Weights e^((x - max) / T) are within two units in the last place; where two weights, or two noisy scores, are closer
   than that, another implementation may decide otherwise. Rows are independent of each other and of the threads. */

#include "elementary.h"
#include "scratch.h"
#include "selection.h"

#define BLOCK 1024 /* columns summed in single precision before they join a sum in double */
#define SLACK 1e-3f /* in nats: more than what rounding can hide from the comparison above */

/* A row's parameters; quire/kernels/cpu/sampling.py packs them. */
typedef struct {
    uint64_t seed;
    int64_t choice, top_k;
    double temperature, top_p, min_p;
} parameters;

enum { NOT_FINITE = -1, NOTHING_LEFT = -2, NO_MEMORY = -3 };

INLINE vf take(const float *p, int64_t left) { return left >= VL ? vload(p) : vload_n(p, (int)left); }

/* Bit i: a[i] <= b[i], for the first `left` lanes. */
INLINE uint32_t vless_equal(vf a, vf b, int64_t left) {
    uint32_t lanes = left >= VL ? (1u << VL) - 1 : (1u << left) - 1;
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ) & lanes;
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_LE_OQ)) & lanes;
#else
    uint32_t found = 0;
    for (int i = 0; i < VL; i++) found |= (uint32_t)(a[i] <= b[i]) << i;
    return found & lanes;
#endif
}

#define INCREMENT 0x9E3779B97F4A7C15ull
#define MULTIPLIER_1 0xBF58476D1CE4E5B9ull
#define MULTIPLIER_2 0x94D049BB133111EBull

INLINE uint64_t mix(uint64_t bits) {
    bits = (bits ^ (bits >> 30)) * MULTIPLIER_1;
    bits = (bits ^ (bits >> 27)) * MULTIPLIER_2;
    return bits ^ (bits >> 31);
}

INLINE uint64_t noise_key(uint64_t seed, int64_t choice, int64_t position) {
    uint64_t key = mix(seed + INCREMENT);
    key = mix((key ^ mix((uint64_t)choice + 1)) + INCREMENT);
    return mix((key ^ (uint64_t)position) + INCREMENT);
}

/* Uniform numbers in (0, 1) of the VL tokens from `token` on. */
INLINE vf uniforms(uint64_t key, int64_t token) {
    uint64_t first = key + (uint64_t)(token + 1) * INCREMENT;
    vf numbers;
#if defined(__AVX512F__)
    const __m512i steps = _mm512_mullo_epi64(_mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7), _mm512_set1_epi64((int64_t)INCREMENT));
    __m256 halves[2];
    for (int half = 0; half < 2; half++) {
        __m512i bits = _mm512_add_epi64(_mm512_set1_epi64((int64_t)(first + (uint64_t)half * 8 * INCREMENT)), steps);
        bits = _mm512_mullo_epi64(_mm512_xor_si512(bits, _mm512_srli_epi64(bits, 30)), _mm512_set1_epi64((int64_t)MULTIPLIER_1));
        bits = _mm512_mullo_epi64(_mm512_xor_si512(bits, _mm512_srli_epi64(bits, 27)), _mm512_set1_epi64((int64_t)MULTIPLIER_2));
        bits = _mm512_xor_si512(bits, _mm512_srli_epi64(bits, 31));
        halves[half] = _mm512_cvtepi64_ps(_mm512_srli_epi64(bits, 11));
    }
    numbers = _mm512_insertf32x8(_mm512_castps256_ps512(halves[0]), halves[1], 1);
#else
    float lanes[VL];
    for (int lane = 0; lane < VL; lane++) lanes[lane] = (float)(int64_t)(mix(first + (uint64_t)lane * INCREMENT) >> 11);
    numbers = vload(lanes);
#endif
    return vmin(vmul(vadd(numbers, vset(0.5f)), vset(0x1p-53f)), vset(1.0f - 0x1p-24f));
}

INLINE float gumbel(float uniform) {
    float exponential = (float)-log1p(-(double)uniform);
    return (float)-log((double)exponential);
}

/* The largest of row [n] and its first index; whether all are finite. */
INLINE float largest(const float *row, int64_t n, int64_t *index, int *finite) {
    float most = -INFINITY;
    int64_t block_of_most = 0;
    vf nothing = vzero(); /* 0, or NaN once there was a NaN or an infinity */
    for (int64_t block = 0; block < n; block += BLOCK) {
        int64_t end = block + BLOCK < n ? block + BLOCK : n, i = block;
        vf most_here = vset(-INFINITY);
        for (; i + VL <= end; i += VL) {
            vf x = vload(row + i);
            most_here = vmax(x, most_here);
            nothing = vfma(x, vzero(), nothing);
        }
        float here = vmaximum(most_here);
        for (; i < end; i++) {
            if (row[i] > here) here = row[i];
            if (!isfinite(row[i])) nothing = vset(NAN);
        }
        if (here > most) { most = here; block_of_most = block; }
    }
    *finite = vsum(nothing) == 0.0f;
    *index = 0;
    for (int64_t i = block_of_most; i < n; i++)
        if (row[i] == most) { *index = i; break; }
    return most;
}

/* weights[i] = e^((row[i] - most) / temperature); returns their sum. */
INLINE double weigh(const float *row, int64_t n, float most, float temperature, float *weights) {
    double total = 0.0;
    for (int64_t block = 0; block < n; block += BLOCK) {
        int64_t end = block + BLOCK < n ? block + BLOCK : n, i = block;
        vf sum = vzero();
        for (; i + VL <= end; i += VL) {
            vf w = vexp_e(vdiv(vsub(vload(row + i), vset(most)), vset(temperature)));
            vstore(weights + i, w);
            sum = vadd(sum, w);
        }
        total += vsum(sum);
        if (i < end) {
            vstore_n(weights + i, vexp_e(vdiv(vsub(vload_n(row + i, (int)(end - i)), vset(most)), vset(temperature))),
                     (int)(end - i));
            for (; i < end; i++) total += weights[i];
        }
    }
    return total;
}

/* argmax of score + noise over columns whose weight is at least `threshold` (weights NULL: over all). */
INLINE int64_t race(const float *row, int64_t n, float most, int64_t winner, float temperature, uint64_t key,
                    const float *weights, float threshold) {
    float lanes[VL];
    vstore(lanes, uniforms(key, winner));
    float best = gumbel(lanes[0]);
    vf by = vset(LOG2_E / temperature), least = vset((best - SLACK) * LOG2_E);
    for (int64_t i = 0; i < n; i += VL) {
        int64_t left = n - i;
        uint32_t passed = weights ? vless_equal(vset(threshold), take(weights + i, left), left) : ~0u;
        if (!passed) continue;
        vf ahead = vsub(vmul(vsub(take(row + i, left), vset(most)), by), least);
        passed &= vless_equal(vset(-55.0f), ahead, left); /* the smallest uniform number is 2^-54 */
        if (!passed) continue;
        vf uniform = uniforms(key, i);
        passed &= vless_equal(uniform, vexp2(ahead), left);
        if (!passed) continue;
        vstore(lanes, uniform);
        for (int lane = 0; lane < VL; lane++) {
            if (!(passed >> lane & 1)) continue;
            float noisy = (row[i + lane] - most) / temperature + gumbel(lanes[lane]);
            if (noisy > best || (noisy == best && i + lane < winner)) { best = noisy; winner = i + lane; }
        }
        least = vset((best - SLACK) * LOG2_E);
    }
    return winner;
}

static int64_t choose(const float *row, int64_t n, int64_t position, int masked, const parameters *p) {
    int finite;
    int64_t winner;
    float most = largest(row, n, &winner, &finite);
    if (masked ? most == -INFINITY : !finite) return masked ? NOTHING_LEFT : NOT_FINITE;
    if (p->temperature <= 0.0) return winner;
    float temperature = (float)(p->temperature < 0x1p-126 ? 0x1p-126 : p->temperature), threshold = 0.0f, *weights = NULL;
    if (p->min_p > 0.0 || p->top_p < 1.0 || (p->top_k > 0 && p->top_k < n)) {
        histogram *h = quire_scratch(WEIGHTS, sizeof(histogram) + 2 * sizeof(float) * (size_t)n);
        if (!h) return NO_MEMORY;
        weights = (float *)(h + 1);
        double total = weigh(row, n, most, temperature, weights);
        threshold = rank_threshold(weights, n, total, p->top_k, p->top_p, h, weights + n);
        if ((float)p->min_p > threshold) threshold = (float)p->min_p;
    }
    return race(row, n, most, winner, temperature, noise_key(p->seed, p->choice, position), weights, threshold);
}

/* tokens [rows]: the token of each, or why there is none. `facts` [rows, 3]: the address of the row's n logits, the
   position of the token to be chosen, and whether the logits were masked (then they may be -inf, and were checked). */
EXPORT void FN(sample)(int64_t rows, int64_t n, const int64_t *facts, const parameters *parameters, int64_t *tokens) {
#pragma omp parallel for schedule(static) if (rows > 1 && rows * n > 1 << 15)
    for (int64_t row = 0; row < rows; row++) {
        const int64_t *fact = facts + 3 * row;
        tokens[row] = choose((const float *)(uintptr_t)fact[0], n, fact[1], (int)fact[2], parameters + row);
    }
}

/* Whether row [n] has no NaN and no infinity. */
EXPORT int FN(finite)(const float *row, int64_t n) {
    int64_t index;
    int finite;
    largest(row, n, &index, &finite);
    return finite;
}
