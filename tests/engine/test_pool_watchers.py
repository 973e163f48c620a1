"""Watching the pool through AsyncEngine: one lease for all, a full frame first, merged frames for who reads slowly."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest
from support.fake_engine import FakeEngine
from support.tokenizers import starter_tokenizer

from quire.engine import pool_watchers
from quire.engine.async_engine import AsyncEngine
from quire.engine.config import EngineConfig
from quire.engine.messages import ToEngine, Watch
from quire.engine.outputs import GenerateRequest
from quire.engine.pool_frame import PoolFold, PoolFrame
from quire.engine.pool_watchers import LEASE_SECONDS, MAX_WATCHERS, PoolStream, PoolWatchers, TooManyWatchers
from quire.engine.sampling_params import SamplingParams

TOKENIZER = starter_tokenizer()


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def engine(fake: FakeEngine) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(EngineConfig(model="/nowhere", model_name="fake"), TOKENIZER, launch=fake.launch)
    await engine.start()
    yield engine
    await engine.stop()


def request(length: int = 20) -> GenerateRequest:
    return GenerateRequest(prompt_token_ids=[5] * length, params=SamplingParams(max_tokens=100, temperature=0.0))


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


async def next_frame(stream: PoolStream) -> PoolFrame:
    async with asyncio.timeout(10):
        return await anext(stream)


async def test_one_lease_for_all_and_a_full_frame_for_each(engine: AsyncEngine, fake: FakeEngine) -> None:
    fake.hold()
    first = engine.watch_pool()
    assert (await next_frame(first)).kind == "full"
    answer = engine.generate(request())
    await until(lambda: bool(fake.sequences))
    fake.step()
    change = await next_frame(first)
    assert (change.kind, len(change.blocks), change.num_running) == ("change", 2, 1)
    second = engine.watch_pool()
    full = await next_frame(second)
    assert (full.kind, full.blocks, full.sequences) == ("full", change.blocks, change.sequences)
    assert fake.messages(Watch) == [Watch(LEASE_SECONDS)]
    await first.aclose()
    fake.step()
    assert (await next_frame(second)).steps == 2
    await second.aclose()
    await second.aclose()
    await until(lambda: not fake.watched)
    assert fake.messages(Watch) == [Watch(LEASE_SECONDS), Watch(0.0)]
    third = engine.watch_pool()
    assert (await next_frame(third)).kind == "full"
    await third.aclose()
    await answer.aclose()


async def test_a_slow_reader_gets_one_frame_that_says_it_all(engine: AsyncEngine, fake: FakeEngine) -> None:
    fake.hold()
    fast, slow = engine.watch_pool(), engine.watch_pool()
    seen = PoolFold(await next_frame(fast))
    answer = engine.generate(request())
    await until(lambda: bool(fake.sequences))
    for _ in range(40):
        fake.step()
        seen.add(await next_frame(fast))
    merged = await next_frame(slow)
    assert merged == seen.frame()
    assert (merged.kind, len(merged.blocks)) == ("full", 4)
    fake.step()
    fake.step()
    await until(lambda: engine.statistics.num_steps == 42)
    late = await next_frame(slow)
    assert (late.kind, late.steps) == ("change", 42)
    for stream in (fast, slow, answer):
        await stream.aclose()


async def test_watching_survives_a_restart(engine: AsyncEngine, fake: FakeEngine) -> None:
    fake.hold()
    stream = engine.watch_pool()
    await next_frame(stream)
    answer = engine.generate(request())
    await until(lambda: bool(fake.sequences))
    fake.step()
    assert len((await next_frame(stream)).blocks) == 2
    fake.die()
    again = await next_frame(stream)
    assert (again.kind, again.blocks) == ("full", ())
    assert fake.launches == 2
    await stream.aclose()
    await answer.aclose()


async def test_a_drain_ends_it(engine: AsyncEngine) -> None:
    streams = [engine.watch_pool() for _ in range(3)]
    for stream in streams:
        await next_frame(stream)
    engine.begin_drain()
    for stream in streams:
        with pytest.raises(StopAsyncIteration):
            await next_frame(stream)
        await stream.aclose()


async def test_no_more_than_the_cap(engine: AsyncEngine) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(MAX_WATCHERS):
            await stack.enter_async_context(contextlib.aclosing(engine.watch_pool()))
        with pytest.raises(TooManyWatchers):
            engine.watch_pool()
    async with contextlib.aclosing(engine.watch_pool()) as stream:
        assert (await next_frame(stream)).kind == "full"


async def test_the_lease_is_renewed_until_the_last_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_watchers, "RENEW_SECONDS", 0.001)
    sent: list[ToEngine] = []
    renewed = asyncio.Event()

    def send(message: ToEngine) -> None:
        sent.append(message)
        if len(sent) >= 3:
            renewed.set()

    watchers = PoolWatchers(send)
    stream = watchers.watch()
    async with asyncio.timeout(10):
        await renewed.wait()
    await stream.aclose()
    assert set(sent[:-1]) == {Watch(LEASE_SECONDS)}
    assert sent[-1] == Watch(0.0)
    assert watchers._renewal is not None
    assert watchers._renewal.cancelled()


def frame(kind: str, *blocks: tuple[int, int, int], steps: int = 0, evicted: tuple[int, ...] = ()) -> PoolFrame:
    return PoolFrame(kind, 0.0, 64, 16, blocks, evicted, (), 0, 0, 0, steps)  # type: ignore[arg-type]


async def test_what_comes_of_an_ended_watch_is_dropped() -> None:
    """Its changes are changes to a picture that nobody has any more."""
    watchers = PoolWatchers(lambda message: None)
    await watchers.watch().aclose()
    stream = watchers.watch()
    watchers.engine_said(frame("change", (1, 1, 0), steps=1))
    watchers.engine_said(frame("full", (2, 1, 0), steps=2))
    assert await next_frame(stream) == frame("full", (2, 1, 0), steps=2)
    await stream.aclose()
    watchers.engine_said(frame("change", (3, 1, 0), steps=3))
    assert len(watchers) == 0


async def test_newcomers_are_not_told_of_old_evictions() -> None:
    watchers = PoolWatchers(lambda message: None)
    first = watchers.watch()
    watchers.engine_said(frame("full", (1, 1, 1), (2, 1, 0)))
    watchers.engine_said(frame("change", (1, 0, 0), evicted=(1,)))
    assert await next_frame(first) == frame("full", (2, 1, 0), evicted=(1,))
    second = watchers.watch()
    assert await next_frame(second) == frame("full", (2, 1, 0))
    for stream in (first, second):
        await stream.aclose()
