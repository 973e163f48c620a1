/* What attention works on: a step, a work item of it, and the working memory of an item. */

#ifndef QUIRE_ATTENTION_WORK_H
#define QUIRE_ATTENTION_WORK_H

#include "kv.h"
#include "parts.h"

INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Query tokens first .. first + tokens - 1 of a sequence's new ones, one kv head, tiles tile .. tile_end - 1. */
typedef struct item {
    int64_t sequence, kv_head, first, tokens, tile, tile_end;
    int64_t part; /* number of its first chunk among the partial results; -1: it has all chunks and writes the answer */
    int64_t parts; /* of the answer's first item: how many chunks there are to merge; else 0 */
} item_t;

/* What a chunk comes to: for each row the maximum, the sum of weights and the weighted sum of values [rows][width]. */
typedef struct {
    float *top, *norm, *sums;
} State;

/* `position` [rows] is where each row's query stands in its sequence; the rest is as the drawing above has it. */
typedef struct {
    float *query, *scores, *keys, *values, *scales, *tile_top, *tile_norm, *rescale;
    State chunk, total;
    int64_t *position;
    int is_few; /* rows: see attention_few.h */
} Work;

static int64_t take(float **from, float *memory, int64_t used, int64_t floats) {
    *from = memory + used;
    return used + round_up(floats, 16);
}

/* Lays the working memory out; returns how many floats it is. */
static int64_t lay_out(Work *w, float *memory, int64_t rows, int64_t dim) {
    const int64_t width = round_up(dim, VL), padded = round_up(rows, 16);
    int64_t used = take(&w->query, memory, 0, rows * dim);
    used = take(&w->scores, memory, used, rows * TILE);
    used = take(&w->keys, memory, used, TILE * dim);
    used = take(&w->values, memory, used, TILE * round_up(dim, PANEL));
    used = take(&w->scales, memory, used, TILE);
    float *positions;
    used = take(&positions, memory, used, 2 * rows);
    w->position = (int64_t *)positions;
    used = take(&w->tile_top, memory, used, padded);
    used = take(&w->tile_norm, memory, used, padded);
    used = take(&w->rescale, memory, used, padded);
    for (int i = 0; i < 2; i++) {
        State *state = i ? &w->total : &w->chunk;
        used = take(&state->top, memory, used, padded);
        used = take(&state->norm, memory, used, padded);
        used = take(&state->sums, memory, used, rows * width);
    }
    return used;
}

/* A chunk's place among the partial results. */
static State partial(float *parts, int64_t part, int64_t rows, int64_t width) {
    const int64_t padded = round_up(rows, 16);
    float *memory = parts + part * (2 * padded + rows * width);
    return (State){memory, memory + padded, memory + 2 * padded};
}

#endif
