"""The kernels of sampling: passes over the columns of one row, each in pieces of CHUNK columns. No sort.

The k-th largest score and the score where the mass of top_p is reached are found digit by digit in the bits of the
scores (radix selection): sixteen candidates a pass, eight passes, exact.
"""

from __future__ import annotations

import triton
import triton.language as tl

INCREMENT = tl.constexpr(0x9E3779B97F4A7C15)
MULTIPLIER_1 = tl.constexpr(0xBF58476D1CE4E5B9)
MULTIPLIER_2 = tl.constexpr(0x94D049BB133111EB)
LARGEST_BELOW_ONE = tl.constexpr(1.0 - 2.0**-24)
SMALLEST_TEMPERATURE = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def mix(bits: tl.tensor) -> tl.tensor:
    """SplitMix64's finalizer on uint64, as in `quire.kernels.noise`."""
    bits = (bits ^ (bits >> 30)) * tl.full([], MULTIPLIER_1, tl.uint64)
    bits = (bits ^ (bits >> 27)) * tl.full([], MULTIPLIER_2, tl.uint64)
    return bits ^ (bits >> 31)


@triton.jit
def gumbel(row_key: tl.tensor, position: tl.tensor, token_ids: tl.tensor) -> tl.tensor:
    """`quire.kernels.noise.gumbel` of (row_key, position), both int64, and int32 token ids; float32."""
    increment = tl.full([], INCREMENT, tl.uint64)
    key = mix((row_key ^ position).to(tl.uint64, bitcast=True) + increment)
    bits = mix(key + (token_ids + 1).to(tl.uint64) * increment)
    uniform = ((bits >> 11).to(tl.float32) + 0.5) * 1.1102230246251565e-16
    uniform = tl.minimum(uniform, LARGEST_BELOW_ONE)
    rest = 1.0 - uniform
    # log1p(-u) = log(1 - u), corrected for the rounding of 1 - u (Goldberg, 1991, theorem 4)
    lost = rest - 1.0
    log1p = tl.where(rest == 1.0, -uniform, tl.log(rest) * (-uniform / tl.where(rest == 1.0, 1.0, lost)))
    return -tl.log(-log1p)


@triton.jit
def order(scores: tl.tensor) -> tl.tensor:
    """uint32 in the order of float32 scores; both zeros are one."""
    scores = tl.where(scores == 0.0, 0.0, scores)
    bits = scores.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _weights(scores: tl.tensor, largest: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """exp((score - largest) / temperature): 1 for the most likely."""
    return tl.exp((scores - largest) / temperature)


@triton.jit
def scan_kernel(
    scores: tl.tensor,
    masked: tl.tensor,
    largest: tl.tensor,
    faults: tl.tensor,
    row_stride: tl.tensor,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Grid (rows, chunks): the largest score of a chunk, and whether one is not finite (float32, int32 [R, chunks])."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = columns < COLUMNS
    values = tl.load(scores + row.to(tl.int64) * row_stride + columns, mask=inside, other=float("-inf"))
    may_mask = tl.load(masked + row) != 0
    wrong = (values != values) | (values == float("inf")) | ((values == float("-inf")) & (may_mask == 0))
    place = row * tl.num_programs(1) + chunk
    tl.store(largest + place, tl.max(tl.where(values != values, float("-inf"), values), 0))
    tl.store(faults + place, tl.max((wrong & inside).to(tl.int32), 0))


@triton.jit
def _search(
    row_scores: tl.tensor,
    largest: tl.tensor,
    temperature: tl.tensor,
    wanted: tl.tensor,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
    MASS: tl.constexpr,
) -> tl.tensor:
    """The largest `order` at or above which there are `wanted` columns, or weights of `wanted` in sum (MASS)."""
    digits = tl.arange(0, 16).to(tl.uint32)
    found = tl.full([], 0, tl.uint32)
    shift = tl.full([], 28, tl.uint32)
    for _ in range(8):
        candidates = found + (digits << shift)
        above = tl.zeros([16], tl.float32)
        for first in range(0, COLUMNS, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            values = tl.load(row_scores + columns, mask=columns < COLUMNS, other=float("-inf"))
            counted = tl.where(columns < COLUMNS, 1.0, 0.0)
            if MASS:
                counted = _weights(values, largest, temperature)
            is_above = order(values)[:, None] >= candidates[None, :]
            above += tl.sum(tl.where(is_above, counted[:, None], 0.0), 0)
        enough = tl.sum((above >= wanted).to(tl.int32), 0)
        found += tl.maximum(enough - 1, 0).to(tl.uint32) << shift
        shift -= 4
    return found


@triton.jit
def threshold_kernel(
    scores: tl.tensor,
    temperatures: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    chunk_largest: tl.tensor,
    chunk_faults: tl.tensor,
    largest: tl.tensor,
    faults: tl.tensor,
    thresholds: tl.tensor,
    row_stride: tl.tensor,
    COLUMNS: tl.constexpr,
    CHUNKS: tl.constexpr,
    PADDED_CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (rows,): the row's largest score, its fault, and the `order` from which top_k and top_p keep columns."""
    row = tl.program_id(0)
    chunks = tl.arange(0, PADDED_CHUNKS)
    place = row * CHUNKS + chunks
    most = tl.max(tl.load(chunk_largest + place, mask=chunks < CHUNKS, other=float("-inf")), 0)
    fault = tl.max(tl.load(chunk_faults + place, mask=chunks < CHUNKS, other=0), 0)
    tl.store(largest + row, most)
    tl.store(faults + row, fault)
    temperature = tl.load(temperatures + row)
    top_k = tl.load(top_ks + row)
    top_p = tl.load(top_ps + row)
    by_rank = (top_k > 0) & (top_k < COLUMNS)
    threshold = tl.full([], 0, tl.uint32)
    if (temperature > 0) & (fault == 0) & (most > float("-inf")) & (by_rank | (top_p < 1)):
        temperature = tl.maximum(temperature, SMALLEST_TEMPERATURE)
        row_scores = scores + row.to(tl.int64) * row_stride
        if by_rank:
            threshold = _search(row_scores, most, temperature, top_k.to(tl.float32), COLUMNS, BLOCK, False)
        if top_p < 1:
            above = tl.zeros([BLOCK], tl.float32)
            counts = tl.zeros([BLOCK], tl.float32)
            weight = tl.zeros([BLOCK], tl.float32)
            for first in range(0, COLUMNS, BLOCK):
                columns = first + tl.arange(0, BLOCK)
                values = tl.load(row_scores + columns, mask=columns < COLUMNS, other=float("-inf"))
                weights = _weights(values, most, temperature)
                ordered = order(values)
                kept = ordered > threshold
                above += tl.where(kept, weights, 0.0)
                counts += tl.where(kept & (columns < COLUMNS), 1.0, 0.0)
                weight = tl.maximum(weight, tl.where((ordered == threshold) & (columns < COLUMNS), weights, 0.0))
            total = tl.sum(above, 0)
            if by_rank:  # of those that tie for the last place only as many as top_k has room for
                total += tl.maximum(top_k - tl.sum(counts, 0), 0.0) * tl.max(weight, 0)
            by_mass = _search(row_scores, most, temperature, top_p * total, COLUMNS, BLOCK, True)
            threshold = tl.maximum(threshold, by_mass)
    tl.store(thresholds + row, threshold.to(tl.int64))


@triton.jit
def draw_kernel(
    scores: tl.tensor,
    temperatures: tl.tensor,
    min_ps: tl.tensor,
    keys: tl.tensor,
    positions: tl.tensor,
    largest: tl.tensor,
    thresholds: tl.tensor,
    best_scores: tl.tensor,
    best_ids: tl.tensor,
    row_stride: tl.tensor,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """Grid (rows, chunks): the first column of the largest noisy score of a chunk (float32, int32 [R, chunks])."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    inside = columns < COLUMNS
    values = tl.load(scores + row.to(tl.int64) * row_stride + columns, mask=inside, other=float("-inf"))
    temperature = tl.load(temperatures + row)
    if temperature > 0:
        temperature = tl.maximum(temperature, SMALLEST_TEMPERATURE)
        relative = (values - tl.load(largest + row)) / temperature
        kept = inside & (order(values) >= tl.load(thresholds + row).to(tl.uint32))
        kept = kept & (tl.exp(relative) >= tl.load(min_ps + row))
        noisy = relative + gumbel(tl.load(keys + row), tl.load(positions + row), columns)
        values = tl.where(kept, noisy, float("-inf"))
    best, where = tl.max(values, 0, return_indices=True)
    place = row * tl.num_programs(1) + chunk
    tl.store(best_scores + place, best)
    tl.store(best_ids + place, chunk * CHUNK + where)


@triton.jit
def pick_kernel(
    best_scores: tl.tensor,
    best_ids: tl.tensor,
    largest: tl.tensor,
    faults: tl.tensor,
    tokens: tl.tensor,
    CHUNKS: tl.constexpr,
    PADDED_CHUNKS: tl.constexpr,
    NOT_FINITE: tl.constexpr,
    NOTHING_LEFT: tl.constexpr,
) -> None:
    """Grid (rows,): the token of the best chunk, the first of equals, or why there is none."""
    row = tl.program_id(0)
    chunks = tl.arange(0, PADDED_CHUNKS)
    values = tl.load(best_scores + row * CHUNKS + chunks, mask=chunks < CHUNKS, other=float("-inf"))
    _, where = tl.max(values, 0, return_indices=True)
    token = tl.load(best_ids + row * CHUNKS + where).to(tl.int64)
    token = tl.where(tl.load(largest + row) == float("-inf"), NOTHING_LEFT, token)
    token = tl.where(tl.load(faults + row) != 0, NOT_FINITE, token)
    tl.store(tokens + row, token)


@triton.jit
def logprob_chunk_kernel(
    logits: tl.tensor,
    token_ids: tl.tensor,
    largest: tl.tensor,
    sums: tl.tensor,
    better: tl.tensor,
    top_values: tl.tensor,
    top_ids: tl.tensor,
    row_stride: tl.tensor,
    COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr,
    TOP: tl.constexpr,
) -> None:
    """Grid (rows, chunks): largest logit, sum of exponentials, logits above the token's, and the TOP largest."""
    row, chunk = tl.program_id(0), tl.program_id(1)
    columns = chunk * CHUNK + tl.arange(0, CHUNK)
    row_logits = logits + row.to(tl.int64) * row_stride
    values = tl.load(row_logits + columns, mask=columns < COLUMNS, other=float("-inf"))
    own = tl.load(row_logits + tl.maximum(tl.load(token_ids + row), 0))
    most = tl.max(values, 0)
    place = row * tl.num_programs(1) + chunk
    tl.store(largest + place, most)
    tl.store(sums + place, tl.sum(tl.exp(values - tl.where(most == float("-inf"), 0.0, most)), 0))
    tl.store(better + place, tl.sum((values > own).to(tl.int32), 0))
    for rank in range(TOP):
        best, where = tl.max(values, 0, return_indices=True)
        tl.store(top_values + place * TOP + rank, best)
        tl.store(top_ids + place * TOP + rank, chunk * CHUNK + where)
        values = tl.where(columns == chunk * CHUNK + where, float("-inf"), values)


@triton.jit
def logprob_kernel(
    logits: tl.tensor,
    token_ids: tl.tensor,
    chunk_largest: tl.tensor,
    chunk_sums: tl.tensor,
    chunk_better: tl.tensor,
    chunk_top_values: tl.tensor,
    chunk_top_ids: tl.tensor,
    values: tl.tensor,
    ranks: tl.tensor,
    top_values: tl.tensor,
    top_ids: tl.tensor,
    row_stride: tl.tensor,
    CHUNKS: tl.constexpr,
    PADDED_CHUNKS: tl.constexpr,
    TOP: tl.constexpr,
    CANDIDATES: tl.constexpr,
) -> None:
    """Grid (rows,): join the chunks. CANDIDATES: CHUNKS * TOP rounded up to a power of two."""
    row = tl.program_id(0)
    chunks = tl.arange(0, PADDED_CHUNKS)
    inside = chunks < CHUNKS
    place = row * CHUNKS + chunks
    parts = tl.load(chunk_largest + place, mask=inside, other=float("-inf"))
    most = tl.max(parts, 0)
    sums = tl.load(chunk_sums + place, mask=inside, other=0.0)
    normalizer = most + tl.log(tl.sum(sums * tl.exp(parts - most), 0))
    own = tl.load(logits + row.to(tl.int64) * row_stride + tl.maximum(tl.load(token_ids + row), 0))
    tl.store(values + row, own - normalizer)
    tl.store(ranks + row, 1 + tl.sum(tl.load(chunk_better + place, mask=inside, other=0), 0))
    if TOP > 0:
        places = tl.arange(0, CANDIDATES)
        first = chunk_top_values + row * (CHUNKS * TOP)
        candidates = tl.load(first + places, mask=places < CHUNKS * TOP, other=float("-inf"))
        for rank in range(TOP):
            best, where = tl.max(candidates, 0, return_indices=True)
            tl.store(top_values + row * TOP + rank, best - normalizer)
            tl.store(top_ids + row * TOP + rank, tl.load(chunk_top_ids + row * (CHUNKS * TOP) + where))
            candidates = tl.where(places == where, float("-inf"), candidates)
