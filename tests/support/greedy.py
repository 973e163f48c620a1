"""Running a decoder without an engine: one sequence in a paged cache of its own, greedy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from support.kernel_cases import cut_plan
from torch import Tensor

from quire.engine.loader import load_model
from quire.engine.models.architectures import read_model_config
from quire.engine.models.decoder import Decoder
from quire.kernels import select


def load_tiny(folder: Path, kernels: str = "cpu", dtype: torch.dtype = torch.float32) -> Decoder:
    """The decoder of a checkpoint."""
    return load_model(folder, read_model_config(folder, folder.name), select(kernels, "cpu"), dtype=dtype)


class Driver:
    """Feeds token ids of one sequence, through a shuffled block table, and remembers how far it is."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_blocks: int = 64,
        block_size: int = 16,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        self.decoder, self.block_size, self.computed = decoder, block_size, 0
        self.table = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(seed)).tolist()
        self.kv = [
            tuple(
                torch.full((num_blocks, spec.num_kv_heads, block_size, spec.head_dim), float("nan"), dtype=dtype)
                for _ in "kv"
            )
            for spec in decoder.cache_spec()
        ]

    def feed(self, token_ids: Sequence[int]) -> Tensor:
        """Compute these tokens; their logits, float32 [len(token_ids), vocab_size]."""
        with torch.inference_mode():
            plan = cut_plan([(self.computed, len(token_ids))], [self.table], self.block_size)
            positions = torch.arange(self.computed, self.computed + len(token_ids))
            hidden = self.decoder.forward(
                torch.tensor(token_ids), positions, [plan] * len(self.kv), self.kv, lambda: None
            )
            self.computed += len(token_ids)
            return self.decoder.logits(hidden)

    def generate(self, prompt: Sequence[int], count: int, chunk: int | None = None) -> tuple[list[int], Tensor]:
        """`count` greedy tokens, and the logits that each was chosen from [count, vocab_size]."""
        chunk = chunk or len(prompt)
        for start in range(0, len(prompt), chunk):
            logits = self.feed(prompt[start : start + chunk])[-1:]
        chosen, rows = [], []
        for _ in range(count):
            rows.append(logits)
            chosen.append(int(logits.argmax()))
            logits = self.feed(chosen[-1:])
        return chosen, torch.cat(rows)
