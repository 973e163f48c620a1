"""Paged attention on the CPU in key tiles of 64 absolute positions.

A row's result depends on its own history alone, bit for bit: the maximum over all keys is exact in any order; the
products with a tile's 64 keys have one order of sums whatever rows stand beside them; tiles are added in a binary tree
over their absolute index, in which a tile outside (masked, or needed by another sequence only) adds exactly 0.

Measured with torch 2.13 on AVX-512 (MKL, float32): `q @ kT` with the transpose stored, and `k @ qT`, give equal bits
for every number of query rows from 2 on, alone and in a batch of matrices, with one and two threads; a single row, and
`q @ kT` through a transposed view, do not.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from quire.kernels.interface import AttentionPlan

TILE = 64
"""Keys a tile."""
LOG2_E = 1.4426950408889634
"""Weights are powers of two: where the result underflows MKL's exp takes 7 to 90 ns a value, exp2 below 1 ns."""
QUERY_TILE = 128
"""Query tokens of one sequence a pass, at most: lets early rows skip late keys."""
MAX_SCORES = 2**19
"""Query tokens x keys of one sequence a pass (for each head): 128 x 4,096, fewer queries where there are more keys."""
MAX_TILES = 2048
"""Key tiles x kv heads that sequences sharing a pass may gather: 64 MiB of keys at head_dim 128."""
SMALL = 16
"""Sequences with equally many query tokens, at most this many, share a pass."""


@dataclass(frozen=True)
class Pass:
    """S sequences with `width` query tokens each, and the key tiles that they see; the same for every layer.

    A tile belongs to one sequence; there are N in all. The cache is read as rows of `unit` slots, the largest piece
    that block size and tile have in common.
    """

    query_rows: Tensor
    """int64 [S * width]: rows of the step's query tensor."""
    num_sequences: int
    width: int
    unit: int
    cache_rows: Tensor
    """int64 [N * kv_heads * TILE / unit] into the cache seen as [blocks * kv_heads * block_size / unit, unit * D]."""
    dead: Tensor
    """int64: slots of the gathered tiles, seen as [N * kv_heads * TILE], that lie beyond their sequence."""
    hidden: Tensor
    """bool [N, 1, width, 1, TILE]: keys that a query does not see."""
    sequence: Tensor
    """int64 [N]: whose tile it is, 0 .. S - 1."""
    place: Tensor
    """int64 [N]: (absolute tile - first_tile) * S + sequence."""
    first_tile: int
    num_tiles: int
    """Absolute tiles first_tile .. first_tile + num_tiles - 1 cover what the S sequences see."""


def make_passes(plan: AttentionPlan, kv_heads: int, block_size: int, window: int | None) -> list[Pass]:
    """Cut a step into passes: sequences with the same small number of query tokens together, long ones in pieces.

    How the cuts fall bounds the memory of a pass and changes no bits.
    """
    groups: dict[int, list[tuple[int, int]]] = defaultdict(list)  # width -> [(sequence, first query row)]
    passes = []
    for sequence, seq_len in enumerate(plan.seq_lens_list):
        begin, end = plan.query_start_list[sequence], plan.query_start_list[sequence + 1]
        if end - begin <= SMALL:
            groups[end - begin].append((sequence, begin))
            continue
        piece = max(SMALL, min(QUERY_TILE, MAX_SCORES // _num_keys(seq_len, window)))
        for row in range(begin, end, piece):
            passes.append(_make_pass(plan, [(sequence, row)], min(piece, end - row), kv_heads, block_size, window))
    for width, members in groups.items():
        shared: list[tuple[int, int]] = []
        tiles = 0
        for sequence, row in members if width else []:
            more = kv_heads * -(-_num_keys(plan.seq_lens_list[sequence], window) // TILE)
            if shared and tiles + more > MAX_TILES:
                passes.append(_make_pass(plan, shared, width, kv_heads, block_size, window))
                shared, tiles = [], 0
            shared.append((sequence, row))
            tiles += more
        if shared:
            passes.append(_make_pass(plan, shared, width, kv_heads, block_size, window))
    return passes


def _num_keys(seq_len: int, window: int | None) -> int:
    """Keys that a pass over the end of a sequence sees, at most."""
    return seq_len if window is None else min(seq_len, window + QUERY_TILE)


def _make_pass(
    plan: AttentionPlan,
    work: list[tuple[int, int]],
    width: int,
    kv_heads: int,
    block_size: int,
    window: int | None,
) -> Pass:
    """Index the tiles that `width` query tokens from each (sequence, first query row) see."""
    sequences = [sequence for sequence, _ in work]
    ends = [plan.seq_lens_list[s] - plan.query_start_list[s + 1] + row + width for s, row in work]
    lows = [0 if window is None else max(0, end - width - window + 1) // TILE for end in ends]
    highs = [(end + TILE - 1) // TILE for end in ends]
    owner = [index for index in range(len(work)) for _ in range(lows[index], highs[index])]
    tiles = [tile for index in range(len(work)) for tile in range(lows[index], highs[index])]
    first_tile = min(lows)

    sequence, tile = torch.tensor(owner), torch.tensor(tiles)
    end = torch.tensor(ends)[sequence, None]
    unit = gcd(block_size, TILE)
    start = tile[:, None] * TILE + torch.arange(0, TILE, unit)
    start = torch.where(start < end, start, tile[:, None] * TILE)  # a dead unit reads its tile's first one instead
    table = plan.block_tables[torch.tensor(sequences)]
    block_ids = table.long()[sequence[:, None], start // block_size]
    units_per_block = block_size // unit
    cache_rows = (block_ids[:, None] * kv_heads + torch.arange(kv_heads)[:, None]) * units_per_block
    cache_rows += (start % block_size // unit)[:, None]

    key = tile[:, None] * TILE + torch.arange(TILE)  # [N, TILE] absolute positions
    dead = (key >= end)[:, None].expand(-1, kv_heads, -1).reshape(-1).nonzero().squeeze(1)
    query = end - width + torch.arange(width)  # [N, width]
    hidden = key[:, None] > query[:, :, None]
    if window is not None:
        hidden |= key[:, None] <= query[:, :, None] - window
    return Pass(
        query_rows=torch.tensor([row for _, begin in work for row in range(begin, begin + width)]),
        num_sequences=len(work),
        width=width,
        unit=unit,
        cache_rows=cache_rows.view(-1),
        dead=dead,
        hidden=hidden[:, None, :, None],
        sequence=sequence,
        place=(tile - first_tile) * len(work) + sequence,
        first_tile=first_tile,
        num_tiles=max(highs) - first_tile,
    )


def attend(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    work: Pass,
    *,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention of one pass: query [T, heads, D] of the whole step -> [S * width, heads, D], computed in float32."""
    num_heads, head_dim = query.shape[1:]
    kv_heads = k_cache.shape[1]
    group, width = num_heads // kv_heads, work.width
    if work.num_sequences * width < query.shape[0]:
        query = query.index_select(0, work.query_rows)
    factor = LOG2_E * scale if softcap is None else scale
    queries = query.float().mul(factor).view(-1, width, kv_heads, group, head_dim).transpose(1, 2)
    queries = queries.reshape(-1, kv_heads, width * group, head_dim)  # [S, kv_heads, rows, D]
    rows = width * group

    scores = _scores(queries.index_select(0, work.sequence).flatten(0, 1), _gather(k_cache, work).flatten(0, 1))
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap * LOG2_E)
    scores.view(-1, kv_heads, width, group, TILE).masked_fill_(work.hidden, float("-inf"))
    scores = scores.view(-1, kv_heads * rows, TILE)  # [N, kv_heads * rows, TILE]

    top = _spread(scores.amax(dim=-1), work, float("-inf")).amax(dim=0)  # [S, kv_heads * rows]
    sink = None
    if sinks is not None:
        sink = sinks.float().mul(LOG2_E).view(kv_heads, 1, group).expand(-1, width, -1).reshape(1, -1)
        top = torch.maximum(top, sink)
    weights = scores.sub_(top.index_select(0, work.sequence)[..., None]).exp2_()

    values = _gather(v_cache, work)
    values.view(-1, head_dim).index_fill_(0, work.dead, 0.0)  # their weight is 0, and 0 x NaN is NaN
    outputs = _at_least_two_rows(weights.view(-1, rows, TILE), values.flatten(0, 1)).view(-1, kv_heads * rows, head_dim)
    partial = torch.cat((outputs, weights.sum(dim=-1, keepdim=True)), dim=-1)
    total = _add_tiles(_spread(partial, work, 0.0), work.first_tile)  # [S, kv_heads * rows, D + 1]
    norm = total[..., head_dim:]
    if sink is not None:
        norm = norm + torch.exp2(sink - top)[..., None]
    output = (total[..., :head_dim] / norm).view(-1, kv_heads, width, group, head_dim)
    return output.transpose(1, 2).reshape(-1, num_heads, head_dim).to(query.dtype)


def _gather(cache: Tensor, work: Pass) -> Tensor:
    """The pass's tiles of a cache [blocks, kv_heads, block_size, D]: float32 [N, kv_heads, TILE, D]."""
    head_dim = cache.shape[3]
    tiles = cache.view(-1, work.unit * head_dim).index_select(0, work.cache_rows)
    return tiles.view(-1, cache.shape[1], TILE, head_dim).float()


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """queries [B, rows, D] times keys [B, TILE, D] -> contiguous [B, rows, TILE]."""
    if queries.shape[1] > SMALL:
        return torch.bmm(queries, keys.transpose(1, 2).contiguous())
    return _at_least_two_rows(queries, keys, by_keys=True)


def _at_least_two_rows(left: Tensor, right: Tensor, *, by_keys: bool = False) -> Tensor:
    """left [B, rows, K] @ right [B, K, N]; by_keys: right is [B, N, K]. A single row takes another path in MKL."""
    rows = left.shape[1]
    if rows == 1:
        left = left.expand(-1, 2, -1)
    product = torch.bmm(right, left.transpose(1, 2)).transpose(1, 2) if by_keys else torch.bmm(left, right)
    return product[:, :rows].contiguous()


def _spread(values: Tensor, work: Pass, fill: float) -> Tensor:
    """Values of tiles [N, ...] to their places: [num_tiles, S, ...], `fill` where a sequence has no such tile."""
    shape = (work.num_tiles, work.num_sequences, *values.shape[1:])
    if shape[1] == 1 or shape[0] == 1:
        return values.view(shape)
    spread = values.new_full((shape[0] * shape[1], *shape[2:]), fill)
    return spread.index_copy_(0, work.place, values).view(shape)


def _add_tiles(partial: Tensor, first_tile: int) -> Tensor:
    """Sum partial [n, ...] over its first dimension, in a binary tree over the absolute tile index first_tile + i."""
    count = partial.shape[0]
    while count > 1:
        odd, end = first_tile % 2, count - (first_tile + count) % 2
        paired = partial[odd:end:2] + partial[odd + 1 : end : 2]
        if odd or end < count:  # a neighbour outside would add 0
            paired = torch.cat((partial[:odd], paired, partial[end:]))
        partial, first_tile, count = paired, first_tile // 2, paired.shape[0]
    return partial[0]
