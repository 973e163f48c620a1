"""Norm, rotation and the write to the cache of one step's queries, keys and values, in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS_AT_ONCE = 4
LARGEST_FLOAT8 = tl.constexpr(448.0)


@triton.jit
def _to_cache(values: tl.tensor, scales: tl.tensor, cache: tl.tensor, SCALED: tl.constexpr) -> tl.tensor:
    """float32 values [heads, D] as the cache holds them, scales float32 [heads]."""
    if SCALED:
        values = values / scales[:, None]
        values = tl.minimum(tl.maximum(values, -LARGEST_FLOAT8), LARGEST_FLOAT8)
    return values.to(cache.dtype.element_ty)


@triton.jit
def rotary_kernel(
    qkv: tl.tensor,
    positions: tl.tensor,
    cos_sin: tl.tensor,
    norm: tl.tensor,
    query: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    slots: tl.tensor,
    kv_scales: tl.tensor,
    eps: tl.tensor,
    row_stride: tl.tensor,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    AT_ONCE: tl.constexpr,
    ROTATES: tl.constexpr,
    NORMS: tl.constexpr,
    SCALED: tl.constexpr,
    NORM_HEADS: tl.constexpr,
) -> None:
    """Grid (T, pieces of HEADS + 2 * KV_HEADS): AT_ONCE heads of one token.

    Feature i < 2 * HALF turns with its partner i + HALF or i - HALF, which is read a second time. With KV_HEADS 0 all
    heads are queries and nothing is written to a cache.
    """
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    dims = tl.arange(0, DIM)
    kept = (heads < HEADS + 2 * KV_HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
    source = qkv + row * row_stride + heads[:, None] * HEAD_DIM
    raw = tl.load(source + dims[None, :], mask=kept, other=0.0)
    x = raw.to(tl.float32)
    if NORMS:
        inverse = tl.rsqrt(tl.sum(x * x, 1) / HEAD_DIM + eps)[:, None]
        weights = norm + (heads % NORM_HEADS)[:, None] * HEAD_DIM
        x = x * inverse * tl.load(weights + dims[None, :], mask=kept, other=0.0).to(tl.float32)
        x = x.to(raw.dtype).to(tl.float32)
    if ROTATES:
        position = tl.load(positions + row)
        partners = tl.where(dims < HALF, dims + HALF, dims - HALF)
        turns = dims < 2 * HALF
        y = tl.load(source + partners[None, :], mask=kept & turns[None, :], other=0.0).to(tl.float32)
        if NORMS:
            y = y * inverse * tl.load(weights + partners[None, :], mask=kept & turns[None, :], other=0.0).to(tl.float32)
            y = y.to(raw.dtype).to(tl.float32)
        angles = cos_sin + position * (2 * HALF) + dims % HALF
        cos = tl.load(angles, mask=turns, other=1.0)
        sin = tl.load(angles + HALF, mask=turns, other=0.0)
        sin = tl.where(dims < HALF, -sin, sin)
        x = x * cos[None, :] + y * sin[None, :]

    places = (row * HEADS + heads)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(query + places, x.to(query.dtype.element_ty), mask=kept & (heads < HEADS)[:, None])
    if KV_HEADS > 0:
        slot = tl.load(slots + row)
        is_key = (heads >= HEADS) & (heads < HEADS + KV_HEADS) & (slot >= 0)
        is_value = (heads >= HEADS + KV_HEADS) & (slot >= 0)
        kv_head = (heads - HEADS) % KV_HEADS
        scales = heads.to(tl.float32)
        if SCALED:
            scales = tl.load(kv_scales + heads - HEADS, mask=is_key | is_value, other=1.0)
        block = slot // BLOCK_SIZE
        place = ((block * KV_HEADS + kv_head) * BLOCK_SIZE + slot % BLOCK_SIZE)[:, None] * HEAD_DIM + dims[None, :]
        tl.store(k_cache + place, _to_cache(x, scales, k_cache, SCALED), mask=kept & is_key[:, None])
        tl.store(v_cache + place, _to_cache(raw.to(tl.float32), scales, v_cache, SCALED), mask=kept & is_value[:, None])


@triton.jit
def write_kernel(
    key: tl.tensor,
    value: tl.tensor,
    k_cache: tl.tensor,
    v_cache: tl.tensor,
    slots: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
) -> None:
    """Grid (T, KV_HEADS): one head's key and value of one token."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    slot = tl.load(slots + row)
    dims = tl.arange(0, DIM)
    kept = (dims < HEAD_DIM) & (slot >= 0)
    place = ((slot // BLOCK_SIZE * KV_HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE) * HEAD_DIM + dims
    keys = tl.load(key + row * key_stride + head * HEAD_DIM + dims, mask=kept)
    values = tl.load(value + row * value_stride + head * HEAD_DIM + dims, mask=kept)
    tl.store(k_cache + place, keys.to(k_cache.dtype.element_ty), mask=kept)
    tl.store(v_cache + place, values.to(v_cache.dtype.element_ty), mask=kept)


def rotate(
    x: Tensor,
    positions: Tensor,
    cos_sin: Tensor | None,
    norm: Tensor | None,
    eps: float,
    caches: tuple[Tensor, Tensor] | None = None,
    slots: Tensor | None = None,
    kv_scales: Tensor | None = None,
) -> Tensor:
    """See `FusedKernels.rope_and_write_kv`; without caches all heads of x are queries (`Kernels.rope`)."""
    tokens, all_heads, dim = x.shape
    kv_heads = caches[0].shape[1] if caches is not None else 0
    heads = all_heads - 2 * kv_heads
    x = _side_by_side(x)
    query = torch.empty((tokens, heads, dim), dtype=x.dtype, device=x.device)
    if tokens:
        k_cache, v_cache = caches if caches is not None else (query, query)
        rotary_kernel[(tokens, triton.cdiv(all_heads, HEADS_AT_ONCE))](
            x,
            positions,
            cos_sin if cos_sin is not None else x,
            norm if norm is not None else x,
            query,
            k_cache,
            v_cache,
            slots if slots is not None else positions,
            kv_scales if kv_scales is not None else x,
            eps,
            x.stride(0),
            HEADS=heads,
            KV_HEADS=kv_heads,
            HEAD_DIM=dim,
            DIM=triton.next_power_of_2(dim),
            HALF=cos_sin.shape[-1] if cos_sin is not None else 1,
            BLOCK_SIZE=k_cache.shape[2] if caches is not None else 1,
            AT_ONCE=HEADS_AT_ONCE,
            ROTATES=cos_sin is not None,
            NORMS=norm is not None,
            SCALED=kv_scales is not None,
            NORM_HEADS=norm.shape[0] if norm is not None else 1,
            num_warps=2,
        )
    return query


def write(key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """See `Kernels.write_kv`; slots int64 [T], -1: written nowhere."""
    tokens, heads, dim = key.shape
    key, value = _side_by_side(key), _side_by_side(value)
    if tokens:
        write_kernel[(tokens, heads)](
            key,
            value,
            k_cache,
            v_cache,
            slots,
            key.stride(0),
            value.stride(0),
            KV_HEADS=heads,
            HEAD_DIM=dim,
            DIM=triton.next_power_of_2(dim),
            BLOCK_SIZE=k_cache.shape[2],
            num_warps=1,
        )


def _side_by_side(x: Tensor) -> Tensor:
    """x [T, heads, D] with the heads of a token end to end."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()
