"""What must hold after every step of the engine: I1-I16, I19, and what is counted on the way."""

from __future__ import annotations

import zlib

import msgspec

from quire.engine.cache_groups import NULL_BLOCK
from quire.engine.core import EngineCore
from quire.engine.messages import Add, OutputRow, StepOutputs, unpack_ids
from quire.engine.queues import MAX_PREEMPTIONS
from quire.engine.scheduler import Scheduler
from quire.engine.sequence import Sequence, Status
from quire.engine.step import Step
from quire.simulator.clients import Client
from quire.simulator.coverage import Coverage
from quire.simulator.fairness import Fairness
from quire.simulator.shadow import ShadowRunner, Violation
from quire.simulator.swarm import Swarm

_REASONS = {None, "stop", "length", "aborted", "timeout", "error"}


class Checks:
    """Looks at one engine before and after each of its steps; raises Violation."""

    def __init__(
        self,
        core: EngineCore,
        scheduler: Scheduler,
        runner: ShadowRunner,
        swarm: Swarm,
        coverage: Coverage,
        clients: dict[str, Client],
    ) -> None:
        self._core, self._scheduler, self._runner = core, scheduler, runner
        self._swarm, self._coverage, self._clients = swarm, coverage, clients
        self._open: dict[tuple[str, int], int] = {}
        """Choices that the engine owes an end, and how many tokens it has given for each."""
        self._fairness = Fairness(scheduler, active=swarm.leaves_alone("scheduler.", "pool."))
        self._statuses: dict[Sequence, Status] = {}
        self._oldest: tuple[Sequence, int] | None = None
        self._must_move = False
        self._num_taken = self._num_steps = 0
        self.trace = 0
        """Sums up the rows."""

    def added(self, add: Add) -> None:
        """The engine has been given a request; a repeated one changes nothing."""
        for choice in range(add.params.n):
            self._open.setdefault((add.request_id, choice), 0)

    def before(self) -> None:
        """A step is about to be made."""
        roster = self._scheduler.roster
        oldest = roster.running[0] if roster.running else None
        self._oldest = None if oldest is None else (oldest, oldest.num_preemptions)
        self._must_move = bool(roster.groups) and not self._scheduler.flights
        self._num_taken, self._num_steps = self._swarm.num_taken, self._runner.num_steps

    def after(self, outputs: StepOutputs | None) -> None:
        """A step has been made, and `outputs` came of it."""
        rows = () if outputs is None else outputs.rows
        if outputs is not None:
            self.trace = zlib.crc32(msgspec.msgpack.encode(outputs), self.trace)
        for row in rows:
            self._check_row(row)
        for row in rows:
            if row.finish_reason == "error" and row.request_id in self._scheduler.roster.groups:
                raise Violation("I15", f"{row.request_id}/{row.choice} failed, and its siblings live on")
        moved = self._runner.num_steps > self._num_steps
        if moved:
            self._check_step()
        elif self._must_move and self._scheduler.roster.groups and self._swarm.num_taken == self._num_taken:
            raise Violation("I11", f"nothing is scheduled for {self._core.request_ids()}")
        if self._oldest is not None:
            oldest, num_preemptions = self._oldest
            if oldest.num_preemptions > num_preemptions:
                raise Violation("I14", f"the oldest was preempted: {oldest}")
        self._check_core()
        self._watch_edges()

    def idle(self) -> None:
        """Messages have been taken, and there is nothing to do."""
        self._check_core()
        self._watch_edges()
        if self._open:
            raise Violation("I9", f"the engine is idle, and owes an end to {sorted(self._open)}")

    def _check_core(self) -> None:
        for line in self._core.check():
            raise Violation(line.partition(":")[0], line.partition(": ")[2])

    def _check_row(self, row: OutputRow) -> None:
        """I9, I16: an open choice gains what the oracle says, in order, and ends once."""
        who = row.request_id, row.choice
        if who not in self._open:
            raise Violation("I9", f"{who} is told {row.finish_reason or 'tokens'}, but it is not open")
        if row.finish_reason not in _REASONS or (row.failure is not None) is not (row.finish_reason == "error"):
            raise Violation("I9", f"{who} ends with {row.finish_reason} and {row.failure}")
        client = self._clients[row.request_id]
        oracle, params = client.oracles[row.choice], client.arrival.params
        token_ids, before = unpack_ids(row.token_ids), self._open[who]
        expected = [oracle.token(before + index) for index in range(len(token_ids))]
        if token_ids != expected:
            raise Violation("I16", f"{who} is told {token_ids} at {before}, expected {expected}")
        if params.logprobs is not None and token_ids and len(row.logprobs or ()) != len(token_ids):
            raise Violation("I17", f"{who} has {len(token_ids)} tokens and {row.logprobs}")
        begins = row.choice == 0 and before == 0 and (token_ids or row.finish_reason == "length")
        if begins and params.prompt_logprobs is not None:
            self._check_prompt_logprobs(row, client)
        self._open[who] += len(token_ids)
        if row.finish_reason is None:
            return
        self._coverage[f"end.{row.finish_reason}"] += 1
        count = self._open.pop(who)
        by_string = row.finish_reason == "stop" and bool(params.stop) and not token_ids
        if row.finish_reason in ("stop", "length") and not by_string:
            whole, reason = oracle.whole()
            if (count, row.finish_reason) != (len(whole), reason):
                raise Violation("I16", f"{who} ends with {row.finish_reason} after {count}, not {reason} {len(whole)}")

    def _check_prompt_logprobs(self, row: OutputRow, client: Client) -> None:
        entries, prompt = row.prompt_logprobs or (), client.arrival.prompt
        if [None if entry is None else entry.token_id for entry in entries] != [None, *prompt[1:]]:
            raise Violation("I17", f"{row.request_id} has the log probabilities of another prompt: {entries}")

    def _check_step(self) -> None:
        """I10, and what the step shows."""
        step, config, coverage = self._runner.log[-1], self._scheduler.config, self._coverage
        if not 0 < step.num_tokens <= config.max_num_batched_tokens or len(step.work) > config.max_num_seqs:
            raise Violation("I10", f"a step of {step.num_tokens} tokens in {len(step.work)} rows")
        new = {row.row for row in step.new_rows}
        partial = 0
        for work in step.work:
            coverage["cache.hit"] += work.row in new and work.start > 0
            coverage["fork.beside"] += len(work.samples) > 1
            partial += not work.samples
        coverage["prefill.chunked"] += partial > 0
        coverage["prefill.parallel"] += partial > 1
        coverage["fork.copied"] += bool(step.block_copies)
        coverage["depth.several"] += len(self._scheduler.flights) > 1
        self._check_suspects(step)
        self._fairness.stepped(step, self._runner.rows, self._clients)

    def _check_suspects(self, step: Step) -> None:
        """F07: who may have killed an engine shares no step."""
        rows = [self._runner.rows.get(work.row) for work in step.work]
        names = {row.request_id for row in rows if row is not None}
        for group in [self._scheduler.roster.groups.get(name) for name in sorted(names)]:
            if group is not None and group.num_alone_tokens:
                self._coverage["suspect.alone"] += 1
                too_few = any(s.num_output_tokens < group.num_alone_tokens for s in group.choices.values())
                if too_few and len(names) > 1:
                    raise Violation("F07", f"the suspect {group.request_id} shares a step with {sorted(names)}")

    def _watch_edges(self) -> None:
        """Count the edges that sequences have gone; I12: nobody is preempted too often."""
        coverage, before = self._coverage, self._statuses
        now: dict[Sequence, Status] = {}
        for group in self._scheduler.roster.groups.values():
            for sequence in group.choices.values():
                now[sequence] = status = sequence.status
                was = before.get(sequence, Status.WAITING)
                if was is not status:
                    coverage[f"{was.value}>{status.value}"] += 1
                    coverage["fork.refused"] += status is Status.PREEMPTED and sequence.num_preemptions == 0
                if sequence.num_preemptions > MAX_PREEMPTIONS:
                    raise Violation("I12", f"{sequence} has been preempted {sequence.num_preemptions} times")
        for sequence, was in before.items():
            if sequence not in now:
                coverage[f"{was.value}>finished"] += 1
        self._statuses = now
        self._watch_queue()

    def _watch_queue(self) -> None:
        coverage, roster = self._coverage, self._scheduler.roster
        for sequence in roster.queue:
            coverage["cache.shadow"] += sequence.shadowing_since is not None
            coverage["queue.refused"] += sequence.refused_since is not None
            coverage["queue.looked_past"] += sequence.num_passed > 0
            coverage["fork.queued"] += sequence.choice > 0 and sequence.status is Status.WAITING
        coverage["leaving.held"] += bool(roster.leaving)
        if self._scheduler.pool.has_null_block:
            tables = [table for sequence in roster.running for table in sequence.block_tables]
            coverage["window.slid"] += any(table[0] == NULL_BLOCK for table in tables if table)
