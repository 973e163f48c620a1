"""Faults of scheduler, roster and queues."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import msgspec

from quire.engine.fair_queue import FairQueue
from quire.engine.flight import Draft
from quire.engine.forks import Forks
from quire.engine.messages import FinishReason, OutputRow
from quire.engine.queues import WaitingQueue
from quire.engine.roster import Roster, output_row
from quire.engine.scheduler import Scheduler
from quire.engine.sequence import Sequence, Status
from quire.engine.step import NewRow
from quire.simulator.mutants.mutant import Mutant


def one_slot_too_few(original: Any, scheduler: Any, sequence: Sequence, draft: Draft) -> bool:
    """A sequence takes its next block one token too late."""
    if sequence.num_scheduled_tokens <= len(sequence.block_tables[0]) * scheduler.pool.block_size:
        return True
    has_slot: bool = original(scheduler, sequence, draft)
    return has_slot


def spend_the_budget_twice(original: Any, draft: Draft, sequence: Sequence, num_tokens: int) -> None:
    """What decodes take is not taken from the budget."""
    original(draft, sequence, num_tokens)
    draft.budget += num_tokens == 1


def preempt_the_oldest(original: Any, queue: WaitingQueue, running: Items[Sequence]) -> Sequence | None:
    """The victim is the first of those that run."""
    return running[0] if len(running) > 1 and running[0].block_tables else None


def preempt_without_limit(original: Any, queue: WaitingQueue, running: Items[Sequence]) -> Sequence | None:
    """A sequence may be preempted again and again."""
    return next((s for s in reversed(running[1:]) if s.block_tables), None)


def preempt_the_oldest_of_a_key(original: Any, queue: FairQueue, running: Items[Sequence]) -> Sequence | None:
    """Under fair sharing the victim is the first of those that run."""
    return running[0] if len(running) > 1 and running[0].block_tables else None


def leave_with_the_blocks(original: Any, roster: Any, sequence: Sequence) -> None:
    """A preempted sequence forgets its blocks without releasing them."""
    if sequence.status is Status.PREEMPTED:
        sequence.block_tables = []
    original(roster, sequence)


def settle_too_early(original: Any, roster: Any) -> None:
    """Blocks and row of a sequence are released while a step in flight still writes them."""
    for sequence in roster.leaving:
        sequence.num_steps_in_flight = 0
    original(roster)


def rewind_forgets_the_answer(original: Any, sequence: Sequence) -> None:
    """A preempted sequence loses the tokens that it has already answered."""
    if hasattr(sequence, "num_computed_tokens"):
        del sequence.token_ids[sequence.num_prompt_tokens :]
    original(sequence)


def rewind_keeps_the_progress(original: Any, sequence: Sequence) -> None:
    """A preempted sequence believes that the runner still has its block table."""
    num_sent = getattr(sequence, "num_sent_blocks", 0)
    original(sequence)
    sequence.num_sent_blocks = num_sent


def rewind_keeps_prompt_logprobs(original: Any, sequence: Sequence) -> None:
    """A preempted sequence collects the log probabilities of its prompt twice."""
    collected = getattr(sequence, "prompt_logprobs", None)
    original(sequence)
    if collected is not None:
        sequence.prompt_logprobs = collected


def reset_seed_on_preempt(original: Any, roster: Roster, sequence: Sequence) -> NewRow:
    """A sequence that comes back draws other random numbers."""
    new: NewRow = original(roster, sequence)
    if sequence.num_preemptions == 0:
        return new
    return msgspec.structs.replace(new, params=msgspec.structs.replace(new.params, seed=sequence.num_preemptions))


def confuse_the_choices(original: Any, roster: Roster, sequence: Sequence) -> NewRow:
    """Forks sample as the first choice does."""
    new: NewRow = original(roster, sequence)
    return msgspec.structs.replace(new, choice=0)


def give_a_row_twice(original: Any, roster: Roster, sequence: Sequence) -> NewRow:
    """A row stays free when a second sequence takes it."""
    new: NewRow = original(roster, sequence)
    if len(roster.running) == 2:
        roster.free_rows.append(sequence.row)
    return new


def lose_the_preempted(original: Any, queue: WaitingQueue, sequence: Sequence) -> None:
    """A preempted sequence does not return to the queue."""
    if sequence.status is not Status.PREEMPTED:
        original(queue, sequence)


def keep_the_admitted(original: Any, queue: Any, sequence: Sequence) -> None:
    """An admitted sequence stays in the queue when others wait."""
    others = len(queue) > 1
    original(queue, sequence)
    if others:
        queue.add(sequence)


def fail_one_choice(original: Any, roster: Any, group: Any, failure: Any) -> list[OutputRow]:
    """A failure ends only the first choice of its request."""
    rest = dict(list(group.choices.items())[1:])
    for choice in rest:
        del group.choices[choice]
    rows: list[OutputRow] = original(roster, group, failure)
    if rest:
        group.choices.update(rest)
        roster.groups[group.request_id] = group
    return rows


def finish_in_silence(original: Any, roster: Roster, sequences: Any, reason: FinishReason) -> list[OutputRow]:
    """A cancelled request gets no last row."""
    rows: list[OutputRow] = original(roster, sequences, reason)
    return [] if reason == "aborted" else rows


def answer_a_cancel_twice(original: Any, scheduler: Scheduler, request_id: str, choice: Any, reason: Any) -> Any:
    """A choice that is cancelled ends twice."""
    rows = original(scheduler, request_id, choice, reason)
    return rows + rows[:1]


def emit_after_the_end(original: Any, scheduler: Any, flight: Any, sampled: Any) -> Any:
    """What a step sampled for a sequence that has ended meanwhile is told too."""
    rows = original(scheduler, flight, sampled)
    for sequence, row in zip(flight.samplers, sampled.rows, strict=True):
        if sequence.status is Status.FINISHED and sequence.num_steps_in_flight and row.token_ids:
            rows.append(output_row(sequence, row.token_ids, None))
    return rows


def answer_one_token_more(original: Any, scheduler: Scheduler, sequence: Sequence, token_id: int) -> Any:
    """A sequence at its maximum length gets one token more."""
    sequence.max_length += 1
    reason = original(scheduler, sequence, token_id)
    sequence.max_length -= 1
    return reason


def ignore_the_first_stop_token(original: Any, scheduler: Scheduler, sequence: Sequence, token_id: int) -> Any:
    """A stop token that is the first token ends nothing."""
    reason = original(scheduler, sequence, token_id)
    return None if reason == "stop" and sequence.num_output_tokens == 1 else reason


def keep_copies_pinned(original: Any, scheduler: Scheduler, flight: Any) -> None:
    """A step that has landed still holds the blocks that it copied."""
    flight.copies.clear()
    original(scheduler, flight)


def count_before_it_is_computed(original: Any, scheduler: Any, flight: Any, sampled: Any) -> None:
    """Tokens count as computed when they are scheduled."""
    original(scheduler, flight, sampled)
    for sequence, _, _ in flight.works:
        if sequence.status is Status.RUNNING:
            sequence.num_computed_tokens = sequence.num_scheduled_tokens


def forks_expect_too_much(original: Any, forks: Forks, fork: Sequence, leader: Sequence) -> bool:
    """A fork begins one token before its first sampled one has been computed."""
    inherits: bool = original(forks, fork, leader)
    if inherits:
        fork.num_scheduled_tokens += 1
    return inherits


def serve_the_richest(original: Any, queue: Any, key_id: str) -> Any:
    """The key that has had most goes first."""
    service, order = original(queue, key_id)
    return -service, order


def serve_one_key(original: Any, queue: FairQueue, sequence: Sequence, num_tokens: int) -> None:
    """One key is charged for nothing."""
    if sequence.group.key_id != "key-0":
        original(queue, sequence, num_tokens)


def suspects_have_company(original: Any, draft: Draft, sequence: Sequence) -> bool:
    """A request that may have killed an engine is computed beside others."""
    return True


SCHEDULING = (
    Mutant(Scheduler, "_has_slot", one_slot_too_few),
    Mutant(Draft, "give", spend_the_budget_twice),
    Mutant(WaitingQueue, "victim", preempt_the_oldest),
    Mutant(WaitingQueue, "victim", preempt_without_limit),
    Mutant(FairQueue, "victim", preempt_the_oldest_of_a_key),
    Mutant(Roster, "_release", leave_with_the_blocks),
    Mutant(Roster, "settle", settle_too_early),
    Mutant(Sequence, "rewind", rewind_forgets_the_answer),
    Mutant(Sequence, "rewind", rewind_keeps_the_progress),
    Mutant(Sequence, "rewind", rewind_keeps_prompt_logprobs),
    Mutant(Roster, "start", reset_seed_on_preempt),
    Mutant(Roster, "start", confuse_the_choices),
    Mutant(Roster, "start", give_a_row_twice),
    Mutant(WaitingQueue, "add", lose_the_preempted),
    Mutant(WaitingQueue, "take", keep_the_admitted),
    Mutant(Roster, "fail", fail_one_choice),
    Mutant(Roster, "finish", finish_in_silence),
    Mutant(Scheduler, "cancel", answer_a_cancel_twice),
    Mutant(Scheduler, "_append_tokens", emit_after_the_end),
    Mutant(Scheduler, "_finish_reason", answer_one_token_more),
    Mutant(Scheduler, "_finish_reason", ignore_the_first_stop_token),
    Mutant(Scheduler, "_land", keep_copies_pinned),
    Mutant(Scheduler, "_advance", count_before_it_is_computed),
    Mutant(Forks, "_inherit", forks_expect_too_much),
    Mutant(FairQueue, "_rank", serve_the_richest),
    Mutant(FairQueue, "charge", serve_one_key),
    Mutant(Draft, "takes", suspects_have_company),
)
