"""Fair sharing by API key: virtual token counters (VTC).

Source: Sheng et al., "Fairness in Serving Large Language Models", arXiv 2401.00588, sections 4.1 and 4.2.

Each key has a counter of the service it had: `PROMPT_WEIGHT` for a prompt token computed, `OUTPUT_WEIGHT` for a token
of an answer, divided by the key's weight. Whoever waits and has the smallest counter goes first. Tokens found in the
prefix cache cost nothing, and neither does what is computed again after a preemption. A key that begins to wait is
lifted to the smallest counter of those that wait already: time in which it asked for nothing is no credit.

The bound (invariant I13): of two keys that wait all the time, with weight 1, none gets more service than the other by
more than 2 x max(PROMPT_WEIGHT x longest prompt, OUTPUT_WEIGHT x tokens that the pool holds). It holds because nobody
passes a sequence of another key that lacks room: the one with the smallest counter is served, or nobody is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Items

from quire.engine.queues import MAX_PARTIAL_PREFILLS, WaitingQueue, preemptible
from quire.engine.sequence import Sequence

PROMPT_WEIGHT = 1
OUTPUT_WEIGHT = 2


class FairQueue:
    """A waiting queue for each key, in the order of arrival, and a counter for each (`Queue`)."""

    def __init__(self) -> None:
        self._lanes: dict[str, WaitingQueue] = {}
        """By key; none is empty."""
        self._service: dict[str, float] = {}
        self._last_level = 0.0
        """The counter of the key that was the last to wait."""

    def __len__(self) -> int:
        return sum(len(lane) for lane in self._lanes.values())

    def __iter__(self) -> Iterator[Sequence]:
        for lane in self._lanes.values():
            yield from lane

    def service(self, key_id: str) -> float:
        """What the key has had, by weight; comparable with others' while both wait."""
        return self._service.get(key_id, 0.0)

    def add(self, sequence: Sequence) -> None:
        """Into its key's queue; a key that did not wait loses what credit it had over those that do."""
        key_id = sequence.group.key_id
        lane = self._lanes.get(key_id)
        if lane is None:
            level = min((self.service(other) for other in self._lanes), default=self._last_level)
            self._service[key_id] = max(self.service(key_id), level)
            lane = self._lanes[key_id] = WaitingQueue()
        lane.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """See `Queue.remove`."""
        self._lanes[sequence.group.key_id].remove(sequence)
        self._close_empty(sequence.group.key_id)

    def next(self, now: float, tried: Collection[Sequence]) -> Sequence | None:
        """The first of the key with the smallest counter that has one not among `tried`.

        A sequence that was tried and lacks room lets others of its own key pass, as under fcfs, and nobody else; one
        that waits for its own prefix to be computed holds nobody up.
        """
        for key_id in sorted(self._lanes, key=self._rank):
            lane = self._lanes[key_id]
            sequence = lane.next(now, tried)
            if sequence is not None:
                return sequence
            if any(other.group.key_id == key_id and other.shadowing_since is None for other in tried):
                return None
        return None

    def refuse(self, sequence: Sequence, now: float) -> None:
        """See `Queue.refuse`."""
        self._lanes[sequence.group.key_id].refuse(sequence, now)

    def take(self, sequence: Sequence) -> None:
        """See `Queue.take`."""
        self._lanes[sequence.group.key_id].take(sequence)
        self._close_empty(sequence.group.key_id)

    def victim(self, running: Items[Sequence]) -> Sequence | None:
        """The newest of the key that has had most, of those that may be preempted."""
        candidates = preemptible(running)
        return max(candidates, key=lambda s: (self.service(s.group.key_id), s.order), default=None)

    def makes_way(self, running: Items[Sequence]) -> Sequence | None:
        """Where the key that is next has nothing that runs: the newest of the key that has had most and runs several.

        So a light key's first token does not wait until one of a heavy key's answers has ended. Most of what is lost
        lies in the prefix cache when its turn comes again.
        """
        if not self._lanes:
            return None
        counts = Counter(sequence.group.key_id for sequence in running)
        if min(self._lanes, key=self._rank) in counts:
            return None
        candidates = [s for s in preemptible(running) if counts[s.group.key_id] > 1]
        return max(candidates, key=lambda s: (self.service(s.group.key_id), s.order), default=None)

    def charge(self, sequence: Sequence, num_tokens: int) -> None:
        """Add what the tokens beyond those charged before cost to the counter of the sequence's key."""
        new = num_tokens - sequence.num_charged_tokens
        if new <= 0:
            return
        num_output = max(0, min(new, num_tokens - sequence.num_prompt_tokens))
        cost = PROMPT_WEIGHT * (new - num_output) + OUTPUT_WEIGHT * num_output
        group = sequence.group
        self._service[group.key_id] = self.service(group.key_id) + cost / group.weight
        sequence.num_charged_tokens = num_tokens

    def first_served(self, partial: Items[Sequence]) -> Items[Sequence]:
        """Those of keys with small counters first."""
        return sorted(partial, key=lambda s: (self.service(s.group.key_id), s.order))

    def may_begin(self, sequence: Sequence, partial: Items[Sequence]) -> bool:
        """As under fcfs, and always for a key that has no prompt under way."""
        key_id = sequence.group.key_id
        return len(partial) < MAX_PARTIAL_PREFILLS or all(other.group.key_id != key_id for other in partial)

    def _rank(self, key_id: str) -> tuple[float, tuple[int, ...]]:
        return self.service(key_id), next(iter(self._lanes[key_id])).order

    def _close_empty(self, key_id: str) -> None:
        if not self._lanes[key_id]:
            del self._lanes[key_id]
            self._last_level = self.service(key_id)
