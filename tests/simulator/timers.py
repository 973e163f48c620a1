"""Virtual time: a heap of things to do, and a clock that can jump."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable

Action = Callable[..., None]


class Timers:
    """What happens when. `log` keeps the last events, for people."""

    def __init__(self, rng: random.Random, step_seconds: float) -> None:
        self.now = 0.0
        self.offset = 1000.0
        """Between virtual time and what processes read as monotonic time."""
        self.log: deque[tuple[float, str, tuple[object, ...]]] = deque(maxlen=50)
        self.num_events = 0
        self._rng, self._step_seconds = rng, step_seconds
        self._heap: list[tuple[float, int, Action, tuple[object, ...]]] = []
        self._num_pushed = 0

    @property
    def clock(self) -> float:
        """What the processes read as monotonic time."""
        return self.now + self.offset

    def after(self, delay: float, action: Action, *arguments: object) -> None:
        """Do `action` in so many seconds; of two at the same time, the one that was pushed first."""
        self._num_pushed += 1
        heapq.heappush(self._heap, (self.now + delay, self._num_pushed, action, arguments))

    def next(self) -> None:
        """Do what comes next."""
        self.now, _, action, arguments = heapq.heappop(self._heap)
        self.num_events += 1
        self.log.append((self.now, action.__name__, arguments))
        action(*arguments)

    def steps(self, mean: float) -> float:
        """A random time in seconds; `mean` is in steps of the engine."""
        return self._rng.expovariate(1.0) * mean * self._step_seconds
