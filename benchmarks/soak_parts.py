"""The parts of a soak that measure one goal each, on a server that does nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from quire.benchmarks.soak_clients import Outcome, ask, ask_body, read_nothing
from quire.benchmarks.soak_report import Row, quantile
from quire.benchmarks.soak_watch import MEBIBYTE, engine_pid, holding, leftovers, metric

HEALTH_INTERVAL = 0.1
_WORKERS = 8


@dataclass(frozen=True)
class Place:
    """A running server, and how many sequences of it run at once."""

    http: aiohttp.ClientSession
    url: str
    health_url: str
    pid: int
    max_num_seqs: int
    seed: int = 0


async def closed_loop(
    seconds: float, workers: int, one: Callable[[random.Random], Awaitable[Outcome]]
) -> list[Outcome]:
    """So many clients, each of which asks again as soon as it has its answer."""
    outcomes: list[Outcome] = []
    until = time.monotonic() + seconds

    async def work(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < until:
            outcomes.append(await one(rng))

    await asyncio.gather(*(work(number) for number in range(workers)))
    return outcomes


async def probe_health(http: aiohttp.ClientSession, url: str, seconds: list[float], failures: list[int]) -> None:
    """Ask for /health ten times a second until cancelled."""
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(10), http.get(url + "/health") as response:
                await response.read()
                if response.status != 200:
                    failures.append(response.status)
        except (aiohttp.ClientError, TimeoutError):
            failures.append(0)
        seconds.append(time.monotonic() - began)
        await asyncio.sleep(HEALTH_INTERVAL)


async def overload(place: Place, seconds: float, factor: float = 5.0) -> list[Row]:
    """G11, G14: the peak of what it can do, then `factor` times as many requests as that, whoever is refused."""

    async def one(rng: random.Random) -> Outcome:
        return await ask(place.http, place.url, ask_body(rng, max_tokens=24, stream=True))

    began = time.monotonic()
    peak_outcomes = await closed_loop(min(seconds, 30.0), 2 * place.max_num_seqs, one)
    peak = sum(outcome.end == "finished" for outcome in peak_outcomes) / (time.monotonic() - began)
    health: list[float] = []
    failures: list[int] = []
    async with aiohttp.ClientSession() as own:
        prober = asyncio.create_task(probe_health(own, place.health_url, health, failures))
        rng = random.Random(place.seed)
        tasks: list[asyncio.Task[Outcome]] = []
        began = time.monotonic()
        due = began
        while due < began + seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.append(asyncio.create_task(one(rng)))
            due += rng.expovariate(factor * peak)
        sent_until = time.monotonic()
        outcomes = await asyncio.gather(*tasks)
        prober.cancel()
    within = [outcome for outcome in outcomes if outcome.end == "finished" and outcome.ended <= sent_until]
    goodput = len(within) / (sent_until - began)
    refused = [outcome.ended - outcome.began for outcome in outcomes if outcome.end == "refused"]
    odd = Counter(outcome.end for outcome in outcomes if outcome.end not in ("finished", "refused"))
    after = await closed_loop(5.0, 1, one)
    ttft = quantile([o.first_at - o.began for o in after if o.first_at is not None], 0.99)
    load = f"{len(outcomes):,} requests in {sent_until - began:.0f} s, {factor:g} x the peak of {peak:.1f}/s"
    return [
        Row("G11", f"goodput, {load}", f"{goodput / peak:.0%}", ">= 90 %", goodput >= 0.9 * peak),
        Row("G11", f"refusals, p99 of {len(refused):,}", _ms(quantile(refused, 0.99)), "<= 50 ms",
            quantile(refused, 0.99) <= 0.05),
        Row("G11", "first token afterwards, p99", _ms(ttft), "<= 10 s", 0 < ttft <= 10),
        Row("G4", "ends that are neither answer nor refusal", _counts(odd), "none", not odd),
        Row("G14", f"/health, p99 of {len(health):,}", _ms(quantile(health, 0.99)), "<= 100 ms",
            quantile(health, 0.99) <= 0.1),
        Row("G14", "/health that was not 200", str(len(failures)), "0", not failures),
    ]  # fmt: skip


async def kills(place: Place, count: int) -> list[Row]:
    """G3, G4: the engine is killed `count` times at random moments under load; every client hears how it ended."""
    outcomes: list[Outcome] = []
    tokens: list[float] = []
    stopping = asyncio.Event()

    async def work(number: int) -> None:
        rng = random.Random(number)
        while not stopping.is_set():
            body = ask_body(rng, max_tokens=rng.randint(8, 64), stream=rng.random() < 0.8)
            outcome = await ask(place.http, place.url, body, on_token=tokens.append)
            outcomes.append(outcome)
            if outcome.end != "finished":
                await asyncio.sleep(rng.uniform(0.05, 0.2))

    workers = [asyncio.create_task(work(number)) for number in range(_WORKERS)]
    rng, recoveries, seen = random.Random(place.seed), list[float](), list[float]()
    restarts_counter = "quire:engine_restarts_total"
    for _ in range(count):
        await asyncio.sleep(rng.uniform(0.3, 1.5))
        restarts = await metric(place.http, place.url, restarts_counter)
        pid = engine_pid(place.pid)
        assert pid is not None, "it gives tokens, so it lives"
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        async for counted in _polled(lambda: metric(place.http, place.url, restarts_counter)):
            if counted > restarts:
                break
        seen.append(time.monotonic() - killed)
        # What was on its way when the engine died is no sign of life.
        tokens.clear()
        noticed = time.monotonic() + 0.05
        async for _ in _polled(_nothing):
            if tokens and tokens[-1] > noticed:
                break
        recoveries.append(next(at for at in tokens if at > noticed) - killed)
    stopping.set()
    await asyncio.gather(*workers)
    ends = Counter(outcome.end for outcome in outcomes)
    codes = Counter(outcome.code for outcome in outcomes if outcome.code)
    left = await leftovers(place.http, place.url)
    silent = {end: number for end, number in ends.items() if end in ("lost", "wrong")}
    return [
        Row("G3", f"{count} kills of the engine: seen, p99", _ms(quantile(seen, 0.99)), "<= 1 s",
            quantile(seen, 0.99) <= 1),
        Row("G3", f"kill to the next good token, median {_ms(quantile(recoveries, 0.5))}, p99",
            _ms(quantile(recoveries, 0.99)), "<= 5 s", quantile(recoveries, 0.99) <= 5),
        Row("G4", f"{len(outcomes):,} requests ({_counts(ends)}; {_counts(codes)}): without an end, or a wrong one",
            _counts(silent), "none", not silent),
        Row("G2", "left behind after the kills", _held(left), "0", not any(left.values())),
    ]  # fmt: skip


async def disconnects(place: Place, count: int) -> list[Row]:
    """G10: clients leave at random tokens; how long until the blocks of the last are free."""
    delays: list[float] = []
    rng = random.Random(place.seed)
    gauge = "quire:kv_cache_usage_perc"
    for _ in range(max(1, count // 8)):
        body = [ask_body(rng, max_tokens=400, stream=True) for _ in range(8)]
        await asyncio.gather(
            *(ask(place.http, place.url, one, kind="leaves", leave_after=rng.randint(1, 12)) for one in body)
        )
        closed = time.monotonic()
        async for used in _polled(lambda: metric(place.http, place.url, gauge)):
            if not used or time.monotonic() > closed + 30:
                break
        delays.append(time.monotonic() - closed)
    left = await leftovers(place.http, place.url)
    return [
        Row("G10", f"{8 * len(delays)} clients leave: blocks free after, p99 (asked by /metrics)",
            _ms(quantile(delays, 0.99)), "2 steps + 100 ms", quantile(delays, 0.99) <= 0.5),
        Row("G10", "left behind", _held(left), "0", not any(left.values())),
    ]  # fmt: skip


async def slow_readers(place: Place, count: int) -> list[Row]:
    """G17: so many clients take nothing of a long stream; what others get, and when the silent ones are cut."""

    async def one(rng: random.Random) -> Outcome:
        return await ask(place.http, place.url, ask_body(rng, max_tokens=24, stream=True))

    before = await closed_loop(8.0, 4, one)
    base = holding(place.pid)
    stalled = [asyncio.create_task(read_nothing(place.url, random.Random(n), 75.0, 1200)) for n in range(count)]
    most, began, cut_at = 0, time.monotonic(), 0.0
    while not all(task.done() for task in stalled) and not cut_at:
        await asyncio.sleep(0.5)
        now = holding(place.pid)
        most = max(most, 0 if now is None else now.memory)
        async with place.http.get(place.url + "/load") as response:
            if (await response.json())["server_load"] == 0 and time.monotonic() > began + 3:
                cut_at = time.monotonic() - began
    after = await closed_loop(8.0, 4, one)
    for task in stalled:
        task.cancel()
    await asyncio.gather(*stalled, return_exceptions=True)
    left = await leftovers(place.http, place.url)
    grown = (most - (base.memory if base else 0)) / max(1, count)
    ratio = sum(o.end == "finished" for o in after) / max(1, sum(o.end == "finished" for o in before))
    return [
        Row("G17", f"{count} clients that read nothing: memory each", f"{grown / 1024:.0f} KiB", "<= 128 KiB",
            grown <= 128 << 10),
        Row("G17", "all gone after", f"{cut_at:.1f} s" if cut_at else "not within 75 s",
            "35 s after the last could be written to", None if cut_at else False),
        Row("G17", "throughput of others afterwards", f"{ratio:.0%}", ">= 95 %", ratio >= 0.95),
        Row("G17", "left behind", _held(left), "0", not any(left.values())),
    ]  # fmt: skip


async def head_of_line(place: Place, prompt_words: int, repeats: int) -> list[Row]:
    """G13: the longest prompt arrives while others stream; their longest pauses, and a short one's first token."""
    rng = random.Random(place.seed)

    async def stream(max_tokens: int) -> Outcome:
        return await ask(place.http, place.url, ask_body(rng, max_tokens=max_tokens, num_words=8, stream=True))

    gaps: list[float] = []
    shorts: list[float] = []
    alone = [await stream(4) for _ in range(5)]
    for _ in range(repeats):
        streams = [asyncio.create_task(stream(220)) for _ in range(4)]
        await asyncio.sleep(0.3)
        long = asyncio.create_task(
            ask(place.http, place.url, ask_body(rng, max_tokens=2, num_words=prompt_words, stream=True))
        )
        await asyncio.sleep(0.05)
        short = await stream(4)
        if short.first_at is not None:
            shorts.append(short.first_at - short.began)
        await long
        gaps += [(await one).longest_gap for one in streams]
    solo = quantile([one.first_at - one.began for one in alone if one.first_at is not None], 0.5)
    rest = quantile(shorts, 0.5)
    return [
        Row("G13", f"a prompt of {prompt_words} words beside 4 streams: longest pause, median / worst",
            f"{_ms(quantile(gaps, 0.5))} / {_ms(max(gaps, default=0))}", "2 x a step", None),
        Row("G13", "a short request beside it: first token, against alone",
            f"{_ms(rest)} / {_ms(solo)}", "<= 3 x", None if not solo else rest <= 3 * solo),
    ]  # fmt: skip


async def fairness(place: Place, keys: tuple[str, str], seconds: float) -> list[Row]:
    """G12: one key asks with ten clients for each of another's; first tokens of the light one, alone and beside it."""

    async def light(rng: random.Random) -> Outcome:
        await asyncio.sleep(rng.uniform(0.1, 0.3))
        return await ask(place.http, place.url, ask_body(rng, max_tokens=8, num_words=10, stream=True),
                         headers=_bearer(keys[0]))  # fmt: skip

    async def heavy(rng: random.Random) -> Outcome:
        return await ask(place.http, place.url, ask_body(rng, max_tokens=48, num_words=40, stream=True),
                         headers=_bearer(keys[1]))  # fmt: skip

    alone = await closed_loop(seconds / 2, 1, light)
    crowd = asyncio.create_task(closed_loop(seconds + 4, 10 * place.max_num_seqs, heavy))
    await asyncio.sleep(3)
    beside = await closed_loop(seconds, 1, light)
    crowded = await crowd
    solo, shared = (quantile([o.first_at - o.began for o in group if o.first_at], 0.95) for group in (alone, beside))
    crowd_ttft = quantile([o.first_at - o.began for o in crowded if o.first_at], 0.5)
    ends = Counter(outcome.end for outcome in beside)
    return [
        Row("G12", f"first token of a light key, p95 of {len(beside)} ({_counts(ends)}), beside {len(crowded)} "
            f"requests of a heavy one (median {_ms(crowd_ttft)}), against alone",
            f"{_ms(shared)} / {_ms(solo)}", "<= 2 x", bool(solo) and shared <= 2 * solo),
    ]  # fmt: skip


async def _polled(ask_for: Callable[[], Awaitable[float]]) -> AsyncIterator[float]:
    """What it says, again and again, a few milliseconds apart."""
    while True:
        yield await ask_for()
        await asyncio.sleep(0.005)


async def _nothing() -> float:
    return 0.0


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.0f} ms"


def _counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or "none"


def _held(left: dict[str, float]) -> str:
    return ", ".join(f"{name.removeprefix('quire:')} {value:g}" for name, value in left.items() if value) or "nothing"


def memory_text(num_bytes: float) -> str:
    """In MiB, signed."""
    return f"{num_bytes / MEBIBYTE:+.2f} MiB"


async def settle(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for it."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
