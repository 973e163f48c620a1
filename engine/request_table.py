"""The HTTP side's table of requests. Pure: `handle(event, now)` changes the table and returns effects; no clock, no IO.

Every choice of an opened request ends in exactly one of: a delivered delta with a finish reason, or the request's one
`Fail`, or silence because its client left. Rows that come later are dropped. `AsyncEngine` carries the effects out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from quire.engine.detokenizer import Detokenizer
from quire.engine.drain_rate import DrainRate
from quire.engine.messages import Add, Cancel, CancelReason, Failure, FinishReason, LiveIds, OutputRow, ToEngine
from quire.engine.outputs import TextDelta
from quire.engine.quarantine import CONVICTED, Quarantine

TableState = Literal["loading", "ready", "restarting", "draining", "failed"]

log = logging.getLogger("quire.engine")

RETRY_AFTER_BOUNDS = (1.0, 60.0)

_REFUSALS: dict[TableState, tuple[str, str]] = {
    "loading": ("model_loading", "the model is still loading; try again soon"),
    "restarting": ("engine_restarting", "the engine has died and is being restarted; try again soon"),
    "draining": ("server_draining", "the server is shutting down and takes no new requests"),
    "failed": ("engine_failed", "the engine could not be started"),
}


@dataclass(frozen=True, slots=True)
class Opened:
    """A client asks: register the request and send it on, or refuse it."""

    add: Add
    detokenizers: tuple[Detokenizer, ...]
    """One a choice."""
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """The engine has new tokens."""

    rows: tuple[OutputRow, ...]


@dataclass(frozen=True, slots=True)
class EngineFailed:
    """The engine gives up these requests (None: all)."""

    request_ids: tuple[str, ...] | None
    failure: Failure


@dataclass(frozen=True, slots=True)
class EngineUp:
    """The engine is ready; `max_num_seqs` of it can run at once."""

    max_num_seqs: int


@dataclass(frozen=True, slots=True)
class EngineDown:
    """The engine is gone, and with it everything in flight. `state` is what new requests meet from now on."""

    state: Literal["restarting", "failed"] = "restarting"
    suspects: tuple[str, ...] = ()
    """The requests of the step in which it died, when it died of its work."""


@dataclass(frozen=True, slots=True)
class ClientGone:
    """Nobody reads this request's answer any more. Harmless when the request has ended."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: end what is past its deadline."""


@dataclass(frozen=True, slots=True)
class Reconcile:
    """Tell the engine which requests somebody still waits for."""


@dataclass(frozen=True, slots=True)
class EngineKnows:
    """The requests that the engine holds. Those `asked` about that it does not hold are lost, and fail."""

    asked: frozenset[str]
    request_ids: frozenset[str]


@dataclass(frozen=True, slots=True)
class Drain:
    """Take no new requests."""


@dataclass(frozen=True, slots=True)
class DrainEnded:
    """The time to finish is over: end everything that is left."""


Event = (
    Opened
    | Rows
    | EngineFailed
    | EngineUp
    | EngineDown
    | ClientGone
    | Tick
    | Reconcile
    | EngineKnows
    | Drain
    | DrainEnded
)


@dataclass(frozen=True, slots=True)
class Send:
    """Send this to the engine."""

    message: ToEngine


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand this to the request's reader; with `last` nothing follows for any of its choices."""

    request_id: str
    delta: TextDelta
    last: bool


@dataclass(frozen=True, slots=True)
class Fail:
    """End the request's stream with this failure; nothing follows."""

    request_id: str
    failure: Failure
    retry_after: float | None = None


Effect = Send | Deliver | Fail


@dataclass(slots=True)
class _Entry:
    """A registered request. `open_choices` are those without a terminal delta."""

    add: Add
    detokenizers: tuple[Detokenizer, ...]
    deadline: float | None
    open_choices: set[int] = field(default_factory=set)
    num_tokens: int = 0
    """That the engine has told us of, over all choices."""


class RequestTable:
    """See the module. `max_queued` bounds the sequences that wait beyond those that can run at once.

    `secret` is the quarantine's; the caller draws it.
    """

    def __init__(self, *, max_queued: int = 2048, secret: bytes = b"") -> None:
        self.state: TableState = "loading"
        self.quarantine = Quarantine(secret)
        self._max_queued = max_queued
        self._max_running = 0
        self._draining = False
        self._entries: dict[str, _Entry] = {}
        self._num_sequences = 0
        self._drain = DrainRate()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def num_sequences(self) -> int:
        """Choices that have not ended."""
        return self._num_sequences

    def request_ids(self) -> frozenset[str]:
        """The requests that somebody waits for."""
        return frozenset(self._entries)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event; `now` is monotonic seconds."""
        match event:
            case Opened():
                return self._open(event, now)
            case Rows(rows):
                return [effect for row in rows for effect in self._row(row, now)]
            case EngineFailed(ids, failure):
                return self._fail(self._entries if ids is None else ids, failure, now)
            case EngineUp(max_num_seqs):
                self._max_running = max_num_seqs
                self.state = "draining" if self._draining else "ready"
                return []
            case EngineDown(state, suspects):
                self.state = "draining" if self._draining else state
                code, message = _REFUSALS[state]
                # As many as are sent away now are not to come back within one second.
                retry_after = self._retry_after(now)
                convicted = self._suspect(suspects, now)
                return convicted + self._fail(self._entries, Failure(code, message, 503), now, retry_after)
            case ClientGone(request_id):
                return self._cancel(request_id, "client_gone") if self._forget(request_id, now) else []
            case Tick():
                late = [name for name, e in self._entries.items() if e.deadline is not None and e.deadline <= now]
                return [effect for name in late for effect in self._time_out(name, now)]
            case Reconcile():
                return [Send(LiveIds(tuple(self._entries)))]
            case EngineKnows(asked, known):
                failure = Failure("request_lost", "the engine does not know this request any more", 500)
                return self._fail([name for name in sorted(asked - known) if name in self._entries], failure, now)
            case Drain():
                self._draining = True
                self.state = "draining"
                return []
            case DrainEnded():
                names = list(self._entries)
                failed = self._fail(names, _refusal("draining"), now)
                return [effect for name in names for effect in self._cancel(name, "drain")] + failed

    def _open(self, event: Opened, now: float) -> list[Effect]:
        add, choices = event.add, len(event.detokenizers)
        if self.state != "ready":
            return [Fail(add.request_id, _refusal(self.state), retry_after=self._retry_after(now))]
        if self._num_sequences + choices > self._max_running + self._max_queued:
            message = f"{self._num_sequences} sequences are waiting or running, and the queue is full; try again later"
            failure = Failure("server_is_overloaded", message, 503)
            return [Fail(add.request_id, failure, retry_after=self._retry_after(now))]
        if add.request_id in self._entries:
            raise ValueError(f"request id {add.request_id} is in use; ids must be unique")
        admitted = self.quarantine.admit(add, now)
        if admitted is None:
            return [Fail(add.request_id, CONVICTED)]
        self._entries[add.request_id] = _Entry(add, event.detokenizers, event.deadline, set(range(choices)))
        self._num_sequences += choices
        self._drain.begin(1, now)
        return [Send(admitted)]

    def _suspect(self, names: tuple[str, ...], now: float) -> list[Effect]:
        """An engine died in a step of these requests."""
        entries = [self._entries[name] for name in names if name in self._entries]
        convicted = self.quarantine.died([(e.add, e.num_tokens) for e in entries], len(names) == 1, now)
        return [] if convicted is None else self._fail([convicted.request_id], CONVICTED, now)

    def _row(self, row: OutputRow, now: float) -> list[Effect]:
        entry = self._entries.get(row.request_id)
        if entry is None or row.choice not in entry.open_choices:
            return []
        entry.num_tokens += len(row.token_ids) // 4
        try:
            delta = entry.detokenizers[row.choice].push(row)
        except Exception as error:  # a fault of ours that this request brought out ends this request alone
            log.exception("request %s: its text could not be made", row.request_id)
            failure = Failure("internal_error", f"the text could not be made ({type(error).__name__})", 500)
            return self._cancel(row.request_id, "client_gone") + self._fail([row.request_id], failure, now)
        if delta is None:
            return []
        if delta.finish_reason == "error" and len(entry.open_choices) > 1:
            return self._end_together(row.request_id, delta, now)
        effects = self._deliver(row.request_id, delta, now)
        if delta.finish_reason is not None and row.finish_reason is None:
            effects.append(Send(Cancel(row.request_id, row.choice, "stop_string")))
        return effects

    def _end_together(self, request_id: str, delta: TextDelta, now: float) -> list[Effect]:
        """One choice failed: its siblings fail with it."""
        entry = self._entries[request_id]
        siblings = [choice for choice in sorted(entry.open_choices) if choice != delta.choice]
        effects = self._deliver(request_id, delta, now)
        for choice in siblings:
            effects += self._end_choice(request_id, choice, "error", delta.failure, now)
        return effects + self._cancel(request_id, "client_gone")

    def _time_out(self, request_id: str, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for choice in sorted(self._entries[request_id].open_choices):
            effects += self._end_choice(request_id, choice, "timeout", None, now)
        return self._cancel(request_id, "deadline") + effects

    def _end_choice(
        self, request_id: str, choice: int, reason: FinishReason, failure: Failure | None, now: float
    ) -> list[Effect]:
        """End one choice from this side, with the text that was held back."""
        row = OutputRow(request_id, choice, b"", finish_reason=reason, failure=failure)
        delta = self._entries[request_id].detokenizers[choice].push(row)
        assert delta is not None
        return self._deliver(request_id, delta, now)

    def _deliver(self, request_id: str, delta: TextDelta, now: float) -> list[Effect]:
        entry = self._entries[request_id]
        if delta.finish_reason is not None:
            entry.open_choices.remove(delta.choice)
            self._num_sequences -= 1
        last = not entry.open_choices
        if last:
            self._forget(request_id, now, done=True)
        return [Deliver(request_id, delta, last)]

    def _fail(
        self, request_ids: Iterable[str], failure: Failure, now: float, retry_after: float | None = None
    ) -> list[Effect]:
        names = [name for name in tuple(request_ids) if self._forget(name, now)]
        return [Fail(name, failure, retry_after) for name in names]

    def _forget(self, request_id: str, now: float, *, done: bool = False) -> bool:
        """Remove the request; False when it had ended before."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            return False
        self._num_sequences -= len(entry.open_choices)
        self._drain.end(1, now, done=done)
        return True

    def _cancel(self, request_id: str, reason: CancelReason) -> list[Effect]:
        return [Send(Cancel(request_id, None, reason))]

    def _retry_after(self, now: float) -> float:
        """Seconds until those that are here should be through, from the rate at which requests ended lately."""
        low, high = RETRY_AFTER_BOUNDS
        return min(max(self._drain.seconds_for(len(self._entries), now), low), high)


def _refusal(state: TableState) -> Failure:
    code, message = _REFUSALS[state]
    return Failure(code, message, 503)
