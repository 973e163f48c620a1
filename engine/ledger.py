"""The latency ledger: where a request's time went, to the nanosecond.

Each account (a choice of a request that asked) has a cursor. Whenever the engine knows what it has just done, the time
since the cursor is booked and the cursor moves on, so the entries add up to the whole by construction:

    queue            before the first step that computes something of it
    prefill          steps that compute its prompt
    others_prefill   of the steps that it runs in, the part that others' prompts took, by tokens
    decode           the rest of the steps in which it generates
    preempted        waiting for the blocks it lost, and computing again what it had computed before
    sampling         while it runs, what is no model: sampling, scheduling, messages

A request is delayed by the prompts of others while it waits, too: what each of them took is added up beside the
entries, for as long as the account is open. Pure: times come in as `now`. Nothing but the last steps' names is kept
while no account is open.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from quire.engine.flight import Flight
from quire.engine.messages import Delay, OutputRow, Timings
from quire.engine.sequence import Group, Sequence, Status

MAX_NAMED = 3
"""Neighbours that a ledger names."""
MAX_NEIGHBOURS = 256
"""Of whom the costs are remembered."""

_ENTRIES = _QUEUE, _PREFILL, _OTHERS_PREFILL, _DECODE, _PREEMPTED, _SAMPLING = range(6)


class Ledger:
    """The open accounts, and what has been computed since they were last booked."""

    def __init__(self) -> None:
        self._accounts: dict[tuple[str, int], _Account] = {}
        self._neighbours: dict[str, _Neighbour] = {}
        self._unbooked: list[tuple[_Work, int]] = []
        """Computations since the accounts were booked, in nanoseconds."""
        self._recent: deque[tuple[Flight, float, float]] = deque(maxlen=2)
        """The last computations, for requests that came in the middle of them."""
        self._work: tuple[Flight, _Work] | None = None
        """The newest, taken apart."""

    def open(self, group: Group, began: float, now: float) -> None:
        """Keep the books of a request that has just been added; it was sent at `began`."""
        if (group.request_id, min(group.choices)) in self._accounts:
            return
        self.book(now)
        start, arrived = min(_nanoseconds(began), _nanoseconds(now)), _nanoseconds(now)
        before = {request_id: neighbour.cost for request_id, neighbour in self._neighbours.items()}
        for flight, begin, end in self._recent:
            overlap = _nanoseconds(end) - max(_nanoseconds(begin), start)
            if overlap > 0:
                for other, share in self._take_apart(flight).shares(overlap):
                    self._neighbour(other)
                    before[other.request_id] = before.get(other.request_id, 0) - share
        for sequence in group.choices.values():
            account = _Account(sequence, start, arrived, before)
            self._accounts[group.request_id, sequence.choice] = account

    def computed(self, flight: Flight, begin: float, end: float) -> None:
        """The model worked on the step from `begin` to `end`."""
        self._recent.append((flight, begin, end))
        if self._accounts:
            self._unbooked.append((self._take_apart(flight), _nanoseconds(end) - _nanoseconds(begin)))

    def book(self, now: float) -> None:
        """Book the time up to now. Call when sequences are about to change their state."""
        if not self._accounts:
            return
        for work, nanoseconds in self._unbooked:
            for other, share in work.shares(nanoseconds):
                self._neighbour(other).cost += share
        until = _nanoseconds(now)
        for account in self._accounts.values():
            account.book(self._unbooked, until)
        self._unbooked.clear()

    def sign(self, rows: Iterable[OutputRow], now: Callable[[], float]) -> None:
        """Write the timings into rows of open accounts; a last row closes its account."""
        if not self._accounts:
            return
        at = now()
        if self._unbooked:
            self.book(at)
        for row in rows:
            account = self._accounts.get((row.request_id, row.choice))
            if account is None or (row.finish_reason is None and not account.sequence.params.stop):
                continue
            account.book([], _nanoseconds(at))
            row.timings = account.timings(at, self._neighbours)
            if row.finish_reason is not None:
                del self._accounts[row.request_id, row.choice]
        if not self._accounts:
            self._neighbours.clear()
            self._work = None

    def _take_apart(self, flight: Flight) -> _Work:
        if self._work is None or self._work[0] is not flight:
            self._work = flight, _Work(flight)
        return self._work[1]

    def _neighbour(self, group: Group) -> _Neighbour:
        neighbour = self._neighbours.get(group.request_id)
        if neighbour is None:
            if len(self._neighbours) == MAX_NEIGHBOURS:
                del self._neighbours[next(iter(self._neighbours))]
            neighbour = self._neighbours[group.request_id] = _Neighbour(group.key_id)
        return neighbour


class _Neighbour:
    """A request whose prompt was computed while accounts were open: whose it is, and how long that took."""

    __slots__ = ("cost", "key_id")

    def __init__(self, key_id: str) -> None:
        self.key_id, self.cost = key_id, 0


class _Work:
    """What a step computes: the span of each sequence, and how much of it is prompts."""

    __slots__ = ("num_prefill_tokens", "num_tokens", "prefills", "spans")

    def __init__(self, flight: Flight) -> None:
        self.spans = {sequence: (start, end) for sequence, start, end in flight.works}
        self.num_tokens = sum(end - start for start, end in self.spans.values())
        self.prefills: dict[Group, int] = {}
        for sequence, (start, end) in self.spans.items():
            if _is_prefill(sequence, start, end):
                self.prefills[sequence.group] = self.prefills.get(sequence.group, 0) + end - start
        self.num_prefill_tokens = sum(self.prefills.values())
        for leader, forks in flight.forks:
            self.spans |= dict.fromkeys(forks, self.spans[leader])

    def shares(self, nanoseconds: int) -> list[tuple[Group, int]]:
        """What each prompt took of the time, by tokens."""
        return [(group, nanoseconds * count // self.num_tokens) for group, count in self.prefills.items()]


class _Account:
    """The books of one choice."""

    __slots__ = ("_before", "_began", "_entries", "_most_computed", "_until", "sequence")

    def __init__(self, sequence: Sequence, began: int, now: int, before: dict[str, int]) -> None:
        self.sequence = sequence
        self._began, self._until = began, now
        self._before = before
        """What neighbours had cost when the account was opened."""
        self._entries = [0] * len(_ENTRIES)
        self._entries[_QUEUE] = now - began
        self._most_computed = 0
        """Tokens computed before the last preemption."""

    def book(self, computations: list[tuple[_Work, int]], until: int) -> None:
        """The time since the last booking: what each computation took of it, and the rest."""
        sequence = _computer(self.sequence)
        left, self._until = until - self._until, until
        if sequence.status is not Status.RUNNING:
            self._entries[self._standstill(sequence)] += left
            return
        for work, nanoseconds in computations:
            left -= nanoseconds
            own = work.prefills.get(sequence.group, 0)
            others = nanoseconds * (work.num_prefill_tokens - own) // work.num_tokens
            self._entries[_OTHERS_PREFILL] += others
            self._entries[self._progress(sequence, work)] += nanoseconds - others
        self._entries[_SAMPLING] += left
        self._most_computed = max(self._most_computed, sequence.num_computed_tokens)

    def _standstill(self, sequence: Sequence) -> int:
        if sequence.status is Status.PREEMPTED:
            return _PREEMPTED
        return _QUEUE if sequence.group.first_scheduled_at is None or sequence.status is Status.WAITING else _SAMPLING

    def _progress(self, sequence: Sequence, work: _Work) -> int:
        """What a running sequence does in a step; where it has no part in it, what it waits to do."""
        start, end = work.spans.get(sequence) or (sequence.num_scheduled_tokens, sequence.num_target_tokens)
        if sequence.num_preemptions and start < self._most_computed:
            return _PREEMPTED
        return _PREFILL if _is_prefill(sequence, start, end) else _DECODE

    def timings(self, now: float, neighbours: dict[str, _Neighbour]) -> Timings:
        """The books as they are; they are booked up to `now`."""
        queue, prefill, others_prefill, decode, preempted, sampling = self._entries
        return Timings(
            began=self._began / 1e9,
            ended=now,
            queue=queue,
            prefill=prefill,
            others_prefill=others_prefill,
            decode=decode,
            preempted=preempted,
            sampling=sampling,
            delayed_by=self._delays(neighbours),
        )

    def _delays(self, neighbours: dict[str, _Neighbour]) -> tuple[Delay, ...]:
        own = self.sequence.group
        costs = [
            (neighbour.cost - self._before.get(request_id, 0), request_id)
            for request_id, neighbour in neighbours.items()
            if request_id != own.request_id
        ]
        return tuple(
            Delay(request_id if neighbours[request_id].key_id == own.key_id else None, cost)
            for cost, request_id in sorted(costs, reverse=True)[:MAX_NAMED]
            if cost > 0
        )


def _computer(sequence: Sequence) -> Sequence:
    """Who computes for `sequence`: a choice that has not begun gets its prompt from the leader of its group."""
    leader = sequence.group.leader
    return sequence if leader is None or sequence.status is not Status.WAITING else leader


def _is_prefill(sequence: Sequence, start: int, end: int) -> bool:
    return end - start > 1 or start < sequence.num_prompt_tokens


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
