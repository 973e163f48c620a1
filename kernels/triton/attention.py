"""Paged attention: one kernel for decoding and for prompts, and the reduction that joins what was split.

A program computes one tile of query rows (the heads that share a key head, for one or more tokens of a sequence) over
a range of keys, tile by tile, with an online softmax (Milakov & Gimelshein, 2018; Dao et al., 2022). Decoding divides
the keys of a sequence among programs (Dao et al., Flash-Decoding, 2023). Everything that is summed over keys is
float32 and in units of log2. Tiles lie at absolute positions.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
REDUCED_AT_ONCE = tl.constexpr(16)
"""Splits that the reduction adds together; fixed, so that the order of sums does not depend on how many there are."""


@triton.jit
def _load_tile(
    cache: tl.tensor,
    table: tl.tensor,
    tile: tl.tensor,
    kv_head: tl.tensor,
    end: tl.tensor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,
) -> tl.tensor:
    """Keys or values `tile` * KEYS .. of one head, [KEYS, DIM]; what lies at or behind position `end` is 0."""
    keys = tile * KEYS + tl.arange(0, KEYS)
    dims = tl.arange(0, DIM)
    per_block: tl.constexpr = BLOCK_SIZE * HEAD_DIM
    if BLOCK_SIZE % KEYS == 0:
        block = tl.load(table + tile * KEYS // BLOCK_SIZE).to(tl.int64)
        first = cache + (block * KV_HEADS + kv_head) * per_block + (tile * KEYS % BLOCK_SIZE) * HEAD_DIM
        pointers = first + tl.arange(0, KEYS)[:, None] * HEAD_DIM + dims[None, :]
    else:
        if MASKED:
            blocks = tl.load(table + keys // BLOCK_SIZE, mask=keys < end, other=0).to(tl.int64)
        else:
            blocks = tl.load(table + keys // BLOCK_SIZE).to(tl.int64)
        offsets = (blocks * KV_HEADS + kv_head) * per_block + (keys % BLOCK_SIZE) * HEAD_DIM
        pointers = cache + offsets[:, None] + dims[None, :]
    if MASKED:
        values = tl.load(pointers, mask=(keys < end)[:, None] & (dims < HEAD_DIM)[None, :], other=0.0)
    elif HEAD_DIM < DIM:
        values = tl.load(pointers, mask=(dims < HEAD_DIM)[None, :], other=0.0)
    else:
        values = tl.load(pointers)
    return values


@triton.jit
def _attend(
    acc: tl.tensor,
    largest: tl.tensor,
    total: tl.tensor,
    query: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    table: tl.tensor,
    kv_head: tl.tensor,
    positions: tl.tensor,
    first_tile: tl.tensor,
    end_tile: tl.tensor,
    end: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    MASKED: tl.constexpr,
    STAGES: tl.constexpr,
) -> tl.tensor:
    """Take the tiles first_tile .. end_tile - 1 into acc [ROWS, DIM], largest and total [ROWS]."""
    for tile in tl.range(first_tile, end_tile, num_stages=STAGES):
        keys = _load_tile(k_cache, table, tile, kv_head, end, KV_HEADS, HEAD_DIM, DIM, BLOCK_SIZE, KEYS, MASKED)
        scores = tl.dot(query, tl.trans(keys.to(query.dtype)), input_precision="ieee")
        if SOFTCAP:  # tanh(x) = 1 - 2 / (1 + exp(2 x)): an overflow of the exponential gives 1
            scores = softcap - 2 * softcap / (1 + tl.exp2(scores * (scale * (2 / softcap))))
            scores = scores * LOG2_E
        else:
            scores = scores * scale
        if MASKED:
            where = tile * KEYS + tl.arange(0, KEYS)
            visible = where[None, :] <= positions[:, None]
            if WINDOW > 0:
                visible = visible & (where[None, :] > positions[:, None] - WINDOW)
            scores = tl.where(visible, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        subtracted = new_largest
        if MASKED:  # a row that has seen nothing yet
            subtracted = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp2(scores - subtracted[:, None])
        shrink = tl.exp2(largest - subtracted)
        total = total * shrink + tl.sum(weights, 1)
        largest = new_largest
        values = _load_tile(v_cache, table, tile, kv_head, end, KV_HEADS, HEAD_DIM, DIM, BLOCK_SIZE, KEYS, MASKED)
        values = values.to(query.dtype)
        acc = tl.dot(weights.to(query.dtype), values, acc * shrink[:, None], input_precision="ieee")
    return acc, largest, total


@triton.jit(do_not_specialize=["table_stride"])
def attention_kernel(
    query: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    out: tl.tensor,
    partial: tl.tensor,
    partial_lse: tl.tensor,
    sinks: tl.tensor,
    kv_scales: tl.tensor,
    tiles: tl.tensor,
    query_start_loc: tl.tensor,
    seq_lens: tl.tensor,
    block_tables: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    query_stride: tl.tensor,
    table_stride: tl.tensor,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    SINKS: tl.constexpr,
    SCALED: tl.constexpr,
    EACH: tl.constexpr,
    SPLIT: tl.constexpr,
    SPLIT_KEYS: tl.constexpr,
    ALIKE: tl.constexpr,
) -> None:
    """Grid (tiles, KV_HEADS, splits): QUERIES tokens of a sequence, the GROUP heads of one key head, one range of keys.

    `tiles` int32 [tiles, 2]: sequence and its first token; EACH: tile i is the one token of sequence i. SPLIT: results
    go to partial [tiles, QUERIES, heads, splits, HEAD_DIM] and partial_lse, not to `out` [T, heads, HEAD_DIM].
    SPLIT_KEYS: keys of a split, 0: as many as make the splits equal. ALIKE: every tile takes the same path, so that
    a row's bits do not depend on what it is beside. DIM: HEAD_DIM rounded up to a power of two. scale: times log2(e).
    """
    if EACH:
        sequence = tl.program_id(0)
        first = 0
    else:
        sequence = tl.load(tiles + 2 * tl.program_id(0))
        first = tl.load(tiles + 2 * tl.program_id(0) + 1)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    start_row = tl.load(query_start_loc + sequence)
    num_queries = tl.load(query_start_loc + sequence + 1) - start_row
    cached = tl.load(seq_lens + sequence) - num_queries
    table = block_tables + sequence.to(tl.int64) * table_stride

    row = tl.arange(0, ROWS)
    dims = tl.arange(0, DIM)
    token = first + row // GROUP
    exists = (row < QUERIES * GROUP) & (token < num_queries)
    heads = kv_head * GROUP + row % GROUP
    first_position = cached + first
    last_position = cached + tl.minimum(first + QUERIES, num_queries) - 1
    positions = tl.minimum(cached + token, last_position)
    kept = exists[:, None] & (dims < HEAD_DIM)[None, :]
    rows = (start_row + token).to(tl.int64)
    places = rows[:, None] * query_stride + heads[:, None] * HEAD_DIM + dims[None, :]
    q = tl.load(query + places, mask=kept, other=0.0)

    begin = 0
    if WINDOW > 0:
        begin = tl.maximum(first_position - WINDOW + 1, 0) // KEYS
    end = tl.cdiv(last_position + 1, KEYS)
    if SPLIT_KEYS > 0:
        begin = tl.maximum(begin, split * (SPLIT_KEYS // KEYS))
        end = tl.minimum(end, (split + 1) * (SPLIT_KEYS // KEYS))
    elif SPLIT:
        each = tl.cdiv(end - begin, tl.num_programs(2))
        begin = begin + split * each
        end = tl.minimum(end, begin + each)

    if SCALED:
        scale = scale * tl.load(kv_scales + kv_head)
    acc = tl.zeros([ROWS, DIM], tl.float32)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    seen = last_position + 1
    if ALIKE:
        acc, largest, total = _attend(
            acc, largest, total, q, k_cache, v_cache, table, kv_head, positions, begin, end, seen, scale, softcap,
            KV_HEADS, HEAD_DIM, DIM, BLOCK_SIZE, KEYS, WINDOW, SOFTCAP, True, STAGES,
        )  # fmt: skip
    else:
        whole_end = tl.minimum(end, (first_position + 1) // KEYS)
        if WINDOW > 0:
            whole_begin = tl.minimum(tl.cdiv(tl.maximum(last_position - WINDOW + 1, 0), KEYS), end)
            whole_begin = tl.maximum(whole_begin, begin)
            acc, largest, total = _attend(
                acc, largest, total, q, k_cache, v_cache, table, kv_head, positions, begin, whole_begin, seen, scale,
                softcap, KV_HEADS, HEAD_DIM, DIM, BLOCK_SIZE, KEYS, WINDOW, SOFTCAP, True, 1,
            )  # fmt: skip
            begin = whole_begin
        acc, largest, total = _attend(
            acc, largest, total, q, k_cache, v_cache, table, kv_head, positions, begin, whole_end, seen, scale, softcap,
            KV_HEADS, HEAD_DIM, DIM, BLOCK_SIZE, KEYS, WINDOW, SOFTCAP, False, STAGES,
        )  # fmt: skip
        acc, largest, total = _attend(
            acc, largest, total, q, k_cache, v_cache, table, kv_head, positions, tl.maximum(begin, whole_end), end,
            seen, scale, softcap, KV_HEADS, HEAD_DIM, DIM, BLOCK_SIZE, KEYS, WINDOW, SOFTCAP, True, 1,
        )  # fmt: skip

    if SINKS and not SPLIT:
        sink = tl.load(sinks + heads, mask=exists, other=0.0).to(tl.float32) * LOG2_E
        new_largest = tl.maximum(largest, sink)
        shrink = tl.exp2(largest - new_largest)
        acc, total = acc * shrink[:, None], total * shrink + tl.exp2(sink - new_largest)
    acc = acc / tl.where(total == 0, 1.0, total)[:, None]
    if SCALED:
        acc = acc * tl.load(kv_scales + KV_HEADS + kv_head)
    if SPLIT:
        slot = (tl.program_id(0).to(tl.int64) * QUERIES + row // GROUP) * KV_HEADS * GROUP + heads
        slot = slot * tl.num_programs(2) + split
        lse = tl.where(total == 0, float("-inf"), largest + tl.log2(tl.where(total == 0, 1.0, total)))
        tl.store(partial_lse + slot, lse, mask=exists)
        tl.store(partial + slot[:, None] * HEAD_DIM + dims[None, :], acc, mask=kept & (total > 0)[:, None])
    else:
        places = (rows * KV_HEADS * GROUP + heads)[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out + places, acc.to(out.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["num_splits"])
def reduction_kernel(
    partial: tl.tensor,
    partial_lse: tl.tensor,
    out: tl.tensor,
    sinks: tl.tensor,
    tiles: tl.tensor,
    query_start_loc: tl.tensor,
    num_splits: tl.tensor,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    SINKS: tl.constexpr,
    EACH: tl.constexpr,
) -> None:
    """Grid (tiles * QUERIES, HEADS): join the splits of one query row and head. The sink counts here, once."""
    tile = tl.program_id(0) // QUERIES
    head = tl.program_id(1)
    if EACH:
        sequence = tile
        token = 0
    else:
        sequence = tl.load(tiles + 2 * tile)
        token = tl.load(tiles + 2 * tile + 1) + tl.program_id(0) % QUERIES
    start_row = tl.load(query_start_loc + sequence)
    if token >= tl.load(query_start_loc + sequence + 1) - start_row:
        return
    splits = tl.arange(0, REDUCED_AT_ONCE)
    dims = tl.arange(0, DIM)
    base = (tl.program_id(0).to(tl.int64) * HEADS + head) * num_splits

    largest = float("-inf")
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32) * LOG2_E
        largest = sink
    for first in range(0, num_splits, REDUCED_AT_ONCE):
        lse = tl.load(partial_lse + base + first + splits, mask=first + splits < num_splits, other=float("-inf"))
        largest = tl.maximum(largest, tl.max(lse, 0))
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    total = 0.0
    if SINKS:
        total = tl.exp2(sink - largest)
    acc = tl.zeros([DIM], tl.float32)
    for first in range(0, num_splits, REDUCED_AT_ONCE):
        lse = tl.load(partial_lse + base + first + splits, mask=first + splits < num_splits, other=float("-inf"))
        weight = tl.exp2(lse - largest)
        total += tl.sum(weight, 0)
        places = (base + first + splits)[:, None] * HEAD_DIM + dims[None, :]
        kept = (lse > float("-inf"))[:, None] & (dims < HEAD_DIM)[None, :]
        acc += tl.sum(weight[:, None] * tl.load(partial + places, mask=kept, other=0.0), 0)
    acc = acc / tl.where(total == 0, 1.0, total)
    place = ((start_row + token).to(tl.int64) * HEADS + head) * HEAD_DIM + dims
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=dims < HEAD_DIM)
