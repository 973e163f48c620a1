/* The smallest weight that top_k and top_p keep, without a sort: bits of the weights, from the highest on, in three
   histograms (11, 11 and 10 bits; positive floats are in the order of their bits). Equal weights share their fate. */

#ifndef QUIRE_SELECTION_H
#define QUIRE_SELECTION_H

#include "simd.h"

#define BUCKETS 2048

typedef struct {
    int64_t count[BUCKETS];
    double mass[BUCKETS];
} histogram;

INLINE uint32_t bits_of(float weight) {
    uint32_t bits;
    memcpy(&bits, &weight, 4);
    return bits;
}

/* Weights from `least` on whose bits above `shift + width` are `prefix`, by the `width` bits from `shift` on; those
   weights are also appended to `kept`, which may be `weights` itself. Returns how many they are. */
INLINE int64_t fill(histogram *h, const float *weights, int64_t n, float least, uint32_t prefix, int shift, int width,
                    float *kept) {
    int64_t found = 0;
    memset(h, 0, sizeof *h);
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = bits_of(weights[i]);
        if (weights[i] < least || (uint64_t)bits >> (shift + width) != prefix) continue;
        uint32_t bucket = (bits >> shift) & ((1u << width) - 1);
        h->count[bucket]++;
        h->mass[bucket] += weights[i];
        if (kept) kept[found] = weights[i];
        found++;
    }
    return found;
}

typedef struct {
    float threshold;
    double above; /* mass of the weights above the threshold */
    int64_t number_above, number_at;
} cut;

/* Down from the largest of `weights` [n], of which only those from `least` (> 0) on count: the first weight at which
   the number of weights reaches `number`, or their mass `mass`; the smallest that counts if neither does. `list` [n]. */
static cut cut_at(const float *weights, int64_t n, float least, int64_t number, double mass, histogram *h, float *list) {
    static const int shifts[] = {21, 10, 0}, widths[] = {11, 11, 10};
    cut found = {0.0f, 0.0, 0, 0};
    uint32_t prefix = 0;
    for (int level = 0; level < 3; level++) {
        int64_t kept = fill(h, weights, n, least, prefix, shifts[level], widths[level], level == 1 ? list : NULL);
        int chosen = -1;
        for (int bucket = (1 << widths[level]) - 1; bucket >= 0; bucket--) {
            if (!h->count[bucket]) continue;
            if (chosen >= 0) { /* the one before this did not reach it */
                found.above += h->mass[chosen];
                found.number_above += h->count[chosen];
            }
            chosen = bucket;
            if (found.number_above + h->count[bucket] >= number || found.above + h->mass[bucket] >= mass) break;
        }
        if (chosen < 0) return found; /* nothing counts: keep all */
        prefix = prefix << widths[level] | (uint32_t)chosen;
        found.number_at = h->count[chosen];
        if (level == 1) { weights = list; n = kept; }
    }
    memcpy(&found.threshold, &prefix, 4);
    return found;
}

/* Weights `w` [n] with a largest of 1 and the sum `total`; top_k <= 0 or >= n and top_p >= 1 cut nothing. */
static float rank_threshold(const float *w, int64_t n, double total, int64_t top_k, double top_p, histogram *h,
                            float *list) {
    const float smallest = 1.4e-45f; /* a weight of 0 is no candidate */
    cut by_rank = {0.0f, 0.0, 0, 0};
    float least = smallest;
    if (top_k > 0 && top_k < n) {
        by_rank = cut_at(w, n, smallest, top_k, INFINITY, h, list);
        least = by_rank.threshold > smallest ? by_rank.threshold : smallest;
        int64_t at = top_k - by_rank.number_above; /* of equal weights only so many, and fewer where others are 0 */
        total = by_rank.above + (double)(at < by_rank.number_at ? at : by_rank.number_at) * by_rank.threshold;
    } else { /* what is lighter than this has less than 1 - top_p of the mass, all together */
        float light = (float)((1.0 - top_p) * total / (double)n * 0.999);
        if (light > least) least = light;
    }
    if (!(top_p < 1.0)) return by_rank.threshold;
    return cut_at(w, n, least, n + 1, top_p * total, h, list).threshold;
}

#endif
