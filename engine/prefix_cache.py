"""The prefix cache as sequences see it: what they may read, what they will write, when others may find it."""

from __future__ import annotations

from quire.engine.block_pool import BlockPool
from quire.engine.prefix_index import BlockKey
from quire.engine.sequence import Sequence

MAX_SHADOW_SECONDS = 30.0
"""How long a sequence waits for another one to compute the prefix they share."""


class PrefixCache:
    """Between sequences and the pool's index: keys, lookups, claims of blocks being computed, publication."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._claims: dict[bytes, Sequence] = {}
        """Hash of a prompt block that cannot be found yet -> the running sequence that computes it."""

    def readable_keys(self, sequence: Sequence) -> list[BlockKey]:
        """Keys of the blocks that may come from the cache: never the one with the last known token.

        A sequence that owes prompt log probabilities reads nothing: it must compute every position itself.
        """
        if self._pool.prefix_index is None or sequence.prompt_logprobs is not None:
            return []
        return self._keys(sequence, (len(sequence.token_ids) - 1) // self._pool.block_size)

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
                self._pool.publish(sequence.block_table[index], keys[index])
                self._unclaim(sequence, keys[index])
        sequence.num_published_blocks = num_full_blocks

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
