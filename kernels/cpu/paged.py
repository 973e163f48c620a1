"""The KV cache and paged attention of the compiled library; the kernels are native/kv.c and native/attention.c.

A row of the answer depends on its own history alone, bit for bit: neither the rows beside it, nor chunks, block size or
threads change it.
"""

from __future__ import annotations

from ctypes import c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.kernels.cpu.library import Library
from quire.kernels.interface import AttentionPlan

KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3}
"""What the kernels call a cache of this dtype."""
SCALE_BYTES = 4
"""Bytes of a row of an int8 cache after its D values: their float32 scale."""


@dataclass(frozen=True)
class _Derived:
    """Addresses of a plan's tensors, which are kept alive; the same for every layer."""

    kept: tuple[Tensor, ...]
    index: tuple[int, ...]
    """starts, lens, tables, stride of the tables, sequences: as paged_attention takes them."""
    slots: int


def derived_of(plan: AttentionPlan) -> _Derived:
    """Of this plan; made once."""
    derived: _Derived | None = plan.derived.get(_Derived)
    if derived is None:
        starts = plan.query_start_loc.to(torch.int32).contiguous()
        lens = plan.seq_lens.to(torch.int32).contiguous()
        tables = plan.block_tables.to(torch.int32)
        if tables.stride(1) != 1:
            tables = tables.contiguous()
        slots = plan.slot_mapping.to(torch.int64).contiguous()
        index = (starts.data_ptr(), lens.data_ptr(), tables.data_ptr(), tables.stride(0), lens.numel())
        derived = plan.derived[_Derived] = _Derived((starts, lens, tables, slots), index, slots.data_ptr())
    return derived


class PagedAttention:
    """Caches are [blocks, kv_heads, block_size, D] of float32, bfloat16 or float16, contiguous; of int8
    [blocks, kv_heads, block_size, D + 4], where the last 4 bytes of a slot are its float32 scale."""

    def __init__(self, library: Library) -> None:
        pointer, size = c_void_p, c_int64
        self._write = library.function("write_kv", [*[pointer, size, size] * 2, *[pointer] * 3, *[size] * 4, c_int])
        self._attend = library.function(
            "paged_attention",
            [pointer, size, size, *[pointer] * 7, *[size] * 8, c_float, c_float],
            c_int,
        )

    def write(self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan) -> None:
        """Put float32 key, value [T, kv_heads, D] (rows and heads at any stride) into the slots of the plan."""
        tokens, kv_heads, dim = key.shape
        check_caches(k_cache, v_cache, dim)
        key, value = _with_dense_heads(key), _with_dense_heads(value)
        self._write(
            key.data_ptr(),
            key.stride(0),
            key.stride(1),
            value.data_ptr(),
            value.stride(0),
            value.stride(1),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            derived_of(plan).slots,
            tokens,
            kv_heads,
            k_cache.shape[2],
            dim,
            KINDS[k_cache.dtype],
        )

    def apply(
        self,
        query: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: AttentionPlan,
        *,
        scale: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor:
        """Causal attention of float32 query [T, heads, D] -> float32 [T, heads, D], as `Kernels.paged_attention`."""
        tokens, heads, dim = query.shape
        check_caches(k_cache, v_cache, dim)
        query = _with_dense_heads(query)
        if sinks is not None:
            sinks = sinks.float().contiguous()
        output = torch.empty((tokens, heads, dim))
        failed = self._attend(
            query.data_ptr(),
            query.stride(0),
            query.stride(1),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            output.data_ptr(),
            None if sinks is None else sinks.data_ptr(),
            *derived_of(plan).index,
            heads,
            k_cache.shape[1],
            dim,
            k_cache.shape[2],
            KINDS[k_cache.dtype],
            window or 0,
            scale,
            softcap or 0.0,
        )
        if failed:
            raise MemoryError(f"no memory for the attention of {tokens} rows")
        return output


def _with_dense_heads(x: Tensor) -> Tensor:
    """x [T, heads, D] as float32, the features of a head side by side."""
    x = x.float()
    return x if x.stride(2) == 1 else x.contiguous()


def check_caches(k_cache: Tensor, v_cache: Tensor, dim: int) -> None:
    """The kernels read by address: refuse what they would misread."""
    row = dim + SCALE_BYTES if k_cache.dtype == torch.int8 else dim
    if k_cache.dtype not in KINDS or k_cache.shape[3] != row or v_cache.shape != k_cache.shape:
        raise ValueError(f"a cache of {k_cache.dtype} {tuple(k_cache.shape)} does not hold heads of {dim}")
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("a cache must be contiguous")
