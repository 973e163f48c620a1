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

#include "attention_few.h"
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
INLINE int64_t position_of(const attention_t *p, const item_t *item) {
    const int64_t tokens = p->starts[item->sequence + 1] - p->starts[item->sequence];
    return p->lens[item->sequence] - tokens + item->first;
}

/* Keys that the query at `position` sees are lowest .. position. */
INLINE int64_t lowest_of(const attention_t *p, int64_t position) {
    return p->window > 0 ? larger(0, position - p->window + 1) : 0;
}

/* The keys of the tile at `base` that rows row .. last see between them. */
INLINE void visible(const attention_t *p, const Work *w, int64_t base, int64_t row, int64_t last, int *low, int *high) {
    *low = (int)larger(0, lowest_of(p, w->position[row]) - base);
    *high = (int)smaller(TILE, w->position[last] + 1 - base);
}

/* Scores of a tile's keys that some row sees, in the units of the query: their sums over the features begin .. begin +
   depth - 1, which are what `keys` has, after those over the features before. */
static void multiply(const attention_t *p, const Work *w, int64_t base, int64_t first, int64_t end, int64_t begin,
                     int64_t depth) {
    for (int panel = 0; panel < TILE; panel += PANEL)
        for (int64_t row = first; row < end; row += ROWS) {
            const int rows = (int)smaller(ROWS, end - row);
            int low, high;
            visible(p, w, base, row, row + rows - 1, &low, &high);
            if (high <= panel || low >= panel + PANEL) continue;
            product(rows, (int)((smaller(PANEL, high - panel) + VL - 1) / VL), begin == 0, NULL,
                    w->query + row * p->cache.dim + begin, p->cache.dim, w->keys + panel * depth, depth,
                    w->scores + row * TILE + panel, TILE);
        }
}

/* scores [rows][64]: capped, in units of log2, -inf where a row does not see the key; tile_top [rows]. */
static void score(const attention_t *p, const Work *w, int64_t base, int64_t begin, int64_t end) {
    const vf cap = vset(p->softcap * LOG2_E);
    const int is_int8 = p->cache.kind == KV_INT8, is_capped = p->softcap > 0;
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

/* Whether some row does not see a value first .. last - 1 that is no number: times its weight, 0, it would be none. */
static int hides_no_number(const attention_t *p, const Work *w, int64_t base, int64_t begin, int64_t end, int first,
                           int last) {
    int low, high;
    visible(p, w, base, begin, begin, &low, &high);
    if (high >= last) visible(p, w, base, end - 1, end - 1, &low, &high);
    if (low <= first && high >= last) return 0;
    const int64_t width = round_up(p->cache.dim, VL);
    vf nothing = vzero();
    for (int64_t panel = 0; panel < width; panel += PANEL)
        for (int key = 0; key < last - first; key++)
            for (int64_t i = 0; i < smaller(PANEL, width - panel); i += VL)
                nothing = vfma(vload(w->values + panel * TILE + key * PANEL + i), vzero(), nothing);
    return vsum(nothing) != 0.0f;
}

/* The chunk's sums go on by the values first .. end - 1 of a tile, which are what `values` has. */
static void add_values(const attention_t *p, const Work *w, int64_t base, int64_t begin, int64_t end, int first, int last,
                       int is_first) {
    const int64_t width = round_up(p->cache.dim, VL);
    const int64_t together = hides_no_number(p, w, base, begin, end, first, last) ? 1 : ROWS;
    for (int64_t panel = 0; panel < width; panel += PANEL)
        for (int64_t row = begin; row < end; row += together) {
            const int rows = (int)smaller(together, end - row);
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
static void finish(const attention_t *p, const item_t *item, State state) {
    const int64_t group = p->heads / p->cache.kv_heads, dim = p->cache.dim, width = round_up(dim, VL);
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
static void load_query(const attention_t *p, const item_t *item, const Work *w) {
    const int64_t group = p->heads / p->cache.kv_heads, dim = p->cache.dim, position = position_of(p, item);
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

static void find_rows(const attention_t *p, const item_t *item, int64_t tile, Rows *rows) {
    const int64_t position = position_of(p, item), base = tile * TILE;
    const int64_t first = larger(base, lowest_of(p, position)), end = smaller(base + TILE, position + item->tokens);
    const int64_t bytes = kv_row_bytes((int)p->cache.kind, p->cache.dim);
    const int32_t *table = p->tables + item->sequence * p->table_stride;
    rows->base = base, rows->first = (int)(first - base), rows->end = (int)(end - base);
    const int64_t size = p->cache.block_size, heads = p->cache.kv_heads;
    kv_rows(p->cache.keys, table, size, heads, item->kv_head, bytes, base, first, end, rows->keys);
    kv_rows(p->cache.values, table, size, heads, item->kv_head, bytes, base, first, end, rows->values);
    for (int i = 0; i < TILE; i++)
        if (i < rows->first || i >= rows->end)
            rows->keys[i] = rows->keys[rows->first], rows->values[i] = rows->values[rows->first];
}

/* The scores of a tile for the rows begin .. end - 1; its values are fetched meanwhile. */
static void bring_scores(const attention_t *p, const Work *w, const Rows *tile, int64_t begin, int64_t end) {
    const int64_t slice = end - begin > ROWS ? p->cache.dim : SLICE_BYTES / kv_value_bytes((int)p->cache.kind);
    if (w->is_few)
        few_scores((int)p->cache.kind, end, tile->keys, tile->values, tile->first, tile->end, p->cache.dim, w->query,
                   w->scores);
    for (int64_t at = 0; !w->is_few && at < p->cache.dim; at += slice) {
        const int64_t depth = smaller(slice, p->cache.dim - at);
        kv_keys((int)p->cache.kind, tile->keys, tile->values, tile->first, tile->end, at, depth, w->keys);
        multiply(p, w, tile->base, begin, end, at, depth);
    }
    if (p->cache.kind == KV_INT8)
        for (int i = tile->first; i < tile->end; i++) w->scales[i] = kv_scale(tile->keys[i], p->cache.dim);
    score(p, w, tile->base, begin, end);
}

/* The weights' sums over a tile's values; what comes `ahead`, if anything, is fetched meanwhile. */
static void bring_sums(const attention_t *p, const Work *w, const Rows *tile, const char *const *ahead, int64_t begin,
                       int64_t end) {
    const int slice = end - begin > ROWS ? TILE : SLICE_KEYS;
    if (w->is_few) {
        few_sums((int)p->cache.kind, end, tile->values, ahead, tile->first, tile->end, p->cache.dim, w->scores, w->rescale,
                 w->chunk.sums);
        return;
    }
    for (int first = tile->first; first < tile->end; first += slice) {
        const int last = (int)smaller(first + slice, tile->end);
        kv_values((int)p->cache.kind, tile->values, ahead, first, last, p->cache.dim, w->values);
        add_values(p, w, tile->base, begin, end, first, last, first == tile->first);
    }
}

static void attend(const attention_t *p, const item_t *item, Work *w, float *parts, int64_t part_rows) {
    const int64_t group = p->heads / p->cache.kv_heads, rows = item->tokens * group, width = round_up(p->cache.dim, VL);
    const int64_t position = position_of(p, item);
    Rows both[2], *now = &both[0], *next = &both[1];
    int64_t chunks = 0;
    w->is_few = is_few(p, rows, item->tokens);
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
static int64_t cut(const attention_t *p, item_t *items, int64_t limit, int64_t *cost, int64_t *parts) {
    const int64_t group = p->heads / p->cache.kv_heads, piece = larger(1, MAX_ROWS / group), per_chunk = CHUNK / TILE;
    int64_t count = 0;
    *cost = 0, *parts = 0;
    for (int64_t s = 0; s < p->sequences; s++) {
        const int64_t tokens = p->starts[s + 1] - p->starts[s], pieces = (tokens + piece - 1) / piece;
        for (int64_t n = pieces - 1; n >= 0; n--)
            for (int64_t head = 0; head < p->cache.kv_heads; head++) {
                item_t item = {.sequence = s, .kv_head = head, .first = n * piece, .part = -1};
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

int FN(attention_plan)(const attention_t *p, int threads, attention_plan_t *plan) {
    const int64_t group = p->heads / p->cache.kv_heads, width = round_up(p->cache.dim, VL);
    int64_t cost, rows = 0;
    plan->count = cut(p, NULL, 0, &cost, &plan->parts);
    const int64_t limit = threads > 1 ? larger(1, cost / (4 * threads)) : 0;
    if (limit > 0) plan->count = cut(p, NULL, limit, &cost, &plan->parts);
    for (int64_t s = 0; s < p->sequences; s++) rows = larger(rows, p->starts[s + 1] - p->starts[s]);
    plan->rows = smaller(rows, larger(1, MAX_ROWS / group)) * group;
    plan->items = quire_scratch(ATTENTION_ITEMS, sizeof(item_t) * (size_t)larger(1, plan->count));
    const int64_t floats = plan->parts * (2 * round_up(plan->rows, 16) + plan->rows * width);
    plan->partials = quire_scratch(ATTENTION_PARTS, 4 * (size_t)larger(1, floats));
    if (plan->items == NULL || plan->partials == NULL) return 1;
    cut(p, plan->items, limit, &cost, &plan->parts);
    return 0;
}

int FN(attention_part)(const crew_t *crew, const attention_t *p, const attention_plan_t *plan) {
    const int64_t group = p->heads / p->cache.kv_heads, width = round_up(p->cache.dim, VL), rows = plan->rows;
    Work work;
    float *memory = quire_scratch(ATTENTION_WORK, 4 * (size_t)lay_out(&work, NULL, rows, p->cache.dim));
    for (int64_t i; memory != NULL && (i = take_piece(crew)) < plan->count;) {
        lay_out(&work, memory, rows, p->cache.dim);
        attend(p, &plan->items[i], &work, plan->partials, rows);
    }
    if (plan->parts == 0) return memory == NULL;
    meet(crew);
    for (int64_t i; (i = take_piece(crew)) < plan->count;) {
        const item_t *item = &plan->items[i];
        if (item->parts == 0) continue;
        State state = partial(plan->partials, item->part, rows, width);
        for (int64_t part = 1; part < item->parts; part++)
            merge(state, partial(plan->partials, item->part + part, rows, width), item->tokens * group, width);
        finish(p, item, state);
    }
    return memory == NULL;
}

/* query [tokens, heads, dim] at these strides -> out [tokens, heads, dim]; see attention_t. Returns 0, or 1: no memory. */
EXPORT int FN(paged_attention)(const float *query, int64_t query_stride, int64_t query_head_stride, char *k_cache,
                               char *v_cache, float *out, const float *sinks, const int32_t *starts,
                               const int32_t *lens, const int32_t *tables, int64_t table_stride, int64_t sequences,
                               int64_t heads, int64_t kv_heads, int64_t dim, int64_t block_size, int64_t kind,
                               int64_t window, float scale, float softcap) {
    const attention_t p = {query, query_stride, query_head_stride, {k_cache, v_cache, kv_heads, block_size, dim, kind},
                           out, sinks, starts, lens, tables, table_stride, sequences, heads, window, scale, softcap};
    attention_plan_t plan;
    int failed = FN(attention_plan)(&p, omp_get_max_threads(), &plan);
    if (failed) return 1;
    AS_CREW(plan.count > 1, if (FN(attention_part)(&crew, &p, &plan)) __atomic_store_n(&failed, 1, __ATOMIC_RELAXED));
    return failed;
}
