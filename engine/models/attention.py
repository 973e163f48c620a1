"""The attention mixer of a block."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from quire.engine.models.config import AttentionSpec, WeightNames
from quire.engine.models.norm import norm_parts, take_head_norm
from quire.engine.models.rope import NoRope, Rope
from quire.engine.models.weights import WeightSource, take_linear
from quire.kernels import AttentionPlan, Kernels


class Attention:
    """Causal attention over the paged cache (Vaswani et al., 2017; Kwon et al., 2023)."""

    def __init__(
        self,
        spec: AttentionSpec,
        hidden_size: int,
        names: WeightNames,
        prefix: str,
        rope: Rope | NoRope,
        kernels: Kernels,
        weights: WeightSource,
    ) -> None:
        self.spec, self.kernels, self.rope = spec, kernels, rope
        query_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        self.qkv = take_linear(
            weights,
            kernels,
            [prefix + name for name in names.qkv],
            (query_size, kv_size, kv_size),
            hidden_size,
            bias=spec.qkv_bias,
            transposed=names.transposed,
        )
        self.head_norm = take_head_norm(
            spec.qk_norm,
            (spec.num_heads, spec.num_kv_heads, spec.head_dim),
            (prefix + names.q_norm, prefix + names.k_norm),
            kernels,
            weights,
        )
        self.out = take_linear(
            weights,
            kernels,
            [prefix + names.out],
            (hidden_size,),
            query_size,
            bias=spec.out_bias,
            transposed=names.transposed,
        )
        self.scale = spec.head_dim**-0.5

    def parts(self) -> dict[str, Any]:
        """Its part of `LayerParts`."""
        spec = self.spec
        return {
            "qkv": self.qkv,
            "head_norm": None if self.head_norm is None else norm_parts(self.head_norm),
            "cos_sin": self.rope.table if isinstance(self.rope, Rope) else None,
            "heads": spec.num_heads,
            "kv_heads": spec.num_kv_heads,
            "head_dim": spec.head_dim,
            "window": spec.window,
            "scale": self.scale,
            "out": self.out,
        }

    def __call__(self, x: Tensor, positions: Tensor, plan: AttentionPlan, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """x [T, hidden] -> [T, hidden]; the keys and values of these tokens are written to the caches first."""
        spec = self.spec
        qkv = self.kernels.linear(x, self.qkv).view(x.shape[0], -1, spec.head_dim)  # [T, heads + 2 * kv_heads, D]
        query_key = self.rope(qkv[:, : -spec.num_kv_heads], positions, self.head_norm)
        query, key, value = query_key[:, : spec.num_heads], query_key[:, spec.num_heads :], qkv[:, -spec.num_kv_heads :]
        self.kernels.write_kv(key, value, k_cache, v_cache, plan)
        mixed = self.kernels.paged_attention(
            query, k_cache, v_cache, plan, scale=self.scale, window=spec.window
        )  # [T, heads, D]
        return self.kernels.linear(mixed.reshape(x.shape[0], -1), self.out)
