"""Whether this server lives and whether it takes work, from memory alone: /health and /ready on every port.

Nothing here waits, queues or asks the engine: the engine's part is a counter on a page that both processes map. So the
answers are true and fast whatever the load, and may be given by any thread.
"""

from __future__ import annotations

from typing import Any

from quire.server.errors import ApiError, unavailable
from quire.server.pulse import Pulse
from quire.server.service import Service, draining

READY_SHARE = 0.9
"""Of the queue: a server whose queue is fuller asks balancers to send work elsewhere."""
DEAD_SECONDS = 10.0
"""A loop that has not run for so long is not coming back."""
LATE_SECONDS = 1.0
"""A loop that is so late does not know what it says: the engine may have died meanwhile."""
HANG_GRACE_SECONDS = 5.0
"""For the supervisor to kill a hung engine, which makes it a restarting one."""


class Vitals:
    """Of one service. `pulse` None: nobody beats, as in tests without a server."""

    def __init__(self, service: Service, pulse: Pulse | None) -> None:
        self._service, self._pulse = service, pulse

    def lag(self) -> float:
        """Seconds by which the event loop was late, lately."""
        return 0.0 if self._pulse is None else self._pulse.lag()

    def health(self) -> dict[str, Any]:
        """What /health says while this process and its engine live, also while it loads or drains. Raises the 503."""
        engine = self._service.engine
        if engine.state == "failed":
            raise unavailable("engine_failed", "The engine has failed and is not coming back.", 30)
        self._check_pulse(DEAD_SECONDS)
        still = engine.standstill()
        if still > engine.hang_limit + HANG_GRACE_SECONDS:
            text = f"The engine has not moved for {still:.0f} s with work pending."
            raise unavailable("engine_hung", text, 10)
        steps = engine.statistics.num_steps
        return {"status": "ok", "engine": engine.state, "restarts": engine.restarts, "steps": steps}

    def ready(self) -> dict[str, Any]:
        """What /ready says while new work is welcome. Raises the 503."""
        service = self._service
        if service.leaving:
            raise draining()
        facts = service.facts()
        self._check_pulse(LATE_SECONDS)
        admission = service.admission
        room = facts.max_num_seqs + admission.max_queued * READY_SHARE
        if admission.num_sequences >= room:
            wait = admission.estimated_wait(facts.max_num_seqs)
            raise unavailable("server_is_overloaded", "The queue is nearly full.", max(1.0, wait))
        return {"status": "ready"}

    def _check_pulse(self, limit: float) -> None:
        age = 0.0 if self._pulse is None else self._pulse.age()
        if age > limit:
            raise _stalled(age)


def _stalled(age: float) -> ApiError:
    return unavailable("server_stalled", f"The event loop of this server has not run for {age:.1f} s.", 5)
