"""The block pool: who holds which block of the KV cache. The only writer of reference counts, free list, prefix index.

A block is in one of three states: referenced (by block tables, or pinned by a step in flight), cached (no reference,
but its content may be found through the prefix index), free (no reference, nothing worth keeping). The last two lie in
one doubly linked list, threaded through two arrays, so that a prefix hit takes its block out in O(1):

    head -> free, free, ... , cached (released longest ago) ... cached (released last) -> tail

Allocation takes from the head: that is least-recently-used eviction. A table is released from its last block to its
first, so a leaf is evicted before the prefix that leads to it.

With a null block, block 0 is held for ever: tables may name it, but it is never handed out, written or cached.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quire.engine.cache_groups import NULL_BLOCK
from quire.engine.faults import NO_FAULTS, Faults
from quire.engine.prefix_index import BlockKey, PrefixIndex


class BlockPool:
    """`num_blocks` blocks of `block_size` token slots.

    `order` is the initial order of the free list, a permutation of all block ids but the null block's (default:
    ascending); tests shuffle it so that no block table is a range. `prefix_index` None switches prefix caching off.
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        prefix_index: PrefixIndex | None = None,
        order: Sequence[int] | None = None,
        null_block: bool = False,
        faults: Faults = NO_FAULTS,
    ) -> None:
        block_ids = range(NULL_BLOCK + 1 if null_block else 0, num_blocks)
        order = block_ids if order is None else order
        if sorted(order) != list(block_ids):
            raise ValueError(
                f"order must be a permutation of {block_ids.start}..{num_blocks - 1}, found {len(order)} entries"
            )
        self.num_blocks, self.block_size, self.prefix_index = num_blocks, block_size, prefix_index
        self.num_free = 0
        self._faults = faults
        self._references = [0] * num_blocks
        self._pins = [0] * num_blocks
        self._generations = [0] * num_blocks
        self._keys: list[BlockKey | None] = [None] * num_blocks
        self._groups = [0] * num_blocks
        """Under which cache group a keyed block can be found."""
        # The list is circular through one extra entry, `_end`, whose neighbours are head and tail.
        self._end = num_blocks
        self._previous = [self._end] * (num_blocks + 1)
        self._next = [self._end] * (num_blocks + 1)
        for block_id in order:
            self._link_before(self._end, block_id)
        self.num_usable = self.num_free
        """All blocks but the null block."""
        if null_block:
            self._references[NULL_BLOCK] = self._pins[NULL_BLOCK] = 1

    # --- questions ---

    @property
    def has_null_block(self) -> bool:
        """Whether block tables may name `NULL_BLOCK` where nobody reads."""
        return self.num_usable < self.num_blocks

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_usable - self.num_free

    @property
    def num_cached(self) -> int:
        """Blocks, referenced or not, that the prefix index knows."""
        return 0 if self.prefix_index is None else len(self.prefix_index)

    def references(self, block_id: int) -> int:
        """Table slots and pins that name the block."""
        return self._references[block_id]

    def owners(self, block_id: int) -> int:
        """Table slots that name the block."""
        return self._references[block_id] - self._pins[block_id]

    def generation(self, block_id: int) -> int:
        """How often the block has been handed out."""
        return self._generations[block_id]

    def find(self, key: BlockKey, group: int = 0) -> int | None:
        """The cache group's block of this key, or None; it is not referenced yet."""
        return None if self.prefix_index is None else self.prefix_index.find(key, group)

    def find_prefix(self, keys: Iterable[BlockKey], group: int = 0) -> list[int]:
        """The group's blocks of the longest prefix of `keys` that is cached; nothing is referenced yet."""
        found: list[int] = []
        if self.prefix_index is not None:
            for key in keys:
                block_id = self.prefix_index.find(key, group)
                if block_id is None:
                    break
                found.append(block_id)
        return found

    def count_unreferenced(self, block_ids: Iterable[int]) -> int:
        """How many of these lie in the free list, so that sharing them takes from it."""
        return sum(self._references[block_id] == 0 for block_id in block_ids)

    def free_block_ids(self) -> list[int]:
        """The free list from head to tail: the order of eviction."""
        block_ids, block_id = [], self._next[self._end]
        while block_id != self._end:
            block_ids.append(block_id)
            block_id = self._next[block_id]
        return block_ids

    def is_cached(self, block_id: int) -> bool:
        """Whether the block can be found through the prefix index."""
        return self._keys[block_id] is not None

    def contents(self) -> tuple[list[int], list[BlockKey | None]]:
        """Copies, by block id: references, and the key under which the block can be found."""
        return self._references.copy(), self._keys.copy()

    # --- commands ---

    def allocate(self, count: int) -> list[int] | None:
        """`count` blocks with one reference each, evicting what they cached; None, and no change, if too few."""
        if count > self.num_free or self._faults.rarely("pool.refuse"):
            return None
        if self._faults.rarely("pool.evict"):
            self.forget(self.free_block_ids())
        return [self._take_head() for _ in range(count)]

    def share(self, block_ids: Iterable[int]) -> None:
        """One more reference to each; a cached block leaves the free list."""
        for block_id in block_ids:
            if self._references[block_id] == 0:
                self._unlink(block_id)
            self._references[block_id] += 1

    def release(self, block_ids: Sequence[int]) -> None:
        """One reference less to each, last block first; raises ValueError for a block that has no owner."""
        for block_id in reversed(block_ids):
            if self.owners(block_id) <= 0:
                raise ValueError(f"block {block_id} is released but no block table holds it")
            self._drop_reference(block_id)

    def pin(self, block_id: int) -> None:
        """Keep a block for a step in flight, whoever else lets it go."""
        self.share((block_id,))
        self._pins[block_id] += 1

    def unpin(self, block_id: int) -> None:
        """End one `pin`; raises ValueError for a block that is not pinned."""
        if self._pins[block_id] <= 0:
            raise ValueError(f"block {block_id} is unpinned but no step holds it")
        self._pins[block_id] -= 1
        self._drop_reference(block_id)

    def publish(self, block_id: int, key: BlockKey, group: int = 0) -> None:
        """Let others find a full block whose writing step has been applied; a duplicate stays private."""
        if self._references[block_id] == 0 or (block_id == NULL_BLOCK and self.has_null_block):
            raise ValueError(f"block {block_id} is published but nobody holds it")
        index = self.prefix_index
        if index is not None and self._keys[block_id] is None and index.put(key, block_id, group):
            self._keys[block_id], self._groups[block_id] = key, group

    def forget(self, block_ids: Iterable[int]) -> None:
        """Take blocks out of the prefix index: their content is doubtful or about to be overwritten."""
        for block_id in block_ids:
            key = self._keys[block_id]
            if key is not None and self.prefix_index is not None:
                self.prefix_index.drop(key, self._groups[block_id])
                self._keys[block_id] = None

    def check(self, tables: Iterable[Sequence[int]]) -> list[str]:
        """Violations of invariants I1-I7, given every block table that exists; empty when sound."""
        free = self.free_block_ids()
        held = self._pins.copy()
        for table in tables:
            for block_id in table:
                held[block_id] += 1
        found = []
        if len(set(free)) != len(free) or len(free) != self.num_free:
            found.append(f"I1: free list holds {len(free)} entries, {len(set(free))} distinct, counted {self.num_free}")
        if self._references != held or min(self._pins) < 0 or self._pins[NULL_BLOCK] < self.has_null_block:
            found += [
                f"I2: block {block_id} has {references} references, {held[block_id] - pins} slots and {pins} pins"
                for block_id, (references, pins) in enumerate(zip(self._references, self._pins, strict=True))
                if references != held[block_id] or pins < (block_id == NULL_BLOCK and self.has_null_block)
            ]
        referenced = {block_id for block_id, references in enumerate(self._references) if references}
        if referenced & set(free) or len(referenced) + len(set(free)) != self.num_blocks:
            found.append("I1, I3: free list and referenced blocks do not split the pool")
        return found + self._check_index()

    def _check_index(self) -> list[str]:
        keyed = [(b, key, self._groups[b]) for b, key in enumerate(self._keys) if key is not None]
        if self.prefix_index is None:
            return [f"I5: {len(keyed)} blocks are keyed without a prefix index"] if keyed else []
        holder = self.prefix_index.holder
        found = [
            f"I5: block {block_id} is keyed, but its hash finds {holder(key.hash, group)}"
            for block_id, key, group in keyed
            if holder(key.hash, group) != block_id
        ]
        if len(keyed) != len(self.prefix_index):
            found.append(f"I5: {len(keyed)} blocks are keyed, the index has {len(self.prefix_index)}")
        return found

    # --- the list ---

    def _take_head(self) -> int:
        block_id = self._next[self._end]
        self._unlink(block_id)
        self.forget((block_id,))
        self._references[block_id] = 1
        self._generations[block_id] += 1
        return block_id

    def _drop_reference(self, block_id: int) -> None:
        self._references[block_id] -= 1
        if self._references[block_id] == 0:
            # What caches nothing is handed out first.
            self._link_before(self._end if self._keys[block_id] is not None else self._next[self._end], block_id)

    def _link_before(self, neighbour: int, block_id: int) -> None:
        previous = self._previous[neighbour]
        self._previous[block_id], self._next[block_id] = previous, neighbour
        self._next[previous] = self._previous[neighbour] = block_id
        self.num_free += 1

    def _unlink(self, block_id: int) -> None:
        previous, following = self._previous[block_id], self._next[block_id]
        self._next[previous], self._previous[following] = following, previous
        self.num_free -= 1
