"""Faults of the block pool and of block tables."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Any

from quire.engine.block_pool import BlockPool
from quire.engine.block_tables import BlockTables
from quire.engine.cache_groups import NULL_BLOCK
from quire.engine.forks import Forks
from quire.engine.sequence import Sequence
from quire.simulator.mutants.mutant import Mutant


def skip_one_decref(original: Any, pool: BlockPool, block_ids: Items[int]) -> None:
    """The last block of a table is not released."""
    original(pool, block_ids[:-1])


def free_twice(original: Any, pool: BlockPool, block_ids: Items[int]) -> None:
    """A table is released twice when somebody else holds its first block too."""
    shared = bool(block_ids) and pool.references(block_ids[0]) > 1
    original(pool, block_ids)
    if shared:
        original(pool, block_ids[:1])


def release_parents_first(original: Any, pool: BlockPool, block_ids: Items[int]) -> None:
    """A table is released from its first block to its last."""
    original(pool, block_ids[::-1])


def evict_newest_first(original: Any, pool: Any, block_id: int) -> None:
    """A cached block is put where the next block is taken from."""
    original(pool, block_id)
    if pool._references[block_id] == 0 and pool._keys[block_id] is not None:
        pool._unlink(block_id)
        pool._link_before(pool._next[pool._end], block_id)


def evict_without_forgetting(original: Any, pool: Any) -> int:
    """A block that is handed out can still be found by what it held before."""
    head = pool._next[pool._end]
    key, pool._keys[head] = pool._keys[head], None
    block_id: int = original(pool)
    pool._keys[head] = key
    return block_id


def evict_a_referenced_block(original: Any, pool: Any) -> int:
    """Where a block is used by one sequence, another one gets it too, now and then."""
    block_id: int = original(pool)
    if pool._generations[block_id] % 16 == 15:
        used = [b for b in range(1, pool.num_blocks) if pool.owners(b) == 1 and b != block_id]
        if used:
            pool._drop_reference(block_id)
            pool._references[used[0]] += 1
            block_id = used[0]
    return block_id


def share_a_free_block_in_place(original: Any, pool: Any, block_ids: Iterable[int]) -> None:
    """A cached block that is found stays in the free list."""
    for block_id in block_ids:
        if pool._references[block_id] == 0:
            pool._references[block_id] = 1
        else:
            original(pool, (block_id,))


def share_without_counting(original: Any, pool: Any, block_ids: Iterable[int]) -> None:
    """The third user of a block is not counted."""
    original(pool, [block_id for block_id in block_ids if pool._references[block_id] < 2 or block_id == NULL_BLOCK])


def pin_nothing(original: Any, pool: Any, block_id: int) -> None:
    """A block is marked as pinned, but may be evicted."""
    pool._pins[block_id] += 1


def unpin_keeps_the_reference(original: Any, pool: Any, block_id: int) -> None:
    """After a copy its source is held for ever."""
    pool._pins[block_id] -= 1


def allocate_one_short(original: Any, pool: BlockPool, count: int) -> list[int] | None:
    """Of three blocks and more, the last is forgotten."""
    block_ids: list[int] | None = original(pool, count)
    return block_ids[:-1] if block_ids is not None and count > 2 else block_ids


def allocate_without_counting(original: Any, pool: Any, count: int) -> list[int]:
    """Blocks are handed out whether they are free or not."""
    return [pool._take_head() for _ in range(count)]


def block_count_rounds_down(original: Any, tables: Any, num_tokens: int) -> int:
    """A sequence needs no block for the tokens that do not fill one."""
    num_full_blocks: int = num_tokens // tables._pool.block_size
    return max(1, num_full_blocks) * len(tables._groups)


def hits_are_not_referenced(original: Any, tables: Any, sequence: Sequence, hit: Any, *arguments: Any) -> bool:
    """Blocks found in the cache are used without holding them."""
    begun: bool = original(tables, sequence, hit, *arguments)
    if begun:
        for table in hit:
            for block_id in table:
                if block_id != NULL_BLOCK:
                    tables._pool._drop_reference(block_id)
    return begun


def fork_shares_the_partial_block(original: Any, tables: Any, fork: Sequence, leader: Sequence) -> Any:
    """A choice writes into the block of the choice that it forked from."""
    copies = original(tables, fork, leader)
    for table, (source, target) in zip(fork.block_tables, copies or (), strict=False):
        tables._pool.release((target,))
        tables._pool.share((source,))
        tables._pool.unpin(source)
        table[-1] = source
    return copies and []


def copies_are_not_made(original: Any, forks: Forks, flight: Any) -> tuple[tuple[int, int], ...]:
    """The runner is not told to copy the partial blocks of forks."""
    original(forks, flight)
    return ()


def end_forgets_a_group(original: Any, tables: Any, sequence: Sequence) -> None:
    """Only the first cache group's blocks are released."""
    tables._pool.release(sequence.block_tables[0])
    sequence.block_tables = []


def slide_before_steps_land(original: Any, tables: BlockTables, sequence: Sequence) -> None:
    """A window's blocks go back to the pool while a step in flight still reads them."""
    computed, sequence.num_computed_tokens = sequence.num_computed_tokens, sequence.num_scheduled_tokens
    original(tables, sequence)
    sequence.num_computed_tokens = computed


def slide_keeps_the_blocks(original: Any, tables: Any, sequence: Sequence) -> None:
    """What a window has slid past is no longer named, and not released."""
    released: list[Items[int]] = []
    pool = tables._pool
    pool.release = released.append
    try:
        original(tables, sequence)
    finally:
        del pool.release


def extend_with_a_used_block(original: Any, tables: Any, sequence: Sequence) -> bool:
    """A sequence's next block is its last one again, when it has five."""
    extended: bool = original(tables, sequence)
    table = sequence.block_tables[0]
    if extended and len(table) == 5:
        tables._pool.release((table[-1],))
        tables._pool.share((table[-2],))
        table[-1] = table[-2]
    return extended


BLOCKS = (
    Mutant(BlockPool, "release", skip_one_decref),
    Mutant(BlockPool, "release", free_twice),
    Mutant(BlockPool, "release", release_parents_first),
    Mutant(BlockPool, "_drop_reference", evict_newest_first),
    Mutant(BlockPool, "_take_head", evict_without_forgetting),
    Mutant(BlockPool, "_take_head", evict_a_referenced_block),
    Mutant(BlockPool, "share", share_a_free_block_in_place),
    Mutant(BlockPool, "share", share_without_counting),
    Mutant(BlockPool, "pin", pin_nothing),
    Mutant(BlockPool, "unpin", unpin_keeps_the_reference),
    Mutant(BlockPool, "allocate", allocate_one_short),
    Mutant(BlockPool, "allocate", allocate_without_counting),
    Mutant(BlockTables, "num_blocks", block_count_rounds_down),
    Mutant(BlockTables, "begin", hits_are_not_referenced),
    Mutant(BlockTables, "fork", fork_shares_the_partial_block),
    Mutant(Forks, "freeze_copies", copies_are_not_made),
    Mutant(BlockTables, "end", end_forgets_a_group),
    Mutant(BlockTables, "slide", slide_before_steps_land),
    Mutant(BlockTables, "slide", slide_keeps_the_blocks),
    Mutant(BlockTables, "extend", extend_with_a_used_block),
)
