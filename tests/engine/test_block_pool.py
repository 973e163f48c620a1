"""The block pool against a model of dicts and lists, and its edges."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quire.engine.block_pool import BlockPool
from quire.engine.cache_groups import NULL_BLOCK
from quire.engine.prefix_index import PrefixIndex, Scope

BLOCK_SIZE = 2
NUM_BLOCKS = 9
ORDER = [3, 0, 8, 1, 5, 7, 2, 6, 4]


class PoolAgainstModel(RuleBasedStateMachine):
    """Tables of random prompts, shared where they are cached; the model is a list of free blocks and two dicts."""

    hash_bits = 128
    num_groups = 1
    """Cache groups; with more than one there is a null block."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(b"secret", self.hash_bits)
        self.num_null = int(self.num_groups > 1)
        self.free = [block_id for block_id in ORDER if block_id != NULL_BLOCK or not self.num_null]
        self.pool = BlockPool(
            NUM_BLOCKS, BLOCK_SIZE, prefix_index=self.index, order=self.free.copy(), null_block=self.num_null > 0
        )
        self.tables: list[tuple[list[int], list[int], int]] = []
        """Blocks, tokens, cache group."""
        self.cached: dict[tuple[int, tuple[int, ...]], int] = {}
        """Group and whole prefix -> block."""
        self.pinned: list[int] = [NULL_BLOCK] * self.num_null

    def _references(self, block_id: int) -> int:
        return sum(table.count(block_id) for table, _, _ in self.tables) + self.pinned.count(block_id)

    def _free(self, block_id: int) -> None:
        if self._references(block_id) == 0:
            self.free.insert(len(self.free) if block_id in self.cached.values() else 0, block_id)

    def _keys(self, tokens: list[int], count: int) -> list:  # type: ignore[type-arg]
        keys: list = []  # type: ignore[type-arg]
        for start in range(0, count * BLOCK_SIZE, BLOCK_SIZE):
            parent = keys[-1] if keys else None
            keys.append(self.index.key(parent, tokens[start : start + BLOCK_SIZE], Scope()))
        return keys

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=9), group=st.integers(0, 2))
    def admit(self, tokens: list[int], group: int) -> None:
        """A new table: the cached prefix, then blocks from the head of the free list."""
        group %= self.num_groups
        readable = (len(tokens) - 1) // BLOCK_SIZE
        hit = self.pool.find_prefix(self._keys(tokens, readable), group)
        expected = []
        for end in range(BLOCK_SIZE, readable * BLOCK_SIZE + 1, BLOCK_SIZE):
            if (group, tuple(tokens[:end])) not in self.cached:
                break
            expected.append(self.cached[group, tuple(tokens[:end])])
        assert hit == expected
        needed = -(-len(tokens) // BLOCK_SIZE) - len(hit)
        free = [block_id for block_id in self.free if block_id not in hit]
        if needed > len(free):
            return
        assert self.pool.count_unreferenced(hit) == len(self.free) - len(free)
        self.pool.share(hit)
        fresh = self.pool.allocate(needed)
        assert fresh == free[:needed]
        self.free = free[needed:]
        self.cached = {prefix: block_id for prefix, block_id in self.cached.items() if block_id not in fresh}
        self.tables.append((hit + fresh, tokens, group))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def publish(self, data: st.DataObject) -> None:
        """All full blocks of a table may be found; duplicates stay private."""
        table, tokens, group = data.draw(st.sampled_from(self.tables))
        full = len(tokens) // BLOCK_SIZE
        for number, (key, block_id) in enumerate(zip(self._keys(tokens, full), table, strict=False), start=1):
            if block_id in self.pinned[: self.num_null]:
                continue
            prefix = group, tuple(tokens[: number * BLOCK_SIZE])
            taken = self.index.holder(key.hash, group) is not None
            self.pool.publish(block_id, key, group)
            if not taken and block_id not in self.cached.values():
                self.cached[prefix] = block_id

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """A table ends."""
        position = data.draw(st.integers(0, len(self.tables) - 1))
        table, _, _ = self.tables.pop(position)
        self.pool.release(table)
        for number in range(len(table) - 1, -1, -1):
            # As if the table shrank from its end.
            self.tables.append((table[:number], [], 0))
            self._free(table[number])
            self.tables.pop()

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        """A step in flight holds a block."""
        table, _, _ = data.draw(st.sampled_from(self.tables))
        self.pool.pin(table[-1])
        self.pinned.append(table[-1])

    @precondition(lambda self: self.num_null and self.tables)
    @rule(data=st.data())
    def slide(self, data: st.DataObject) -> None:
        """A window slides past the first blocks of a table, which name the null block from now on."""
        table, _, _ = data.draw(st.sampled_from(self.tables))
        start = table.count(NULL_BLOCK)
        end = data.draw(st.integers(start, max(start, len(table) - 1)))
        gone = table[start:end]
        self.pool.release(gone)
        self.pool.share([NULL_BLOCK] * len(gone))
        for number in range(end - 1, start - 1, -1):
            block_id, table[number] = table[number], NULL_BLOCK
            self._free(block_id)

    @precondition(lambda self: len(self.pinned) > self.num_null)
    @rule()
    def unpin(self) -> None:
        """That step was applied."""
        block_id = self.pinned.pop(self.num_null)
        self.pool.unpin(block_id)
        self._free(block_id)

    @rule(block_id=st.integers(0, NUM_BLOCKS - 1))
    def forget(self, block_id: int) -> None:
        """The content of a block is doubtful."""
        self.pool.forget([block_id])
        self.cached = {prefix: holder for prefix, holder in self.cached.items() if holder != block_id}

    @invariant()
    def agrees(self) -> None:
        """Same free list, same references, same index; and the pool finds no fault in itself."""
        assert self.pool.free_block_ids() == self.free
        assert [self.pool.references(b) for b in range(NUM_BLOCKS)] == [self._references(b) for b in range(NUM_BLOCKS)]
        assert {b for b in range(NUM_BLOCKS) if self.pool.is_cached(b)} == set(self.cached.values())
        assert self.pool.num_cached == len(self.cached)
        assert self.pool.num_used == NUM_BLOCKS - len(self.free) - self.num_null
        assert self.pool.check([table for table, _, _ in self.tables]) == []


class PoolWithCollisions(PoolAgainstModel):
    """The same with hashes of two bits: collisions everywhere, and still only true prefixes are found."""

    hash_bits = 2


class PoolWithGroups(PoolAgainstModel):
    """Two cache groups that share the blocks and nothing else, and the null block."""

    num_groups = 2


TestPoolAgainstModel = PoolAgainstModel.TestCase
TestPoolWithCollisions = PoolWithCollisions.TestCase
TestPoolWithGroups = PoolWithGroups.TestCase
TestPoolAgainstModel.settings = TestPoolWithCollisions.settings = TestPoolWithGroups.settings = settings(
    max_examples=70, stateful_step_count=40, deadline=None, derandomize=True, database=None
)


def chain(index: PrefixIndex, tokens: list[int], scope: Scope = Scope(), size: int = 2):  # type: ignore[no-untyped-def]  # noqa: B008
    """Keys of all full blocks of `tokens`."""
    keys: list = []  # type: ignore[type-arg]
    for start in range(0, len(tokens) - size + 1, size):
        keys.append(index.key(keys[-1] if keys else None, tokens[start : start + size], scope))
    return keys


def test_blocks_are_handed_out_in_the_given_order() -> None:
    pool = BlockPool(4, 1, order=[2, 0, 3, 1])
    assert pool.allocate(3) == [2, 0, 3]
    assert pool.allocate(2) is None
    assert pool.num_free == 1


def test_an_order_that_is_no_permutation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"permutation of 0\.\.3"):
        BlockPool(4, 1, order=[0, 1, 1, 2])


def test_release_of_a_free_block_raises() -> None:
    pool = BlockPool(2, 1)
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.release(blocks)
    with pytest.raises(ValueError, match="no block table holds it"):
        pool.release(blocks)


def test_release_does_not_take_a_pin_away() -> None:
    pool = BlockPool(2, 1)
    blocks = pool.allocate(1)
    assert blocks is not None
    pool.pin(blocks[0])
    pool.release(blocks)
    assert pool.num_free == 1
    with pytest.raises(ValueError, match="no block table holds it"):
        pool.release(blocks)
    pool.unpin(blocks[0])
    assert pool.num_free == 2
    with pytest.raises(ValueError, match="no step holds it"):
        pool.unpin(blocks[0])


def test_publishing_what_nobody_holds_raises() -> None:
    index = PrefixIndex()
    pool = BlockPool(2, 2, prefix_index=index)
    with pytest.raises(ValueError, match="nobody holds it"):
        pool.publish(0, index.key(None, [1, 2], Scope()))


def test_leaves_are_evicted_before_the_prefix_that_leads_to_them() -> None:
    index = PrefixIndex()
    pool = BlockPool(4, 2, prefix_index=index)
    table = pool.allocate(3)
    assert table is not None
    keys = chain(index, [1, 2, 3, 4, 5, 6])
    for block_id, key in zip(table, keys, strict=True):
        pool.publish(block_id, key)
    pool.release(table)
    pool.allocate(2)  # the block that caches nothing, and the leaf
    assert pool.find_prefix(keys) == table[:2]


def test_the_generation_counts_hand_outs() -> None:
    pool = BlockPool(1, 1)
    for generation in (1, 2):
        blocks = pool.allocate(1)
        assert blocks == [0]
        assert pool.generation(0) == generation
        pool.release(blocks)


def test_every_field_of_the_scope_separates() -> None:
    index = PrefixIndex(b"secret")
    scopes = [Scope(), Scope(salt=b"a"), Scope(salt=b"b"), Scope(adapter_epoch=1), Scope(model_epoch=1)]
    keys = [index.key(None, [1, 2], scope) for scope in scopes] + [index.key(None, [1, 2], Scope(), b"image")]
    assert len({key.hash for key in keys}) == len(keys)
    assert index.put(keys[0], 0)
    assert [index.find(key) for key in keys[:5]] == [0, None, None, None, None]


def test_the_secret_changes_every_hash() -> None:
    assert PrefixIndex(b"a").key(None, [1], Scope()).hash != PrefixIndex(b"b").key(None, [1], Scope()).hash


def test_a_collision_is_a_miss_even_deep_in_the_chain() -> None:
    index = PrefixIndex(hash_bits=0)  # every hash is 0
    first, second = chain(index, [1, 2, 7, 7]), chain(index, [3, 4, 7, 7])
    assert index.put(first[1], 5)
    assert index.find(first[1]) == 5
    assert index.find(second[1]) is None, "same last block, another prefix"
    assert index.find(chain(index, [1, 2, 7, 7])[1]) == 5, "an equal chain made anew"
    assert not index.put(second[1], 6)


@pytest.mark.parametrize("planted", ["reference", "free", "index", "pin"])
def test_check_finds_what_is_broken(planted: str) -> None:
    index = PrefixIndex()
    pool = BlockPool(4, 2, prefix_index=index)
    table = pool.allocate(2)
    assert table is not None
    pool.publish(table[0], index.key(None, [1, 2], Scope()))
    assert pool.check([table]) == []
    if planted == "reference":
        assert any("I2" in line for line in pool.check([table[:1]]))
    elif planted == "pin":
        pool.pin(table[0])
        assert pool.check([table]) == []
        assert any("I2" in line for line in pool.check([table, table[:1]]))
    elif planted == "free":
        pool._references[3] = 1
        assert any("I1" in line for line in pool.check([table, [3]]))
    else:
        pool._keys[table[0]] = None
        assert any("I5" in line for line in pool.check([table]))


def test_thousands_of_tables_leave_nothing_behind() -> None:
    """A long random life at another scale than the model's."""
    rng = random.Random(0)
    index = PrefixIndex()
    pool = BlockPool(64, 2, prefix_index=index)
    tables: list[list[int]] = []
    for _ in range(3000):
        if tables and rng.random() < 0.5:
            pool.release(tables.pop(rng.randrange(len(tables))))
            continue
        tokens = [rng.randrange(3) for _ in range(rng.randint(2, 16))]
        keys = chain(index, tokens)
        hit = pool.find_prefix(keys)
        pool.share(hit)
        fresh = pool.allocate(len(keys) - len(hit))
        if fresh is None:
            pool.release(hit)
            continue
        tables.append(hit + fresh)
        for block_id, key in zip(tables[-1], keys, strict=True):
            pool.publish(block_id, key)
    for table in tables:
        pool.release(table)
    assert pool.num_used == 0
    assert pool.check([]) == []
