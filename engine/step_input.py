"""The tensors of one step, built once from the `Step` and what the runner remembers of each row.

`RowTable` is that memory: token ids and block tables of all rows as rectangles, one of block ids for each cache group,
so that building the input of a step is a handful of numpy gathers whatever the number of rows, and of which only the
touched pages exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.engine.cache_groups import NULL_BLOCK, ONE_GROUP, CacheGroup
from quire.engine.step import RowWork
from quire.kernels.interface import AttentionPlan

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StepInput:
    """What the model reads in one step: T tokens of S sequences, sequence by sequence.

    `input_ids` int64 [T], `positions` int64 [T] (absolute), `plans` where each token's keys and values lie: for each
    cache group its own.
    """

    input_ids: Tensor
    positions: Tensor
    plans: tuple[AttentionPlan, ...]


@dataclass(frozen=True)
class Layout:
    """Where the T tokens of S works stand, work by work: int64 arrays."""

    rows: Int64Array
    """[S], as are `starts`, the position of a work's first token, and `ends`, the one behind its last."""
    starts: Int64Array
    ends: Int64Array
    query_start: Int64Array
    """[S + 1]: work s has tokens query_start[s] .. query_start[s + 1] - 1."""
    token_rows: Int64Array
    """[T], as are `positions`."""
    positions: Int64Array


def lay_out(works: Sequence[RowWork]) -> Layout:
    """The tokens of `works` (at least one) end to end."""
    rows = np.array([work.row for work in works], dtype=np.int64)
    starts = np.array([work.start for work in works], dtype=np.int64)
    counts = np.array([work.num_tokens for work in works], dtype=np.int64)
    query_start = np.zeros(len(works) + 1, dtype=np.int64)
    np.cumsum(counts, out=query_start[1:])
    if query_start[-1] == len(works):
        token_rows, positions = rows, starts
    else:
        token_rows = np.repeat(rows, counts)
        positions = np.arange(query_start[-1]) - np.repeat(query_start[:-1] - starts, counts)
    return Layout(rows, starts, starts + counts, query_start, token_rows, positions)


class RowTable:
    """Token ids and block tables of up to `max_rows` rows of up to `max_tokens` tokens each."""

    def __init__(
        self, max_rows: int, max_tokens: int, block_size: int, groups: Sequence[CacheGroup] = ONE_GROUP
    ) -> None:
        self.block_size, self.groups = block_size, tuple(groups)
        self.max_tokens = max_tokens
        max_blocks = -(-max_tokens // block_size)
        # calloc: a page that no row has reached costs nothing.
        self._token_ids: Int32Array = np.zeros((max_rows, max_tokens), dtype=np.int32)
        self._block_ids: Int32Array = np.zeros((len(self.groups), max_rows, max_blocks), dtype=np.int32)
        self._num_tokens = [0] * max_rows
        self._num_blocks = [0] * max_rows

    def create(self, row: int, token_ids: bytes) -> None:
        """Begin a row with the known tokens (int32 bytes) and empty block tables."""
        known = np.frombuffer(token_ids, dtype=np.int32)
        if known.size > self.max_tokens:
            raise ValueError(f"row {row} has {known.size} tokens, and the longest sequence is {self.max_tokens}")
        self._token_ids[row, : known.size] = known
        self._num_tokens[row] = known.size
        self._num_blocks[row] = 0

    def append_blocks(self, row: int, block_ids: Sequence[Sequence[int]]) -> None:
        """Extend a row's block tables by equally many ids for each group, or () for none; ValueError for any other."""
        if block_ids:
            if len(block_ids) != len(self.groups):
                raise ValueError(f"block ids for {len(block_ids)} cache groups, and there are {len(self.groups)}")
            first, count = self._num_blocks[row], len(block_ids[0])
            self._block_ids[:, row, first : first + count] = block_ids
            self._num_blocks[row] = first + count

    def append_token(self, row: int, token_id: int) -> None:
        """Append a sampled token; one past the end of the rectangle is dropped (its sequence is over)."""
        count = self._num_tokens[row]
        if count < self.max_tokens:
            self._token_ids[row, count] = token_id
            self._num_tokens[row] = count + 1

    def num_tokens(self, row: int) -> int:
        """Tokens known of a row: prompt and sampled."""
        return self._num_tokens[row]

    def tokens(self, row: int, start: int = 0, stop: int | None = None) -> Int32Array:
        """A view of a row's token ids start .. stop - 1 (default: all known)."""
        return self._token_ids[row, start : self._num_tokens[row] if stop is None else stop]

    def check(self, work: RowWork) -> None:
        """Raise ValueError when `work` names tokens or slots that its row does not have."""
        end = work.start + work.num_tokens
        if work.num_tokens < 1 or work.start < 0 or end > self._num_tokens[work.row]:
            raise ValueError(f"tokens {work.start}..{end - 1} of {self._num_tokens[work.row]} known ones")
        if end > self._num_blocks[work.row] * self.block_size:
            raise ValueError(f"{end} tokens do not fit into {self._num_blocks[work.row]} blocks of {self.block_size}")

    def step_input(self, works: Sequence[RowWork]) -> StepInput:
        """The tensors of a step that computes `works` (at least one, each `check`ed)."""
        layout = lay_out(works)
        rows, starts, ends, query_start = layout.rows, layout.starts, layout.ends, layout.query_start
        token_rows, positions = layout.token_rows, layout.positions
        block_size = self.block_size
        slots = self._block_ids[:, token_rows, positions // block_size].astype(np.int64) * block_size
        slots += positions % block_size
        query_start_loc = torch.from_numpy(query_start.astype(np.int32))
        seq_lens = torch.from_numpy(ends.astype(np.int32))
        query_start_list, seq_lens_list = tuple(query_start.tolist()), tuple(ends.tolist())
        plans = [
            AttentionPlan(
                query_start_loc=query_start_loc,
                seq_lens=seq_lens,
                block_tables=torch.from_numpy(self._tables(group, rows, starts, -(-int(ends.max()) // block_size))),
                slot_mapping=torch.from_numpy(slots[group]),
                query_start_list=query_start_list,
                seq_lens_list=seq_lens_list,
            )
            for group in range(len(self.groups))
        ]
        input_ids = torch.from_numpy(self._token_ids[token_rows, positions].astype(np.int64))
        return StepInput(input_ids, torch.from_numpy(positions), tuple(plans))

    def _tables(self, group: int, rows: Int64Array, starts: Int64Array, num_blocks: int) -> Int32Array:
        """A copy of a group's block tables, in which what lies behind the window of position starts[i] is null."""
        tables = self._block_ids[group, rows, :num_blocks]
        window = self.groups[group].window
        if window is not None:
            first = np.maximum(starts - window + 1, 0) // self.block_size
            tables[np.arange(num_blocks) < first[:, None]] = NULL_BLOCK
        return tables
