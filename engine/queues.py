"""The waiting queue: who is tried next for admission, and who gives way when blocks run out.

fcfs and priority are one sorted list; they differ in `Sequence.order`, which is (arrival, choice) under fcfs and
(priority, arrival, choice) under priority. Fair sharing by key is `quire.engine.fair_queue`.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Items
from typing import Protocol

from quire.engine.sequence import Sequence

MAX_PASSES = 8
MAX_PASSED_SECONDS = 2.0
MAX_PREEMPTIONS = 3
MAX_PARTIAL_PREFILLS = 4
"""Prompts in the middle of their computation at one time."""


def sort_key(sequence: Sequence) -> tuple[int, ...]:
    """The order of running and of waiting sequences."""
    return sequence.order


class Queue(Protocol):
    """A policy: sequences without a row, and every question of who comes before whom."""

    def __len__(self) -> int:
        """How many wait."""

    def __iter__(self) -> Iterator[Sequence]:
        """Each of them once."""

    def add(self, sequence: Sequence) -> None:
        """Into its place; a preempted one returns to its old place."""

    def remove(self, sequence: Sequence) -> None:
        """Out, without having been admitted."""

    def next(self, now: float, tried: Collection[Sequence]) -> Sequence | None:
        """Who may be admitted now and is not among `tried`, or None."""

    def refuse(self, sequence: Sequence, now: float) -> None:
        """The pool has no room for it now."""

    def take(self, sequence: Sequence) -> None:
        """Out, admitted."""

    def victim(self, running: Items[Sequence]) -> Sequence | None:
        """Who gives way, of `running` in their order; never the first, and None when nobody may be asked."""

    def makes_way(self, running: Items[Sequence]) -> Sequence | None:
        """Who gives way, of `running` in their order, to one that waits and finds every row taken; None: nobody."""

    def charge(self, sequence: Sequence, num_tokens: int) -> None:
        """Its first `num_tokens` tokens have been served: prompt tokens computed, or tokens of the answer sampled."""

    def first_served(self, partial: Items[Sequence]) -> Items[Sequence]:
        """Prompts under way, in the order in which they take from the budget; given in their order."""

    def may_begin(self, sequence: Sequence, partial: Items[Sequence]) -> bool:
        """Whether a prompt too long for one step may begin beside those under way."""


class WaitingQueue:
    """One sorted list (`Queue`)."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def add(self, sequence: Sequence) -> None:
        """See `Queue.add`."""
        insort(self._sequences, sequence, key=sort_key)

    def remove(self, sequence: Sequence) -> None:
        """See `Queue.remove`."""
        self._sequences.remove(sequence)

    def next(self, now: float, tried: Collection[Sequence]) -> Sequence | None:
        """The first one not among `tried`, or None.

        One that does not fit may be passed by later ones that do, but only `MAX_PASSES` times and
        `MAX_PASSED_SECONDS` long; from then on nobody passes it, so that freed blocks add up to what it needs.
        """
        for sequence in self._sequences:
            if sequence not in tried:
                return sequence
            if sequence.refused_since is not None and (
                sequence.num_passed >= MAX_PASSES or now - sequence.refused_since >= MAX_PASSED_SECONDS
            ):
                return None
        return None

    def refuse(self, sequence: Sequence, now: float) -> None:
        """The pool has no room for it now; its patience begins."""
        if sequence.refused_since is None:
            sequence.refused_since = now

    def take(self, sequence: Sequence) -> None:
        """Out, admitted; whoever stood before it and had been refused has been passed once more."""
        for earlier in self._sequences:
            if earlier is sequence:
                break
            earlier.num_passed += earlier.refused_since is not None
        self._sequences.remove(sequence)
        sequence.num_passed, sequence.refused_since = 0, None

    def victim(self, running: Items[Sequence]) -> Sequence | None:
        """The last of `running` that holds blocks and may be preempted."""
        candidates = preemptible(running)
        return candidates[-1] if candidates else None

    def makes_way(self, running: Items[Sequence]) -> Sequence | None:
        """Nobody: rows come free in their time."""
        return None

    def charge(self, sequence: Sequence, num_tokens: int) -> None:
        """Nobody asks who had how much."""

    def first_served(self, partial: Items[Sequence]) -> Items[Sequence]:
        """In their order."""
        return partial

    def may_begin(self, sequence: Sequence, partial: Items[Sequence]) -> bool:
        """While fewer than `MAX_PARTIAL_PREFILLS` are under way."""
        return len(partial) < MAX_PARTIAL_PREFILLS


def preemptible(running: Items[Sequence]) -> list[Sequence]:
    """Those of `running` that hold blocks and may lose them: never the first, which is the oldest.

    A sequence that has been preempted `MAX_PREEMPTIONS` times holds all it will ever need, and is spared.
    """
    return [s for s in running[1:] if s.block_tables and s.num_preemptions < MAX_PREEMPTIONS]
