/* What the exported functions are made of, for whoever puts several of them together: single rows, and shares (`_part`)
   of what a crew computes. What they compute is said where the exported functions of the same names are. A part does not
   meet at its end: the caller does, before another thread's share is read. What a part or its preparation returns is 0,
   or 1: no memory. */

#ifndef QUIRE_PARTS_H
#define QUIRE_PARTS_H

#include <stddef.h>

#include "crew.h"
#include "simd.h"

/* y [rows, out] = x [rows, in] W^T + bias, for at most SLAB rows; `placed` has the bytes that placed_bytes says. */
typedef struct {
    int kind;
    int64_t rows, in, out;
    const void *weights;
    const float *bias, *x;
    float *y, *placed;
} linear_t;
#define SLAB 504
size_t FN(placed_bytes)(int kind, int64_t rows, int64_t in);
int FN(linear_part)(const crew_t *crew, const linear_t *l);


typedef struct {
    const float *weight, *bias; /* no bias: NULL */
    int is_layer_norm;
    float eps;
} norm_t;
void FN(norm_row)(const norm_t *norm, const float *x, float *out, int64_t size);

/* `turns`: cosines and sines of the row's position. */
void FN(norm_rope_row)(const float *x, const float *weight, int64_t weight_rows, float eps, const float *turns, float *out,
                       int64_t heads, int64_t half, int64_t size);

void FN(activate_row)(int kind, const float *gate, const float *up, float *out, int64_t size);

typedef struct {
    char *keys, *values;
    int64_t kv_heads, block_size, dim, kind;
} cache_t;
void FN(write_kv_row)(const float *key, const float *value, int64_t key_head_stride, int64_t value_head_stride,
                      const cache_t *cache, int64_t slot);

/* One step's attention over out's rows; kernels/interface.py has the meaning of the tensors. */
typedef struct {
    const float *query;
    int64_t query_stride, query_head_stride;
    cache_t cache;
    float *out;
    const float *sinks; /* [heads] or NULL */
    const int32_t *starts, *lens, *tables;
    int64_t table_stride, sequences, heads;
    int64_t window; /* 0: none */
    float scale, softcap; /* softcap 0: none */
} attention_t;
/* How a step's attention is cut into pieces; whoever calls attention_plan keeps it for the crew. */
typedef struct {
    struct item *items;
    float *partials;
    int64_t count, parts, rows;
} attention_plan_t;
int FN(attention_plan)(const attention_t *p, int threads, attention_plan_t *plan);
int FN(attention_part)(const crew_t *crew, const attention_t *p, const attention_plan_t *plan);

#endif
