"""Room for requests: reserved before any work is done for them, given back when they end, whatever the end."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from types import TracebackType

from quire.server.errors import ApiError, unavailable
from quire.server.limits import Limits

_ENDS_REMEMBERED = 64


class Admission:
    """Counts sequences, body bytes and queued token ids of all requests under way; pure but for the clock."""

    def __init__(self, limits: Limits, max_queued: int, clock: Callable[[], float]) -> None:
        self.limits, self.max_queued, self._clock = limits, max_queued, clock
        self.num_requests = 0
        self.num_sequences = 0
        self.body_bytes = 0
        self.token_bytes = 0
        self._ends: deque[float] = deque(maxlen=_ENDS_REMEMBERED)
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> Ticket:
        """A place for a request, before anything of its body is read."""
        self.num_requests += 1
        self._idle.clear()
        return Ticket(self)

    async def wait_idle(self, seconds: float) -> bool:
        """Wait until no request is under way, at most so long; whether that is so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        return self.num_requests == 0

    def estimated_wait(self, max_running: int, more: int = 0) -> float:
        """Seconds until that many further sequences run, from the rate of late ends; 0 when it is unknown."""
        waiting = self.num_sequences + more - max_running
        if waiting <= 0 or len(self._ends) < 2:
            return 0.0
        span = max(self._clock() - self._ends[0], 1e-3)
        return waiting * span / len(self._ends)

    def _take_body(self, ticket: Ticket, num_bytes: int) -> None:
        if self.body_bytes + num_bytes > self.limits.in_flight_body_bytes:
            error = self._overloaded(f"bodies in flight exceed {self.limits.in_flight_body_bytes} bytes")
            error.close = True
            raise error
        self.body_bytes += num_bytes
        ticket.body_bytes += num_bytes

    def _take_sequences(self, ticket: Ticket, sequences: int, max_running: int, deadline_seconds: float | None) -> None:
        if self.num_sequences + sequences > max_running + self.max_queued:
            raise self._overloaded(f"{self.max_queued} sequences are waiting already", max_running)
        if deadline_seconds is not None and self.estimated_wait(max_running, sequences) > deadline_seconds:
            raise self._overloaded("the wait would outlast deadline_ms", max_running)
        self.num_sequences += sequences
        ticket.sequences += sequences

    def _take_tokens(self, ticket: Ticket, num_tokens: int) -> None:
        token_bytes = 4 * num_tokens
        if self.token_bytes + token_bytes > self.limits.queued_token_bytes:
            raise self._overloaded(f"queued prompts exceed {self.limits.queued_token_bytes} bytes of token ids")
        self.token_bytes += token_bytes
        ticket.token_bytes += token_bytes

    def _release(self, ticket: Ticket) -> None:
        self.num_requests -= 1
        if self.num_requests == 0:
            self._idle.set()
        self.body_bytes -= ticket.body_bytes
        self.token_bytes -= ticket.token_bytes
        self.num_sequences -= ticket.sequences
        self._ends.extend([self._clock()] * min(ticket.sequences, _ENDS_REMEMBERED))

    def _overloaded(self, why: str, max_running: int = 0) -> ApiError:
        wait = self.estimated_wait(max_running) if max_running else 1.0
        return unavailable("server_is_overloaded", f"The server is full: {why}. Try again later.", max(wait, 1.0))


class Ticket:
    """One request's reservations; a context manager that gives all of them back."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission
        self.body_bytes = 0
        self.sequences = 0
        self.token_bytes = 0

    def take_body(self, num_bytes: int) -> None:
        """Reserve room for a piece of the body. Raises server_is_overloaded."""
        assert self._admission is not None
        self._admission._take_body(self, num_bytes)

    def take_sequences(self, sequences: int, max_running: int, deadline_seconds: float | None = None) -> None:
        """Reserve queue places, all or none. Raises server_is_overloaded."""
        assert self._admission is not None
        self._admission._take_sequences(self, sequences, max_running, deadline_seconds)

    def take_tokens(self, num_tokens: int) -> None:
        """Reserve room for prompt token ids. Raises server_is_overloaded."""
        assert self._admission is not None
        self._admission._take_tokens(self, num_tokens)

    def __enter__(self) -> Ticket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        admission, self._admission = self._admission, None
        if admission is not None:
            admission._release(self)
