"""Attention over the paged cache: from a plan to launches."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import torch
import triton
from torch import Tensor

from quire.kernels.interface import AttentionPlan
from quire.kernels.triton.attention import LOG2_E, attention_kernel, reduction_kernel
from quire.kernels.triton.settings import AttentionSettings, Table

SPLIT_KEYS = 1024
"""Keys of a split where answers must not depend on the batch."""
MAX_SPLITS = 64
MAX_PARTIAL_BYTES = 256 << 20
"""Of split results that are kept at a time; a prompt in batch-invariant mode goes in pieces."""


@dataclass(frozen=True)
class Tiles:
    """Query tiles of one launch: `queries` tokens each. `index` int32 [count, 2] as the kernel reads it; None: tile i
    is the one token of sequence i."""

    queries: int
    count: int
    index: Tensor | None


@dataclass
class Launches:
    """What this backend derives from a plan: the tiles of sequences with few new tokens, and of those with many."""

    cut: dict[tuple[int, int], tuple[Tiles | None, Tiles | None]] = field(default_factory=dict)

    @staticmethod
    def of(plan: AttentionPlan) -> Launches:
        """The plan's own; made when first asked for."""
        launches: Launches = plan.derived.setdefault(Launches, Launches())
        return launches

    def tiles(self, plan: AttentionPlan, few: int, many: int) -> tuple[Tiles | None, Tiles | None]:
        """Tiles of `few` tokens for sequences that have no more, of `many` for others; None where there are none."""
        if (few, many) not in self.cut:
            self.cut[few, many] = _cut(plan, few, many)
        return self.cut[few, many]


def _cut(plan: AttentionPlan, few: int, many: int) -> tuple[Tiles | None, Tiles | None]:
    counts = [end - start for start, end in pairwise(plan.query_start_list)]
    if all(count == 1 for count in counts):
        return Tiles(1, len(counts), None), None
    device = plan.seq_lens.device
    short = [s for s, count in enumerate(counts) if 0 < count <= few]
    long = [s for s, count in enumerate(counts) if count > few]
    return _tiles(short, counts, few, device), _tiles(long, counts, many, device)


def _tiles(sequences: list[int], counts: list[int], queries: int, device: torch.device) -> Tiles | None:
    """The last tiles of a sequence, which read most keys, come first."""
    pairs = [(s, first) for s in sequences for first in reversed(range(0, counts[s], queries))]
    if not pairs:
        return None
    index = torch.tensor(pairs, dtype=torch.int32)
    if device.type == "cuda":
        index = index.pin_memory().to(device, non_blocking=True)
    return Tiles(queries, len(pairs), index)


@dataclass(frozen=True)
class Attention:
    """What all layers' attention on one device has in common. `processors`: multiprocessors of the device."""

    table: Table
    processors: int
    invariant: bool

    def apply(
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
        """See `quire.kernels.interface.Kernels.paged_attention`."""
        heads, dim = query.shape[1:]
        kv_heads, block_size = k_cache.shape[1:3]
        if query.stride()[1:] != (dim, 1):
            query = query.contiguous()
        group = heads // kv_heads
        bucket = max(1, len(plan.seq_lens)) * kv_heads
        decode = self.table.attend("decode", dim, group, block_size, bucket)
        prefill = decode if self.invariant else self.table.attend("prefill", dim, group, block_size, 0)
        out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        few, many = Launches.of(plan).tiles(plan, decode.rows // group, prefill.rows // group)
        call = Call(self, query, k_cache, v_cache, plan, out, scale, window, softcap, sinks, kv_scales)
        if few is not None:
            call.launch(few, decode)
        if many is not None:
            call.launch(many, prefill)
        return out


@dataclass(frozen=True)
class Call:
    """One layer's attention of one step."""

    attention: Attention
    query: Tensor
    k_cache: Tensor
    v_cache: Tensor
    plan: AttentionPlan
    out: Tensor
    scale: float
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    kv_scales: Tensor | None

    def launch(self, tiles: Tiles, settings: AttentionSettings) -> None:
        """Compute some tiles, in pieces where their split results would take too much memory."""
        splits = self._splits(tiles, settings)
        if not splits:
            self._launch(tiles, settings, 0)
            return
        tile_bytes = tiles.queries * self.query.shape[1] * splits * (self.query.shape[2] + 1) * 4
        piece = max(1, MAX_PARTIAL_BYTES // tile_bytes)
        if tiles.index is None or tiles.count <= piece:
            self._launch(tiles, settings, splits)
            return
        for index in torch.split(tiles.index, piece):
            self._launch(Tiles(tiles.queries, len(index), index), settings, splits)

    def _splits(self, tiles: Tiles, settings: AttentionSettings) -> int:
        """How many programs share the keys of a tile; 0: one has them all. Known from shapes alone."""
        longest = self.plan.block_tables.shape[1] * self.k_cache.shape[2]
        if self.attention.invariant:
            return -(-longest // SPLIT_KEYS)
        wanted = settings.programs_per_processor * self.attention.processors
        splits = min(wanted // max(1, tiles.count * self.k_cache.shape[1]), MAX_SPLITS, -(-longest // settings.keys))
        return splits if splits > 1 else 0

    def _launch(self, tiles: Tiles, settings: AttentionSettings, splits: int) -> None:
        heads, dim = self.query.shape[1:]
        kv_heads, block_size = self.k_cache.shape[1:3]
        plan, padded_dim = self.plan, triton.next_power_of_2(dim)
        partial, lse = self._partials(tiles, splits)
        attention_kernel[(tiles.count, kv_heads, max(1, splits))](
            self.query,
            self.k_cache,
            self.v_cache,
            self.out,
            partial,
            lse,
            self.sinks if self.sinks is not None else lse,
            self.kv_scales if self.kv_scales is not None else lse,
            tiles.index if tiles.index is not None else plan.seq_lens,
            plan.query_start_loc,
            plan.seq_lens,
            plan.block_tables,
            self.scale * LOG2_E.value,
            self.softcap or 0.0,
            self.query.stride(0),
            plan.block_tables.stride(0),
            KV_HEADS=kv_heads,
            GROUP=heads // kv_heads,
            HEAD_DIM=dim,
            DIM=padded_dim,
            BLOCK_SIZE=block_size,
            ROWS=settings.rows,
            QUERIES=tiles.queries,
            KEYS=settings.keys,
            STAGES=settings.stages,
            WINDOW=self.window or 0,
            SOFTCAP=self.softcap is not None,
            SINKS=self.sinks is not None,
            SCALED=self.kv_scales is not None,
            EACH=tiles.index is None,
            SPLIT=splits > 0,
            SPLIT_KEYS=SPLIT_KEYS if self.attention.invariant else 0,
            ALIKE=self.attention.invariant,
            num_warps=settings.warps,
        )
        if splits:
            reduction_kernel[(tiles.count * tiles.queries, heads)](
                partial,
                lse,
                self.out,
                self.sinks if self.sinks is not None else lse,
                tiles.index if tiles.index is not None else plan.seq_lens,
                plan.query_start_loc,
                splits,
                HEADS=heads,
                HEAD_DIM=dim,
                DIM=padded_dim,
                QUERIES=tiles.queries,
                SINKS=self.sinks is not None,
                EACH=tiles.index is None,
                num_warps=4,
            )

    def _partials(self, tiles: Tiles, splits: int) -> tuple[Tensor, Tensor]:
        """Room for split results and their log-sum-exps; nothing where there are no splits."""
        if not splits:
            return self.out, self.out
        shape = (tiles.count, tiles.queries, self.query.shape[1], splits)
        lse = torch.empty(shape, dtype=torch.float32, device=self.query.device)
        return torch.empty((*shape, self.query.shape[2]), dtype=torch.float32, device=self.query.device), lse
