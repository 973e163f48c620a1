"""Whether the event loop of this process runs, and how late: a beat that other threads can read."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

INTERVAL_SECONDS = 0.1
_REMEMBERED = 100


class Pulse:
    """Beats while `keep_beating` runs. `age` and `lag` may be asked from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._delays: deque[float] = deque((0.0,), maxlen=_REMEMBERED)

    async def keep_beating(self) -> None:
        """Beat until cancelled."""
        while True:
            self.beat()
            await asyncio.sleep(INTERVAL_SECONDS)

    def beat(self) -> None:
        """The loop runs."""
        now = self._clock()
        self._delays.append(max(0.0, now - self._last - INTERVAL_SECONDS))
        self._last = now

    def age(self) -> float:
        """Seconds since the last beat."""
        return self._clock() - self._last

    def lag(self) -> float:
        """The longest delay of a beat within the last ten seconds or so, the one that is due now included."""
        return max(*tuple(self._delays), self.age() - INTERVAL_SECONDS)
