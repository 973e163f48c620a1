"""The block tables of sequences: the way from a sequence to the block pool.

    begin     shared blocks of a hit, then new ones for the known tokens
    extend    one more entry
    slide     what the windows have slid past goes back to the pool
    fork      shared blocks, and copies of the partial ones
    end       all blocks go back

A sequence has one table for each cache group, all of one length: entry i is where the group's layers keep the tokens
i * block_size .. (i + 1) * block_size - 1, or the null block when nobody reads them any more.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from itertools import chain

from quire.engine.block_pool import BlockPool
from quire.engine.cache_groups import NULL_BLOCK, CacheGroup, has_window
from quire.engine.sequence import Sequence


class BlockTables:
    """Gives sequences blocks and takes them back; acts for the `Scheduler`, who owns the sequences."""

    def __init__(self, pool: BlockPool, groups: Items[CacheGroup]) -> None:
        """Raises ValueError when a window needs a null block that the pool does not have."""
        if has_window(groups) and not pool.has_null_block:
            raise ValueError("a cache group with a window needs a block pool with a null block")
        self._pool, self._groups = pool, tuple(groups)
        self.has_window = has_window(groups)

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that a sequence holds, at most, while it computes up to `num_tokens`."""
        return len(self._groups) * -(-num_tokens // self._pool.block_size)

    def begin(self, sequence: Sequence, hit: list[list[int]], num_tokens: int, num_kept_free: int) -> bool:
        """Tables for `num_tokens` that begin with those of a hit; False, and no change, if too few blocks are free.

        `num_kept_free` blocks must be left.
        """
        shared = list(chain.from_iterable(hit))
        num_new_blocks = self.num_blocks(num_tokens) - len(shared)
        if self._pool.num_free - self._pool.count_unreferenced(shared) < num_new_blocks + num_kept_free:
            return False
        self._pool.share(shared)
        block_ids = self._pool.allocate(num_new_blocks)
        if block_ids is None:
            self._pool.release(shared)
            return False
        num_groups = len(self._groups)
        sequence.block_tables = [table + block_ids[group::num_groups] for group, table in enumerate(hit)]
        return True

    def extend(self, sequence: Sequence) -> bool:
        """One more entry in each table; False, and no change, if too few blocks are free."""
        block_ids = self._pool.allocate(len(self._groups))
        if block_ids is None:
            return False
        for table, block_id in zip(sequence.block_tables, block_ids, strict=True):
            table.append(block_id)
        return True

    def slide(self, sequence: Sequence) -> None:
        """Release what no token after the computed ones reads; every step that did has been applied."""
        for group, table in zip(self._groups, sequence.block_tables, strict=True):
            if group.window is None:
                continue
            end = first = group.first_block(sequence.num_computed_tokens, self._pool.block_size)
            while first > 0 and table[first - 1] != NULL_BLOCK:
                first -= 1
            if first < end:
                self._pool.release(table[first:end])
                self._pool.share([NULL_BLOCK] * (end - first))
                table[first:end] = [NULL_BLOCK] * (end - first)

    def fork(self, fork: Sequence, leader: Sequence) -> list[tuple[int, int]] | None:
        """Give `fork` the blocks of the prompt that `leader` has computed; the (source, target) copies to be made.

        Full blocks are shared, partial ones copied; each source is pinned until its copy is made. None, and no change,
        if too few blocks are free.
        """
        num_full_blocks, num_rest = divmod(fork.num_prompt_tokens, self._pool.block_size)
        targets = self._pool.allocate(len(self._groups) if num_rest else 0)
        if targets is None:
            return None
        sources = [table[num_full_blocks] for table in leader.block_tables] if num_rest else []
        for source in sources:
            self._pool.pin(source)
        fork.block_tables = [table[:num_full_blocks] for table in leader.block_tables]
        self._pool.share(chain.from_iterable(fork.block_tables))
        for table, target in zip(fork.block_tables, targets, strict=False):
            table.append(target)
        return list(zip(sources, targets, strict=True))

    def end(self, sequence: Sequence) -> None:
        """Release everything, the last blocks of all groups before the earlier ones."""
        tables = sequence.block_tables
        self._pool.release(tables[0] if len(tables) == 1 else list(chain.from_iterable(zip(*tables, strict=True))))
        sequence.block_tables = []
