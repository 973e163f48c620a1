"""The CPU backend in C: what `native/` computes, behind `quire.kernels.interface`.

Activations are float32 throughout; the weights of linear layers and the KV cache are stored as small as is asked for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quire.kernels.cpu.layer import Layers
from quire.kernels.cpu.layout import PRECISE
from quire.kernels.cpu.library import Library
from quire.kernels.cpu.linear import Linear, PackedLinear
from quire.kernels.cpu.paged import PagedAttention
from quire.kernels.cpu.pointwise import Pointwise
from quire.kernels.cpu.sampling import Sampling
from quire.kernels.interface import Activation, AttentionPlan


class CompiledKernels:
    """`Kernels` on the CPU, of one instruction set. See `quire.kernels.interface` for shapes and meanings."""

    def __init__(self, library: Library, precision: str | None = None) -> None:
        """`precision`: what linear layers are packed in, one of `quire.kernels.cpu.linear`'s; None: as they come."""
        self.name = f"cpu ({library.isa})"
        self.device = torch.device("cpu")
        self._library, self._precision = library, precision
        self._linear, self._attention, self._pointwise = Linear(library), PagedAttention(library), Pointwise(library)
        self.linear = self._linear.apply
        self.embedding, self.pack_codes = self._linear.rows, self._linear.pack_codes
        self.rms_norm, self.layer_norm = self._pointwise.rms_norm, self._pointwise.layer_norm
        self.write_kv = self._attention.write
        self.layer = Layers(library).make
        self.sampling = Sampling(library)

    def set_threads(self, threads: int) -> None:
        """Of the compiled kernels and of torch: both may sit on one OpenMP, where the last word counts for both."""
        torch.set_num_threads(threads)
        self._library.set_threads(threads)

    def activation_dtype(self, weights: torch.dtype) -> torch.dtype:
        """float32, whatever the weights are in."""
        return torch.float32

    def pack(self, weight: Tensor, bias: Tensor | None, *, precise: bool = False) -> PackedLinear:
        """In the layout of `native/matmul.c`."""
        precision = self._precision
        if precise and precision is not None:
            precision = PRECISE.get(precision, precision)
        return self._linear.pack(weight, bias, precision)

    def rope(
        self, x: Tensor, positions: Tensor, cos_sin: Tensor, *, norm: Tensor | None = None, eps: float = 0.0
    ) -> Tensor:
        """Norm and rotation in one pass."""
        return self._pointwise.norm_rope(x, norm, eps, positions, cos_sin)

    def paged_attention(
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
        """Causal attention over the blocks of each query row's own sequence."""
        attended: Tensor = self._attention.apply(
            query, k_cache, v_cache, plan, scale=scale, window=window, softcap=softcap, sinks=sinks
        )
        return attended

    def gated_activation(self, gate: Tensor, up: Tensor, kind: Activation) -> Tensor:
        """act(gate) * up."""
        return self._pointwise.gated_activation(gate, up, kind)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """act(x)."""
        return self._pointwise.activation(x, kind)

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, pairs: Tensor) -> None:
        """Copy whole blocks within both caches."""
        source, target = pairs.unbind(1)
        for cache in (k_cache, v_cache):
            cache[target] = cache[source]
