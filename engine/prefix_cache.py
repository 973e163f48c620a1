"""The prefix cache as sequences see it: what they may read, what they will write, when others may find it."""

from __future__ import annotations

from collections.abc import Sequence as Items

from quire.engine.block_pool import BlockPool
from quire.engine.cache_groups import NULL_BLOCK, CacheGroup
from quire.engine.prefix_index import BlockKey
from quire.engine.sequence import Sequence

MAX_SHADOW_SECONDS = 30.0
"""How long a sequence waits for another one to compute the prefix they share."""


class PrefixCache:
    """Between sequences and the pool's index: keys, lookups, claims of blocks being computed, publication."""

    def __init__(self, pool: BlockPool, groups: Items[CacheGroup]) -> None:
        self._pool, self._groups = pool, tuple(groups)
        self._claims: dict[bytes, Sequence] = {}
        """Hash of a prompt block that cannot be found yet -> the running sequence that computes it."""

    def readable_keys(self, sequence: Sequence) -> list[BlockKey]:
        """Keys of the blocks that may come from the cache: never the one with the last known token.

        A sequence that owes prompt log probabilities reads nothing: it must compute every position itself.
        """
        if self._pool.prefix_index is None or sequence.prompt_logprobs is not None:
            return []
        return self._keys(sequence, (len(sequence.token_ids) - 1) // self._pool.block_size)

    def find(self, keys: list[BlockKey]) -> list[list[int]]:
        """The longest prefix of `keys` that every cache group can go on from: its block table in each group.

        A group with a window needs only the blocks that the next token still reads; the null block stands for others.
        """
        tables: dict[int, list[int]] = {}
        for number, group in enumerate(self._groups):
            if group.window is None:
                tables[number] = self._pool.find_prefix(keys, number)
                keys = keys[: len(tables[number])]
        num_blocks = self._settle_windows(keys)
        found = []
        for number, group in enumerate(self._groups):
            if group.window is None:
                found.append(tables[number][:num_blocks])
            else:
                first = self._first_block(group, num_blocks)
                found.append([NULL_BLOCK] * first + self._pool.find_prefix(keys[first:num_blocks], number))
        return found

    def _settle_windows(self, keys: list[BlockKey]) -> int:
        """The greatest number of blocks after which each window finds all that it reads."""
        num_blocks, settled = len(keys), False
        while not settled:
            settled = True
            for number, group in enumerate(self._groups):
                if group.window is not None:
                    first = self._first_block(group, num_blocks)
                    num_found = len(self._pool.find_prefix(keys[first:num_blocks], number))
                    if first + num_found < num_blocks:
                        # No number between needs less: the missing block is within the window of each.
                        num_blocks, settled = first + num_found, False
        return num_blocks

    def _first_block(self, group: CacheGroup, num_blocks: int) -> int:
        return group.first_block(num_blocks * self._pool.block_size, self._pool.block_size)

    def shadows(self, sequence: Sequence, missing: list[BlockKey], now: float) -> bool:
        """Whether a running sequence computes the first of the `missing` blocks, so that waiting saves the work.

        That is how a herd with one system prompt computes it once. The wait ends when the block can be found, when
        its writer leaves, or after `MAX_SHADOW_SECONDS`.
        """
        if not missing or missing[0].hash not in self._claims:
            sequence.shadowing_since = None
            return False
        if sequence.shadowing_since is None:
            sequence.shadowing_since = now
        return now - sequence.shadowing_since < MAX_SHADOW_SECONDS

    def claim(self, sequence: Sequence, missing: list[BlockKey]) -> None:
        """`sequence` is admitted and will compute these blocks."""
        for key in missing:
            self._claims.setdefault(key.hash, sequence)

    def publish(self, sequence: Sequence) -> None:
        """The full blocks that `sequence` has computed may be found from now on; their steps have been applied."""
        num_full_blocks = sequence.num_computed_tokens // self._pool.block_size
        if self._pool.prefix_index is not None:
            keys = self._keys(sequence, num_full_blocks)
            for index in range(sequence.num_published_blocks, num_full_blocks):
                for number, (group, table) in enumerate(zip(self._groups, sequence.block_tables, strict=True)):
                    if group.window is None or table[index] != NULL_BLOCK:
                        self._pool.publish(table[index], keys[index], number)
                self._unclaim(sequence, keys[index])
        sequence.num_published_blocks = num_full_blocks

    def distrust(self, sequence: Sequence) -> None:
        """Nobody may find what `sequence` has read or written, not even what its windows have slid past."""
        for number, (group, table) in enumerate(zip(self._groups, sequence.block_tables, strict=False)):
            self._pool.forget(table)
            if group.window is not None:
                found = [self._pool.find(key, number) for key in sequence.keys[: table.count(NULL_BLOCK)]]
                self._pool.forget([block_id for block_id in found if block_id is not None])

    def withdraw(self, sequence: Sequence) -> None:
        """`sequence` stops running: what it has not published, others must compute themselves."""
        for key in sequence.keys[sequence.num_published_blocks :]:
            self._unclaim(sequence, key)

    def claimants(self) -> set[Sequence]:
        """Everyone with a claim (for checks)."""
        return set(self._claims.values())

    def _unclaim(self, sequence: Sequence, key: BlockKey) -> None:
        if self._claims.get(key.hash) is sequence:
            del self._claims[key.hash]

    def _keys(self, sequence: Sequence, num_blocks: int) -> list[BlockKey]:
        """Keys of the first `num_blocks` blocks, all of whose tokens are known; made once and kept."""
        index, keys, size = self._pool.prefix_index, sequence.keys, self._pool.block_size
        if index is not None:
            for start in range(len(keys) * size, num_blocks * size, size):
                token_ids = sequence.token_ids[start : start + size]
                keys.append(index.key(keys[-1] if keys else None, token_ids, sequence.group.scope))
        return keys[:num_blocks]
