"""The CPU backend in plain PyTorch.

What makes a linear layer's row independent of its neighbours, measured with torch 2.13 on AVX-512 (MKL, float32):
`x @ w` with w stored [in, out] gives equal bits for every number of rows from 2 to 700 as long as `in` is at most 512,
with one and two threads, where `F.linear` gives others below 16 rows; from `in` = 1,000 on the sums are cut differently
by number of rows and threads. So weights are stored transposed, longer sums are cut at 512 by hand, and a single row is
computed as two. At 2048 x 2048 this costs 0.77 ms for 1 and 2 rows (`F.linear`: 0.46) and is faster from 8 rows on
(1.2 ms, `F.linear` 1.4). In bfloat16 and float16 rows were equal from 4 on, for `F.linear` as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.cpu.attention import Pass, attend, make_passes
from quire.kernels.interface import Activation, AttentionPlan
from quire.kernels.reference import act

SUM_LENGTH = 512
"""Products added by one call of the float32 matmul."""


@dataclass(frozen=True)
class PackedLinear:
    """float32: weight [in, out]; half precision: weight [out, in]. Bias [out] or None."""

    weight: Tensor
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.weight.nbytes + (self.bias.nbytes if self.bias is not None else 0)

    @property
    def transposed(self) -> bool:
        """Whether the weight is stored [in, out]."""
        return self.weight.dtype == torch.float32


@dataclass(frozen=True)
class _Derived:
    """What depends on a plan alone, built by the first layer that needs it."""

    cache_rows: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    """(kv_heads, block_size) -> int64 [T * kv_heads]: rows of the cache seen as [blocks * kv_heads * block_size, D]."""
    passes: dict[tuple[int, int, int | None], list[Pass]] = field(default_factory=dict)
    """(kv_heads, block_size, window) -> passes."""


def _derived_of(plan: AttentionPlan) -> _Derived:
    derived: _Derived | None = plan.derived.get(_Derived)
    if derived is None:
        derived = plan.derived[_Derived] = _Derived()
    return derived


class CpuKernels:
    """`Kernels` on the CPU. See `quire.kernels.interface` for shapes and meanings."""

    name = "pytorch"

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def set_threads(self, threads: int) -> None:
        """Torch's own."""
        torch.set_num_threads(threads)

    def activation_dtype(self, weights: torch.dtype) -> torch.dtype:
        """The weights'."""
        return weights

    def pack(self, weight: Tensor, bias: Tensor | None, *, precise: bool = False) -> PackedLinear:
        """Store the weight as this dtype's matmul reads it."""
        return PackedLinear(weight.T.contiguous() if weight.dtype == torch.float32 else weight.contiguous(), bias)

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """x [T, in] -> [T, out]; rows are independent, see above."""
        num_rows = x.shape[0]
        if packed.transposed:
            return _linear_transposed(x if num_rows > 1 else torch.cat((x, x)), packed.weight, packed.bias)[:num_rows]
        if num_rows < 4:
            x = F.pad(x, (0, 0, 0, 4 - num_rows))
        return F.linear(x, packed.weight, packed.bias)[:num_rows]

    def embedding(self, token_ids: Tensor, packed: PackedLinear) -> Tensor:
        """The weight's rows `token_ids`."""
        if packed.transposed:
            return packed.weight.index_select(1, token_ids).T.contiguous()
        return packed.weight.index_select(0, token_ids)

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight."""
        if weight.dim() == 1:
            return F.rms_norm(x, weight.shape, weight, eps)
        return F.rms_norm(x, weight.shape[-1:], None, eps) * weight

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """(x - mean) / sqrt(var + eps) * weight + bias."""
        return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)

    def rope(
        self, x: Tensor, positions: Tensor, cos_sin: Tensor, *, norm: Tensor | None = None, eps: float = 0.0
    ) -> Tensor:
        """Rotate the first R features of every head."""
        if norm is not None:
            x = self.rms_norm(x, norm, eps)
        cos, sin = cos_sin.index_select(0, positions)[:, None].unbind(2)
        half = cos.shape[-1]
        halves = x[..., : 2 * half].view(*x.shape[:2], 2, half)
        rotated = halves * cos.unsqueeze(2)
        rotated[:, :, 0].addcmul_(halves[:, :, 1], sin, value=-1)
        rotated[:, :, 1].addcmul_(halves[:, :, 0], sin)
        rotated = rotated.flatten(2).to(x.dtype)
        if x.shape[-1] == 2 * half:
            return rotated
        return torch.cat((rotated, x[..., 2 * half :]), dim=-1)

    def write_kv(self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan) -> None:
        """Put each token's key and value into its slot, rounded to the cache's dtype."""
        _, kv_heads, block_size, head_dim = k_cache.shape
        derived = _derived_of(plan)
        rows = derived.cache_rows.get((kv_heads, block_size))
        if rows is None:
            block_ids, offsets = plan.slot_mapping // block_size, plan.slot_mapping % block_size
            rows = ((block_ids[:, None] * kv_heads + torch.arange(kv_heads)) * block_size + offsets[:, None]).view(-1)
            derived.cache_rows[kv_heads, block_size] = rows
        k_cache.view(-1, head_dim).index_copy_(0, rows, key.reshape(-1, head_dim).to(k_cache.dtype))
        v_cache.view(-1, head_dim).index_copy_(0, rows, value.reshape(-1, head_dim).to(v_cache.dtype))

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
        """Attention in passes over the step's sequences; what depends on the plan alone is built once a step."""
        known = _derived_of(plan).passes
        shape = (k_cache.shape[1], k_cache.shape[2], window)
        passes = known.get(shape)
        if passes is None:
            passes = known[shape] = make_passes(plan, *shape)
        parts = [attend(query, k_cache, v_cache, work, scale=scale, softcap=softcap, sinks=sinks) for work in passes]
        if len(parts) == 1:
            return parts[0]
        output = torch.empty_like(query)
        for work, part in zip(passes, parts, strict=True):
            output.index_copy_(0, work.query_rows, part)
        return output

    def gated_activation(self, gate: Tensor, up: Tensor, kind: Activation) -> Tensor:
        """act(gate) * up."""
        return act(gate, kind) * up

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """act(x)."""
        return act(x, kind)

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, pairs: Tensor) -> None:
        """Copy whole blocks, source to target; no target is a source of the same call."""
        sources, targets = pairs.unbind(dim=1)
        k_cache.index_copy_(0, targets, k_cache.index_select(0, sources))
        v_cache.index_copy_(0, targets, v_cache.index_select(0, sources))


def _linear_transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [T, in] @ weight [in, out] + bias, in sums of `SUM_LENGTH` products, added in order."""
    length = weight.shape[0]
    if length <= SUM_LENGTH:
        return x @ weight if bias is None else (x @ weight).add_(bias)
    y = x[:, :SUM_LENGTH] @ weight[:SUM_LENGTH]
    for start in range(SUM_LENGTH, length, SUM_LENGTH):
        part = slice(start, start + SUM_LENGTH)
        y.addmm_(x[:, part], weight[part])
    return y if bias is None else y.add_(bias)
