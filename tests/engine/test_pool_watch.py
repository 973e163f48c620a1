"""The engine's loop and the pictures of its pool: nothing unless asked, a full frame first, and an end of the lease."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from types import SimpleNamespace

import pytest
from support.bench import Bench, prompt

from quire.engine import __main__ as process
from quire.engine.frames import Outbox
from quire.engine.memory_transport import memory_pair
from quire.engine.messages import (
    Add,
    Answer,
    FromEngine,
    OutputRow,
    PoolPicture,
    Query,
    Shutdown,
    Statistics,
    StepOutputs,
    ToEngine,
    Watch,
    pack_ids,
)
from quire.engine.pool_frame import PoolFold, PoolFrame
from quire.engine.progress_page import ProgressPage
from quire.engine.recorder import FlightRecorder
from quire.engine.sampling_params import SamplingParams


class Loop:
    """The engine's loop in a thread, with a clock that stands unless a test moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.bench = Bench()
        self.bench.salts = defaultdict(bytes)
        self.engine, self.http = memory_pair()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        self._num_queries = 0

    def _run(self) -> None:
        recorder = FlightRecorder(self.bench.scheduler, self.bench.core.depth, lambda: self.now)
        process.run(self.bench.core, self.engine, ProgressPage.create(), [], recorder)

    async def say(self, *messages: ToEngine) -> list[FromEngine]:
        """Send; everything that came until all of it was done."""
        async with asyncio.timeout(20):
            return await self._say(messages)

    async def _say(self, messages: tuple[ToEngine, ...]) -> list[FromEngine]:
        for message in messages:
            self.http.send(message)
        heard: list[FromEngine] = []
        quiet = 0
        while quiet < 2:  # asked once more: a frame is sent behind the answers of its round
            self._num_queries += 1
            self.http.send(Query(self._num_queries, "statistics"))
            answer = None
            while answer is None:
                heard += await self.http.receive()
                answer = next((m for m in heard if isinstance(m, Answer) and m.query_id == self._num_queries), None)
            quiet = 0 if answer.request_ids else quiet + 1
        return heard

    def end(self) -> None:
        self.http.send(Shutdown())
        self.thread.join(10)
        assert not self.thread.is_alive()


def add(name: str, max_tokens: int = 5) -> Add:
    return Add(name * 32, pack_ids(prompt(10)), SamplingParams(max_tokens=max_tokens))


def frames(heard: list[FromEngine]) -> list[PoolFrame]:
    return [message.frame for message in heard if isinstance(message, PoolPicture)]


async def test_nobody_watches_and_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch)

    def refuse() -> None:
        raise AssertionError("the pool was copied for nobody")

    monkeypatch.setattr(loop.bench.pool, "contents", refuse)
    heard = await loop.say(add("a"), add("b"))
    assert {type(message) for message in heard} == {StepOutputs, Answer}
    loop.end()


async def test_a_watch_from_its_first_frame_to_the_end_of_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(monkeypatch)
    (first,) = frames(await loop.say(Watch(6.0)))
    assert (first.kind, first.blocks, first.at) == ("full", (), 0.0)
    assert frames(await loop.say(add("a"))) == [], "the clock stands: the next frame is not due"
    loop.now += 1.0
    (change,) = frames(await loop.say())
    whole = PoolFold(first)
    whole.add(change)
    cached = {i for i in range(loop.bench.pool.num_blocks) if loop.bench.pool.is_cached(i)}
    assert change.kind == "change"
    assert {block[0] for block in whole.frame().blocks} == cached
    assert cached
    loop.now += 4.9
    assert frames(await loop.say(add("b"))), "the lease holds"
    loop.now += 0.2
    assert frames(await loop.say(add("c"))) == [], "nobody has renewed it"
    (again,) = frames(await loop.say(Watch(6.0)))
    assert again.kind == "full"
    await loop.say(Watch(0.0))
    loop.now += 1.0
    assert frames(await loop.say(add("d"))) == []
    loop.end()


def picture(kind: str, *blocks: tuple[int, int, int], evicted: tuple[int, ...] = ()) -> PoolPicture:
    return PoolPicture(PoolFrame(kind, 0.0, 64, 16, blocks, evicted, (), 0, 0, 0, 0))  # type: ignore[arg-type]


def test_unsent_pictures_are_one_and_let_tokens_go_first() -> None:
    outbox = Outbox()
    row = OutputRow("a", 0, pack_ids([1]))
    outbox.put(picture("full", (1, 1, 0), (2, 1, 0)))
    for number in range(100):
        outbox.put(StepOutputs(rows=(row,), statistics=Statistics(num_steps=number)))
        outbox.put(picture("change", (number % 3, number % 2, 0), evicted=(7,)))
    first, second = outbox.take(), outbox.take()
    assert isinstance(first, StepOutputs)
    assert len(first.rows) == 1
    assert isinstance(second, PoolPicture)
    assert second.frame.kind == "full"
    assert set(second.frame.blocks) == {(0, 1, 0), (1, 1, 0)}, "the last words about 0, 1, 2"
    assert second.frame.evicted == (7,)
    assert not outbox
