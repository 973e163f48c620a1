"""A toy model for the runner's tests: its logits depend on every token before, read through the block table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from support.tensor_kernels import TensorKernels
from torch import Tensor

from quire.engine.models.config import CacheSpec
from quire.kernels.interface import AttentionPlan

WIDTH = 16
TOY_SPEC = CacheSpec(num_kv_heads=1, head_dim=WIDTH, window=None)
"""What its one layer caches."""


class ToyKernels(TensorKernels):
    """The operations that runners themselves call."""

    def copy_blocks(self, k_cache: Tensor, v_cache: Tensor, pairs: Tensor) -> None:
        """Whole blocks, in both caches."""
        k_cache[pairs[:, 1]] = k_cache[pairs[:, 0]]
        v_cache[pairs[:, 1]] = v_cache[pairs[:, 0]]


class ToyModel:
    """hidden(i) = sum over j <= i of cached(j) / (1 + i - j); float64 sums, so batches change nothing."""

    def __init__(self, vocab_size: int, num_layers: int = 1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(vocab_size, WIDTH, generator=generator)
        self.head = torch.randn(vocab_size, WIDTH, generator=generator) / 8
        self.num_layers = num_layers
        self.calls: list[int] = []
        """Tokens of each forward pass."""
        self.before: Callable[[Tensor], None] | None = None
        """Called with input_ids before anything is computed: where tests raise."""

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        plans: Sequence[AttentionPlan],
        kv: Sequence[tuple[Tensor, Tensor]],
        on_layer: Callable[[], None],
    ) -> Tensor:
        """Hidden states [T, WIDTH]."""
        self.calls.append(len(input_ids))
        if self.before is not None:
            self.before(input_ids)
        plan, (keys, values) = plans[0], kv[0]
        block_size = keys.shape[2]
        blocks, offsets = plan.slot_mapping // block_size, plan.slot_mapping % block_size
        keys[blocks, 0, offsets] = self.embedding[input_ids]
        values[blocks, 0, offsets] = self.embedding[input_ids] * (positions % 7 + 1).unsqueeze(1)
        hidden = torch.empty(len(input_ids), WIDTH)
        for s, (start, seq_len) in enumerate(zip(plan.query_start_list, plan.seq_lens_list, strict=False)):
            num_queries = plan.query_start_list[s + 1] - start
            where = torch.arange(seq_len)
            table = plan.block_tables[s].long()
            history = values[table[where // block_size], 0, where % block_size].double()
            for query in range(num_queries):
                position = seq_len - num_queries + query
                weights = 1 / (1.0 + position - torch.arange(position + 1, dtype=torch.float64))
                hidden[start + query] = (weights.unsqueeze(1) * history[: position + 1]).sum(0).float()
        on_layer()
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """float32 [R, V]."""
        return (hidden.unsqueeze(1).double() * self.head).sum(2).float()
