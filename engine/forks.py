"""Forks: the n choices of one request compute their prompt once.

    the leader's last prompt chunk is scheduled    forks get rows, and sample beside it from the same logits
    that step is applied                           they share its full blocks; the partial ones get targets
    the next step                                  begins with the copies; then leader and forks go their own ways

Nobody of the group computes on between the first line and the second, so a copy is made before anyone writes to it. A
choice for which there is no row, or no block, is queued like any sequence, and finds the prompt in the prefix cache.
"""

from __future__ import annotations

from quire.engine.block_pool import BlockPool
from quire.engine.block_tables import BlockTables
from quire.engine.flight import Draft, Flight
from quire.engine.roster import Roster
from quire.engine.sequence import Sequence, Status


class Forks:
    """What `Scheduler` does for requests with several choices."""

    def __init__(self, pool: BlockPool, tables: BlockTables, roster: Roster) -> None:
        self._pool, self._tables, self._roster = pool, tables, roster

    def start(self, leader: Sequence, draft: Draft) -> list[Sequence]:
        """The choices that will sample beside `leader`, which has scheduled its whole prompt; the others are queued."""
        group, num_rows = leader.group, len(self._roster.free_rows)
        forks, queued = group.forks[:num_rows], group.forks[num_rows:]
        group.leader, group.forks = None, []
        for fork in queued:
            self._roster.queue.add(fork)
        for fork in forks:
            draft.new_rows.append(self._roster.start(fork))
            fork.num_scheduled_tokens = fork.num_target_tokens
            fork.num_charged_tokens = max(fork.num_charged_tokens, fork.num_prompt_tokens)
            fork.num_charged_tokens = fork.num_prompt_tokens
            fork.num_steps_in_flight = 1
        return forks

    def finish(self, flight: Flight) -> None:
        """The choices that have sampled inherit their leader's blocks, even if it ended or was preempted meanwhile."""
        for leader, forks in flight.forks:
            leader.expect_known_tokens()
            for fork in forks:
                if fork.status is Status.RUNNING and not self._inherit(fork, leader):
                    self._roster.leave(fork, Status.PREEMPTED)

    def _inherit(self, fork: Sequence, leader: Sequence) -> bool:
        copies = self._tables.fork(fork, leader)
        if copies is None:
            return False
        if copies:
            self._roster.copies[fork] = copies
        fork.keys = leader.keys[: fork.num_prompt_tokens // self._pool.block_size]
        fork.num_published_blocks = leader.num_published_blocks
        fork.num_computed_tokens = fork.num_scheduled_tokens
        if self._tables.has_window:
            self._tables.slide(fork)  # a leader that has left did not
        fork.expect_known_tokens()
        return True

    def freeze_copies(self, flight: Flight) -> tuple[tuple[int, int], ...]:
        """The copies that the next step makes; it holds both blocks until it has been applied."""
        copies = self._roster.copies
        for owner, pairs in copies.items():
            for source, target in pairs:
                self._pool.pin(target)
                flight.copies.append((owner, source, target))
        block_copies = tuple([pair for pairs in copies.values() for pair in pairs])
        copies.clear()
        return block_copies
