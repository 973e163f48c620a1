"""The waiting queue: who is tried next for admission, and who gives way when blocks run out.

Both policies are one sorted list; they differ in `Sequence.order`, which is (arrival, choice) under fcfs and
(priority, arrival, choice) under priority. Fair sharing by key is a later policy.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Items

from quire.engine.sequence import Sequence

MAX_PASSES = 8
MAX_PASSED_SECONDS = 2.0
MAX_PREEMPTIONS = 3


def sort_key(sequence: Sequence) -> tuple[int, ...]:
    """The order of running and of waiting sequences."""
    return sequence.order


class WaitingQueue:
    """Sequences without a row, in their order; a preempted one returns to its old place."""

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def add(self, sequence: Sequence) -> None:
        """Into its place."""
        insort(self._sequences, sequence, key=sort_key)

    def remove(self, sequence: Sequence) -> None:
        """Out, without having been admitted."""
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
        """Who gives way, of `running` in their order: the last that holds blocks, never the first.

        A sequence that has been preempted `MAX_PREEMPTIONS` times holds all it will ever need, and is spared.
        """
        for sequence in reversed(running[1:]):
            if sequence.block_tables and sequence.num_preemptions < MAX_PREEMPTIONS:
                return sequence
        return None
