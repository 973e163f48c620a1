"""The cache report: how far the prefix cache served a prompt, and why no further.

    prompt     [hit][hit][ ? ][   ][rest]
                          │          └── never found: no full block, or the one with the last token
                          └── the first block that was missed decides:
                              it lies in the index's past                          evicted
                              the same key has it under another salt               salt
                              a cached block begins alike, after the same prefix   diverged, with the first other token
                              nothing is like it                                   never_seen

What is cached now is found through `ExplainingIndex`, a prefix index that also knows the children of each block and the
hashes of those it lost last. It does constant work a block, whether somebody asks or not; all else is done for requests
that asked. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice

from quire.engine.block_pool import BlockPool
from quire.engine.flight import Flight
from quire.engine.messages import Add, CacheReport, MissReason, OutputRow, unpack_ids
from quire.engine.prefix_index import BlockKey, PrefixIndex, Scope
from quire.engine.sequence import Sequence

MAX_LOST = 4096
"""Blocks that are remembered as evicted."""
MAX_COMPARED = 256
"""Children of one block that a prompt is compared with, the newest first."""
MAX_KEYS, MAX_SALTS = 1024, 8
"""API keys whose salts are remembered, and salts of each."""


class ExplainingIndex(PrefixIndex):
    """A prefix index that can tell what it lost, and what lies beside a prefix that it does not have.

    Of the cache groups it watches the first: what another group lost is missing there, and so was evicted.
    """

    def __init__(self, secret: bytes = b"", hash_bits: int = 128) -> None:
        super().__init__(secret, hash_bits)
        self._children: dict[bytes | Scope, dict[bytes, BlockKey]] = {}
        """Hash of a block, or the scope for first blocks -> the blocks that follow it, by hash, in order of arrival."""
        self._lost: OrderedDict[bytes, None] = OrderedDict()

    def put(self, key: BlockKey, block_id: int, group: int = 0) -> bool:
        """See `PrefixIndex.put`."""
        placed = super().put(key, block_id, group)
        if placed and group == 0:
            self._children.setdefault(_place(key), {})[key.hash] = key
            self._lost.pop(key.hash, None)
        return placed

    def drop(self, key: BlockKey, group: int = 0) -> None:
        """See `PrefixIndex.drop`."""
        super().drop(key, group)
        if group:
            return
        place = _place(key)
        del self._children[place][key.hash]
        if not self._children[place]:
            del self._children[place]
        self._lost[key.hash] = None
        if len(self._lost) > MAX_LOST:
            self._lost.popitem(last=False)

    def had(self, key: BlockKey) -> bool:
        """Whether this block, which `find` misses, was there not long ago, or still is for a part of the layers."""
        return key.hash in self._lost or key.hash in self._children.get(_place(key), ())

    def nearest(self, key: BlockKey) -> tuple[int, BlockKey] | None:
        """The cached block after the same prefix that begins most like `key`, and how many tokens they share."""
        siblings = reversed(self._children.get(_place(key), {}).values())
        compared = ((_common_tokens(key, sibling), sibling) for sibling in islice(siblings, MAX_COMPARED))
        return max(compared, key=lambda entry: entry[0], default=None)


class CacheReports:
    """Requests that asked and have not been admitted, reports that have not been sent, the salts of each API key."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._asked: dict[str, str] = {}
        """Request -> its API key."""
        self._ready: dict[str, CacheReport] = {}
        self._salts: OrderedDict[str, OrderedDict[bytes, None]] = OrderedDict()

    def note(self, add: Add) -> None:
        """A request comes: remember which salt its key uses, and whether it asks."""
        salts = self._salts.get(add.key_id)
        if salts is None or add.salt not in salts:
            salts = self._salts.setdefault(add.key_id, OrderedDict())
            salts[add.salt] = None
            if len(salts) > MAX_SALTS:
                salts.popitem(last=False)
            if len(self._salts) > MAX_KEYS:
                self._salts.popitem(last=False)
        if add.explain is not None and add.explain.cache_report:
            self._asked[add.request_id] = add.key_id

    def admitted(self, flight: Flight) -> None:
        """A step has been scheduled: whoever begins in it and asked is reported on."""
        if not self._asked:
            return
        for sequence, _, _ in flight.works:
            key_id = self._asked.pop(sequence.group.request_id, None)
            if key_id is not None:
                self._ready[sequence.group.request_id] = self._explain(sequence, key_id)

    def sign(self, rows: Iterable[OutputRow]) -> None:
        """Send each report with the first row of its request; a request that ends unadmitted gets none."""
        if not (self._asked or self._ready):
            return
        for row in rows:
            row.cache_report = self._ready.pop(row.request_id, None)
            if row.finish_reason is not None:
                self._asked.pop(row.request_id, None)

    def _explain(self, sequence: Sequence, key_id: str) -> CacheReport:
        size, num_tokens = self._pool.block_size, sequence.num_prompt_tokens
        num_cached = sequence.group.num_cached_tokens
        keys = sequence.keys[: (num_tokens - 1) // size]
        position = num_cached
        neighbour_token_ids: tuple[int, ...] = ()
        reason: MissReason
        if sequence.prompt_logprobs is not None:
            reason = "prompt_logprobs"
        elif not isinstance(self._pool.prefix_index, ExplainingIndex):
            reason = "disabled"
        elif num_cached // size == len(keys):
            reason = "not_full_block" if num_tokens % size else "last_token"
        else:
            reason, num_alike, neighbour_token_ids = self._explain_miss(
                self._pool.prefix_index, keys[num_cached // size], key_id
            )
            position += num_alike
        return CacheReport(
            num_prompt_tokens=num_tokens,
            num_cached_tokens=num_cached,
            block_size=size,
            reason=reason,
            position=position,
            neighbour_token_ids=neighbour_token_ids,
        )

    def _explain_miss(
        self, index: ExplainingIndex, missed: BlockKey, key_id: str
    ) -> tuple[MissReason, int, tuple[int, ...]]:
        """Why, how many of the block's tokens are like a cached block's, and what that one has instead of the rest."""
        if index.had(missed):
            return "evicted", 0, ()
        if missed.parent is None and any(index.find(key) is not None for key in self._elsewhere(index, missed, key_id)):
            return "salt", 0, ()
        nearest = index.nearest(missed)
        if nearest is None or (nearest[0] == 0 and missed.parent is None):
            return "never_seen", 0, ()
        num_alike, sibling = nearest
        return "diverged", num_alike, tuple(unpack_ids(sibling.token_ids)[num_alike:])

    def _elsewhere(self, index: PrefixIndex, first: BlockKey, key_id: str) -> Iterator[BlockKey]:
        """The same first block under each other salt of the same API key."""
        for salt in self._salts.get(key_id, ()):
            if salt != first.scope.salt:
                yield index.key(None, unpack_ids(first.token_ids), first.scope._replace(salt=salt))


def _place(key: BlockKey) -> bytes | Scope:
    return key.scope if key.parent is None else key.parent.hash


def _common_tokens(first: BlockKey, second: BlockKey) -> int:
    """How many tokens two blocks begin with alike."""
    pairs = zip(unpack_ids(first.token_ids), unpack_ids(second.token_ids), strict=True)
    return next((count for count, (mine, theirs) in enumerate(pairs) if mine != theirs), len(first.token_ids) // 4)
