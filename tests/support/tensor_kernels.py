"""Kernels whose launches depend on shapes alone, in plain PyTorch: what a recording on a GPU asks of a backend.

The host's lists in a plan are never read; padding rows (slot -1, length 0) write nothing and give zeros.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from quire.kernels.cpu.torch_backend import CpuKernels
from quire.kernels.fused import NOT_FINITE, NOTHING_LEFT, LogprobTensors, SamplingTensors
from quire.kernels.interface import AttentionPlan
from quire.kernels.noise import gumbel


class TensorKernels(CpuKernels):
    """The CPU's in PyTorch, whose rows are independent, but for what reads the host's lists there."""

    name = "tensors"

    def write_kv(self, key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan) -> None:
        """A row without a slot writes what the first row writes, and if that has none, what is there."""
        slots = plan.slot_mapping
        missing = slots < 0
        at = torch.where(missing, slots[:1], slots)
        nowhere = (at < 0).view(-1, 1, 1)
        at = at.clamp(min=0)
        block_size = k_cache.shape[2]
        blocks, offsets = at // block_size, at % block_size
        for cache, rows in ((k_cache, key), (v_cache, value)):
            rows = torch.where(missing.view(-1, 1, 1), rows[:1], rows).to(cache.dtype)
            cache[blocks, :, offsets] = torch.where(nowhere, cache[blocks, :, offsets], rows)

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
        """Every query against the whole width of its sequence's block table."""
        assert softcap is None
        assert sinks is None
        block_size = k_cache.shape[2]
        rows = torch.arange(query.shape[0])
        owners = torch.searchsorted(plan.query_start_loc, rows.int(), right=True) - 1
        owners = owners.clamp(max=plan.block_tables.shape[0] - 1)
        positions = plan.seq_lens[owners] - (plan.query_start_loc[owners + 1] - rows)  # [T]
        places = torch.arange(plan.block_tables.shape[1] * block_size)
        blocks = plan.block_tables.long()[:, places // block_size]  # [S, L]
        visible = places <= positions[:, None]
        if window is not None:
            visible &= places > positions[:, None] - window
        group = query.shape[1] // k_cache.shape[1]
        offsets = places % block_size
        keys, values = (cache[blocks, :, offsets][owners].transpose(1, 2).float() for cache in (k_cache, v_cache))
        seen = visible[:, None, :, None]
        keys = keys.masked_fill(~seen, 0.0).repeat_interleave(group, dim=1)  # [T, heads, L, D]
        values = values.masked_fill(~seen, 0.0).repeat_interleave(group, dim=1)
        scores = scale * (keys @ query.float().unsqueeze(3)).squeeze(3)
        weights = torch.softmax(scores.masked_fill(~visible[:, None], -torch.inf), dim=2).nan_to_num()
        return (weights.unsqueeze(2) @ values).squeeze(2).to(query.dtype)

    def sample(self, scores: Tensor, sampling: SamplingTensors) -> Tensor:
        """See `quire.kernels.fused.FusedKernels.sample`; refuses what a kernel would misread."""
        assert all(getattr(sampling, field.name).is_contiguous() for field in dataclasses.fields(sampling))
        clean = scores.masked_fill(torch.isneginf(scores) & sampling.masked.unsqueeze(1), 0.0)
        finite = torch.isfinite(clean.sum(dim=1))
        largest, best = scores.max(dim=1)
        cold = sampling.temperature == 0
        warmth = sampling.temperature.masked_fill(cold, 1.0).clamp(min=torch.finfo(torch.float32).tiny)
        shifted = (scores - largest.unsqueeze(1)) / warmth.unsqueeze(1)
        kept = torch.softmax(shifted, dim=1) >= _thresholds(shifted, sampling).unsqueeze(1)
        noise = gumbel(_position_keys(sampling).unsqueeze(1), torch.arange(scores.shape[1]))
        drawn = (shifted + noise).masked_fill(~kept, -torch.inf).argmax(dim=1)
        tokens = torch.where(cold, best, drawn)
        return tokens.masked_fill(torch.isneginf(largest), NOTHING_LEFT).masked_fill(~finite, NOT_FINITE)

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> LogprobTensors:
        """See `quire.kernels.fused.FusedKernels.logprobs`."""
        chosen = token_ids.clamp(min=0).unsqueeze(1)
        logprobs = torch.log_softmax(logits, dim=1)
        ranks = (logits > logits.gather(1, chosen)).sum(dim=1).int() + 1
        top = logprobs.sort(dim=1, descending=True, stable=True)
        return LogprobTensors(
            logprobs.gather(1, chosen).squeeze(1), ranks, top.values[:, :num_top], top.indices[:, :num_top].int()
        )


def _position_keys(sampling: SamplingTensors) -> Tensor:
    """int64 [R]: the noise keys of rows at their positions, `quire.kernels.noise.noise_key` on tensors."""
    bits = (sampling.keys ^ sampling.positions) + _signed(0x9E3779B97F4A7C15)
    bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
    bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
    return bits ^ _shifted(bits, 31)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _shifted(value: Tensor, bits: int) -> Tensor:
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _thresholds(scores: Tensor, sampling: SamplingTensors) -> Tensor:
    """The smallest weight that each row keeps, float32 [R]."""
    weights = torch.softmax(scores, dim=1)
    vocab_size = weights.shape[1]
    ordered = weights.sort(dim=1, descending=True).values
    mass = ordered.double().cumsum(dim=1)
    limited = (sampling.top_k > 0) & (sampling.top_k < vocab_size)
    last = (torch.where(limited, sampling.top_k, vocab_size) - 1).long().unsqueeze(1)
    total = torch.where(limited.unsqueeze(1), mass.gather(1, last), 1.0)
    top_p = sampling.top_p.double().unsqueeze(1)
    wanted = torch.where(top_p < 1, top_p * total, torch.inf)
    rank = torch.minimum(torch.searchsorted(mass, wanted), last)
    by_rank = ordered.gather(1, rank).squeeze(1)
    return torch.maximum(weights.amax(dim=1) * sampling.min_p, by_rank)
