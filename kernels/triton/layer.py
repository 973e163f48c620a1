"""A decoder layer as few launches: ten where matmuls are cuBLAS's, norms RMS norms, and matrices have no bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from quire.kernels.interface import AttentionPlan
from quire.kernels.layer import LayerParts, NormParts
from quire.kernels.reference import PackedLinear

if TYPE_CHECKING:
    from quire.kernels.triton.backend import TritonKernels


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer; calling it computes `quire.kernels.layer.WholeLayer`. The sums end up in x's memory."""

    kernels: TritonKernels
    parts: LayerParts

    def __call__(self, x: Tensor, positions: Tensor, plan: AttentionPlan, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """x, positions [T] -> [T, hidden]."""
        kernels, parts = self.kernels, self.parts
        qkv = kernels.linear(self._norm(x, parts.norm), parts.qkv).view(len(x), -1, parts.head_dim)
        head_norm = parts.head_norm
        query = kernels.rope_and_write_kv(
            qkv,
            positions,
            parts.cos_sin,
            k_cache,
            v_cache,
            plan,
            norm=head_norm.weight if head_norm is not None else None,
            eps=head_norm.eps if head_norm is not None else 0.0,
        )
        mixed = kernels.paged_attention(query, k_cache, v_cache, plan, scale=parts.scale, window=parts.window)
        x = self._add(x, mixed.view(len(x), -1), parts.out)
        inner = kernels.linear(self._norm(x, parts.feed_forward_norm), parts.up)
        if parts.is_gated:
            gate, up = inner.chunk(2, dim=1)
            inner = kernels.gated_activation(gate, up, parts.activation)
        else:
            inner = kernels.activation(inner, parts.activation)
        return self._add(x, inner, parts.down)

    def _norm(self, x: Tensor, norm: NormParts) -> Tensor:
        if norm.is_layer_norm or norm.bias is not None:
            return self.kernels.layer_norm(x, norm.weight, norm.bias, norm.eps)
        return self.kernels.rms_norm(x, norm.weight, norm.eps)

    def _add(self, x: Tensor, inner: Tensor, packed: PackedLinear) -> Tensor:
        """x + linear(inner), in x's memory; cuBLAS adds while it multiplies."""
        if packed.bias is None and self.kernels.leaves_to_cublas(len(x), packed):
            return x.addmm_(inner, packed.weight.T)
        return x.add_(self.kernels.linear(inner, packed))
