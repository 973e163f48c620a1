"""Matmuls that cuBLAS does not serve: few rows, tiles that do not depend on the rows, and experts.

One kernel, in tiles of rows x outputs; a row of the result is summed in the order of the inputs, whatever the tile
holds beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.interface import Activation
from quire.kernels.triton.rowwise import activation
from quire.kernels.triton.settings import MatmulSettings, Table

ELEMENTS = 1024


@triton.jit(do_not_specialize=["num_rows"])
def matmul_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    tile_experts: tl.tensor,
    num_rows: tl.tensor,
    x_stride: tl.tensor,
    IN: tl.constexpr,
    OUT: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    STAGES: tl.constexpr,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    EXPERTS: tl.constexpr,
    SHARED_BY: tl.constexpr,
) -> None:
    """Grid (tiles of rows, tiles of outputs, SPLITS): x [num_rows, IN] times weight [OUT, IN] transposed.

    EXPERTS > 0: weight [EXPERTS, OUT, IN]; tile i of rows is of expert tile_experts[i] (EXPERTS: of none), and its
    rows of the result are rows[i * ROWS ..] (-1: none), made from row r // SHARED_BY of x. SPLITS > 1: the partial sums
    go to out float32 [SPLITS, num_rows, OUT].
    """
    tile, split = tl.program_id(0), tl.program_id(2)
    outputs = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    weights = weight + outputs[None, :].to(tl.int64) * IN
    if EXPERTS > 0:
        expert = tl.load(tile_experts + tile)
        if expert >= EXPERTS:
            return
        weights += expert.to(tl.int64) * (OUT * IN)
        row = tl.load(rows + tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        exists = row >= 0
    else:
        row = (tile * ROWS + tl.arange(0, ROWS)).to(tl.int64)
        exists = row < num_rows
    inputs = tl.arange(0, INPUTS)
    sources = x + (row // SHARED_BY)[:, None] * x_stride
    acc = tl.zeros([ROWS, OUTPUTS], tl.float32)
    each: tl.constexpr = (IN + INPUTS * SPLITS - 1) // (INPUTS * SPLITS) * INPUTS
    begin = split * each
    end = tl.minimum(begin + each, IN)
    for first in tl.range(begin, end, INPUTS, num_stages=STAGES):
        where = first + inputs
        if IN % (INPUTS * SPLITS) == 0:
            a = tl.load(sources + where[None, :], mask=exists[:, None], other=0.0)
            b = tl.load(weights + where[:, None], mask=(outputs < OUT)[None, :], other=0.0)
        else:
            a = tl.load(sources + where[None, :], mask=exists[:, None] & (where < end)[None, :], other=0.0)
            b = tl.load(weights + where[:, None], mask=(outputs < OUT)[None, :] & (where < end)[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    kept = exists[:, None] & (outputs < OUT)[None, :]
    place = row[:, None] * OUT + outputs[None, :]
    if SPLITS > 1:
        tl.store(out + split.to(tl.int64) * num_rows * OUT + place, acc, mask=kept)
    else:
        if BIAS:
            acc += tl.load(bias + outputs, mask=outputs < OUT, other=0.0).to(tl.float32)[None, :]
        tl.store(out + place, acc.to(out.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["count"])
def sum_kernel(
    parts: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    count: tl.tensor,
    OUT: tl.constexpr,
    SPLITS: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (pieces of count,): add parts float32 [SPLITS, count] in their order, and the bias."""
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    total = tl.zeros([BLOCK], tl.float32)
    for split in range(SPLITS):
        total += tl.load(parts + split * count + places, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias + places % OUT, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def combine_kernel(
    parts: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    SIZE: tl.constexpr,
    TOP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (tokens, pieces of SIZE): out[t] = sum over k, in order, of weights[t, k] * parts[t, k]."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for choice in range(TOP):
        part = tl.load(parts + (token * TOP + choice) * SIZE + columns, mask=columns < SIZE, other=0.0)
        total += tl.load(weights + token * TOP + choice) * part.to(tl.float32)
    tl.store(out + token * SIZE + columns, total.to(out.dtype.element_ty), mask=columns < SIZE)


@dataclass(frozen=True, eq=False)
class Routing:
    """Which rows go to which expert, in tiles of one expert each. `rows` int32 [tiles * size], -1: none; `tile_experts`
    int32 [tiles], the number of experts for a tile that is not needed."""

    rows: Tensor
    tile_experts: Tensor


def route(expert_ids: Tensor, num_experts: int, size: int) -> Routing:
    """Tiles of `size` rows for expert_ids [T, K]; as many as the worst case needs, so that shapes are known."""
    chosen = expert_ids.reshape(-1).long()
    count = len(chosen)
    tiles = min(count, triton.cdiv(count + num_experts * (size - 1), size))
    is_chosen = chosen[:, None] == torch.arange(num_experts, device=chosen.device)
    upto = is_chosen.to(torch.int32).cumsum(0)
    tile_ends = torch.div(upto[-1] + size - 1, size, rounding_mode="floor").cumsum(0)
    tile_starts = tile_ends - torch.div(upto[-1] + size - 1, size, rounding_mode="floor")
    places = tile_starts[chosen] * size + upto.gather(1, chosen[:, None])[:, 0] - 1
    rows = torch.full((tiles * size,), -1, dtype=torch.int32, device=chosen.device)
    rows.scatter_(0, places, torch.arange(count, dtype=torch.int32, device=chosen.device))
    tile_experts = torch.searchsorted(tile_ends, torch.arange(tiles, device=chosen.device), right=True, out_int32=True)
    return Routing(rows, tile_experts)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, settings: MatmulSettings) -> Tensor:
    """x [T, in] times weight [out, in] transposed, plus bias [out] -> [T, out], in tiles as `settings` says."""
    count, out_features = x.shape[0], weight.shape[0]
    out = torch.empty((count, out_features), dtype=x.dtype, device=x.device)
    if not count:
        return out
    splits = settings.splits
    parts = out
    if splits > 1:
        parts = torch.empty((splits, count, out_features), dtype=torch.float32, device=x.device)
    given = bias if bias is not None else weight
    grid = (triton.cdiv(count, settings.rows), triton.cdiv(out_features, settings.outputs), splits)
    _launch(grid, x, weight, given, parts, None, count, settings, bias is not None and splits == 1)
    if splits > 1:
        sum_kernel[(triton.cdiv(out.numel(), ELEMENTS),)](
            parts,
            given,
            out,
            out.numel(),
            OUT=out_features,
            SPLITS=splits,
            BIAS=bias is not None,
            BLOCK=ELEMENTS,
            num_warps=4,
        )
    return out


def experts(
    x: Tensor,
    expert_ids: Tensor,
    expert_weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    kind: Activation,
    table: Table,
    invariant: bool,
) -> Tensor:
    """See `FusedKernels.experts`."""
    (tokens, top), num_experts = expert_ids.shape, gate_up.shape[0]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if not tokens:
        return out
    average = 1 << 30 if invariant else -(-tokens * top // num_experts)
    settings = table.multiply("experts", average, gate_up.shape[1], gate_up.shape[2])
    if settings is None:
        raise ValueError("the settings table has no row for experts of any size")
    routing = route(expert_ids, num_experts, settings.rows)
    inner = _grouped(x, gate_up, routing, tokens * top, top, settings)
    gate, up = inner.chunk(2, dim=1)
    parts = _grouped(activation(gate, up, kind), down, routing, tokens * top, 1, settings)
    size = x.shape[1]
    combine_kernel[(tokens, triton.cdiv(size, ELEMENTS))](
        parts, expert_weights, out, SIZE=size, TOP=top, BLOCK=ELEMENTS, num_warps=4
    )
    return out


def _grouped(
    x: Tensor, weight: Tensor, routing: Routing, count: int, shared_by: int, settings: MatmulSettings
) -> Tensor:
    out = torch.empty((count, weight.shape[1]), dtype=x.dtype, device=x.device)
    grid = (len(routing.tile_experts), triton.cdiv(weight.shape[1], settings.outputs), 1)
    _launch(grid, x, weight, weight, out, routing, count, settings, False, shared_by)
    return out


def _launch(
    grid: tuple[int, int, int],
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    out: Tensor,
    routing: Routing | None,
    count: int,
    settings: MatmulSettings,
    adds: bool,
    shared_by: int = 1,
) -> None:
    x = x if x.stride(1) == 1 else x.contiguous()
    matmul_kernel[grid](
        x,
        weight,
        bias,
        out,
        routing.rows if routing is not None else out,
        routing.tile_experts if routing is not None else out,
        count,
        x.stride(0),
        IN=weight.shape[-1],
        OUT=weight.shape[-2],
        ROWS=settings.rows,
        OUTPUTS=settings.outputs,
        INPUTS=settings.inputs,
        STAGES=settings.stages,
        SPLITS=settings.splits if routing is None else 1,
        BIAS=adds,
        EXPERTS=weight.shape[0] if routing is not None else 0,
        SHARED_BY=shared_by,
        num_warps=settings.warps,
    )
