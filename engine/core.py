"""The engine's core: the loop body that every engine process, `LLM` and simulator runs.

One step is four words: schedule, launch, apply, send. Up to `depth` steps are in flight, so that the device computes
while the host prepares; with depth 1 each step is applied before the next one is scheduled.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from quire.engine.cache_report import CacheReports
from quire.engine.faults import NO_FAULTS, Faults
from quire.engine.invariants import violations
from quire.engine.ledger import Ledger
from quire.engine.messages import Add, Cancel, Failure, LiveIds, OutputRow, Statistics, StepOutputs
from quire.engine.pool_picture import PoolPictures
from quire.engine.scheduler import Scheduler
from quire.engine.step import Sampled, Step

logger = logging.getLogger("quire.engine")


class Runner(Protocol):
    """Executes steps in the order of `forward`, and answers them in that order.

    A fault of one row is that row's `failure` in `Sampled`. Where a call raises nevertheless, its step leaves nothing
    behind to collect, and the steps around it are not touched.
    """

    def forward(self, step: Step) -> None:
        """Begin to compute the step."""

    def sample(self, step: Step, masks: None) -> None:
        """Begin to sample for the rows that the step names; `masks` is the place of grammars."""

    def collect(self) -> Sampled:
        """Wait for the oldest step that has been sampled and not collected."""


class EngineCore:
    """Scheduler and runner, and at most `depth` steps between them."""

    def __init__(self, scheduler: Scheduler, runner: Runner, *, depth: int = 1, faults: Faults = NO_FAULTS) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, found {depth}")
        self._scheduler, self._runner, self._depth, self._faults = scheduler, runner, depth, faults
        self._ended_at = 0.0
        """When the last step was collected."""
        self._unsent: list[OutputRow] = []
        """Terminal rows of requests that ended between two steps."""
        self._ledger = Ledger()
        self._cache_reports = CacheReports(scheduler.pool)

    @property
    def scheduler(self) -> Scheduler:
        """For those who look: the recorder of the engine's loop."""
        return self._scheduler

    @property
    def depth(self) -> int:
        """Steps that may be in flight."""
        return self._depth

    def wrap_runner(self, wrap: Callable[[Runner], Runner]) -> None:
        """From now on steps go through what `wrap` makes of the runner."""
        self._runner = wrap(self._runner)

    def add(self, add: Add, now: float) -> None:
        """Enqueue a request."""
        self._unsent += self._scheduler.add(add, now)
        self._cache_reports.note(add)
        if add.explain is not None and add.explain.began is not None:
            group = self._scheduler.roster.groups.get(add.request_id)
            if group is not None:
                self._ledger.open(group, add.explain.began, now)

    def cancel(self, cancel: Cancel, now: float) -> None:
        """End a choice or a request; unknown ids are ignored."""
        self._unsent += self._scheduler.cancel(cancel.request_id, cancel.choice, cancel.reason)

    def live_ids(self, live: LiveIds, now: float) -> None:
        """End requests that nobody has waited for in a while."""
        self._unsent += self._scheduler.reconcile(live.request_ids, now)

    def has_work(self) -> bool:
        """Whether `step` has anything to do: a request, a step in flight, or rows to hand out."""
        return bool(self._unsent) or self._scheduler.has_work()

    def step(self, now: Callable[[], float]) -> StepOutputs | None:
        """Schedule, launch, apply the oldest step in flight; the rows that came of it, or None."""
        launched = self._launch(now)
        flights = self._scheduler.flights
        if flights and (not launched or len(flights) >= self._depth or self._faults.rarely("core.apply_early")):
            self._apply(now)
        return self._outputs(now)

    def _launch(self, now: Callable[[], float]) -> bool:
        begin = now()
        self._ledger.book(begin)
        self._unsent += self._scheduler.expire(begin)
        step = self._scheduler.schedule(begin)
        if step is None:
            return False
        flight = self._scheduler.flights[-1]
        flight.launched_at = begin
        self._cache_reports.admitted(flight)
        try:
            begin = now()
            self._runner.forward(step)
            self._ledger.computed(flight, begin, now())
            self._runner.sample(step, None)
        except Exception as error:
            self._fail_step(step.step_id, error)
        return True

    def _apply(self, now: Callable[[], float]) -> None:
        flight, begin = self._scheduler.flights[0], now()
        try:
            sampled = self._runner.collect()
        except Exception as error:
            self._fail_step(flight.step_id, error)
        else:
            end = now()
            self._ledger.computed(flight, begin, end)
            self._ledger.book(end)
            self._scheduler.observe(end - max(flight.launched_at, self._ended_at))
            self._ended_at = end
            self._unsent += self._scheduler.apply(sampled)

    def _fail_step(self, step_id: int, error: Exception) -> None:
        """The runner could not tell whose fault it was: the requests of this step fail, the engine goes on."""
        logger.error("step %d failed", step_id, exc_info=error)
        failure = Failure(code="internal_error", message=f"a step of the engine failed: {type(error).__name__}")
        self._unsent += self._scheduler.fail_step(step_id, failure)

    def _outputs(self, now: Callable[[], float]) -> StepOutputs | None:
        if not self._unsent:
            return None
        self._ledger.sign(self._unsent, now)
        self._cache_reports.sign(self._unsent)
        rows, self._unsent = tuple(self._unsent), []
        return StepOutputs(rows=rows, statistics=self._scheduler.statistics())

    def statistics(self) -> Statistics:
        """Gauges of this moment, counters since the start."""
        return self._scheduler.statistics()

    def request_ids(self) -> tuple[str, ...]:
        """Every unfinished request."""
        return tuple(self._scheduler.roster.groups)

    def pictures(self, started_at: float) -> PoolPictures:
        """What takes pictures of the block pool, dated from `started_at`."""
        scheduler = self._scheduler
        return PoolPictures(scheduler.pool, scheduler.groups, scheduler.roster, self.statistics, started_at)

    def check(self) -> tuple[str, ...]:
        """Violated invariants; empty when sound."""
        return tuple(violations(self._scheduler))
