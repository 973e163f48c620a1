"""The specification: every operation in plain PyTorch, computed in float32, one sequence at a time.

Nothing here is optimised, on purpose: a backend is right when it gives what this file gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quire.kernels.interface import Activation, AttentionPlan


@dataclass(frozen=True)
class PackedLinear:
    """A linear layer as the reference reads it: weight [out, in] and bias [out] or None."""

    weight: Tensor
    bias: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.weight.nbytes + (self.bias.nbytes if self.bias is not None else 0)


def act(x: Tensor, kind: Activation) -> Tensor:
    """The activation function `kind` of x, elementwise, in x's dtype."""
    match kind:
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "relu":
            return F.relu(x)


def gather_tokens(cache: Tensor, block_table: Tensor, seq_len: int) -> Tensor:
    """The first `seq_len` entries of one sequence's cache, in order: [kv_heads, seq_len, D].

    cache [blocks, kv_heads, block_size, D]; block_table int32 [max_blocks].
    """
    block_size = cache.shape[2]
    positions = torch.arange(seq_len, device=cache.device)
    block_ids = block_table.long()[positions // block_size]
    return cache[block_ids, :, positions % block_size].transpose(0, 1)


def causal_mask(num_queries: int, seq_len: int, window: int | None, device: torch.device) -> Tensor:
    """Which keys the last `num_queries` tokens of a sequence may see: bool [num_queries, seq_len]."""
    query_positions = torch.arange(seq_len - num_queries, seq_len, device=device)[:, None]
    key_positions = torch.arange(seq_len, device=device)[None, :]
    visible = key_positions <= query_positions
    if window is not None:
        visible &= key_positions > query_positions - window
    return visible


class ReferenceKernels:
    """`Kernels` on any device, slow and plain. See `quire.kernels.interface` for shapes and meanings."""

    name = "reference"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def set_threads(self, threads: int) -> None:
        """Torch's own."""
        torch.set_num_threads(threads)

    def activation_dtype(self, weights: torch.dtype) -> torch.dtype:
        """The weights'."""
        return weights

    def pack(self, weight: Tensor, bias: Tensor | None, *, precise: bool = False) -> PackedLinear:
        """Keep weight and bias as they are."""
        return PackedLinear(weight, bias)

    def linear(self, x: Tensor, packed: PackedLinear) -> Tensor:
        """x [T, in] times the weight's transpose, plus bias."""
        y = x.float() @ packed.weight.float().T
        if packed.bias is not None:
            y = y + packed.bias.float()
        return y.to(x.dtype)

    def embedding(self, token_ids: Tensor, packed: PackedLinear) -> Tensor:
        """The weight's rows `token_ids`."""
        return packed.weight[token_ids]

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """x / sqrt(mean(x^2) + eps) * weight."""
        mean_square = x.float().pow(2).mean(dim=-1, keepdim=True)
        return (x.float() * torch.rsqrt(mean_square + eps) * weight.float()).to(x.dtype)

    def layer_norm(self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
        """(x - mean) / sqrt(var + eps) * weight + bias."""
        centred = x.float() - x.float().mean(dim=-1, keepdim=True)
        variance = centred.pow(2).mean(dim=-1, keepdim=True)
        y = centred * torch.rsqrt(variance + eps) * weight.float()
        if bias is not None:
            y = y + bias.float()
        return y.to(x.dtype)

    def rope(
        self, x: Tensor, positions: Tensor, cos_sin: Tensor, *, norm: Tensor | None = None, eps: float = 0.0
    ) -> Tensor:
        """Rotate the first R features of every head: feature i pairs with feature i + R / 2."""
        if norm is not None:
            x = self.rms_norm(x, norm, eps)
        cos, sin = cos_sin[positions][:, None].unbind(dim=2)
        half = cos.shape[-1]
        x32 = x.float()
        first, second, rest = x32[..., :half], x32[..., half : 2 * half], x32[..., 2 * half :]
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin, rest), dim=-1)
        return rotated.to(x.dtype)

    def write_kv(self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan) -> None:
        """Put each token's key and value into its slot."""
        block_size = k_cache.shape[2]
        block_ids, offsets = plan.slot_mapping // block_size, plan.slot_mapping % block_size
        k_cache[block_ids, :, offsets] = key
        v_cache[block_ids, :, offsets] = value

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
        """softmax(scale * q k^T, masked) v, sequence by sequence, over keys gathered through the block table."""
        num_heads, group = query.shape[1], query.shape[1] // k_cache.shape[1]
        output = torch.empty_like(query)
        for index, seq_len in enumerate(plan.seq_lens_list):
            rows = slice(plan.query_start_list[index], plan.query_start_list[index + 1])
            num_queries = rows.stop - rows.start
            keys = gather_tokens(k_cache, plan.block_tables[index], seq_len).float()
            values = gather_tokens(v_cache, plan.block_tables[index], seq_len).float()
            keys, values = keys.repeat_interleave(group, dim=0), values.repeat_interleave(group, dim=0)

            scores = scale * query[rows].transpose(0, 1).float() @ keys.transpose(1, 2)  # [heads, queries, keys]
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            visible = causal_mask(num_queries, seq_len, window, query.device)
            scores = scores.masked_fill(~visible, float("-inf"))
            if sinks is not None:
                sink = sinks.float()[:, None, None].expand(num_heads, num_queries, 1)
                scores = torch.cat((scores, sink), dim=-1)
            weights = torch.softmax(scores, dim=-1)[..., :seq_len]
            output[rows] = (weights @ values).transpose(0, 1).to(query.dtype)
        return output

    def gated_activation(self, gate: Tensor, up: Tensor, kind: Activation) -> Tensor:
        """act(gate) * up."""
        return (act(gate.float(), kind) * up.float()).to(gate.dtype)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        """act(x)."""
        return act(x.float(), kind).to(x.dtype)

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, pairs: Tensor) -> None:
        """Copy whole blocks, source to target; no target is a source of the same call."""
        sources, targets = pairs.unbind(dim=1)
        k_cache[targets] = k_cache[sources]
        v_cache[targets] = v_cache[sources]
