"""The specification of `quire.kernels.fused`: the reference's operations one after the other, in plain PyTorch."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from quire.kernels.fused import NOT_FINITE, NOTHING_LEFT, LogprobTensors, SamplingTensors
from quire.kernels.interface import Activation, AttentionPlan
from quire.kernels.noise import gumbel, next_key
from quire.kernels.reference import ReferenceKernels, act

_SMALLEST_TEMPERATURE = torch.finfo(torch.float32).tiny
_LARGEST_FLOAT8 = torch.finfo(torch.float8_e4m3fn).max


class FusedReference(ReferenceKernels):
    """`FusedKernels` on any device, slow and plain."""

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(rms_norm(sum), sum) of x + residual."""
        total = x + residual
        return self.rms_norm(total, weight, eps), total

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
        """Norm, rotate, write what has a slot; the queries."""
        kv_heads = k_cache.shape[1]
        query_key, value = qkv[:, :-kv_heads], qkv[:, -kv_heads:]
        if cos_sin is not None:
            query_key = self.rope(query_key, positions, cos_sin, norm=norm, eps=eps)
        elif norm is not None:
            query_key = self.rms_norm(query_key, norm, eps)
        query, key = query_key[:, :-kv_heads], query_key[:, -kv_heads:]
        if kv_scales is not None:
            key, value = (
                (x.float() / scales[:, None]).clamp(-_LARGEST_FLOAT8, _LARGEST_FLOAT8).to(k_cache.dtype)
                for x, scales in ((key, kv_scales[0]), (value, kv_scales[1]))
            )
        kept = plan.slot_mapping >= 0
        self.write_kv(
            key[kept], value[kept], k_cache, v_cache, dataclasses.replace(plan, slot_mapping=plan.slot_mapping[kept])
        )
        return query.contiguous()

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
        """The reference's, over caches times their scales; 0 for a padding row."""
        if kv_scales is not None:
            k_cache, v_cache = (
                k_cache.float() * kv_scales[0][:, None, None],
                v_cache.float() * kv_scales[1][:, None, None],
            )
        lengths = tuple(plan.seq_lens.tolist())
        kept = tuple(length for length in lengths if length)
        plan = dataclasses.replace(plan, seq_lens_list=lengths)
        if len(kept) == len(lengths):
            return super().paged_attention(
                query, k_cache, v_cache, plan, scale=scale, window=window, softcap=softcap, sinks=sinks
            )
        rows = plan.seq_lens > 0
        some = AttentionPlan(
            query_start_loc=plan.query_start_loc[: len(kept) + 1],
            seq_lens=plan.seq_lens[rows],
            block_tables=plan.block_tables[rows],
            slot_mapping=plan.slot_mapping[rows],
            query_start_list=tuple(range(len(kept) + 1)),
            seq_lens_list=kept,
        )
        out = torch.zeros_like(query)
        out[rows] = super().paged_attention(
            query[rows], k_cache, v_cache, some, scale=scale, window=window, softcap=softcap, sinks=sinks
        )
        return out

    def experts(
        self, x: Tensor, expert_ids: Tensor, expert_weights: Tensor, gate_up: Tensor, down: Tensor, kind: Activation
    ) -> Tensor:
        """One token and one of its experts after the other."""
        out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        for token, choices in enumerate(expert_ids.tolist()):
            for choice, expert in enumerate(choices):
                gate, up = (x[token].float() @ gate_up[expert].float().T).chunk(2)
                part = (act(gate, kind) * up) @ down[expert].float().T
                out[token] += expert_weights[token, choice] * part
        return out.to(x.dtype)

    def sample(self, scores: Tensor, parameters: SamplingTensors) -> Tensor:
        """One row after the other; weights are sorted."""
        tokens = torch.empty(len(scores), dtype=torch.int64, device=scores.device)
        for row, values in enumerate(scores):
            finite = torch.isfinite(values) | (parameters.masked[row] & torch.isneginf(values))
            if not finite.all():
                tokens[row] = NOT_FINITE
            elif torch.isneginf(values).all():
                tokens[row] = NOTHING_LEFT
            elif parameters.temperature[row] == 0:
                tokens[row] = values.argmax()
            else:
                tokens[row] = self._draw(values, parameters, row)
        return tokens

    def _draw(self, values: Tensor, parameters: SamplingTensors, row: int) -> Tensor:
        temperature = parameters.temperature[row].clamp(min=_SMALLEST_TEMPERATURE)
        relative = (values - values.max()) / temperature
        weights = relative.exp()
        ordered = weights.sort(descending=True).values.double()
        top_k, top_p = int(parameters.top_k[row]), float(parameters.top_p[row])
        if top_k > 0:
            ordered = ordered[:top_k]
        least = ordered[-1]
        if top_p < 1:
            mass = ordered.cumsum(0)
            reached = torch.searchsorted(mass, top_p * mass[-1:])
            least = ordered[reached.clamp(max=len(ordered) - 1)][0]
        kept = (weights >= least.float()) & (weights >= parameters.min_p[row])
        key = torch.tensor(next_key(int(parameters.keys[row]), int(parameters.positions[row])), device=values.device)
        noisy = relative + gumbel(key, torch.arange(len(values), device=values.device))
        return torch.where(kept, noisy, -torch.inf).argmax()

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> LogprobTensors:
        """A log-softmax, a count and a stable sort."""
        logprobs = logits.log_softmax(dim=1)
        own = token_ids.clamp(min=0)[:, None]
        ranks = 1 + (logits > logits.gather(1, own)).sum(dim=1)
        ordered = logprobs.sort(dim=1, descending=True, stable=True)
        return LogprobTensors(
            logprobs.gather(1, own)[:, 0],
            ranks.to(torch.int32),
            ordered.values[:, :num_top],
            ordered.indices[:, :num_top].to(torch.int32),
        )
