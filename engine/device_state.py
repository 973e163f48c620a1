"""What the device remembers of each row from step to step: token ids, block tables, how it samples.

The host sends what is new (`quire.engine.packed_words`); a token that was sampled is appended here and never visits the
host on its way to the next step. Rows are as in `quire.engine.step`; there is one more, `padding_row`, for the places
of a batch that nobody has: its position is -1.

Everything here launches kernels whose shapes the host knows, and reads nothing back: to be called inside enqueued work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from quire.engine.cache_groups import NULL_BLOCK, CacheGroup
from quire.engine.packed_words import Int32Array
from quire.engine.sampling_params import SamplingParams
from quire.kernels.fused import SamplingTensors
from quire.kernels.interface import AttentionPlan
from quire.kernels.noise import row_key

PARAMETER_WORDS = 10
"""Words of a row's record: what `parameter_words` packs."""
_NUM_PROMPT, _TOP_K, _TEMPERATURE, _TOP_P, _MIN_P, _REPETITION, _PRESENCE, _FREQUENCY = range(8)
_KEY = slice(8, 10)


def parameter_words(params: SamplingParams, choice: int, num_prompt_tokens: int) -> Int32Array:
    """A row's record."""
    words = np.zeros(PARAMETER_WORDS, dtype=np.int32)
    words[:2] = num_prompt_tokens, min(params.top_k, 2**31 - 1)
    words[2:8].view(np.float32)[:] = (
        params.temperature,
        params.top_p,
        params.min_p,
        params.repetition_penalty,
        params.presence_penalty,
        params.frequency_penalty,
    )
    words[_KEY].view(np.int64)[:] = row_key(params.seed or 0, choice)
    return words


class Parameters:
    """The records of R rows, field by field; each tensor [R] and contiguous, as kernels read them by address."""

    def __init__(self, records: Tensor) -> None:
        """`records` int32 [R, PARAMETER_WORDS]."""
        self._keys = records[:, _KEY].contiguous().view(torch.int64).squeeze(1)
        fields = records[:, : _KEY.start].t().contiguous()
        numbers = fields.view(torch.float32)
        self.num_prompt_tokens, self._top_k = fields[_NUM_PROMPT], fields[_TOP_K]
        self.repetition, self.presence, self.frequency = (
            numbers[field] for field in (_REPETITION, _PRESENCE, _FREQUENCY)
        )
        self._temperature, self._top_p, self._min_p = (numbers[field] for field in (_TEMPERATURE, _TOP_P, _MIN_P))

    def sampling(self, positions: Tensor, masked: Tensor) -> SamplingTensors:
        """For tokens at `positions` int64 [R]; `masked` bool [R] as in `SamplingTensors`."""
        return SamplingTensors(self._temperature, self._top_k, self._top_p, self._min_p, self._keys, positions, masked)


class DeviceState:
    """Rectangles for up to `max_rows` rows of up to `max_tokens` tokens."""

    def __init__(
        self, max_rows: int, max_tokens: int, block_size: int, groups: Sequence[CacheGroup], device: torch.device
    ) -> None:
        self.block_size, self.groups, self.padding_row = block_size, tuple(groups), max_rows
        self.max_blocks = -(-max_tokens // block_size)
        self._num_rows, self._width = max_rows + 1, max_tokens + 1
        # One column more: where the token behind the longest sequence goes, which nobody reads.
        self.token_ids = torch.zeros((self._num_rows, self._width), dtype=torch.int32, device=device)
        self._block_ids = torch.zeros(
            (len(self.groups), self._num_rows, self.max_blocks), dtype=torch.int32, device=device
        )
        self._parameters = torch.zeros((self._num_rows, PARAMETER_WORDS), dtype=torch.int32, device=device)
        self._columns = torch.arange(self.max_blocks, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.token_ids.nbytes + self._block_ids.nbytes + self._parameters.nbytes

    def begin_rows(self, rows: Tensor, records: Tensor) -> None:
        """`rows` int32 [N] begin with `records` int32 [N * PARAMETER_WORDS]."""
        self._parameters.index_copy_(0, rows.long(), records.view(-1, PARAMETER_WORDS))

    def put_tokens(self, row: int, tokens: Tensor) -> None:
        """The first token ids of a row, int32 [n]."""
        self.token_ids[row, : len(tokens)] = tokens

    def block_places(self, row: int, first: int, count: int) -> Int32Array:
        """On the host: where `count` block ids from entry `first` of each of a row's tables go, group by group."""
        starts = np.arange(len(self.groups)) * self._num_rows + row
        return (starts[:, None] * self.max_blocks + np.arange(first, first + count)).astype(np.int32).reshape(-1)

    def put_blocks(self, places: Tensor, block_ids: Tensor) -> None:
        """Block ids int32 [N] to `block_places` int32 [N]."""
        self._block_ids.view(-1).index_copy_(0, places.long(), block_ids)

    def append(self, rows: Tensor, positions: Tensor, tokens: Tensor) -> None:
        """Sampled tokens int64 [R] (below 0: none, token 0 stands for it) at `positions` of `rows`, int64 [R]."""
        self.token_ids.index_put_((rows, positions), tokens.clamp(min=0).int())

    def tokens(self, rows: Tensor, positions: Tensor) -> Tensor:
        """The model's input: int64 [T] at int64 `positions` of `rows`."""
        return self.token_ids[rows, positions].long()

    def parameters(self, rows: Tensor) -> Parameters:
        """The records of int64 rows [R]."""
        return Parameters(self._parameters.index_select(0, rows))

    def slots(self, rows: Tensor, positions: Tensor) -> list[Tensor]:
        """For each group: int64 [T], where the keys and values at `positions` of `rows` go; -1 below position 0."""
        at = positions.clamp(min=0)
        columns, offsets = at // self.block_size, at % self.block_size
        return [
            (tables[rows, columns].long() * self.block_size + offsets).masked_fill(positions < 0, -1)
            for tables in self._block_ids
        ]

    def plans(
        self,
        rows: Tensor,
        starts: Tensor,
        seq_lens: Tensor,
        query_start_loc: Tensor,
        slots: Sequence[Tensor],
        lists: tuple[tuple[int, ...], tuple[int, ...]],
        num_blocks: int,
    ) -> list[AttentionPlan]:
        """A plan for each group: S sequences, whose first query stands at position starts[s].

        rows, starts int64 [S]; `lists` are the host's query_start_list and seq_lens_list; tables have `num_blocks`
        columns.
        """
        return [
            AttentionPlan(
                query_start_loc=query_start_loc,
                seq_lens=seq_lens,
                block_tables=self._tables(group, rows, starts, num_blocks),
                slot_mapping=slots[group],
                query_start_list=lists[0],
                seq_lens_list=lists[1],
            )
            for group in range(len(self.groups))
        ]

    def _tables(self, group: int, rows: Tensor, starts: Tensor, num_blocks: int) -> Tensor:
        """int32 [S, num_blocks]; what lies behind the window is null."""
        tables = self._block_ids[group, :, :num_blocks].index_select(0, rows)
        window = self.groups[group].window
        if window is None:
            return tables
        first = (starts - window + 1).clamp(min=0) // self.block_size
        return tables.masked_fill(self._columns[:num_blocks] < first.unsqueeze(1), NULL_BLOCK)
