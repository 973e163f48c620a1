"""How much of the memory that was free when the model was ready this process and its children have taken since.

RssAnon and VmSwap count, file pages do not: the kernel can drop those. Memory that creeps up is met in stages, so that
the kernel's killer, who asks nobody, does not come first.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

from quire.server.admission import Admission, Pressure

INTERVAL_SECONDS = 1.0
HIGH, FULL, DROWNING = 0.85, 0.95, 0.98
"""Shares of what was free. From the last on, the newest requests are cut off."""
SHED_SHARE = 8
"""One of so many requests under way is cut off at a time, at least one."""

logger = logging.getLogger("quire.server")


def private_memory(pid: int, root: Path = Path("/proc")) -> int:
    """RssAnon + VmSwap in bytes; 0 for a process that is gone."""
    try:
        status = (root / str(pid) / "status").read_text()
    except OSError:
        return 0
    return 1024 * sum(int(found) for found in re.findall(r"^(?:RssAnon|VmSwap):\s+(\d+) kB$", status, re.MULTILINE))


def family(root: Path = Path("/proc")) -> list[int]:
    """This process and its direct children: the engine, and the worker that tokenizes large inputs."""
    found = [os.getpid()]
    for path in (root / "self" / "task").glob("*/children"):
        try:
            found += [int(pid) for pid in path.read_text().split()]
        except OSError:
            continue  # a thread that has ended meanwhile
    return found


def family_memory() -> int:
    """Of all of them together."""
    return sum(private_memory(pid) for pid in family())


class MemoryGauge:
    """Sets the pressure of `admission`. `room` is what was free, in bytes, and `read` tells what is held now."""

    def __init__(self, admission: Admission, room: int, read: Callable[[], int] = family_memory) -> None:
        self._admission, self._room, self._read = admission, max(1, room), read
        self._base = read()

    async def watch(self) -> None:
        """Look once a second until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(INTERVAL_SECONDS)

    def look(self) -> None:
        """Set the pressure, and where nothing else helps cut off the newest requests."""
        share = (self._read() - self._base) / self._room
        pressure = Pressure.FULL if share >= FULL else Pressure.HIGH if share >= HIGH else Pressure.NONE
        if pressure is not self._admission.pressure:
            logger.warning("memory: %.0f %% of what was free is used; pressure %s", 100 * share, pressure.name.lower())
        self._admission.pressure = pressure
        if share >= DROWNING:
            self._admission.shed_newest(max(1, self._admission.num_requests // SHED_SHARE))
