/* A whole decoder layer in one call, and one parallel region:

       x += out(attention(rope(qkv(norm(x)))))        keys and values go into the cache on the way
       x += down(act(gate_up(norm(x))))

   Its operations are those of the other files, in the order and with the sums that they have alone. What one call saves
   is what lies between them: a thread that is woken for each, and the interpreter, whose memory the weights have driven
   from the caches. Rows go through the linear layers SLAB at a time, so that what lies between two of them stays small. */

#include "parts.h"
#include "scratch.h"

#define COLUMNS 512 /* of an activation that a thread computes at a time */

typedef struct {
    int64_t kind, in, out;
    const void *weights;
    const float *bias; /* [out, padded to 64] or NULL */
} matrix_t;

/* kernels/cpu/layer.py fills it. */
typedef struct {
    norm_t norms[2]; /* before attention, before the feed-forward */
    matrix_t qkv, out, up, down;
    const float *head_norm; /* [heads + kv_heads, dim] or NULL */
    const float *turns;     /* [positions, 2, half]: cosines, then sines */
    int64_t heads, kv_heads, dim, half, window, is_gated, activation;
    float head_eps, scale;
} layer_t;

/* One step's rows and where their keys and values lie. */
typedef struct {
    const int64_t *positions, *slots;
    const int32_t *starts, *lens, *tables;
    int64_t table_stride, sequences, rows;
} step_t;

/* Working memory of a call: `turned` has all rows' queries and keys and `attended` their answers; the others have those
   of one slab. `wide` holds qkv or gate and up. */
typedef struct {
    float *turned, *attended, *normed, *wide, *inner, *added, *placed;
} buffers_t;

INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static size_t placed_for(const matrix_t *m, int64_t rows) { return FN(placed_bytes)((int)m->kind, rows, m->in); }

/* 0, or 1: no memory. */
static int lay_out(const layer_t *l, int64_t rows, buffers_t *b) {
    const int64_t slab = smaller(rows, SLAB), hidden = l->qkv.in, q = l->heads * l->dim, k = l->kv_heads * l->dim;
    const int64_t sizes[] = {rows * (q + k), rows * q, slab * hidden, slab * larger(l->qkv.out, l->up.out),
                             slab * l->down.in, slab * hidden};
    float **parts[] = {&b->turned, &b->attended, &b->normed, &b->wide, &b->inner, &b->added};
    size_t placed = placed_for(&l->qkv, slab), used = 0;
    placed = (size_t)larger((int64_t)placed, (int64_t)placed_for(&l->out, slab));
    placed = (size_t)larger((int64_t)placed, (int64_t)placed_for(&l->up, slab));
    placed = (size_t)larger((int64_t)placed, (int64_t)placed_for(&l->down, slab));
    for (int i = 0; i < 6; i++) used += (size_t)(sizes[i] + 15) / 16 * 16;
    float *memory = quire_scratch(LAYER_ROWS, 4 * used + placed);
    if (memory == NULL) return 1;
    for (int i = 0; i < 6; i++) *parts[i] = memory, memory += (size_t)(sizes[i] + 15) / 16 * 16;
    b->placed = memory;
    return 0;
}

static int multiply(const crew_t *crew, const matrix_t *m, const buffers_t *b, const float *x, int64_t rows, float *y) {
    const linear_t l = {(int)m->kind, rows, m->in, m->out, m->weights, m->bias, x, y, b->placed};
    const int failed = FN(linear_part)(crew, &l);
    meet(crew);
    return failed;
}

/* out = norm(x), or where there is something to be added, of x += added. This thread's share. */
static void add_and_norm(const crew_t *crew, const float *added, const norm_t *norm, float *x, float *out, int64_t rows,
                         int64_t size) {
    int64_t from, to;
    my_share(crew, rows, &from, &to);
    for (int64_t row = from; row < to; row++) {
        float *here = x + row * size;
        if (added != NULL) {
            int64_t i = 0;
            for (; i + VL <= size; i += VL) vstore(here + i, vadd(vload(here + i), vload(added + row * size + i)));
            for (; i < size; i++) here[i] += added[row * size + i];
        }
        if (norm != NULL) FN(norm_row)(norm, here, out + row * size, size);
    }
    meet(crew);
}

/* Queries and keys of a slab's rows turned, keys and values written. */
static void turn_and_write(const crew_t *crew, const layer_t *l, const step_t *s, const cache_t *cache,
                           const buffers_t *b, int64_t first, int64_t rows) {
    const int64_t heads = l->heads + l->kv_heads, dim = l->dim;
    int64_t from, to;
    my_share(crew, rows, &from, &to);
    for (int64_t row = from; row < to; row++) {
        const float *qkv = b->wide + row * l->qkv.out;
        float *turned = b->turned + (first + row) * heads * dim;
        FN(norm_rope_row)(qkv, l->head_norm, heads, l->head_eps, l->turns + s->positions[first + row] * 2 * l->half,
                          turned, heads, l->half, dim);
        FN(write_kv_row)(turned + l->heads * dim, qkv + heads * dim, dim, dim, cache, s->slots[first + row]);
    }
    meet(crew);
}

static void activate(const crew_t *crew, const layer_t *l, const buffers_t *b, int64_t rows) {
    const int64_t size = l->down.in, pieces = (size + COLUMNS - 1) / COLUMNS;
    int64_t from, to;
    my_share(crew, rows * pieces, &from, &to);
    for (int64_t piece = from; piece < to; piece++) {
        const int64_t row = piece / pieces, column = piece % pieces * COLUMNS;
        const float *wide = b->wide + row * l->up.out + column;
        FN(activate_row)((int)l->activation, wide, l->is_gated ? wide + size : NULL, b->inner + row * size + column,
                         smaller(COLUMNS, size - column));
    }
    meet(crew);
}

static int layer_part(const crew_t *crew, const layer_t *l, const step_t *s, const attention_t *attention,
                      const attention_plan_t *plan, const buffers_t *b, float *x) {
    const int64_t hidden = l->qkv.in;
    int failed = 0;
    for (int64_t row = 0; row < s->rows; row += SLAB) {
        const int64_t rows = smaller(SLAB, s->rows - row);
        add_and_norm(crew, NULL, &l->norms[0], x + row * hidden, b->normed, rows, hidden);
        failed |= multiply(crew, &l->qkv, b, b->normed, rows, b->wide);
        turn_and_write(crew, l, s, &attention->cache, b, row, rows);
    }
    failed |= FN(attention_part)(crew, attention, plan);
    meet(crew);
    for (int64_t row = 0; row < s->rows; row += SLAB) {
        const int64_t rows = smaller(SLAB, s->rows - row);
        float *here = x + row * hidden;
        failed |= multiply(crew, &l->out, b, b->attended + row * l->heads * l->dim, rows, b->added);
        add_and_norm(crew, b->added, &l->norms[1], here, b->normed, rows, hidden);
        failed |= multiply(crew, &l->up, b, b->normed, rows, b->wide);
        activate(crew, l, b, rows);
        failed |= multiply(crew, &l->down, b, b->inner, rows, b->added);
        add_and_norm(crew, b->added, NULL, here, NULL, rows, hidden);
    }
    return failed;
}

/* x [rows, hidden] in and out. The caches are [blocks, kv_heads, block_size, row] of `kind`. Returns 0, or 1: no memory
   (then x is spoilt). */
EXPORT int FN(layer)(const layer_t *l, const step_t *s, float *x, char *k_cache, char *v_cache, int64_t block_size,
                     int64_t kind) {
    buffers_t b;
    attention_plan_t plan;
    if (lay_out(l, s->rows, &b)) return 1;
    const attention_t attention = {
        .query = b.turned, .query_stride = (l->heads + l->kv_heads) * l->dim, .query_head_stride = l->dim,
        .cache = {k_cache, v_cache, l->kv_heads, block_size, l->dim, kind}, .out = b.attended, .starts = s->starts,
        .lens = s->lens, .tables = s->tables, .table_stride = s->table_stride, .sequences = s->sequences,
        .heads = l->heads, .window = l->window, .scale = l->scale};
    if (FN(attention_plan)(&attention, omp_get_max_threads(), &plan)) return 1;
    int failed = 0;
    AS_CREW(1, if (layer_part(&crew, l, s, &attention, &plan, &b, x)) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED));
    return failed;
}
