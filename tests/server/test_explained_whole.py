"""Ledger and report on their way from an engine's rows to a client, over a fake engine: who waited for whom."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.fake_engine import FakeEngine, text_script

from quire.engine.async_engine import AsyncEngine
from quire.engine.config import EngineConfig
from quire.engine.messages import Add, CacheReport, Cancel, Delay, OutputRow, Timings, pack_ids
from quire.engine.model_folder import STARTER
from quire.engine.tokenizer import Tokenizer
from quire.server.app import create_app
from quire.server.settings import ServerSettings

COMPLETIONS = "/v1/completions"
ASK: dict[str, Any] = {"model": "starter", "prompt": "Say it.", "quire": {"timings": True, "cache_report": True}}
REPORT = CacheReport(num_prompt_tokens=3, num_cached_tokens=0, block_size=16, reason="evicted", position=0)
PARTS = (
    *("queue_ms", "prefill_ms", "others_prefill_ms", "decode_ms", "preempted_ms", "sampling_ms"),
    *("text_ms", "client_ms"),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(STARTER, check_template=False)


@pytest.fixture
def fake(tokenizer: Tokenizer) -> FakeEngine:
    fake = FakeEngine(text_script(tokenizer, "unused"), vocab_size=tokenizer.vocab_size)
    fake.hold()
    return fake


@pytest.fixture
async def app(fake: FakeEngine, tokenizer: Tokenizer) -> AsyncIterator[FastAPI]:
    engine = AsyncEngine(EngineConfig(model="none", model_name="starter"), tokenizer, launch=fake.launch)
    await engine.start()
    app = create_app(ServerSettings(), engine, tokenizer)
    yield app
    assert engine.registered() == 0
    fake.sequences.clear()
    await engine.stop()
    app.state.service.text.close()


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until the condition holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0)


async def added(fake: FakeEngine) -> Add:
    """The request, once the engine has it."""
    await until(lambda: bool(fake.messages(Add)))
    (add,) = fake.messages(Add)
    assert isinstance(add, Add)
    return add


def timings(add: Add) -> Timings:
    """All the time since it was sent was spent in the queue."""
    assert add.explain is not None
    assert add.explain.began is not None
    now = time.monotonic()
    waited = round((now - add.explain.began) * 1e9)
    return Timings(
        began=add.explain.began, ended=now, queue=waited, prefill=0, others_prefill=0, decode=0, preempted=0,
        sampling=0, delayed_by=(Delay(None, 1_000_000),),
    )  # fmt: skip


async def test_what_was_asked_crosses_the_line_and_what_was_told_comes_back(
    app: FastAPI, fake: FakeEngine, tokenizer: Tokenizer
) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        asking = asyncio.create_task(http.post(COMPLETIONS, json=ASK))
        add = await added(fake)
        assert add.explain is not None
        assert add.explain.cache_report
        ids = tokenizer.encode("One two", add_special_tokens=False)
        # A report that comes with a row which shows nothing yet must not be lost.
        fake.say(OutputRow(add.request_id, 0, b"", cache_report=REPORT))
        fake.say(OutputRow(add.request_id, 0, pack_ids(ids), finish_reason="length", timings=timings(add)))
        answer = (await asking).json()
    assert answer["id"] == f"cmpl-{add.request_id}"
    told = answer["quire"]
    assert told["cache_report"]["reason"] == "evicted"
    assert told["timings"]["delayed_by"] == [{"request_id": "another key's request", "ms": 1.0}]
    assert told["timings"]["queue_ms"] > 0
    assert sum(told["timings"][part] for part in PARTS) == pytest.approx(told["timings"]["total_ms"], abs=0.005)


async def test_a_stop_string_is_found_here_and_the_ledger_is_that_of_its_row(
    app: FastAPI, fake: FakeEngine, tokenizer: Tokenizer
) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        asking = asyncio.create_task(http.post(COMPLETIONS, json={**ASK, "stop": " two"}))
        add = await added(fake)
        ids = tokenizer.encode("One two three", add_special_tokens=False)
        fake.say(OutputRow(add.request_id, 0, pack_ids(ids), timings=timings(add)))
        answer = (await asking).json()
    assert answer["choices"][0]["text"] == "One"
    assert "timings" in answer["quire"]
    await until(lambda: bool(fake.messages(Cancel)))


async def test_a_client_that_takes_its_frames_late_is_told_so(
    app: FastAPI, fake: FakeEngine, tokenizer: Tokenizer
) -> None:
    engine = app.state.service.engine
    frames: list[bytes] = []
    stalled, goes_on = asyncio.Event(), asyncio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            frames.append(message["body"])
            stalled.set()
            await goes_on.wait()

    body = json.dumps({**ASK, "stream": True}).encode()
    requests = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return requests.pop() if requests else await asyncio.Event().wait()

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {
        "type": "http", "method": "POST", "path": COMPLETIONS, "raw_path": b"", "query_string": b"", "headers": headers,
        "root_path": "", "http_version": "1.1", "scheme": "http", "server": ("localhost", 80),
    }  # fmt: skip
    call = asyncio.create_task(app(scope, receive, send))
    add = await added(fake)
    ids = pack_ids(tokenizer.encode("One", add_special_tokens=False))
    fake.say(OutputRow(add.request_id, 0, ids, cache_report=REPORT))
    await stalled.wait()
    fake.say(OutputRow(add.request_id, 0, ids, finish_reason="length", timings=timings(add)))
    await until(lambda: engine.registered() == 0)
    delivered = time.monotonic()
    await until(lambda: time.monotonic() > delivered + 0.02)
    goes_on.set()
    await call
    told = json.loads(frames[-3].removeprefix(b"data: "))["quire"]["timings"]
    assert told["client_ms"] >= 20.0
    assert sum(told[part] for part in PARTS) == pytest.approx(told["total_ms"], abs=0.005)
