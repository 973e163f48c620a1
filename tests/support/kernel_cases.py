"""Paged attention problems that every backend must solve as the reference does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quire.kernels import AttentionPlan


@dataclass(frozen=True)
class AttentionCase:
    """Sequences by (tokens in the cache before the step, tokens of this step), and the shape of the attention."""

    sequences: tuple[tuple[int, int], ...]
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    block_size: int = 16
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False

    def __str__(self) -> str:
        lengths = "+".join(f"{cached}.{new}" for cached, new in self.sequences)
        extra = "".join(f"-{name}{value}" for name, value in self._options() if value)
        return f"{lengths}-h{self.heads}.{self.kv_heads}.{self.head_dim}-b{self.block_size}{extra}"

    def _options(self) -> list[tuple[str, object]]:
        return [("w", self.window), ("c", self.softcap), ("s", self.sinks)]


@dataclass(frozen=True)
class AttentionProblem:
    """Tensors of a case: caches poisoned with NaN outside the block tables, shuffled tables, sane slots elsewhere."""

    query: Tensor
    key: Tensor
    value: Tensor
    k_cache: Tensor
    v_cache: Tensor
    plan: AttentionPlan
    options: dict[str, object]


RAGGED = ((0, 1), (14, 1), (0, 16), (16, 1), (0, 63), (999, 1), (62, 1), (100, 17))

CASES = (
    AttentionCase(RAGGED),
    AttentionCase(RAGGED, heads=2, kv_heads=2, block_size=1),
    AttentionCase(RAGGED, heads=7, kv_heads=1, head_dim=80, block_size=128),
    AttentionCase(RAGGED, heads=16, kv_heads=2, head_dim=96, block_size=32, softcap=5.0),
    AttentionCase(RAGGED, heads=8, kv_heads=2, head_dim=128, block_size=256, sinks=True),
    AttentionCase(RAGGED, heads=4, kv_heads=1, head_dim=256, block_size=48, window=33),
    AttentionCase(RAGGED, window=1),
    AttentionCase(RAGGED, window=64, sinks=True, softcap=20.0),
    AttentionCase(((0, 1000),), heads=4, kv_heads=2, head_dim=64),
    AttentionCase(((0, 300), (200, 400)), heads=4, kv_heads=4, head_dim=64, window=100),
    AttentionCase(((0, 1),), heads=1, kv_heads=1, head_dim=64, block_size=8),
)


def cut_plan(cached_and_new: list[tuple[int, int]], tables: list[list[int]], block_size: int) -> AttentionPlan:
    """The plan of a step in which sequence s computes its tokens cached .. cached + new - 1 through tables[s]."""
    starts, lens, slots = [0], [], []
    for (cached, new), table in zip(cached_and_new, tables, strict=True):
        starts.append(starts[-1] + new)
        lens.append(cached + new)
        slots += [table[p // block_size] * block_size + p % block_size for p in range(cached, cached + new)]
    width = max(map(len, tables))
    padded = [table + [2**31 - 1] * (width - len(table)) for table in tables]  # must never be read
    return AttentionPlan(
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor(lens, dtype=torch.int32),
        block_tables=torch.tensor(padded, dtype=torch.int32),
        slot_mapping=torch.tensor(slots, dtype=torch.int64),
        query_start_list=tuple(starts),
        seq_lens_list=tuple(lens),
    )


def make_problem(case: AttentionCase, dtype: torch.dtype = torch.float32, seed: int = 0) -> AttentionProblem:
    """Random tensors for a case; the past of each sequence is in the cache, this step's keys are not yet written."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    size = case.block_size
    counts = [-(-(cached + new) // size) for cached, new in case.sequences]
    num_blocks = sum(counts) + 3
    order = torch.randperm(num_blocks, generator=random).tolist()
    tables = [[order.pop() for _ in range(count)] for count in counts]
    caches = [torch.full((num_blocks, case.kv_heads, size, case.head_dim), float("nan"), dtype=dtype) for _ in "kv"]
    for (cached, _), table in zip(case.sequences, tables, strict=True):
        for position in range(cached):
            for cache in caches:
                cache[table[position // size], :, position % size] = normal(case.kv_heads, case.head_dim)
    total = sum(new for _, new in case.sequences)
    return AttentionProblem(
        query=normal(total, case.heads, case.head_dim),
        key=normal(total, case.kv_heads, case.head_dim),
        value=normal(total, case.kv_heads, case.head_dim),
        k_cache=caches[0],
        v_cache=caches[1],
        plan=cut_plan(list(case.sequences), tables, size),
        options={
            "scale": case.head_dim**-0.5,
            "window": case.window,
            "softcap": case.softcap,
            "sinks": torch.randn(case.heads, generator=random) if case.sinks else None,
        },
    )
