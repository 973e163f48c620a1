"""The Triton backend: everything a decoder layer and the sampler need, on one GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.fused import LogprobTensors, SamplingTensors
from quire.kernels.interface import Activation, AttentionPlan
from quire.kernels.layer import LayerParts, WholeLayer
from quire.kernels.reference import PackedLinear
from quire.kernels.triton import interpreter, matmul, rotary, rowwise, sampling
from quire.kernels.triton.layer import Layer
from quire.kernels.triton.paged import Attention
from quire.kernels.triton.settings import MatmulSettings, load

PROCESSORS_INTERPRETED = 4
"""Multiprocessors that splits are chosen for where there is no device."""


class TritonKernels:
    """`FusedKernels` on a GPU, or interpreted on the CPU. See `quire.kernels.interface` and `quire.kernels.fused`.

    Linear layers are cuBLAS's unless the settings table has a row for their shape.
    """

    def __init__(self, device: torch.device, *, batch_invariant: bool = False) -> None:
        """`batch_invariant`: a row of every result depends on that row and its own history alone, bit for bit."""
        self.name = "triton (batch-invariant)" if batch_invariant else "triton"
        self.device = device
        self._table, self._invariant = load(), batch_invariant
        processors = PROCESSORS_INTERPRETED
        if device.type == "cuda":
            processors = torch.cuda.get_device_properties(device).multi_processor_count
        elif interpreter.is_on():
            interpreter.read_scalars()
        self._attention = Attention(self._table, processors, batch_invariant)

    def set_threads(self, threads: int) -> None:
        """Torch's own, for what the host computes."""
        torch.set_num_threads(threads)

    def activation_dtype(self, weights: torch.dtype) -> torch.dtype:
        """The weights'."""
        return weights

    def pack(self, weight: Tensor, bias: Tensor | None, *, precise: bool = False) -> PackedLinear:
        """Keep weight and bias as they are."""
        return PackedLinear(weight.contiguous(), bias)

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """x [T, in] times the weight's transpose, plus bias."""
        settings = self._multiply(x.shape[0], packed)
        if settings is None:
            return F.linear(x, packed.weight, packed.bias)
        return matmul.multiply(x, packed.weight, packed.bias, settings)

    def leaves_to_cublas(self, rows: int, packed: PackedLinear) -> bool:
        """Whether `linear` of so many rows is cuBLAS's."""
        return self._multiply(rows, packed) is None

    def _multiply(self, rows: int, packed: PackedLinear) -> MatmulSettings | None:
        use = "invariant" if self._invariant else "few_rows"
        return self._table.multiply(use, rows, *packed.weight.shape)

    def layer(self, parts: LayerParts) -> WholeLayer:
        """A decoder layer in few launches."""
        return Layer(self, parts)

    def embedding(self, token_ids: Tensor, packed: PackedLinear) -> Tensor:
        """The weight's rows `token_ids`."""
        return F.embedding(token_ids, packed.weight)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight."""
        return rowwise.rms_norm(x, weight, eps)[0]

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(rms_norm(sum), sum) of x + residual."""
        return rowwise.rms_norm(x, weight, eps, residual)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """(x - mean) / sqrt(var + eps) * weight + bias."""
        return rowwise.layer_norm(x, weight, bias, eps)

    def rope(
        self, x: Tensor, positions: Tensor, cos_sin: Tensor, *, norm: Tensor | None = None, eps: float = 0.0
    ) -> Tensor:
        """Norm and rotation in one pass."""
        return rotary.rotate(x, positions, cos_sin, norm, eps)

    def rope_and_write_kv(
        self,
        qkv: Tensor,
        positions: Tensor,
        cos_sin: Tensor | None,
        k_cache: Tensor,
        v_cache: Tensor,
        plan: AttentionPlan,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        kv_scales: Tensor | None = None,
    ) -> Tensor:
        """Norm, rotation and the write to the cache in one pass; the queries."""
        caches = k_cache, v_cache
        return rotary.rotate(qkv, positions, cos_sin, norm, eps, caches, plan.slot_mapping, kv_scales)

    def write_kv(self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan) -> None:
        """Put each token's key and value into its slot; -1: nowhere."""
        rotary.write(key, value, k_cache, v_cache, plan.slot_mapping)

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
        kv_scales: Tensor | None = None,
    ) -> Tensor:
        """Causal attention over the blocks of each query row's own sequence."""
        return self._attention.apply(
            query,
            k_cache,
            v_cache,
            plan,
            scale=scale,
            window=window,
            softcap=softcap,
            sinks=sinks,
            kv_scales=kv_scales,
        )

    def gated_activation(self, gate: Tensor, up: Tensor, kind: Activation) -> Tensor:
        """act(gate) * up."""
        return rowwise.activation(gate, up, kind)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """act(x)."""
        return rowwise.activation(x, None, kind)

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, pairs: Tensor) -> None:
        """Copy whole blocks within both caches; no target is a source of the same call."""
        rowwise.copy_blocks((k_cache, v_cache), pairs)

    def experts(
        self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate_up: Tensor, down: Tensor, kind: Activation
    ) -> Tensor:
        """The weighted sum of each token's experts, in the order of its choices."""
        return matmul.experts(x, expert_ids, expert_weights, gate_up, down, kind, self._table, self._invariant)

    def sample(self, scores: Tensor, parameters: SamplingTensors) -> Tensor:
        """A token for each row, or why there is none."""
        return sampling.sample(scores, parameters)

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> LogprobTensors:
        """Of each row its token's log probability and rank, and the most likely."""
        return sampling.logprobs(logits, token_ids, num_top)
