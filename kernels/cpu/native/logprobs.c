/* Log probabilities without a sort: the largest logit, then one pass that adds the exponentials, counts the logits above
   the asked token's, and keeps the k largest in a short ordered list (equal ones in the order of their ids). */

#include "elementary.h"

#define BLOCK 1024 /* columns summed in single precision before they join a sum in double */

INLINE int any_greater(vf a, vf b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
#else
    vi m = a > b;
    return (m[0] | m[1] | m[2] | m[3]) != 0;
#endif
}

/* Puts x of token `id` into the list of at most k; `held` are in it. Returns the list's smallest once it is full. */
INLINE float insert(float x, int64_t id, float *values, int64_t *ids, int64_t k, int64_t *held) {
    int64_t at = *held < k ? (*held)++ : k - 1;
    for (; at > 0 && values[at - 1] < x; at--) { values[at] = values[at - 1]; ids[at] = ids[at - 1]; }
    values[at] = x;
    ids[at] = id;
    return *held < k ? -INFINITY : values[k - 1];
}

INLINE void one_row(const float *row, int64_t n, int64_t token, float *logprob, int64_t *rank, int64_t k, float *values,
                    int64_t *ids) {
    const vf one = vset(1.0f), none = vzero();
    vf most_of = vset(-INFINITY);
    int64_t i = 0, held = 0;
    for (; i + VL <= n; i += VL) most_of = vmax(vload(row + i), most_of);
    float most = vmaximum(most_of), least = k > 0 ? -INFINITY : INFINITY;
    for (; i < n; i++) most = row[i] > most ? row[i] : most;
    double total = 0.0, above = 0.0;
    for (int64_t block = 0; block < n; block += BLOCK) {
        int64_t end = block + BLOCK < n ? block + BLOCK : n;
        vf sum = vzero(), greater = vzero();
        for (i = block; i + VL <= end; i += VL) {
            vf x = vload(row + i);
            sum = vadd(sum, vexp_e(vsub(x, vset(most))));
            greater = vadd(greater, vif_less(vset(row[token]), x, one, none));
            if (any_greater(x, vset(least)))
                for (int lane = 0; lane < VL; lane++)
                    if (row[i + lane] > least) least = insert(row[i + lane], i + lane, values, ids, k, &held);
        }
        total += vsum(sum);
        above += vsum(greater);
        for (; i < end; i++) {
            total += exp((double)row[i] - most);
            above += row[i] > row[token];
            if (row[i] > least) least = insert(row[i], i, values, ids, k, &held);
        }
    }
    double normalizer = log(total) + most;
    *logprob = (float)(row[token] - normalizer);
    *rank = (int64_t)above + 1;
    for (i = 0; i < held; i++) values[i] = (float)(values[i] - normalizer);
    for (i = held; i < k; i++) { values[i] = NAN; ids[i] = 0; }
}

/* logprob, rank [rows] of the tokens; values, ids [rows, k]: the k most likely. addresses [rows] of n logits each. */
EXPORT void FN(logprobs)(int64_t rows, int64_t n, const int64_t *addresses, const int64_t *tokens, float *logprob,
                         int64_t *rank, int64_t k, float *values, int64_t *ids) {
#pragma omp parallel for schedule(static) if (rows > 1 && rows * n > 1 << 15)
    for (int64_t row = 0; row < rows; row++)
        one_row((const float *)(uintptr_t)addresses[row], n, tokens[row], logprob + row, rank + row, k, values + row * k,
                ids + row * k);
}
