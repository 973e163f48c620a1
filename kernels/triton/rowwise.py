"""Operations on rows and elements: norms, activations, copies of blocks. Statistics and functions in float32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire.kernels.interface import Activation

ELEMENTS = 1024
"""Of a program that computes element by element."""


@triton.jit
def rms_norm_kernel(
    x: tl.tensor,
    residual: tl.tensor,
    weight: tl.tensor,
    out: tl.tensor,
    summed: tl.tensor,
    eps: tl.tensor,
    row_stride: tl.tensor,
    head_stride: tl.tensor,
    residual_stride: tl.tensor,
    HEADS: tl.constexpr,
    WEIGHTS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
) -> None:
    """Grid (rows * HEADS,): one row each; ADDS: x + residual is stored in `summed` and normed."""
    row = (tl.program_id(0) // HEADS).to(tl.int64)
    head = tl.program_id(0) % HEADS
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    values = tl.load(x + row * row_stride + head * head_stride + columns, mask=inside, other=0.0).to(tl.float32)
    place = (row * HEADS + head) * SIZE + columns
    if ADDS:
        added = tl.load(residual + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
        rounded = (values + added).to(summed.dtype.element_ty)
        tl.store(summed + place, rounded, mask=inside)
        values = rounded.to(tl.float32)
    scale = tl.load(weight + (head % WEIGHTS) * SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    normed = values * tl.rsqrt(tl.sum(values * values, 0) / SIZE + eps) * scale
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def layer_norm_kernel(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    eps: tl.tensor,
    row_stride: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BIAS: tl.constexpr,
) -> None:
    """Grid (rows,): one row each."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    values = tl.load(x + row * row_stride + columns, mask=inside, other=0.0).to(tl.float32)
    centred = tl.where(inside, values - tl.sum(values, 0) / SIZE, 0.0)
    scale = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, 0) / SIZE + eps) * scale
    if BIAS:
        normed += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + columns, normed.to(out.dtype.element_ty), mask=inside)


@triton.jit
def activate(x: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """The activation function KIND of float32 x. No exponential can spoil it by overflow."""
    if KIND == "silu":
        y = x / (1 + tl.exp(-x))
    elif KIND == "gelu":
        y = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))
    elif KIND == "gelu_tanh":
        y = x / (1 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    else:
        tl.static_assert(KIND == "relu")
        y = tl.maximum(x, 0.0)
    return y


@triton.jit
def activation_kernel(
    gate: tl.tensor,
    up: tl.tensor,
    out: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    KIND: tl.constexpr,
    GATED: tl.constexpr,
) -> None:
    """Grid (rows, pieces of SIZE): act(gate) * up where GATED, else act(gate)."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < SIZE
    y = activate(tl.load(gate + row * gate_stride + columns, mask=inside, other=0.0).to(tl.float32), KIND)
    if GATED:
        y = y * tl.load(up + row * up_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * SIZE + columns, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def copy_kernel(
    cache: tl.tensor,
    pairs: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Grid (pairs, pieces of a block): from pairs[i, 0] to pairs[i, 1]."""
    source = tl.load(pairs + 2 * tl.program_id(0)).to(tl.int64)
    target = tl.load(pairs + 2 * tl.program_id(0) + 1).to(tl.int64)
    places = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = places < SIZE
    tl.store(cache + target * SIZE + places, tl.load(cache + source * SIZE + places, mask=inside), mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """x [..., H] normed with weight [H] or [heads, H], and x + residual ([T, H]; then that is normed) or x."""
    size = x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.dim() != 3:
        x = x.reshape(-1, size)
    x = x if x.stride(-1) == 1 else x.contiguous()
    heads = x.shape[1] if x.dim() == 3 else 1
    summed = x if residual is None else torch.empty(out.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        block = triton.next_power_of_2(size)
        rms_norm_kernel[(x.numel() // size,)](
            x,
            residual if residual is not None else x,
            weight,
            out,
            summed,
            eps,
            x.stride(0),
            x.stride(1) if x.dim() == 3 else size,
            residual.stride(0) if residual is not None else size,
            HEADS=heads,
            WEIGHTS=weight.shape[0] if weight.dim() == 2 else 1,
            SIZE=size,
            BLOCK=block,
            ADDS=residual is not None,
            num_warps=_warps(block),
        )
    return out, summed


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """See `Kernels.layer_norm`."""
    size = x.shape[-1]
    rows = x.reshape(-1, size)
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        block = triton.next_power_of_2(size)
        given = bias if bias is not None else weight
        layer_norm_kernel[(len(rows),)](
            rows, weight, given, out, eps, rows.stride(0), size, block, bias is not None, num_warps=_warps(block)
        )
    return out


def activation(gate: Tensor, up: Tensor | None, kind: Activation) -> Tensor:
    """act(gate) * up, or act(gate) where `up` is None; both [..., I], of which the rows may lie apart."""
    size = gate.shape[-1]
    gates = gate.reshape(-1, size)
    ups = up.reshape(-1, size) if up is not None else gates
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    if gate.numel():
        activation_kernel[(len(gates), triton.cdiv(size, ELEMENTS))](
            gates,
            ups,
            out,
            gates.stride(0),
            ups.stride(0),
            SIZE=size,
            BLOCK=ELEMENTS,
            KIND=kind,
            GATED=up is not None,
            num_warps=4,
        )
    return out


def copy_blocks(caches: tuple[Tensor, Tensor], pairs: Tensor) -> None:
    """Copy the block pairs[i, 0] to pairs[i, 1] in each of `caches` (contiguous); pairs int64 [N, 2]."""
    if len(pairs):
        for cache in caches:
            words = cache.view(cache.shape[0], -1)
            if cache.element_size() == 1:
                words = words.view(torch.uint8)
            copy_kernel[(len(pairs), triton.cdiv(words.shape[1], ELEMENTS))](
                words, pairs, SIZE=words.shape[1], BLOCK=ELEMENTS, num_warps=4
            )


def _warps(block: int) -> int:
    """8 elements a thread where that is possible, at most 16 warps."""
    return min(16, max(1, block // 256))
