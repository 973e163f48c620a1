"""What the two processes of a server hold, second by second, and what is left when nobody asks for anything."""

from __future__ import annotations

import asyncio
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec

from quire.benchmarks.servers import descendants

INTERVAL_SECONDS = 1.0
MEBIBYTE = 1 << 20


class Holding(msgspec.Struct, frozen=True):
    """One process at one moment."""

    pid: int
    memory: int
    """Bytes of its own: RssAnon + VmSwap."""
    descriptors: int
    threads: int


class Sample(msgspec.Struct, frozen=True):
    """Both processes; `engine` None while there is none. `finished` counts good requests so far, `ended` all."""

    at: float
    http: Holding
    engine: Holding | None
    finished: int
    ended: int


def holding(pid: int) -> Holding | None:
    """What a process holds; None when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
    fields = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+)", status, re.MULTILINE)}
    if "RssAnon" not in fields:
        return None
    return Holding(pid, (fields["RssAnon"] + fields.get("VmSwap", 0)) << 10, descriptors, fields["Threads"])


def engine_pid(server: int) -> int | None:
    """The child of the server that is an engine; None while there is none."""
    for pid in descendants(server)[1:]:
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"quire.engine" in words:
            return pid
    return None


@dataclass
class Tally:
    """Requests so far."""

    finished: int = 0
    ended: int = 0


class Watch:
    """Samples a server until cancelled."""

    def __init__(self, server: int, tally: Tally) -> None:
        self.server, self.tally = server, tally
        self.samples: list[Sample] = []
        self._begun = time.monotonic()

    async def run(self) -> None:
        """Once a second."""
        while True:
            self.look()
            await asyncio.sleep(INTERVAL_SECONDS)

    def look(self) -> Sample | None:
        """One sample more; None when the server is gone."""
        http, pid = holding(self.server), engine_pid(self.server)
        if http is None:
            return None
        engine = None if pid is None else holding(pid)
        sample = Sample(time.monotonic() - self._begun, http, engine, self.tally.finished, self.tally.ended)
        self.samples.append(sample)
        return sample


async def metric(http: aiohttp.ClientSession, url: str, name: str) -> float:
    """The sum over labels of a sample of /metrics."""
    async with http.get(url + "/metrics") as response:
        text = await response.text()
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))


async def leftovers(http: aiohttp.ClientSession, url: str, seconds: float = 60.0) -> dict[str, float]:
    """What is held once everything has ended: zeros, or what did not become zero within so many seconds."""
    names = ("quire:num_requests_running", "quire:num_requests_waiting", "quire:kv_cache_usage_perc")
    deadline = time.monotonic() + seconds
    while True:
        found = {name: await metric(http, url, name) for name in names}
        async with http.get(url + "/load") as response:
            load = await response.json()
        found |= {"tickets": load["server_load"], "registered": load["num_requests"]}
        if not any(found.values()) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.2)


def slope(amounts: list[float], values: list[float]) -> float:
    """Least squares: how much `values` grow with one more of `amounts`; 0 for fewer than three."""
    count = len(amounts)
    if count < 3:
        return 0.0
    middle, mean = sum(amounts) / count, sum(values) / count
    spread = sum((amount - middle) ** 2 for amount in amounts)
    if spread == 0:
        return 0.0
    return sum((amount - middle) * (value - mean) for amount, value in zip(amounts, values, strict=True)) / spread
