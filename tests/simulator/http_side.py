"""The HTTP side of the simulator: the real table of requests, its clients, and its end of the link to the engine."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from quire.engine.frames import decode_from_engine, decode_to_engine, encode_message
from quire.engine.messages import (
    Add,
    Answer,
    Cancel,
    Explain,
    Failure,
    Query,
    Statistics,
    StepOutputs,
    ToEngine,
    pack_ids,
)
from quire.engine.outputs import TextDelta
from quire.engine.request_table import (
    ClientGone,
    Deliver,
    Drain,
    DrainEnded,
    EngineKnows,
    EngineUp,
    Event,
    Fail,
    Opened,
    Reconcile,
    RequestTable,
    Rows,
    Send,
    Tick,
)
from quire.engine.scheduler import LEASE_SECONDS
from quire.simulator.clients import Client
from quire.simulator.coverage import Coverage
from quire.simulator.engine import EngineProcess
from quire.simulator.events import FOREVER, Arrival
from quire.simulator.plan import Plan
from quire.simulator.shadow import Violation
from quire.simulator.swarm import Swarm
from quire.simulator.timers import Timers

RECONCILE_SECONDS = 5.0
STALL_STEPS = 30
"""How long, in steps of the engine, a reader may read nothing."""


class HttpSide:
    """Carries out what the table says. `engine` is the process at the other end of the link, or None.

    `plan_turn(engine, delay)` is called when a message has reached the engine.
    """

    def __init__(
        self,
        plan: Plan,
        timers: Timers,
        swarm: Swarm,
        coverage: Coverage,
        rng: random.Random,
        plan_turn: Callable[[EngineProcess, float], None],
    ) -> None:
        self.clients: dict[str, Client] = {}
        self.engine: EngineProcess | None = None
        self.healing = False
        self.stalled_until = 0.0
        self.num_unread_messages = 0
        """On their way to the engine."""
        self._plan, self._timers, self._swarm, self._coverage, self._rng = plan, timers, swarm, coverage, rng
        self._plan_turn = plan_turn
        self._ghosts: dict[str, float] = {}
        self._lost: set[str] = set()
        """Requests that never reached the engine."""
        self._statistics = Statistics()
        """The newest that the engine sent."""
        self.open()
        timers.after(RECONCILE_SECONDS, self._reconcile)

    def open(self) -> None:
        """A new server."""
        self.table = RequestTable(max_queued=self._plan.max_queued)
        self.draining = False
        self._asked: tuple[frozenset[str], list[frozenset[str]]] | None = None
        self._ghosts.clear()

    # --- clients ---

    def arrive(self, arrival: Arrival) -> None:
        """A client asks."""
        plan, coverage = self._plan, self._coverage
        request_id = f"r{len(self.clients)}"
        client = self.clients[request_id] = Client(request_id, arrival, plan)
        clock = self._timers.clock
        deadline = None if arrival.deadline is None else clock + arrival.deadline
        add = Add(
            request_id,
            pack_ids(arrival.prompt),
            arrival.params,
            priority=arrival.priority,
            salt=arrival.salt,
            key_id=arrival.key_id,
            weight=arrival.weight,
            deadline=deadline,
            alone=arrival.alone,
            explain=Explain(began=clock, cache_report=True) if arrival.explain else None,
        )
        coverage["client.suspect"] += arrival.alone > 0
        coverage["client.too_long"] += len(arrival.prompt) >= plan.max_model_len
        self.handle(Opened(add, client.detokenizers(), deadline))
        if client.outcome is not None:
            return
        gone = "client.vanish" if arrival.vanishes else "client.abort"
        self._plan_to(client, arrival.leaves_after, self._leave, gone)
        self._plan_to(client, arrival.drops_choice_after, self._drop_choice, "client.abort_choice")
        self._plan_to(client, arrival.deadline or FOREVER, self._tick, "client.deadline")
        if arrival.reads_every == FOREVER:
            self._plan_to(client, STALL_STEPS * plan.step_seconds, self._cut, "client.stalled")
        elif arrival.reads_every:
            self._plan_to(client, arrival.reads_every, self._read, "client.slow")

    def _plan_to(self, client: Client, seconds: float, action: Callable[[Client], None], name: str) -> None:
        if seconds < FOREVER:
            self._coverage[name] += 1
            self._timers.after(seconds, action, client)

    def _leave(self, client: Client) -> None:
        if client.outcome is None and not self.healing:
            self._go(client, tells=not client.arrival.vanishes)

    def _go(self, client: Client, tells: bool) -> None:
        client.leave()
        self._coverage["client.left"] += 1
        self.handle(ClientGone(client.request_id), sends=tells)

    def _cut(self, client: Client) -> None:
        """Who reads nothing for too long is cut off."""
        if client.outcome is not None or self.healing:
            return
        unread, limit = client.unread_since, STALL_STEPS * self._plan.step_seconds
        if unread is not None and self._timers.now - unread >= limit:
            self._coverage["client.cut"] += 1
            self._go(client, tells=True)
        else:
            self._timers.after(limit, self._cut, client)

    def _drop_choice(self, client: Client) -> None:
        if client.outcome is None:
            self._send(Cancel(client.request_id, 0, "client_gone"))

    def _tick(self, client: Client) -> None:
        self.handle(Tick())

    def _read(self, client: Client) -> None:
        if client.outcome is None:
            self._read_now(client)
            self._timers.after(client.arrival.reads_every, self._read, client)

    def _read_now(self, client: Client) -> None:
        client.read()
        if client.outcome is not None:
            self._coverage[f"client.{client.outcome}"] += 1

    def _retry(self, arrival: Arrival) -> None:
        if not self.healing:
            self._coverage["client.retry"] += 1
            self.arrive(replace(arrival, retries=arrival.retries - 1))

    # --- the table ---

    def handle(self, event: Event, sends: bool = True) -> None:
        """Let the table take the event, and carry out what it says; without `sends`, the engine is not told."""
        if isinstance(event, Drain):
            self.draining = True
        for effect in self.table.handle(event, self._timers.clock):
            match effect:
                case Send(message):
                    if sends:
                        self._send(message)
                case Deliver(request_id, delta, last):
                    self._deliver(self.clients[request_id], delta, last)
                case Fail(request_id, failure, retry_after):
                    self._fail(self.clients[request_id], failure, retry_after)
        self._coverage[f"table.{self.table.state}"] += 1
        if isinstance(event, DrainEnded):
            self.check_empty()

    def check_empty(self) -> None:
        """I19: nobody waits, so no ticket is out; I9: everyone has had an end."""
        if len(self.table) or self.table.num_sequences:
            raise Violation("I19", f"{len(self.table)} requests, {self.table.num_sequences} sequences are registered")
        for client in self.clients.values():
            if client.outcome is None and not client.is_closed:
                raise Violation("I9", f"nobody waits, but {client.request_id} has had no end")

    def _deliver(self, client: Client, delta: TextDelta, last: bool) -> None:
        if client.outcome == "left":
            raise Violation("I9", f"{client.request_id} has left, and is still served")
        client.deliver(delta, last, self._timers.now)
        self._coverage["stop.string"] += isinstance(delta.stop_reason, str)
        if client.arrival.reads_every == 0.0 or last or self.healing:
            self._read_now(client)

    def _fail(self, client: Client, failure: Failure, retry_after: float | None) -> None:
        client.fail(failure)
        if failure.code == "request_lost" and client.request_id not in self._lost:
            raise Violation("I20", f"{client.request_id} is given up as lost, but it had reached the engine")
        self._coverage["client.failed"] += 1
        self._coverage[f"failed.{failure.code}"] += 1
        if client.arrival.retries and retry_after is not None:
            self._timers.after(self._timers.steps(8), self._retry, client.arrival)

    # --- the link to the engine, and back ---

    def _send(self, message: ToEngine) -> None:
        rarely, steps = self._swarm.rarely, self._timers.steps
        if isinstance(message, Cancel):
            if rarely("link.lose_cancel"):
                return
            if rarely("link.overtaking_cancel"):
                self._transmit(message, self._timers.now)
                return
            if rarely("link.repeat_cancel"):
                self._post(message)
            if rarely("link.late_cancel"):
                self._timers.after(steps(30), self._post, message)
        elif isinstance(message, Add) and rarely("link.lose_add"):
            self._lost.add(message.request_id)
            return
        self._post(message)

    def _post(self, message: ToEngine) -> None:
        """In order: a message arrives no sooner than the one before it."""
        engine = self.engine
        if engine is not None:
            delay = self._rng.random() * self._plan.delay * self._plan.step_seconds
            if self._swarm.rarely("link.slow"):
                delay += self._timers.steps(10)
            engine.arrives_at = max(engine.arrives_at, self._timers.now + delay)
            self._transmit(message, engine.arrives_at)

    def _transmit(self, message: ToEngine, at: float) -> None:
        if self.engine is not None:
            self.num_unread_messages += 1
            self._timers.after(at - self._timers.now, self._reach_engine, self.engine, encode_message(message))

    def _reach_engine(self, engine: EngineProcess, payload: bytes) -> None:
        self.num_unread_messages -= 1
        if engine is self.engine:
            engine.inbox.append(decode_to_engine(payload))
            self._plan_turn(engine, 0.0)

    def plan_receive(self, engine: EngineProcess) -> None:
        """The engine has said something: it will be read."""
        if engine.outbox and not engine.flush_is_due:
            engine.flush_is_due = True
            self._timers.after(self._rng.random() * self._plan.delay * self._plan.step_seconds, self._flush, engine)

    def _flush(self, engine: EngineProcess) -> None:
        if engine is not self.engine:
            return
        if self._timers.now < self.stalled_until:
            self._coverage["rows.merged"] += 1
            self._timers.after(self.stalled_until - self._timers.now, self._flush, engine)
            return
        engine.flush_is_due = False
        self.receive(engine)

    def receive(self, engine: EngineProcess) -> None:
        """Read all that the engine has said."""
        while engine.outbox:
            match decode_from_engine(encode_message(engine.outbox.take())):
                case StepOutputs(rows, statistics):
                    self._statistics = statistics
                    self.handle(Rows(rows))
                case Answer() as answer:
                    self._statistics = answer.statistics
                    self._answered(answer)

    def engine_up(self, engine: EngineProcess) -> None:
        """A new engine is ready."""
        self.engine, self._asked, self._statistics = engine, None, Statistics()
        self.handle(EngineUp(self._plan.max_num_seqs))

    # --- reconciliation ---

    def _reconcile(self) -> None:
        """Every five seconds, as `AsyncEngine` does it."""
        self._timers.after(RECONCILE_SECONDS, self._reconcile)
        works = len(self.table) or self._statistics.num_running or self._statistics.num_waiting
        if works and self.table.state in ("ready", "draining") and self.engine is not None and self._asked is None:
            self._asked = self.table.request_ids(), []
            self.handle(Reconcile())
            self._send(Query(1, "statistics"))

    def _answered(self, answer: Answer) -> None:
        if self._asked is None:
            return
        asked, answers = self._asked
        answers.append(frozenset(answer.request_ids))
        if len(answers) == 1:
            # A request that ended just before the first answer has its last row sent before the second.
            self._send(Query(2, "statistics"))
        else:
            self._asked = None
            known = answers[0] | answers[1]
            self.handle(EngineKnows(asked, known))
            self._check_ids(known)

    def _check_ids(self, known: frozenset[str]) -> None:
        """I20: what the engine holds for nobody is gone within a lease and a few rounds."""
        now, ghosts = self._timers.clock, known - self.table.request_ids()
        self._ghosts = {name: self._ghosts.get(name, now) for name in sorted(ghosts)}
        for name, since in self._ghosts.items():
            if now - since > LEASE_SECONDS + 4 * RECONCILE_SECONDS + self._slack():
                raise Violation("I20", f"the engine has held {name} for nobody for {now - since:.0f} s")

    def _slack(self) -> float:
        """Messages may take long, and the clock may jump."""
        return 86_500.0 if "clock.jump" in self._plan.rates else 100 * self._plan.step_seconds
