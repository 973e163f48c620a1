"""The world: one event heap and one virtual clock around clients, the HTTP side, the links and the engine.

    clients ── Opened, ClientGone ──> RequestTable ── Add, Cancel, LiveIds ──> link ──> EngineProcess.turn
            <── deltas, failures ──              <── rows (merged when late) ── link <──

Safety: everything goes wrong as the plan has it, and every invariant is checked after every step of the engine.
Liveness: `heal()`, then nothing goes wrong any more, and everyone must end, and everything be given back.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterable

from quire.engine.queues import MAX_PREEMPTIONS
from quire.engine.request_table import Drain, DrainEnded, EngineDown
from quire.simulator.coverage import Coverage
from quire.simulator.engine import EngineProcess
from quire.simulator.events import Arrival, Event, Trouble
from quire.simulator.http_side import HttpSide
from quire.simulator.plan import Plan
from quire.simulator.shadow import Violation
from quire.simulator.swarm import Swarm
from quire.simulator.timers import Timers

_MOST_EVENTS_A_STEP = 1000
_HANG_LIMIT = 15
"""Steps after which a hung engine is killed."""


class World:
    """One life. `run` goes through it; `num_steps` counts the engine's steps, `trace` sums up all that happened."""

    def __init__(self, plan: Plan, outside: Iterable[Event], failing_allocation: int = 0) -> None:
        self.plan = plan
        self.num_steps = self.trace = 0
        self.coverage = Coverage()
        self.consumed: list[Event] = []
        """Events that have come from outside."""
        self.swarm = Swarm(random.Random(f"faults {plan.seed}"), plan.rates, failing_allocation)
        self._rng = random.Random(f"world {plan.seed}")
        self.timers = Timers(self._rng, plan.step_seconds)
        self._http = HttpSide(plan, self.timers, self.swarm, self.coverage, self._rng, self._plan_turn)
        self._outside = iter(outside)
        self._server = 0
        self._goes_on = True
        self._open_server()
        self._push_next_outside()

    def run(self, num_steps: int) -> None:
        """Safety for so many steps of the engine, then liveness until all is idle. Raises Violation."""
        timers, last_event = self.timers, _MOST_EVENTS_A_STEP * num_steps
        while self.num_steps < num_steps and timers.num_events < last_event and (self._goes_on or not self._is_idle()):
            timers.next()
        self.heal()
        last_step = self.num_steps + self._bound()
        last_event = timers.num_events + _MOST_EVENTS_A_STEP * (self._bound() + 10)
        while not self._is_idle():
            if self.num_steps > last_step or timers.num_events > last_event:
                raise Violation("I12", f"at work {self.num_steps} steps after the last fault: {self._left()}")
            timers.next()
        self._http.check_empty()
        self.coverage["pool.minimum"] += self.plan.num_blocks <= self._smallest_pool()
        self.coverage.update(self.swarm.taken)

    def heal(self) -> None:
        """Nothing goes wrong any more, and nobody else comes."""
        self.swarm.heal()
        self._goes_on = False
        http = self._http
        http.healing, http.stalled_until = True, 0.0
        if http.engine is not None and http.engine.hung:
            self._wake(http.engine)
        for client in http.clients.values():
            if client.outcome is None:
                client.read()

    # --- liveness ---

    def _bound(self) -> int:
        """Steps in which all that is left must end: each of them moves at least one token (I11)."""
        tokens = 0
        for client in self._http.clients.values():
            if client.outcome is None:
                tokens += self.plan.max_model_len * client.arrival.params.n
        engine = self._http.engine
        if engine is not None:
            for group in engine.scheduler.roster.groups.values():
                tokens += self.plan.max_model_len * len(group.choices)
        return (1 + MAX_PREEMPTIONS) * tokens + 8 * self.plan.depth + 8

    def _is_idle(self) -> bool:
        engine, http = self._http.engine, self._http
        if engine is None or http.draining or len(http.table) or http.num_unread_messages:
            return False
        return not (engine.inbox or engine.outbox or engine.turn_is_due or engine.core.has_work())

    def _left(self) -> str:
        engine = self._http.engine
        held = None if engine is None else engine.core.request_ids()
        return f"the table has {sorted(self._http.table.request_ids())}, the engine {held}"

    def _smallest_pool(self) -> int:
        plan = self.plan
        return len(plan.groups) * -(-plan.max_model_len // plan.block_size) + 1

    # --- from outside ---

    def _push_next_outside(self) -> None:
        event = next(self._outside, None)
        if event is None:
            self._goes_on = False
        else:
            self.timers.after(max(0.0, event.at - self.timers.now), self._outside_event, event)

    def _outside_event(self, event: Event) -> None:
        if self._http.healing:
            return
        self.consumed.append(event)
        if isinstance(event, Arrival):
            self._http.arrive(event)
        else:
            self._trouble(event)
        self._push_next_outside()

    def _trouble(self, event: Trouble) -> None:
        self.coverage[event.kind] += 1
        engine, timers = self._http.engine, self.timers
        match event.kind:
            case "clock.jump":
                timers.offset += event.seconds
            case "server.drain":
                if not self._http.draining:
                    self._http.handle(Drain())
                    timers.after(event.seconds, self._end_drain)
            case "http.stall":
                self._http.stalled_until = timers.now + event.seconds
            case "engine.crash":
                self._crash(engine)
            case "engine.hang" if engine is not None:
                engine.hung = True
                limit = _HANG_LIMIT * self.plan.step_seconds
                timers.after(min(limit, event.seconds), self._crash if event.seconds > limit else self._wake, engine)

    # --- the lives of servers and engines ---

    def _open_server(self) -> None:
        self._server += 1
        self._http.engine = None
        self._http.open()
        self.timers.after(self.timers.steps(1), self._engine_up, self._server)

    def _end_drain(self) -> None:
        self._http.handle(DrainEnded())
        self._open_server()

    def _engine_up(self, server: int) -> None:
        if server == self._server and self._http.engine is None:
            self.coverage["engine.restarted"] += 1
            self._http.engine_up(EngineProcess(self.plan, self.swarm, self.coverage, self._http.clients, self._rng))

    def _wake(self, engine: EngineProcess) -> None:
        engine.hung = False
        self.coverage["engine.recovered"] += engine is self._http.engine
        self._plan_turn(engine, 0.0)

    def _crash(self, engine: EngineProcess | None) -> None:
        """The engine is gone, and what was on its way in either direction; some of that had been read before."""
        if engine is None or engine is not self._http.engine or self._http.healing:
            return
        suspects: tuple[str, ...] = ()
        if self.swarm.chance(0.5):
            self._http.receive(engine)
        elif engine.scheduler.flights:
            sequences = engine.scheduler.flights[-1].sequences()
            suspects = tuple(dict.fromkeys(sequence.group.request_id for sequence in sequences))
        self._http.engine = None
        self.timers.after(self.timers.steps(2), self._engine_down, self._server, suspects)

    def _engine_down(self, server: int, suspects: tuple[str, ...]) -> None:
        if server == self._server:
            self._http.handle(EngineDown(suspects=suspects))
            self.timers.after(self.timers.steps(5), self._engine_up, server)

    # --- the engine's turns ---

    def _plan_turn(self, engine: EngineProcess, delay: float) -> None:
        if not engine.turn_is_due and not engine.hung:
            engine.turn_is_due = True
            self.timers.after(delay, self._turn, engine)

    def _turn(self, engine: EngineProcess) -> None:
        engine.turn_is_due = False
        if engine is not self._http.engine or engine.hung:
            return
        reading = 0

        def clock() -> float:
            nonlocal reading
            reading += 1
            return self.timers.clock + reading * self.plan.step_seconds * 0.01

        stepped = engine.turn(clock)
        self.num_steps += stepped
        self.trace = zlib.crc32(b"%d %d" % (engine.runner.trace, engine.checks.trace), self.trace)
        if engine.core.has_work():
            self._plan_turn(engine, self.plan.step_seconds * (0.5 + self._rng.random()))
        self._http.plan_receive(engine)
