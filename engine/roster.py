"""The roster: who waits, who runs, who is leaving, and the ways from one to the other.

    add -> queue -> start -> running -> leave(FINISHED)  ............ settle -> gone
             ^                    |
             └──── settle ───────── leave(PREEMPTED)

A sequence that leaves while a step in flight still writes its blocks is only marked; `settle` takes row and blocks from
it once the last such step has been applied.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection

from quire.engine.block_pool import BlockPool
from quire.engine.block_tables import BlockTables
from quire.engine.config import Policy
from quire.engine.fair_queue import FairQueue
from quire.engine.messages import (
    Add,
    Failure,
    FinishReason,
    OutputRow,
    TokenLogprobs,
    pack_ids,
)
from quire.engine.prefix_cache import PrefixCache
from quire.engine.queues import Queue, WaitingQueue, sort_key
from quire.engine.sequence import Group, Sequence, Status
from quire.engine.step import NewRow


class Roster:
    """Every unfinished request, its sequences, and the rows and blocks that they hold. Written by the `Scheduler`."""

    def __init__(
        self, max_num_seqs: int, policy: Policy, pool: BlockPool, tables: BlockTables, cache: PrefixCache
    ) -> None:
        if policy not in ("fcfs", "priority", "fair"):
            raise ValueError(f"policy must be fcfs, priority or fair, found {policy!r}")
        self._policy, self._pool, self._tables, self._cache = policy, pool, tables, cache
        self.groups: dict[str, Group] = {}
        self.queue: Queue = FairQueue() if policy == "fair" else WaitingQueue()
        self.running: list[Sequence] = []
        """In their order."""
        self.leaving: list[Sequence] = []
        """Marked, with row and blocks still held by a step in flight."""
        self.free_rows = list(reversed(range(max_num_seqs)))
        self.released_rows: list[int] = []
        """To be named in the next Step."""
        self.copies: dict[Sequence, list[tuple[int, int]]] = {}
        """Forked sequence -> (source, target) of the copies that the next Step makes for it; each source is pinned."""
        self._num_arrivals = 0

    def add(self, add: Add, now: float, max_model_len: int) -> Group:
        """Register a request; its first choice is queued, the others fork from it."""
        group = Group(add, arrived_at=now)
        self._num_arrivals += 1
        for choice in range(add.params.n):
            order: tuple[int, ...] = (self._num_arrivals, choice)
            if self._policy == "priority":
                order = (add.priority, *order)
            group.choices[choice] = Sequence(group, add, choice, order, max_model_len)
        self.groups[group.request_id] = group
        self._elect(group, list(group.choices.values()))
        return group

    def start(self, sequence: Sequence) -> NewRow:
        """Give `sequence` a row; it runs."""
        sequence.row = self.free_rows.pop()
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=sort_key)
        return NewRow(
            row=sequence.row,
            request_id=sequence.group.request_id,
            choice=sequence.choice,
            params=sequence.params,
            token_ids=pack_ids(sequence.token_ids),
            num_prompt_tokens=sequence.num_prompt_tokens,
        )

    def leave(self, sequence: Sequence, status: Status) -> None:
        """Mark `sequence` as preempted or finished, wherever it was; `settle` does the rest."""
        group = sequence.group
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
            self._cache.withdraw(sequence)
            self.leaving.append(sequence)
        elif sequence in group.forks:
            group.forks.remove(sequence)
        elif sequence not in self.leaving:
            self.queue.remove(sequence)
        sequence.status = status
        if status is Status.FINISHED:
            del group.choices[sequence.choice]
            if not group.choices:
                del self.groups[group.request_id]
            if group.leader is sequence:
                self._elect(group, group.forks)

    def _elect(self, group: Group, choices: list[Sequence]) -> None:
        """The first of the choices that have not begun computes the prompt; the others will fork from it."""
        group.leader, group.forks = (choices[0], choices[1:]) if choices else (None, [])
        if group.leader is not None:
            self.queue.add(group.leader)

    def settle(self) -> None:
        """Take row and blocks from whoever left and is held by no step in flight; the preempted return to the queue."""
        if not self.leaving:
            return
        held = [sequence for sequence in self.leaving if sequence.num_steps_in_flight]
        for sequence in self.leaving:
            if sequence.num_steps_in_flight == 0:
                self._release(sequence)
        self.leaving = held

    def _release(self, sequence: Sequence) -> None:
        for source, _ in self.copies.pop(sequence, ()):
            self._pool.unpin(source)
        if sequence.block_tables:
            self._tables.end(sequence)
        self.free_rows.append(sequence.row)
        self.released_rows.append(sequence.row)
        sequence.rewind()
        if sequence.status is Status.PREEMPTED:
            self.queue.add(sequence)

    def finish(self, sequences: Collection[Sequence], reason: FinishReason) -> list[OutputRow]:
        """End sequences from outside; their terminal rows."""
        rows = [output_row(sequence, (), reason) for sequence in sequences]
        for sequence in sequences:
            self.leave(sequence, Status.FINISHED)
        return rows

    def fail(self, group: Group, failure: Failure) -> list[OutputRow]:
        """End a whole request by a failure; its keys and values are not to be trusted, nor found."""
        sequences = list(group.choices.values())
        rows = [output_row(sequence, (), "error", failure=failure) for sequence in sequences]
        for sequence in sequences:
            self._cache.distrust(sequence)
            self.leave(sequence, Status.FINISHED)
        return rows


def output_row(
    sequence: Sequence,
    token_ids: tuple[int, ...],
    reason: FinishReason | None,
    *,
    failure: Failure | None = None,
    logprobs: tuple[TokenLogprobs, ...] | None = None,
) -> OutputRow:
    """What `sequence` gained: `token_ids`, already appended to it. The first row carries what is told once."""
    group = sequence.group
    row = OutputRow(group.request_id, sequence.choice, pack_ids(token_ids), reason, failure, logprobs)
    if sequence.num_output_tokens == len(token_ids):
        row.num_cached_tokens = group.num_cached_tokens
        if group.first_scheduled_at is not None:
            row.queue_seconds = group.first_scheduled_at - group.arrived_at
        if sequence.prompt_logprobs is not None and len(sequence.prompt_logprobs) == sequence.num_prompt_tokens:
            row.prompt_logprobs = tuple(sequence.prompt_logprobs)
            sequence.prompt_logprobs = None
    return row
