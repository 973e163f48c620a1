/* Paged causal attention: softmax over the keys of a row's own sequence, read through its block table.

   The rows of one work item are the query heads that share a kv head, times some consecutive query tokens (row = token *
   group + head). It goes through the keys in tiles of 64 absolute positions:

       scores [rows][64]  =  q [rows][D]  x  keys [D][64]           lanes are keys, sequential over D
       online softmax     the tile's maximum, the weights, their sum (lanes first, then a tree)
       sums [rows][D]     =  sums * rescale + weights [rows][64] x values [64][D]     lanes are features, sequential over keys

   Both products are one microkernel with a register tile of 6 rows x PANEL floats, and decode is the case of few rows.
   After every 512 absolute positions (a chunk) the softmax begins anew, and chunks are merged in the order of the
   sequence; so threads can share a long sequence, and whether they do changes no bits. A key that a row does not see has
   weight 0, which adds exactly nothing; so neither do the rows beside it change bits, nor where tiles are skipped.
   Online softmax: Milakov & Gimelshein, 2018; chunks of one sequence side by side: Flash-Decoding (Dao et al., 2023). */

#include <omp.h>

#include "attention_product.h"
#include "attention_work.h"
#include "kv.h"
#include "scratch.h"

#define CHUNK 512
#define MAX_ROWS 120
/* With no more rows than one register tile a tile is brought in by slices that stay in the first-level cache. */
#define SLICE_BYTES 64
#define SLICE_KEYS 16
/* A maximum before any key: finite, so that no difference of maxima is inf - inf. */
#define NOTHING (-3.0e38f)

/* The first query's position; query token i of the item is at this + i. */
INLINE int64_t position_of(const Attention *p, const Item *item) {
    const int64_t tokens = p->starts[item->sequence + 1] - p->starts[item->sequence];
    return p->lens[item->sequence] - tokens + item->first;
}

/* Keys that the query at `position` sees are lowest .. position. */
INLINE int64_t lowest_of(const Attention *p, int64_t position) {
    return p->window > 0 ? larger(0, position - p->window + 1) : 0;
}

/* The keys of the tile at `base` that rows row .. last see between them. */
INLINE void visible(const Attention *p, const Work *w, int64_t base, int64_t row, int64_t last, int *low, int *high) {
    *low = (int)larger(0, lowest_of(p, w->position[row]) - base);
    *high = (int)smaller(TILE, w->position[last] + 1 - base);
}

/* Scores of a tile's keys that some row sees, in the units of the query: their sums over the features begin .. begin +
   depth - 1, which are what `keys` has, after those over the features before. */
static void multiply(const Attention *p, const Work *w, int64_t base, int64_t first, int64_t end, int64_t begin,
                     int64_t depth) {
    for (int panel = 0; panel < TILE; panel += PANEL)
        for (int64_t row = first; row < end; row += ROWS) {
            const int rows = (int)smaller(ROWS, end - row);
            int low, high;
            visible(p, w, base, row, row + rows - 1, &low, &high);
            if (high <= panel || low >= panel + PANEL) continue;
            product(rows, (int)((smaller(PANEL, high - panel) + VL - 1) / VL), begin == 0, NULL,
                    w->query + row * p->dim + begin, p->dim, w->keys + panel * depth, depth,
                    w->scores + row * TILE + panel, TILE);
        }
}

/* scores [rows][64]: capped, in units of log2, -inf where a row does not see the key; tile_top [rows]. */
static void score(const Attention *p, const Work *w, int64_t base, int64_t begin, int64_t end) {
    const vf cap = vset(p->softcap * LOG2_E);
    const int is_int8 = p->kind == KV_INT8, is_capped = p->softcap > 0;
    for (int64_t row = begin; row < end; row++) {
        float *scores = w->scores + row * TILE;
        int low, high;
        visible(p, w, base, row, row, &low, &high);
        if (is_int8 || is_capped)
            for (int i = 0; i < TILE; i += VL) {
                vf s = vload(scores + i);
                if (is_int8) s = vmul(s, vload(w->scales + i));
                if (is_capped) s = vmul(vtanh_(s), cap);
                vstore(scores + i, s);
            }
        if (low > 0 || high < TILE) {
            for (int i = 0; i < low; i++) scores[i] = -INFINITY;
            for (int i = high; i < TILE; i++) scores[i] = -INFINITY;
        }
        vf top = vload(scores);
        for (int i = VL; i < TILE; i += VL) top = vmax(top, vload(scores + i));
        w->tile_top[row] = vmaximum(top);
    }
}

/* scores become weights; the chunk's maxima and sums of weights go on, and rescale [rows] is what its sums need. */
static void weigh(const Work *w, int64_t begin, int64_t end, int64_t rows) {
    for (int64_t row = 0; row < begin; row++) w->tile_top[row] = NOTHING, w->tile_norm[row] = 0.0f;
    for (int64_t row = end; row < rows; row++) w->tile_top[row] = NOTHING, w->tile_norm[row] = 0.0f;
    for (int64_t row = 0; row < rows; row += VL) {
        vf before = vload(w->chunk.top + row), top = vmax(before, vload(w->tile_top + row));
        vstore(w->rescale + row, vexp2(vsub(before, top)));
        vstore(w->chunk.top + row, top);
    }
    for (int64_t row = begin; row < end; row++) {
        float *scores = w->scores + row * TILE;
        const vf top = vset(w->chunk.top[row]);
        vf norm = vzero();
        for (int i = 0; i < TILE; i += VL) {
            vf weight = vexp2(vsub(vload(scores + i), top));
            vstore(scores + i, weight);
            norm = vadd(norm, weight);
        }
        w->tile_norm[row] = vsum(norm);
    }
    for (int64_t row = 0; row < rows; row += VL)
        vstore(w->chunk.norm + row, vfma(vload(w->chunk.norm + row), vload(w->rescale + row), vload(w->tile_norm + row)));
}

/* The chunk's sums go on by the values first .. end - 1 of a tile, which are what `values` has. */
static void add_values(const Attention *p, const Work *w, int64_t base, int64_t begin, int64_t end, int first, int last,
                       int is_first) {
    const int64_t width = round_up(p->dim, VL);
    for (int64_t panel = 0; panel < width; panel += PANEL)
        for (int64_t row = begin; row < end; row += ROWS) {
            const int rows = (int)smaller(ROWS, end - row);
            int low, high;
            visible(p, w, base, row, row + rows - 1, &low, &high);
            low = low > first ? low : first, high = high < last ? high : last;
            product(rows, (int)(smaller(PANEL, width - panel) / VL), 0, is_first ? w->rescale + row : NULL,
                    w->scores + row * TILE + low, TILE, w->values + panel * TILE + (low - first) * PANEL,
                    high > low ? high - low : 0, w->chunk.sums + row * width + panel, width);
        }
}

/* What `state` has, and then the chunk. Two empty ones stay empty, and one empty changes nothing. */
static void merge(State state, State chunk, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < rows; row += VL) {
        vf mine = vload(state.top + row), other = vload(chunk.top + row), top = vmax(mine, other);
        vf a = vexp2(vsub(mine, top)), b = vexp2(vsub(other, top));
        vstore(state.top + row, top);
        vstore(state.norm + row, vfma(vload(state.norm + row), a, vmul(vload(chunk.norm + row), b)));
        float from[2][VL];
        vstore(from[0], a), vstore(from[1], b);
        for (int64_t r = row; r < smaller(rows, row + VL); r++) {
            const vf mine_part = vset(from[0][r - row]), other_part = vset(from[1][r - row]);
            float *sums = state.sums + r * width;
            for (int64_t i = 0; i < width; i += VL)
                vstore(sums + i, vfma(vload(sums + i), mine_part, vmul(vload(chunk.sums + r * width + i), other_part)));
        }
    }
}

/* sums / norm into the answer. A sink is one more weight in the norm. */
static void finish(const Attention *p, const Item *item, State state) {
    const int64_t group = p->heads / p->kv_heads, dim = p->dim, width = round_up(dim, VL);
    int64_t row = 0;
    for (int64_t token = 0; token < item->tokens; token++)
        for (int64_t head = item->kv_head * group; head < (item->kv_head + 1) * group; head++, row++) {
            float norm = state.norm[row], part = 1.0f;
            if (p->sinks != NULL) {
                const float sink = p->sinks[head] * LOG2_E, top = sink > state.top[row] ? sink : state.top[row];
                float both[VL] = {state.top[row] - top, sink - top};
                vstore(both, vexp2(vload(both)));
                part = both[0], norm = norm * part + both[1];
            }
            const vf factor = vset(norm == 0.0f ? 0.0f : part / norm);
            const float *sums = state.sums + row * width;
            float *out = p->out + ((p->starts[item->sequence] + item->first + token) * p->heads + head) * dim;
            int64_t i = 0;
            for (; i + VL <= dim; i += VL) vstore(out + i, vmul(vload(sums + i), factor));
            if (i < dim) vstore_n(out + i, vmul(vload(sums + i), factor), (int)(dim - i));
        }
}

static void empty(State state, int64_t rows, int64_t width) {
    for (int64_t row = 0; row < round_up(rows, 16); row++) state.top[row] = NOTHING, state.norm[row] = 0.0f;
    memset(state.sums, 0, 4 * (size_t)(rows * width));
}

/* The item's rows of the query, scaled so that scores come in units of log2 (capped ones: of the cap). */
static void load_query(const Attention *p, const Item *item, const Work *w) {
    const int64_t group = p->heads / p->kv_heads, dim = p->dim, position = position_of(p, item);
    const vf factor = vset(p->softcap > 0 ? p->scale / p->softcap : p->scale * LOG2_E);
    float *to = w->query;
    int64_t row = 0;
    for (int64_t token = 0; token < item->tokens; token++)
        for (int64_t head = item->kv_head * group; head < (item->kv_head + 1) * group; head++, row++, to += dim) {
            const float *from = p->query + (p->starts[item->sequence] + item->first + token) * p->query_stride
                                + head * p->query_head_stride;
            int64_t i = 0;
            for (; i + VL <= dim; i += VL) vstore(to + i, vmul(vload(from + i), factor));
            if (i < dim) vstore_n(to + i, vmul(vload_n(from + i, (int)(dim - i)), factor), (int)(dim - i));
            w->position[row] = position + token;
        }
}

/* Rows of keys and values of one tile, and which keys of it are there. */
typedef struct {
    const char *keys[TILE], *values[TILE];
    int64_t base;
    int first, end;
} Rows;

static void find_rows(const Attention *p, const Item *item, int64_t tile, Rows *rows) {
    const int64_t position = position_of(p, item), base = tile * TILE;
    const int64_t first = larger(base, lowest_of(p, position)), end = smaller(base + TILE, position + item->tokens);
    const int64_t bytes = kv_row_bytes((int)p->kind, p->dim);
    const int32_t *table = p->tables + item->sequence * p->table_stride;
    rows->base = base, rows->first = (int)(first - base), rows->end = (int)(end - base);
    kv_rows(p->k_cache, table, p->block_size, p->kv_heads, item->kv_head, bytes, base, first, end, rows->keys);
    kv_rows(p->v_cache, table, p->block_size, p->kv_heads, item->kv_head, bytes, base, first, end, rows->values);
    for (int i = 0; i < TILE; i++)
        if (i < rows->first || i >= rows->end)
            rows->keys[i] = rows->keys[rows->first], rows->values[i] = rows->values[rows->first];
}

/* The scores of a tile for the rows begin .. end - 1; its values are fetched meanwhile. */
static void bring_scores(const Attention *p, const Work *w, const Rows *tile, int64_t begin, int64_t end) {
    const int64_t slice = end - begin > ROWS ? p->dim : SLICE_BYTES / kv_value_bytes((int)p->kind);
    for (int64_t at = 0; at < p->dim; at += slice) {
        const int64_t depth = smaller(slice, p->dim - at);
        kv_keys((int)p->kind, tile->keys, tile->values, tile->first, tile->end, at, depth, w->keys);
        multiply(p, w, tile->base, begin, end, at, depth);
    }
    if (p->kind == KV_INT8)
        for (int i = tile->first; i < tile->end; i++) w->scales[i] = kv_scale(tile->keys[i], p->dim);
    score(p, w, tile->base, begin, end);
}

/* The weights' sums over a tile's values; what comes `ahead`, if anything, is fetched meanwhile. */
static void bring_sums(const Attention *p, const Work *w, const Rows *tile, const char *const *ahead, int64_t begin,
                       int64_t end) {
    const int slice = end - begin > ROWS ? TILE : SLICE_KEYS;
    for (int first = tile->first; first < tile->end; first += slice) {
        const int last = (int)smaller(first + slice, tile->end);
        kv_values((int)p->kind, tile->values, ahead, first, last, p->dim, w->values);
        add_values(p, w, tile->base, begin, end, first, last, first == tile->first);
    }
}

static void attend(const Attention *p, const Item *item, Work *w, float *parts, int64_t part_rows) {
    const int64_t group = p->heads / p->kv_heads, rows = item->tokens * group, width = round_up(p->dim, VL);
    const int64_t position = position_of(p, item);
    Rows both[2], *now = &both[0], *next = &both[1];
    int64_t chunks = 0;
    load_query(p, item, w);
    find_rows(p, item, item->tile, now);
    for (int64_t tile = item->tile; tile < item->tile_end; tile++) {
        const int64_t base = tile * TILE;
        const int last = tile + 1 == item->tile_end;
        if (tile == item->tile || base % CHUNK == 0) empty(w->chunk, rows, width);
        if (!last) find_rows(p, item, tile + 1, next);
        int64_t begin = larger(0, base - position) * group, end = rows; /* the rows that see something of this tile */
        if (p->window > 0) end = smaller(rows, larger(0, base + TILE - 1 + p->window - position) * group);
        bring_scores(p, w, now, begin, end);
        weigh(w, begin, end, rows);
        bring_sums(p, w, now, last ? NULL : next->keys, begin, end);
        if (last || (base + TILE) % CHUNK == 0) {
            const int is_first = chunks++ == 0;
            if (item->part >= 0) {
                State to = partial(parts, item->part + chunks - 1, part_rows, width);
                memcpy(to.top, w->chunk.top, 4 * (size_t)rows);
                memcpy(to.norm, w->chunk.norm, 4 * (size_t)rows);
                memcpy(to.sums, w->chunk.sums, 4 * (size_t)(rows * width));
            } else if (is_first) {
                State swap = w->total;
                w->total = w->chunk, w->chunk = swap;
            } else {
                merge(w->total, w->chunk, rows, width);
            }
        }
        Rows *swap = now;
        now = next, next = swap;
    }
    if (item->part < 0) finish(p, item, w->total);
}

/* The step's work items: query tokens in pieces of at most MAX_ROWS rows, long rows of keys in pieces of whole chunks.
   With `items` NULL only counts, and adds up the cost. Returns their number; *parts: partial results in all. */
static int64_t cut(const Attention *p, Item *items, int64_t limit, int64_t *cost, int64_t *parts) {
    const int64_t group = p->heads / p->kv_heads, piece = larger(1, MAX_ROWS / group), per_chunk = CHUNK / TILE;
    int64_t count = 0;
    *cost = 0, *parts = 0;
    for (int64_t s = 0; s < p->sequences; s++) {
        const int64_t tokens = p->starts[s + 1] - p->starts[s], pieces = (tokens + piece - 1) / piece;
        for (int64_t n = pieces - 1; n >= 0; n--)
            for (int64_t head = 0; head < p->kv_heads; head++) {
                Item item = {.sequence = s, .kv_head = head, .first = n * piece, .part = -1};
                item.tokens = smaller(piece, tokens - item.first);
                const int64_t position = position_of(p, &item), low = lowest_of(p, position) / TILE;
                const int64_t high = (position + item.tokens - 1) / TILE + 1;
                const int64_t weight = item.tokens * group + 16; /* bringing a tile in costs about as much as 16 rows */
                const int64_t chunks = (high - 1) / per_chunk - low / per_chunk + 1;
                *cost += (high - low) * weight;
                const int64_t step = limit > 0 ? larger(1, limit / (weight * per_chunk)) : chunks;
                for (int64_t chunk = 0; chunk < chunks; chunk += step) {
                    item.tile = larger(low, (low / per_chunk + chunk) * per_chunk);
                    item.tile_end = smaller(high, (low / per_chunk + chunk + step) * per_chunk);
                    if (step < chunks) {
                        item.part = *parts + chunk;
                        item.parts = chunk == 0 ? chunks : 0;
                    }
                    if (items != NULL) items[count] = item;
                    count++;
                }
                if (step < chunks) *parts += chunks;
            }
    }
    return count;
}

/* query [tokens, heads, dim] at these strides -> out [tokens, heads, dim]; see `Attention`. Returns 0, or 1: no memory. */
EXPORT int FN(paged_attention)(const float *query, int64_t query_stride, int64_t query_head_stride, const char *k_cache,
                               const char *v_cache, float *out, const float *sinks, const int32_t *starts,
                               const int32_t *lens, const int32_t *tables, int64_t table_stride, int64_t sequences,
                               int64_t heads, int64_t kv_heads, int64_t dim, int64_t block_size, int64_t kind,
                               int64_t window, float scale, float softcap) {
    const Attention problem = {query, query_stride, query_head_stride, k_cache, v_cache, out, sinks, starts, lens,
                               tables, table_stride, sequences, heads, kv_heads, dim, block_size, kind, window,
                               scale, softcap};
    const Attention *p = &problem;
    const int64_t group = heads / kv_heads, width = round_up(dim, VL);
    const int threads = omp_get_max_threads();
    int64_t cost, parts, rows = 0;
    int64_t count = cut(p, NULL, 0, &cost, &parts);
    const int64_t limit = threads > 1 ? larger(1, cost / (4 * threads)) : 0;
    if (limit > 0) count = cut(p, NULL, limit, &cost, &parts);
    for (int64_t s = 0; s < sequences; s++) rows = larger(rows, starts[s + 1] - starts[s]);
    rows = smaller(rows, larger(1, MAX_ROWS / group)) * group;
    Item *items = malloc(sizeof(Item) * (size_t)larger(1, count));
    float *partials = NULL;
    if (parts > 0) partials = malloc(4 * (size_t)(parts * (2 * round_up(rows, 16) + rows * width)));
    int failed = items == NULL || (parts > 0 && partials == NULL);
    if (!failed) {
        cut(p, items, limit, &cost, &parts);
#pragma omp parallel for schedule(dynamic) if (count > 1) reduction(| : failed)
        for (int64_t i = 0; i < count; i++) {
            Work work;
            float *memory = scratch(4 * (size_t)lay_out(&work, NULL, rows, dim));
            if (memory == NULL) {
                failed |= 1;
                continue;
            }
            lay_out(&work, memory, rows, dim);
            attend(p, &items[i], &work, partials, rows);
        }
    }
    if (!failed && parts > 0) {
#pragma omp parallel for schedule(dynamic)
        for (int64_t i = 0; i < count; i++) {
            if (items[i].parts == 0) continue;
            State state = partial(partials, items[i].part, rows, width);
            for (int64_t part = 1; part < items[i].parts; part++)
                merge(state, partial(partials, items[i].part + part, rows, width), items[i].tokens * group, width);
            finish(p, &items[i], state);
        }
    }
    free(partials);
    free(items);
    return failed;
}
