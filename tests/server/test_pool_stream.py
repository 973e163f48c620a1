"""GET /playground/pool, over AsyncEngine and a fake engine: what a watcher reads, and how it ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.fake_engine import FakeEngine
from support.tokenizers import starter_tokenizer

from quire.engine.async_engine import AsyncEngine
from quire.engine.config import EngineConfig
from quire.engine.pool_watchers import MAX_WATCHERS
from quire.server.app import create_app
from quire.server.limits import Limits
from quire.server.settings import ServerSettings

POOL, COMPLETIONS = "/playground/pool", "/v1/completions"


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def engine(fake: FakeEngine) -> AsyncIterator[AsyncEngine]:
    config = EngineConfig(model="none", model_name="starter")
    engine = AsyncEngine(config, starter_tokenizer(), launch=fake.launch)
    await engine.start()
    yield engine
    assert len(engine._watchers) == 0
    await engine.stop()


@pytest.fixture
async def app(engine: AsyncEngine) -> AsyncIterator[FastAPI]:
    app = create_app(ServerSettings(), engine, starter_tokenizer())
    yield app
    app.state.service.text.close()


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """For answers that end."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client


class Watcher:
    """One raw GET whose answer is read as it comes."""

    def __init__(self, app: FastAPI, maxsize: int = 0) -> None:
        self.messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize)
        self.gone = asyncio.Event()
        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "GET", "path": POOL, "headers": headers, "query_string": b""}
        self.task = asyncio.create_task(app(scope, self._receive, self.messages.put))

    async def _receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(10):
            return await self.messages.get()

    async def begin(self) -> dict[bytes, bytes]:
        """The headers."""
        start = await self.next()
        assert start["status"] == 200
        return dict(start["headers"])

    async def frame(self) -> dict[str, Any]:
        """The next event."""
        body = (await self.next())["body"]
        assert body.startswith(b"data: ")
        assert body.endswith(b"\n\n")
        value: dict[str, Any] = json.loads(body[6:])
        return value

    async def leave(self) -> None:
        self.gone.set()
        async with asyncio.timeout(10):
            await self.task


async def test_a_full_frame_then_changes(app: FastAPI, http: httpx.AsyncClient, fake: FakeEngine) -> None:
    fake.hold()
    watcher = Watcher(app)
    headers = await watcher.begin()
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert await watcher.frame() == {
        "kind": "full",
        "at": 0.0,
        "num_blocks": 256,
        "block_size": 16,
        "blocks": [],
        "evicted": [],
        "sequences": [],
        "num_running": 0,
        "num_waiting": 0,
        "preemptions": 0,
        "steps": 0,
    }
    asked = asyncio.create_task(http.post(COMPLETIONS, json={"model": "starter", "prompt": [5] * 17, "max_tokens": 2}))
    while not fake.sequences:  # noqa: ASYNC110
        await asyncio.sleep(0)
    fake.step()
    frame = await watcher.frame()
    (sequence,) = frame["sequences"]
    assert (frame["kind"], frame["blocks"]) == ("change", [[0, 1, 0], [1, 1, 0]])
    assert len(sequence.pop("id")) == len("1f3a9c02/0")
    assert sequence == {
        "status": "running",
        "prompt": 17,
        "tokens": 18,
        "computed": 18,
        "cached": 0,
        "max_tokens": 2,
        "tables": [{"window": None, "first": 0, "blocks": [0, 1]}],
    }
    fake.step()
    assert (await watcher.frame())["blocks"] == [[0, 0, 0], [1, 0, 0]]
    assert (await asked).status_code == 200
    await watcher.leave()
    assert watcher.messages.empty()
    while fake.watched:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_a_restart_is_a_full_frame(app: FastAPI, fake: FakeEngine) -> None:
    watcher = Watcher(app)
    await watcher.begin()
    assert (await watcher.frame())["kind"] == "full"
    fake.die()
    assert (await watcher.frame())["kind"] == "full"
    assert fake.launches == 2
    await watcher.leave()


async def test_a_drain_ends_the_stream_and_admits_nobody(
    app: FastAPI, http: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    watcher = Watcher(app)
    await watcher.begin()
    await watcher.frame()
    engine.begin_drain()
    assert await watcher.next() == {"type": "http.response.body", "body": b""}
    await watcher.leave()
    refused = await http.get(POOL)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_draining")


async def test_the_ninth_is_refused(app: FastAPI, http: httpx.AsyncClient) -> None:
    watchers = [Watcher(app) for _ in range(MAX_WATCHERS)]
    for watcher in watchers:
        await watcher.begin()
        await watcher.frame()
    refused = await http.get(POOL)
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_watchers")
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert "8 clients" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) >= 1
    await watchers.pop().leave()
    another = Watcher(app)
    await another.begin()
    for watcher in (*watchers, another):
        await watcher.leave()


async def test_head_does_not_watch(http: httpx.AsyncClient, engine: AsyncEngine) -> None:
    answer = await http.head(POOL)
    assert (answer.status_code, answer.content) == (200, b"")
    assert len(engine._watchers) == 0


async def test_who_takes_nothing_is_dropped(engine: AsyncEngine) -> None:
    app = create_app(ServerSettings(), engine, starter_tokenizer(), limits=Limits(write_stall_seconds=0.02))
    watcher = Watcher(app, maxsize=1)
    async with asyncio.timeout(10):
        await watcher.task
    assert len(engine._watchers) == 0
    app.state.service.text.close()
