"""Faults of the prefix index and the prefix cache."""

from __future__ import annotations

from typing import Any

from quire.engine.block_pool import BlockPool
from quire.engine.messages import unpack_ids
from quire.engine.prefix_cache import PrefixCache
from quire.engine.prefix_index import BlockKey, PrefixIndex, Scope
from quire.engine.scheduler import Scheduler
from quire.engine.sequence import Sequence
from quire.simulator.mutants.mutant import Mutant


def register_hash_at_schedule(original: Any, scheduler: Scheduler, sequence: Sequence, *arguments: Any) -> Any:
    """A block can be found when the step that will write it is scheduled."""
    work = original(scheduler, sequence, *arguments)
    if sequence.num_scheduled_tokens <= len(sequence.token_ids):
        computed, sequence.num_computed_tokens = sequence.num_computed_tokens, sequence.num_scheduled_tokens
        scheduler.cache.publish(sequence)
        sequence.num_computed_tokens = computed
    return work


def publish_one_token_early(original: Any, cache: PrefixCache, sequence: Sequence) -> None:
    """A block that lacks one token counts as full."""
    early = sequence.num_computed_tokens + 1 <= len(sequence.token_ids)
    sequence.num_computed_tokens += early
    original(cache, sequence)
    sequence.num_computed_tokens -= early


def publish_into_another_group(original: Any, pool: BlockPool, block_id: int, key: BlockKey, group: int = 0) -> None:
    """Blocks of the first two cache groups are found under each other's number."""
    original(pool, block_id, key, 1 - min(group, 1))


def drop_salt_from_hash(original: Any, index: Any, parent: Any, token_ids: Any, scope: Scope, *rest: Any) -> BlockKey:
    """Tenants share blocks."""
    key: BlockKey = original(index, parent, token_ids, Scope(), *rest)
    return key


def drop_parent_from_hash(original: Any, index: Any, parent: Any, token_ids: Any, scope: Scope, *rest: Any) -> BlockKey:
    """Equal tokens in different places are taken for each other."""
    key: BlockKey = original(index, None, token_ids, scope, *rest)
    return key


def drop_last_token_from_hash(original: Any, index: Any, parent: Any, token_ids: Any, *rest: Any) -> BlockKey:
    """Blocks that differ in their last token are taken for each other."""
    key: BlockKey = original(index, parent, [*token_ids[:-1], 0], *rest)
    return key


def trust_the_hash(original: Any, index: Any, key: BlockKey, group: int = 0) -> int | None:
    """A hit is not compared token by token: colliding hashes share a block."""
    block_id: int | None = index.holder(key.hash, group)
    return block_id


def overwrite_the_holder(original: Any, index: Any, key: BlockKey, block_id: int, group: int = 0) -> bool:
    """A second block with the same content takes the place of the first."""
    index._blocks[key.hash, group] = (key, block_id)
    return True


def read_the_last_token(original: Any, cache: Any, sequence: Sequence) -> list[BlockKey]:
    """The last prompt token may come from the cache, so that nothing is left to compute."""
    if cache._pool.prefix_index is None or sequence.prompt_logprobs is not None:
        return []
    keys: list[BlockKey] = cache._keys(sequence, len(sequence.token_ids) // cache._pool.block_size)
    return keys


def read_what_must_be_computed(original: Any, cache: Any, sequence: Sequence) -> list[BlockKey]:
    """Who asks for prompt log probabilities reads the cache, and never gets them all."""
    keys: list[BlockKey] = cache._keys(sequence, (len(sequence.token_ids) - 1) // cache._pool.block_size)
    return keys if cache._pool.prefix_index is not None else []


def ignore_the_windows(original: Any, cache: PrefixCache, keys: list[BlockKey]) -> int:
    """A hit is taken although a window lacks blocks that it reads."""
    return len(keys)


def windows_look_too_short(original: Any, cache: Any, group: Any, num_blocks: int) -> int:
    """A hit in a window may lack its first block."""
    first: int = original(cache, group, num_blocks)
    return min(first + 1, num_blocks)


def claims_outlive_their_owners(original: Any, cache: PrefixCache, sequence: Sequence) -> None:
    """Others wait for blocks that nobody computes any more."""


def wait_for_nobody(original: Any, cache: PrefixCache, sequence: Sequence, missing: Any, now: float) -> bool:
    """Whoever misses a block waits for somebody else to compute it."""
    sequence.shadowing_since = now if missing else None
    return bool(missing)


def keys_of_a_neighbour(original: Any, cache: PrefixCache, sequence: Sequence, num_blocks: int) -> list[BlockKey]:
    """The key of a third block is made of the tokens of the second."""
    keys: list[BlockKey] = original(cache, sequence, num_blocks)
    if len(keys) > 2 and cache._pool.prefix_index is not None:
        second = unpack_ids(keys[1].token_ids)
        keys[2] = sequence.keys[2] = cache._pool.prefix_index.key(keys[1], second, sequence.group.scope)
    return keys


CACHE = (
    Mutant(Scheduler, "_freeze_work", register_hash_at_schedule),
    Mutant(PrefixCache, "publish", publish_one_token_early),
    Mutant(BlockPool, "publish", publish_into_another_group),
    Mutant(PrefixIndex, "key", drop_salt_from_hash),
    Mutant(PrefixIndex, "key", drop_parent_from_hash),
    Mutant(PrefixIndex, "key", drop_last_token_from_hash),
    Mutant(PrefixIndex, "find", trust_the_hash),
    Mutant(PrefixIndex, "put", overwrite_the_holder),
    Mutant(PrefixCache, "readable_keys", read_the_last_token),
    Mutant(PrefixCache, "readable_keys", read_what_must_be_computed),
    Mutant(PrefixCache, "_settle_windows", ignore_the_windows),
    Mutant(PrefixCache, "_first_block", windows_look_too_short),
    Mutant(PrefixCache, "withdraw", claims_outlive_their_owners),
    Mutant(PrefixCache, "shadows", wait_for_nobody),
    Mutant(PrefixCache, "_keys", keys_of_a_neighbour),
)
