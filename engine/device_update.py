"""What a step changes in the device's state before anything is computed: rows that begin, blocks, copies of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quire.engine.device_state import DeviceState, parameter_words
from quire.engine.kv_cache import KVCache
from quire.engine.packed_words import Int32Array, Part, Words
from quire.engine.runner_seams import BlockCopier
from quire.engine.step import Step

NewBlocks = tuple[int, int, tuple[tuple[int, ...], ...]]
"""Row, entry of its tables at which they begin, and for each cache group the ids."""


class Update:
    """Made on the host, applied on the device."""

    def __init__(
        self,
        step: Step,
        tokens: Mapping[int, Int32Array],
        blocks: Sequence[NewBlocks],
        state: DeviceState,
        words: Words,
    ) -> None:
        """`tokens`: the ids that each new row begins with."""
        self._state = state
        self._records: tuple[Part, Part] | None = None
        if step.new_rows:
            rows = [new_row.row for new_row in step.new_rows]
            records = [parameter_words(new.params, new.choice, new.num_prompt_tokens) for new in step.new_rows]
            self._records = words.put(rows), words.put(np.concatenate(records))
        self._tokens = [(row, words.put(ids)) for row, ids in tokens.items()]
        self._blocks: tuple[Part, Part] | None = None
        if blocks:
            places = [state.block_places(row, first, len(ids[0])) for row, first, ids in blocks]
            block_ids = [block_id for _, _, ids in blocks for table in ids for block_id in table]
            self._blocks = words.put(np.concatenate(places)), words.put(block_ids)
        self._copies = words.put(np.array(step.block_copies)) if step.block_copies else None

    @property
    def is_empty(self) -> bool:
        """Whether nothing changes."""
        return not (self._tokens or self._records or self._blocks or self._copies)

    def apply(self, cache: KVCache, kernels: BlockCopier) -> None:
        """Launch the kernels."""
        if self._records is not None:
            rows, records = self._records
            self._state.begin_rows(rows(), records())
        for row, ids in self._tokens:
            self._state.put_tokens(row, ids())
        if self._blocks is not None:
            places, block_ids = self._blocks
            self._state.put_blocks(places(), block_ids())
        if self._copies is not None:
            pairs = self._copies().long().view(-1, 2)
            for keys, values in cache.stripes:
                kernels.copy_blocks(keys, values, pairs)
