"""The invariants of scheduler, queues and block pool, checked from outside: each returned line names the broken one.

I1-I3, I5 and the free list's half of I7 are the pool's own (`BlockPool.check`). Here: I2's tables, I4, I6, I9, I10 and
that every row and every claim has exactly one living owner, and that a table names the null block exactly where its
group's window has slid past. The cost is linear in the pool.
"""

from __future__ import annotations

from collections import Counter

from quire.engine.cache_groups import NULL_BLOCK
from quire.engine.scheduler import Scheduler
from quire.engine.sequence import Sequence, Status


def violations(scheduler: Scheduler) -> list[str]:
    """Every violated invariant of this moment; empty when sound."""
    roster, pool = scheduler.roster, scheduler.pool
    holders = roster.running + roster.leaving
    return [
        *pool.check([table for sequence in holders for table in sequence.block_tables]),
        *_places(scheduler),
        *(line for sequence in roster.running for line in _counters(scheduler, sequence)),
        *(line for sequence in roster.running for line in _tables(scheduler, sequence)),
        *_rows(scheduler, holders),
        *_writes(scheduler),
        *_idle(scheduler),
    ]


def _places(scheduler: Scheduler) -> list[str]:
    """I9: each unfinished choice is in exactly one place, in the state of that place; nobody else is anywhere."""
    roster = scheduler.roster
    registered = {sequence for group in roster.groups.values() for sequence in group.choices.values()}
    places = {
        "running": (roster.running, (Status.RUNNING,)),
        "queue": (list(roster.queue), (Status.WAITING, Status.PREEMPTED)),
        "forks": ([fork for group in roster.groups.values() for fork in group.forks], (Status.WAITING,)),
        "leaving": (roster.leaving, (Status.PREEMPTED, Status.FINISHED)),
    }
    found: list[str] = []
    seen = Counter(sequence for sequences, _ in places.values() for sequence in sequences)
    for name, (sequences, states) in places.items():
        waits = name in ("queue", "forks")
        for sequence in sequences:
            status = sequence.status
            if status not in states:
                found.append(f"I9: {sequence} lies in {name}")
            if (sequence in registered) is (status is Status.FINISHED):
                found.append(f"I9: {sequence} in {name} is registered and finished, or neither")
            if waits and (sequence.row >= 0 or sequence.block_tables):
                found.append(f"I6: {sequence} in {name} holds a row or blocks")
    found += [f"I9: {sequence} is in {seen[sequence]} places" for sequence in registered if seen.get(sequence) != 1]
    if roster.running != sorted(roster.running, key=lambda sequence: sequence.order):
        found.append("I9: the running sequences are out of order")
    return found


def _counters(scheduler: Scheduler, sequence: Sequence) -> list[str]:
    """I10: the counters chase each other, within the known tokens, the table and the maximum length."""
    computed, scheduled, target = (
        sequence.num_computed_tokens,
        sequence.num_scheduled_tokens,
        sequence.num_target_tokens,
    )
    found = []
    if not 0 <= computed <= scheduled <= target <= sequence.max_computed_tokens:
        found.append(f"I10: counters of {sequence} are out of order (at most {sequence.max_computed_tokens})")
    if computed > len(sequence.token_ids) or len(sequence.token_ids) > scheduler.config.max_model_len:
        found.append(f"I10: {sequence} knows {len(sequence.token_ids)} tokens")
    if (computed == scheduled) is not (sequence.num_steps_in_flight == 0):
        found.append(f"I10: {sequence} has {sequence.num_steps_in_flight} steps in flight")
    return found


def _tables(scheduler: Scheduler, sequence: Sequence) -> list[str]:
    """I10: one table a cache group, all long enough, the null block where nobody reads and nowhere else."""
    tables, groups, block_size = sequence.block_tables, scheduler.groups, scheduler.pool.block_size
    if not tables:
        return []
    found = []
    if len(tables) != len(groups) or len({len(table) for table in tables}) != 1:
        found.append(f"I10: {sequence} has not one table of one length for each of {len(groups)} cache groups")
    if sequence.num_scheduled_tokens > len(tables[0]) * block_size:
        found.append(f"I10: {sequence} has too few blocks")
    for group, table in zip(groups, tables, strict=False):
        passed = range(group.first_block(sequence.num_computed_tokens, block_size))
        if group.window is not None and [i for i, block_id in enumerate(table) if block_id == NULL_BLOCK] != [*passed]:
            found.append(f"I10: {sequence} must name the null block in its first {len(passed)} entries, and only there")
    return found


def _rows(scheduler: Scheduler, holders: list[Sequence]) -> list[str]:
    """Rows split into free and held; claims and copies belong to running sequences."""
    roster = scheduler.roster
    rows = sorted(roster.free_rows + [sequence.row for sequence in holders])
    found = []
    if rows != list(range(scheduler.config.max_num_seqs)):
        found.append(f"I10: rows are not each free or held once: {rows}")
    found += [f"I6: {claimant} claims a block" for claimant in scheduler.cache.claimants() - set(roster.running)]
    found += [f"I6: {owner} awaits a copy" for owner in set(roster.copies) - set(roster.running)]
    found += [f"I6: {s} has left, and no step holds it" for s in roster.leaving if not s.num_steps_in_flight]
    return found


def _writes(scheduler: Scheduler) -> list[str]:
    """I4: a block that a step in flight writes has one owner, and cannot be found."""
    pool, found = scheduler.pool, []
    for flight in scheduler.flights:
        for sequence, start, end in flight.works:
            written = slice(start // pool.block_size, -(-end // pool.block_size))
            for block_id in [block_id for table in sequence.block_tables for block_id in table[written]]:
                if pool.owners(block_id) != 1 or pool.is_cached(block_id):
                    found.append(f"I4: block {block_id} is written by {sequence}, and {pool.owners(block_id)} own it")
    return found


def _idle(scheduler: Scheduler) -> list[str]:
    """I19: with no request and no step in flight nothing is held."""
    if scheduler.has_work():
        return []
    if scheduler.pool.num_used or scheduler.roster.leaving or len(scheduler.roster.queue):
        return [f"I19: idle, but {scheduler.pool.num_used} blocks are used"]
    return []
