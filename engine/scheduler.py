"""The scheduler: which tokens are computed next, for whom, into which blocks.

There is no prefill phase and no decode phase. A step has a budget of tokens, and every sequence uses some of it to
catch up with its token count:

    schedule()   decode -> go on with prompts -> admit -> spend the rest -> freeze     a Step, or None
    apply()      fail -> advance -> append -> fork -> settle                           its mirror, for the oldest Step

Up to `depth` steps are in flight between the two (the caller decides). A token that a step in flight will sample is a
placeholder: it is counted, not known. A sequence that ends or is preempted while a step in flight writes its blocks is
only marked; it keeps row and blocks until the last such step has been applied, and what that step sampled is dropped.

This is a pure core: no torch, threads, sockets, clock or randomness. It takes (state, events, now) and returns values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from collections.abc import Sequence as Items
from dataclasses import dataclass

from quire.engine.apart import Apart
from quire.engine.block_pool import BlockPool
from quire.engine.block_tables import BlockTables
from quire.engine.cache_groups import ONE_GROUP, CacheGroup
from quire.engine.config import Policy
from quire.engine.counters import Counters
from quire.engine.deadlines import Deadlines
from quire.engine.faults import NO_FAULTS, Faults
from quire.engine.flight import Draft, Flight
from quire.engine.forks import Forks
from quire.engine.messages import Add, CancelReason, Failure, FinishReason, OutputRow, Statistics
from quire.engine.prefill_shares import PrefillShares
from quire.engine.prefix_cache import PrefixCache
from quire.engine.queues import MAX_PREEMPTIONS
from quire.engine.roster import Roster, output_row
from quire.engine.sequence import Sequence, Status
from quire.engine.step import RowWork, Sampled, SampledRow, Step

MAX_TRIES = 32
"""Waiting sequences that may be tried in vain in one step."""
LEASE_SECONDS = 15.0
"""How long a request lives that the HTTP side does not name any more."""
WATERMARK = 0.01
"""Share of the pool that admission leaves free, beside the next blocks of each running sequence."""

_ENDS: dict[CancelReason, FinishReason] = {
    "client_gone": "aborted",
    "drain": "aborted",
    "stop_string": "stop",
    "deadline": "timeout",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Bounds of a step. `long_prefill_token_threshold` None: a prompt may use the whole budget."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    long_prefill_token_threshold: int | None = None
    policy: Policy = "fcfs"
    target_itl: float | None = None
    """Seconds that a step may take while somebody generates; prompts get what that leaves."""
    token_seconds: float | None = None
    """What a prompt token cost before the first step, where that was measured."""


class Scheduler:
    """Decides what each step computes. With its `roster`, the only writer of sequences and queues."""

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        faults: Faults = NO_FAULTS,
        groups: Items[CacheGroup] = ONE_GROUP,
    ) -> None:
        self.config, self.pool, self.groups = config, pool, tuple(groups)
        self._tables = BlockTables(pool, groups)
        if self._tables.num_blocks(config.max_model_len) > pool.num_usable:
            raise ValueError(
                f"a request of max_model_len {config.max_model_len} tokens does not fit into {pool.num_usable} blocks "
                f"of {pool.block_size}; lower max_model_len or give the KV cache more memory"
            )
        self.cache = PrefixCache(pool, groups)
        self.roster = Roster(config.max_num_seqs, config.policy, pool, self._tables, self.cache)
        max_chunk = config.long_prefill_token_threshold or config.max_num_batched_tokens
        self._shares = PrefillShares(max_chunk, config.target_itl, config.token_seconds)
        self._deadlines = Deadlines(self.roster, self.cache, pool.block_size, self._shares)
        self._forks = Forks(pool, self._tables, self.roster)
        self.flights: deque[Flight] = deque()
        """Steps in flight, oldest first."""
        self._counters = Counters()
        self._faults, self._apart = faults, Apart()

    def add(self, add: Add, now: float) -> list[OutputRow]:
        """Enqueue a request; the terminal rows of one that can never run. A registered id can only be a repetition."""
        if add.request_id in self.roster.groups:
            return []
        group = self.roster.add(add, now, self.config.max_model_len)
        self._deadlines.watch(group)
        self._apart.add(group)
        num_prompt_tokens = len(add.prompt_token_ids) // 4
        if 0 < num_prompt_tokens <= self.config.max_model_len - min(1, add.params.max_tokens):
            return []
        message = (
            f"a prompt of {num_prompt_tokens} tokens with max_tokens {add.params.max_tokens} does not fit into a "
            f"context of {self.config.max_model_len} tokens; send at least 1 token, and leave room for an answer"
        )
        return self.roster.fail(group, Failure(code="context_length_exceeded", message=message, status=400))

    def cancel(self, request_id: str, choice: int | None, reason: CancelReason) -> list[OutputRow]:
        """End one choice, or all of them (None); their terminal rows. Idempotent, and unknown ids are ignored."""
        group = self.roster.groups.get(request_id)
        if group is None:
            return []
        chosen = [sequence for sequence in group.choices.values() if choice in (None, sequence.choice)]
        rows = self.roster.finish(chosen, _ENDS[reason])
        self.roster.settle()
        return rows

    def reconcile(self, live: Collection[str], now: float) -> list[OutputRow]:
        """Cancel requests that the HTTP side has not named for `LEASE_SECONDS`; their terminal rows."""
        live, rows = frozenset(live), list[OutputRow]()
        for request_id, group in list(self.roster.groups.items()):
            if request_id in live:
                group.missing_since = None
            elif group.missing_since is None:
                group.missing_since = now
            elif now - group.missing_since >= LEASE_SECONDS:
                rows += self.cancel(request_id, None, "client_gone")
        return rows

    def expire(self, now: float) -> list[OutputRow]:
        """End requests past their deadline, and those that wait and could not begin to answer before it."""
        return [row for name in self._deadlines.late(now) for row in self.cancel(name, None, "deadline")]

    def schedule(self, now: float) -> Step | None:
        """The next step, or None when nothing can be computed before a step in flight has been applied."""
        for only in self._apart.turns(self.flights):
            budget = 1 if self._faults.rarely("scheduler.budget") else self.config.max_num_batched_tokens
            draft = Draft(budget, only=only, apart=self._apart.groups)
            self._decode(draft)
            self._shares.bound(draft)
            self._go_on_with_prompts(draft)
            self._admit(draft, now)
            self._shares.spend_rest(draft)
            if draft.chunks:
                return self._freeze(draft)
        return None

    def _decode(self, draft: Draft) -> None:
        """Whoever lacks one token gets it, and a block when the last one is full."""
        if self._faults.rarely("scheduler.preempt"):
            self._preempt_someone(draft)
        for sequence in draft.those(self.roster.running):
            if draft.budget == 0:
                return
            lacks_one = sequence.num_target_tokens - sequence.num_scheduled_tokens == 1
            if lacks_one and sequence.status is Status.RUNNING and self._has_slot(sequence, draft):
                draft.give(sequence, 1)

    def _has_slot(self, sequence: Sequence, draft: Draft) -> bool:
        """Whether there is a slot for the next token; gets a block by preempting others, `sequence` at last.

        Where one is leaving already, its blocks come back when its step has been applied, and nobody else needs to go.
        """
        if sequence.num_scheduled_tokens < len(sequence.block_tables[0]) * self.pool.block_size:
            return True
        while sequence.status is Status.RUNNING:
            if self._tables.extend(sequence):
                return True
            if self.roster.leaving or not self._preempt_someone(draft):
                return False
        return False

    def _preempt_someone(self, draft: Draft) -> bool:
        return self._preempt(self.roster.queue.victim(self.roster.running), draft)

    def _preempt(self, victim: Sequence | None, draft: Draft) -> bool:
        if victim is None:
            return False
        draft.take_back(victim)
        victim.num_preemptions += 1
        self._counters.num_preemptions += 1
        self.roster.leave(victim, Status.PREEMPTED)
        self.roster.settle()
        return True

    def _go_on_with_prompts(self, draft: Draft) -> None:
        """Prompts under way get their shares."""
        partial = [sequence for sequence in draft.those(self.roster.running) if sequence.num_missing_tokens > 1]
        self._shares.go_on(draft, self.roster.queue.first_served(partial), len(self.roster.queue))

    def _admit(self, draft: Draft, now: float) -> None:
        """Waiting sequences enter while there are tokens, rows and blocks; one that cannot is looked past."""
        tried: list[Sequence] = []
        if not self.roster.free_rows and not self.roster.leaving:
            self._preempt(self.roster.queue.makes_way(self.roster.running), draft)
        while draft.budget and self.roster.free_rows and len(tried) < MAX_TRIES:
            sequence = self.roster.queue.next(now, tried)
            if sequence is None:
                return
            if not (draft.takes(sequence) and self._enter(sequence, draft, now)):
                tried.append(sequence)

    def _enter(self, sequence: Sequence, draft: Draft, now: float) -> bool:
        """Admit with blocks for every known token, behind the longest cached prefix; or say no and change nothing."""
        keys = self.cache.readable_keys(sequence)
        hit = self.cache.find(keys)
        num_hit_blocks = len(hit[0])
        missing_keys = keys[num_hit_blocks:]
        if self.cache.shadows(sequence, missing_keys, now):
            return False
        num_cached_tokens = num_hit_blocks * self.pool.block_size
        num_missing_tokens = sequence.num_target_tokens - num_cached_tokens
        chunk = self._shares.chunk(draft, num_missing_tokens, others_wait=len(self.roster.queue) > 1)
        if chunk < num_missing_tokens and not self.roster.queue.may_begin(sequence, draft.partial):
            return False
        if not self._allocate(sequence, hit):
            self.roster.queue.refuse(sequence, now)
            return False
        self.roster.queue.take(sequence)
        self.cache.claim(sequence, missing_keys)
        sequence.num_scheduled_tokens = sequence.num_computed_tokens = num_cached_tokens
        sequence.num_published_blocks = num_hit_blocks
        sequence.num_charged_tokens = max(sequence.num_charged_tokens, num_cached_tokens)
        draft.new_rows.append(self.roster.start(sequence))
        draft.give(sequence, chunk)
        self._counters.admit(sequence, len(keys) * self.pool.block_size, now)
        return True

    def _allocate(self, sequence: Sequence, hit: list[list[int]]) -> bool:
        """Blocks for all known tokens, or for all that will ever be after too many preemptions; keeps the watermark."""
        reserves = sequence.num_preemptions >= MAX_PREEMPTIONS
        num_tokens = sequence.max_computed_tokens if reserves else sequence.num_target_tokens
        num_next = len(self.roster.running) * len(self.groups)
        watermark = num_next + int(WATERMARK * self.pool.num_usable) if num_next else 0
        if self._faults.rarely("scheduler.watermark"):
            watermark = 0
        return self._tables.begin(sequence, hit, num_tokens, watermark)

    def _freeze(self, draft: Draft) -> Step:
        """The draft as a Step; every token in it counts as scheduled."""
        self._counters.num_steps += 1
        self._counters.step_tokens = sum(draft.chunks.values())
        flight = Flight(self._counters.num_steps)
        work = tuple([self._freeze_work(sequence, count, draft, flight) for sequence, count in draft.chunks.items()])
        block_copies = self._forks.freeze_copies(flight)
        released_rows = tuple(self.roster.released_rows)
        self.roster.released_rows.clear()
        self.flights.append(flight)
        return Step(flight.step_id, work, tuple(draft.new_rows), block_copies, released_rows)

    def _freeze_work(self, sequence: Sequence, num_tokens: int, draft: Draft, flight: Flight) -> RowWork:
        start = sequence.num_scheduled_tokens
        end = sequence.num_scheduled_tokens = start + num_tokens
        sequence.num_steps_in_flight += 1
        flight.works.append((sequence, start, end))
        self.roster.queue.charge(sequence, end)
        new_block_ids: tuple[tuple[int, ...], ...] = ()
        tables, num_sent = sequence.block_tables, sequence.num_sent_blocks
        if num_sent < len(tables[0]):
            new_block_ids = tuple([tuple(table[num_sent:]) for table in tables])
            sequence.num_sent_blocks = len(tables[0])
        samples = () if end < sequence.num_target_tokens else self._sampling_rows(sequence, draft, flight)
        wants = sequence.prompt_logprobs is not None and start + 1 < sequence.num_prompt_tokens
        return RowWork(sequence.row, start, num_tokens, new_block_ids, samples, wants)

    def _sampling_rows(self, sequence: Sequence, draft: Draft, flight: Flight) -> tuple[int, ...]:
        """The rows that sample now that `sequence` has caught up: its own, and its forks' at the end of a prompt."""
        if sequence.params.max_tokens == 0:
            flight.endings.append(sequence)
            return ()
        flight.samplers.append(sequence)
        forks = self._forks.start(sequence, draft) if sequence.group.leader is sequence else []
        if forks:
            flight.forks.append((sequence, forks))
            flight.samplers += forks
        elif sequence.num_target_tokens < sequence.max_computed_tokens:
            sequence.num_target_tokens += 1
        for sampler in (sequence, *forks):
            self.roster.queue.charge(sampler, sequence.num_scheduled_tokens + 1)
        return (sequence.row, *[fork.row for fork in forks])

    def apply(self, sampled: Sampled) -> list[OutputRow]:
        """Take in the result of the oldest step in flight; what each sequence gained.

        Raises ValueError when the result is not that step's, or does not answer exactly its sampling rows.
        """
        flight = self.flights[0]
        expected, found = [sequence.row for sequence in flight.samplers], [row.row for row in sampled.rows]
        if flight.step_id != sampled.step_id or expected != found:
            raise ValueError(
                f"expected step {flight.step_id} with rows {expected}, found {sampled.step_id} with rows {found}"
            )
        self._land(flight)
        rows = self._fail_rows(flight, sampled)
        self._advance(flight, sampled)
        rows += self._append_tokens(flight, sampled)
        self._forks.finish(flight)
        self.roster.settle()
        return rows

    def fail_step(self, step_id: int, failure: Failure) -> list[OutputRow]:
        """A step in flight came to nothing: the requests in it fail; their terminal rows."""
        flight = next(flight for flight in self.flights if flight.step_id == step_id)
        self._land(flight)
        groups = dict.fromkeys(s.group for s in flight.sequences() if s.status is Status.RUNNING)
        rows = [row for group in groups for row in self.roster.fail(group, failure)]
        self.roster.settle()
        return rows

    def _land(self, flight: Flight) -> None:
        """The step is over: it holds its sequences and its copies no longer."""
        self.flights.remove(flight)
        for sequence, _, _ in flight.works:
            sequence.num_steps_in_flight -= 1
        for _, forks in flight.forks:
            for fork in forks:
                fork.num_steps_in_flight -= 1
        for _, source, target in flight.copies:
            self.pool.unpin(source)
            self.pool.unpin(target)

    def _fail_rows(self, flight: Flight, sampled: Sampled) -> list[OutputRow]:
        """A failed row ends its whole request."""
        failures = {row.row: row.failure for row in sampled.rows if row.failure is not None} | sampled.failed_rows
        rows: list[OutputRow] = []
        for sequence in flight.sequences() if failures else ():
            if sequence.status is Status.RUNNING and sequence.row in failures:
                rows += self.roster.fail(sequence.group, failures[sequence.row])
        return rows

    def _advance(self, flight: Flight, sampled: Sampled) -> None:
        """Scheduled tokens are computed: full blocks may be found, prompt log probabilities are kept."""
        block_size = self.pool.block_size
        for sequence, _, end in flight.works:
            if sequence.status is Status.RUNNING:
                sequence.num_computed_tokens = end
                if end >= (sequence.num_published_blocks + 1) * block_size:
                    self.cache.publish(sequence)
                if self._tables.has_window:
                    self._tables.slide(sequence)
                if sequence.prompt_logprobs is not None:
                    sequence.prompt_logprobs += sampled.prompt_logprobs.get(sequence.row, ())

    def _append_tokens(self, flight: Flight, sampled: Sampled) -> list[OutputRow]:
        rows = [
            self._append(sequence, row)
            for sequence, row in zip(flight.samplers, sampled.rows, strict=True)
            if sequence.status is Status.RUNNING
        ]
        for sequence in flight.endings:
            if sequence.status is Status.RUNNING:
                rows += self.roster.finish(list(sequence.group.choices.values()), "length")
        return rows

    def _append(self, sequence: Sequence, sampled: SampledRow) -> OutputRow:
        """Known tokens take the place of placeholders, up to the one that ends the sequence."""
        reason: FinishReason | None = None
        num_kept = 0
        for token_id in sampled.token_ids:
            sequence.token_ids.append(token_id)
            num_kept += 1
            reason = self._finish_reason(sequence, token_id)
            if reason is not None:
                break
        self._counters.num_generation_tokens += num_kept
        logprobs = None if sampled.logprobs is None else sampled.logprobs[:num_kept]
        row = output_row(sequence, sampled.token_ids[:num_kept], reason, logprobs=logprobs)
        if reason is not None:
            self.roster.leave(sequence, Status.FINISHED)
        return row

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        if token_id in sequence.stop_token_ids and sequence.num_output_tokens > sequence.params.min_tokens:
            return "stop"
        return "length" if len(sequence.token_ids) >= sequence.max_length else None

    def observe(self, seconds: float) -> None:
        """The oldest step in flight took so long; call before it is applied."""
        self._shares.observe(self.flights[0], seconds)

    def has_work(self) -> bool:
        """Whether a request is unfinished or a step in flight."""
        return bool(self.roster.groups or self.flights)

    def statistics(self) -> Statistics:
        """Gauges of this moment, counters since the start."""
        return self._counters.statistics(self.roster, self.pool)
