"""Room for requests: reserved before any work is done for them, given back when they end, whatever the end.

503 says that the server is full, 429 that the caller's key is over its own limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
from collections.abc import Callable, Mapping
from types import TracebackType

from quire.engine.drain_rate import DrainRate
from quire.server.errors import ApiError, retry_after, unavailable
from quire.server.key_limits import KeyLimits, KeyMeter
from quire.server.limits import Limits

KEY_SHARE = 0.5
"""Of the queue: what one key may hold where there are several, beside as many sequences as can run."""


class Pressure(enum.IntEnum):
    """How short of memory the two processes are."""

    NONE = 0
    HIGH = 1
    """The queue is halved."""
    FULL = 2
    """Nothing new is taken."""


class Admission:
    """Counts sequences, body bytes and queued token ids of all requests under way; pure but for the clock.

    `keys` are the limits of each key by its id.
    """

    def __init__(
        self, limits: Limits, max_queued: int, clock: Callable[[], float], keys: Mapping[str, KeyLimits] | None = None
    ) -> None:
        self.limits, self.max_queued, self._clock = limits, max_queued, clock
        self.num_requests = 0
        self.num_sequences = 0
        self.body_bytes = 0
        self.token_bytes = 0
        self.pressure = Pressure.NONE
        self._drain = DrainRate()
        self._meters = {key_id: KeyMeter(of_key, clock()) for key_id, of_key in (keys or {}).items()}
        self._tickets: dict[Ticket, None] = {}
        """Of the requests under way, the oldest first."""
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self, key_id: str = "") -> Ticket:
        """A place for a request, before anything of its body is read.

        Raises rate_limit_exceeded or concurrency_limit_exceeded where its key is over its limits, and
        server_is_overloaded where there is no memory left.
        """
        if self.pressure is Pressure.FULL:
            error = self._overloaded("its memory is nearly used up")
            error.close = True
            raise error
        meter = self._meters.get(key_id)
        if meter is not None:
            meter.enter(self._clock())
        self.num_requests += 1
        self._idle.clear()
        ticket = Ticket(self, meter)
        self._tickets[ticket] = None
        return ticket

    def check_room(self, max_running: int) -> None:
        """Refuse what could not be taken anyway before its body is looked at. Raises server_is_overloaded."""
        if self.num_sequences >= self._places(max_running):
            raise self._full(max_running)

    def shed_newest(self, count: int) -> None:
        """Cut off so many of the requests under way, the newest first."""
        for ticket in itertools.islice(reversed(self._tickets), count):
            ticket.shed.set()

    async def wait_idle(self, seconds: float) -> bool:
        """Wait until no request is under way, at most so long; whether that is so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        return self.num_requests == 0

    def estimated_wait(self, max_running: int, more: int = 0) -> float:
        """Seconds until that many further sequences run, from the rate of late ends; 0 when it is unknown."""
        return self._drain.seconds_for(self.num_sequences + more - max_running, self._clock())

    def _places(self, max_running: int) -> int:
        return max_running + (self.max_queued // 2 if self.pressure >= Pressure.HIGH else self.max_queued)

    def _take_body(self, ticket: Ticket, num_bytes: int) -> None:
        if self.body_bytes + num_bytes > self.limits.in_flight_body_bytes:
            error = self._overloaded(f"bodies in flight exceed {self.limits.in_flight_body_bytes} bytes")
            error.close = True
            raise error
        self.body_bytes += num_bytes
        ticket.body_bytes += num_bytes

    def _take_sequences(self, ticket: Ticket, sequences: int, max_running: int, deadline_seconds: float | None) -> None:
        places, meter = self._places(max_running), ticket.meter
        if self.num_sequences + sequences > places:
            raise self._full(max_running)
        if deadline_seconds is not None and self.estimated_wait(max_running, sequences) > deadline_seconds:
            raise self._overloaded("the wait would outlast deadline_ms", max_running)
        if meter is not None:
            share = max_running + int((places - max_running) * KEY_SHARE)
            if len(self._meters) > 1 and meter.num_sequences + sequences > share:
                text = (
                    f"This key has {meter.num_sequences} sequences waiting or running, and one of {len(self._meters)} "
                    f"keys may have {share} of the {places} that there is room for."
                )
                wait = max(1.0, self.estimated_wait(max_running))
                raise ApiError("concurrency_limit_exceeded", text, headers=(retry_after(wait),))
            meter.num_sequences += sequences
        self._drain.begin(sequences, self._clock())
        self.num_sequences += sequences
        ticket.sequences += sequences

    def _take_tokens(self, ticket: Ticket, num_prompt_tokens: int, num_output_tokens: int) -> None:
        token_bytes = 4 * num_prompt_tokens
        if self.token_bytes + token_bytes > self.limits.queued_token_bytes:
            raise self._overloaded(f"queued prompts exceed {self.limits.queued_token_bytes} bytes of token ids")
        if ticket.meter is not None:
            ticket.meter.reserve(num_prompt_tokens + num_output_tokens, self._clock())
            ticket.reserved_tokens += num_prompt_tokens + num_output_tokens
        self.token_bytes += token_bytes
        ticket.token_bytes += token_bytes

    def _release(self, ticket: Ticket, done: bool) -> None:
        del self._tickets[ticket]
        self.num_requests -= 1
        if self.num_requests == 0:
            self._idle.set()
        self.body_bytes -= ticket.body_bytes
        self.token_bytes -= ticket.token_bytes
        self.num_sequences -= ticket.sequences
        now = self._clock()
        self._drain.end(ticket.sequences, now, done=done)
        if ticket.meter is not None:
            ticket.meter.leave()
            ticket.meter.num_sequences -= ticket.sequences
            ticket.meter.refund(ticket.reserved_tokens - ticket.used_tokens, now)

    def _full(self, max_running: int) -> ApiError:
        return self._overloaded(f"{self.max_queued} sequences are waiting already", max_running)

    def _overloaded(self, why: str, max_running: int = 0) -> ApiError:
        wait = self.estimated_wait(max_running) if max_running else 1.0
        return unavailable("server_is_overloaded", f"The server is full: {why}. Try again later.", max(wait, 1.0))


class Ticket:
    """One request's reservations; a context manager that gives all of them back."""

    def __init__(self, admission: Admission, meter: KeyMeter | None) -> None:
        self._admission: Admission | None = admission
        self.meter = meter
        """Of its key, where that has limits."""
        self.body_bytes = 0
        self.sequences = 0
        self.token_bytes = 0
        self.reserved_tokens = 0
        """Of its key's tokens a minute; what is not among `used_tokens` in the end is given back."""
        self.used_tokens = 0
        self.shed = asyncio.Event()
        """Set when the request is cut off to save the others."""

    def take_body(self, num_bytes: int) -> None:
        """Reserve room for a piece of the body. Raises server_is_overloaded."""
        assert self._admission is not None
        self._admission._take_body(self, num_bytes)

    def take_sequences(self, sequences: int, max_running: int, deadline_seconds: float | None = None) -> None:
        """Reserve queue places, all or none. Raises server_is_overloaded or concurrency_limit_exceeded."""
        assert self._admission is not None
        self._admission._take_sequences(self, sequences, max_running, deadline_seconds)

    def take_tokens(self, num_prompt_tokens: int, num_output_tokens: int = 0) -> None:
        """Reserve room for prompt token ids, and of the key's tokens a minute those and the most that the answer may
        have. Raises server_is_overloaded or rate_limit_exceeded."""
        assert self._admission is not None
        self._admission._take_tokens(self, num_prompt_tokens, num_output_tokens)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        admission, self._admission = self._admission, None
        if admission is not None:
            admission._release(self, done=kind is None)
