"""How fast work drains: ends a second, measured over the time in which there was work. Pure.

Idle time does not count: after a quiet hour a sudden crowd is told what the machine does when it is busy.
"""

from __future__ import annotations

from collections import deque

_ENDS_REMEMBERED = 64


class DrainRate:
    """Told when work begins and ends; times are monotonic seconds."""

    def __init__(self) -> None:
        self._num_open = 0
        self._busy_seconds = 0.0
        self._busy_since = 0.0
        self._ends: deque[float] = deque(maxlen=_ENDS_REMEMBERED)
        """Of the last pieces, in busy seconds."""

    def begin(self, count: int, now: float) -> None:
        """So many pieces of work have come."""
        if self._num_open == 0:
            self._busy_since = now
        self._num_open += count

    def end(self, count: int, now: float, *, done: bool = True) -> None:
        """So many are gone; where they were not `done` but given up, they say nothing about the rate."""
        busy = self._busy(now)
        if done:
            self._ends.extend([busy] * min(count, _ENDS_REMEMBERED))
        self._num_open -= count
        if self._num_open == 0:
            self._busy_seconds = busy

    def seconds_for(self, count: int, now: float) -> float:
        """How long so many take to end; 0 while the rate is unknown."""
        if count <= 0 or len(self._ends) < 2:
            return 0.0
        busy = self._busy(now) if self._num_open else self._busy_seconds
        return count * max(busy - self._ends[0], 1e-3) / len(self._ends)

    def _busy(self, now: float) -> float:
        return self._busy_seconds + (now - self._busy_since)
