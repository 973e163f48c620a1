"""The engine process of the simulator: the real core around a shadow runner, an inbox, the real outbox, its life."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from quire.engine.cache_groups import has_window
from quire.engine.cache_report import ExplainingIndex
from quire.engine.core import EngineCore
from quire.engine.frames import Outbox
from quire.engine.messages import Add, Answer, Cancel, LiveIds, Query, ToEngine
from quire.engine.scheduler import Scheduler, SchedulerConfig
from quire.simulator.checks import Checks
from quire.simulator.clients import Client
from quire.simulator.coverage import Coverage
from quire.simulator.fake_runner import Oracle
from quire.simulator.plan import Plan
from quire.simulator.shadow import ShadowRunner, Violation, WatchedPool
from quire.simulator.swarm import Swarm


def scheduler_config(plan: Plan) -> SchedulerConfig:
    """The bounds of the plan's steps."""
    return SchedulerConfig(
        max_num_seqs=plan.max_num_seqs,
        max_num_batched_tokens=plan.budget,
        max_model_len=plan.max_model_len,
        long_prefill_token_threshold=plan.threshold,
        policy=plan.policy,
        target_itl=plan.target_itl,
    )


class EngineProcess:
    """One life of the engine, from ready to its end. `clients` are those of the world."""

    def __init__(
        self, plan: Plan, swarm: Swarm, coverage: Coverage, clients: dict[str, Client], rng: random.Random
    ) -> None:
        self.inbox: list[ToEngine] = []
        self.outbox = Outbox()
        self.hung = self.turn_is_due = self.flush_is_due = False
        self.arrives_at = 0.0
        """When the last message to the engine arrives."""
        first = has_window(plan.groups)
        order = list(range(first, plan.num_blocks))
        rng.shuffle(order)
        index = ExplainingIndex(rng.randbytes(16), plan.hash_bits) if plan.caching else None
        self.pool = WatchedPool(
            plan.num_blocks, plan.block_size, prefix_index=index, order=order, null_block=first, faults=swarm
        )

        def oracle_of(request_id: str, choice: int) -> Oracle:
            return clients[request_id].oracles[choice]

        def salt_of(request_id: str) -> bytes:
            return clients[request_id].arrival.salt

        self.runner = ShadowRunner(plan, swarm, self.pool, oracle_of, salt_of)
        self.pool.watch(self.runner)
        self.scheduler = Scheduler(scheduler_config(plan), self.pool, swarm, plan.groups)
        self.core = EngineCore(self.scheduler, self.runner, depth=plan.depth, faults=swarm)
        self.checks = Checks(self.core, self.scheduler, self.runner, swarm, coverage, clients)

    def turn(self, clock: Callable[[], float]) -> bool:
        """Take the messages, step, put what came of it into the outbox; whether a step was made."""
        for message in self.inbox:
            self._take(message, clock())
        self.inbox.clear()
        steps = self.core.has_work()
        if steps:
            self.checks.before()
            try:
                outputs = self.core.step(clock)
            except Violation:
                raise
            except Exception as error:
                raise Violation("crash", f"the core raises {type(error).__name__}: {error}") from error
            finally:
                self._raise_found()
            self.checks.after(outputs)
            if outputs is not None:
                self.outbox.put(outputs)
        else:
            self.checks.idle()
        return steps

    def _raise_found(self) -> None:
        for error in self.runner.found:
            if isinstance(error, Violation):
                raise error
            raise Violation("I16", f"the runner cannot do the step: {type(error).__name__}: {error}") from error

    def _take(self, message: ToEngine, now: float) -> None:
        try:
            self._handle(message, now)
        except Violation:
            raise
        except Exception as error:
            raise Violation("crash", f"{type(message).__name__}: {type(error).__name__}: {error}") from error

    def _handle(self, message: ToEngine, now: float) -> None:
        match message:
            case Add():
                self.core.add(message, now)
                self.checks.added(message)
            case Cancel():
                self.core.cancel(message, now)
            case LiveIds():
                self.core.live_ids(message, now)
            case Query():
                ids = self.core.request_ids()
                self.outbox.put(Answer(message.query_id, self.core.statistics(), ids, ()))
            case _:
                raise msgspec.ValidationError(f"unexpected message {message}")
