"""Problems of the shapes that models have: what is compiled ahead of time, and what is measured on a device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from quire.kernels.fused import SamplingTensors
from quire.kernels.interface import AttentionPlan
from quire.kernels.triton import matmul
from quire.kernels.triton.backend import TritonKernels
from quire.kernels.triton.paged import Attention
from quire.kernels.triton.settings import MatmulSettings, Table


@dataclass(frozen=True)
class AttentionShape:
    """Attention of a step: `sequences` with `new` tokens each, the last of `length`."""

    head_dim: int = 128
    group: int = 4
    kv_heads: int = 8
    block_size: int = 16
    sequences: int = 4
    length: int = 1024
    new: int = 1
    dtype: torch.dtype = torch.bfloat16
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    float8: bool = False

    @property
    def kv_bytes(self) -> int:
        """Of the keys and values that are read at least once."""
        width = 1 if self.float8 else self.dtype.itemsize
        return 2 * self.sequences * self.length * self.kv_heads * self.head_dim * width

    @property
    def flops(self) -> int:
        """Of both products, over the keys that a token sees."""
        seen = self.new * (self.length - self.new) + self.new * (self.new + 1) // 2
        return 4 * self.sequences * seen * self.kv_heads * self.group * self.head_dim


@dataclass(frozen=True, eq=False)
class AttentionInputs:
    """The arguments of `paged_attention`, options by name."""

    query: Tensor
    k_cache: Tensor
    v_cache: Tensor
    plan: AttentionPlan
    options: dict[str, Any]

    def apply(self, attention: Attention) -> Tensor:
        """The attended values."""
        return attention.apply(self.query, self.k_cache, self.v_cache, self.plan, **self.options)


def make_attention(shape: AttentionShape, device: torch.device) -> AttentionInputs:
    """Random numbers in blocks whose order is shuffled, as after some hours of serving."""
    each = -(-shape.length // shape.block_size)
    total = shape.sequences * shape.new
    random = torch.Generator().manual_seed(0)
    tables = torch.randperm(each * shape.sequences, generator=random).view(shape.sequences, each)
    starts = range(0, total + 1, shape.new)
    plan = AttentionPlan(
        query_start_loc=torch.tensor(list(starts), dtype=torch.int32, device=device),
        seq_lens=torch.full((shape.sequences,), shape.length, dtype=torch.int32, device=device),
        block_tables=tables.to(torch.int32).to(device),
        slot_mapping=torch.zeros(total, dtype=torch.int64, device=device),
        query_start_list=tuple(starts),
        seq_lens_list=(shape.length,) * shape.sequences,
    )
    size = (tables.numel(), shape.kv_heads, shape.block_size, shape.head_dim)
    caches = [torch.randn(size, device=device, dtype=shape.dtype) for _ in "kv"]
    if shape.float8:
        caches = [cache.to(torch.float8_e4m3fn) for cache in caches]
    heads = shape.group * shape.kv_heads
    options = {
        "scale": shape.head_dim**-0.5,
        "window": shape.window,
        "softcap": shape.softcap,
        "sinks": torch.zeros(heads, device=device) if shape.sinks else None,
        "kv_scales": torch.ones(2, shape.kv_heads, device=device) if shape.float8 else None,
    }
    query = torch.randn(total, heads, shape.head_dim, device=device, dtype=shape.dtype)
    return AttentionInputs(query, caches[0], caches[1], plan, options)


def launch_layer(kernels: TritonKernels, dtype: torch.dtype = torch.bfloat16) -> None:
    """Everything of a decoder layer but attention and matmuls, in Llama 3.1 8B's shape with the norms of Qwen 3."""
    device, kv_heads, heads, dim = kernels.device, 8, 32, 128
    hidden = torch.zeros(4, heads * dim, dtype=dtype, device=device)
    weight = torch.ones(heads * dim, dtype=dtype, device=device)
    kernels.add_rms_norm(hidden, hidden, weight, 1e-5)
    kernels.rms_norm(hidden, weight, 1e-5)
    kernels.layer_norm(hidden, weight, weight, 1e-5)
    gate_up = torch.zeros(4, 2 * 14336, dtype=dtype, device=device)
    gate, up = gate_up.chunk(2, dim=1)
    kernels.gated_activation(gate, up, "silu")
    kernels.activation(hidden, "gelu_tanh")
    cache = torch.zeros(4, kv_heads, 16, dim, dtype=dtype, device=device)
    kernels.copy_blocks(cache, cache, torch.zeros(1, 2, dtype=torch.int64, device=device))
    positions = torch.zeros(4, dtype=torch.int64, device=device)
    plan = AttentionPlan(positions, positions, positions, positions, (), ())
    angles = torch.zeros(9, 2, dim // 2, device=device)
    qkv = torch.zeros(4, heads + 2 * kv_heads, dim, dtype=dtype, device=device)
    norm = torch.ones(heads + kv_heads, dim, dtype=dtype, device=device)
    kernels.rope_and_write_kv(qkv, positions, angles, cache, cache, plan, norm=norm, eps=1e-6)
    kernels.rope_and_write_kv(qkv, positions, angles, cache, cache, plan)
    kernels.rope(qkv, positions, angles)
    kernels.write_kv(qkv[:, :kv_heads], qkv[:, :kv_heads], cache, cache, plan)


def launch_float8_write(kernels: TritonKernels) -> None:
    """The write to a cache of float8, which needs compute capability 8.9."""
    positions = torch.zeros(4, dtype=torch.int64, device=kernels.device)
    plan = AttentionPlan(positions, positions, positions, positions, (), ())
    cache = torch.zeros(4, 8, 16, 128, device=kernels.device).to(torch.float8_e4m3fn)
    qkv = torch.zeros(4, 48, 128, dtype=torch.bfloat16, device=kernels.device)
    scales = torch.ones(2, 8, device=kernels.device)
    kernels.rope_and_write_kv(qkv, positions, None, cache, cache, plan, kv_scales=scales)


def launch_sampling(kernels: TritonKernels, columns: int = 151_936) -> None:
    """Sampling of four rows, and log probabilities with the twenty most likely."""
    device = kernels.device
    scores, number = torch.zeros(4, columns, device=device), torch.zeros(4, device=device)
    wide = number.long()
    parameters = SamplingTensors(number, number.int(), number, number, wide, wide, number.bool())
    kernels.sample(scores, parameters)
    kernels.logprobs(scores, wide, 20)


def launch_matmuls(table: Table, dtype: torch.dtype = torch.bfloat16) -> None:
    """Every row of the table's matmuls, on the CPU; and a few rows with their inputs split."""
    x, weight = torch.zeros(4, 4096, dtype=dtype), torch.zeros(4096, 4096, dtype=dtype)
    few = MatmulSettings("few_rows", 16, 0, 0, rows=16, outputs=32, inputs=256, warps=4, stages=4, splits=4)
    for settings in (few, *table.matmul):
        if settings.use != "experts":
            matmul.multiply(x, weight, None, settings)
    for num_experts in (4, 64):
        tokens = torch.zeros(64, 1024, dtype=dtype)
        stacked = torch.zeros(num_experts, 1024, 1024, dtype=dtype)
        chosen, weights = torch.zeros(64, 2, dtype=torch.int64), torch.zeros(64, 2)
        matmul.experts(tokens, chosen, weights, stacked, stacked[:, :, :512].contiguous(), "silu", table, False)
