"""Clients that leave, readers that stall, queues that are full: nothing is left behind."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.stub_engine import StubEngine, StubTokenizer, words

from quire.server.admission import Admission
from quire.server.app import create_app
from quire.server.errors import ApiError
from quire.server.limits import Limits
from quire.server.settings import ServerSettings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "hi"}]}
HEADERS = [(b"content-type", b"application/json"), (b"host", b"localhost")]


class Client:
    """One raw ASGI request whose client leaves, or stops reading, when the test says so."""

    def __init__(self, app: FastAPI, path: str, body: dict[str, Any]) -> None:
        self.sent: list[dict[str, Any]] = []
        self.aborted = False
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self._body: bytes | None = json.dumps(body).encode()
        scope = {"type": "http", "method": "POST", "path": path, "headers": HEADERS, "query_string": b""}
        scope["extensions"] = {"quire.abort": {"call": self._abort}}
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        self.sent.append(message)

    def _abort(self) -> None:
        self.aborted = True


def assert_idle(app: FastAPI, engine: StubEngine) -> None:
    admission = app.state.service.admission
    figures = (admission.num_requests, admission.num_sequences, admission.body_bytes, admission.token_bytes)
    assert figures == (0, 0, 0, 0)
    assert engine.active == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"), [(CHAT, ASK), (COMPLETIONS, {"model": "stub", "prompt": ["ab", "cd", "ef"], "n": 2})]
)
async def test_leaving_during_generation(
    app: FastAPI, engine: StubEngine, path: str, body: dict[str, Any], stream: bool
) -> None:
    """F17, F18: streaming or not, the engine is told."""
    engine.gate = asyncio.Event()
    client = Client(app, path, {**body, "stream": stream})
    await engine.entered.wait()
    assert app.state.service.admission.num_requests == 1
    if not stream:
        assert client.sent == []
    client.gone.set()
    await asyncio.wait_for(client.task, 5)
    assert engine.cancelled == len(engine.requests) >= 1
    assert_idle(app, engine)
    assert b'finished_reason="aborted",model_name="stub"} ' in app.state.service.metrics.exposition()


async def test_leaving_while_the_template_runs(app: FastAPI, engine: StubEngine, tokenizer: StubTokenizer) -> None:
    import threading

    inside, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def slow(*arguments: Any, **options: Any) -> list[int]:
        loop.call_soon_threadsafe(inside.set)
        release.wait(5)
        return [1]

    tokenizer.encode_chat = slow  # type: ignore[method-assign]
    client = Client(app, CHAT, ASK)
    await inside.wait()
    client.gone.set()
    await asyncio.wait_for(client.task, 5)
    release.set()
    assert engine.requests == []
    assert client.sent == []
    assert_idle(app, engine)


async def test_leaving_before_the_body_is_there(app: FastAPI, engine: StubEngine) -> None:
    client = Client(app, CHAT, ASK)
    client._body = None
    client.gone.set()
    await asyncio.wait_for(client.task, 5)
    assert client.sent == []
    assert_idle(app, engine)


async def test_nothing_is_sent_before_the_first_token(app: FastAPI, engine: StubEngine) -> None:
    """The role comes with the first token, so that the time to it is not falsified."""
    first = asyncio.Event()

    class Late(StubEngine):
        async def generate(self, request: Any) -> Any:
            self.entered.set()
            await first.wait()
            for delta in words(request, ["a"]):
                yield delta

    late = Late()
    app = create_app(ServerSettings(served_model_name=["stub"]), late, StubTokenizer())
    client = Client(app, CHAT, {**ASK, "stream": True})
    await late.entered.wait()
    assert client.sent == []
    first.set()
    await client.task
    assert client.sent[0]["status"] == 200
    assert b'"role":"assistant"' in client.sent[1]["body"]


async def test_stalled_reader_is_dropped(engine: StubEngine) -> None:
    """F21, with 20 ms in place of 30 s."""
    limits = Limits(write_stall_seconds=0.02)
    app = create_app(ServerSettings(served_model_name=["stub"]), engine, StubTokenizer(), limits=limits)
    engine.gate = asyncio.Event()
    client = Client(app, CHAT, {**ASK, "stream": True})
    await engine.entered.wait()
    client.reads.clear()
    engine.gate.set()
    await asyncio.wait_for(client.task, 5)
    assert client.aborted
    assert engine.cancelled == 1
    exposition = app.state.service.metrics.exposition()
    assert b'quire:request_cancels_total{cause="stalled",model_name="stub"} 1.0' in exposition
    assert b'quire:request_cancels_total{cause="client_gone",model_name="stub"} 0.0' in exposition
    assert_idle(app, engine)


async def test_shutdown_cancels_cleanly(app: FastAPI, engine: StubEngine) -> None:
    engine.gate = asyncio.Event()
    client = Client(app, CHAT, {**ASK, "stream": True})
    await engine.entered.wait()
    client.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await client.task
    assert_idle(app, engine)


# --- admission


async def test_burst_admits_exactly_the_limit(engine: StubEngine) -> None:
    """F58: the place is reserved before any work, so that a burst cannot slip through. 4 may run, 6 may wait."""
    settings = ServerSettings(served_model_name=["stub"], max_num_queued_reqs=6)
    tokenizer = StubTokenizer()
    app = create_app(settings, engine, tokenizer)
    engine.gate = asyncio.Event()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        tasks = [asyncio.create_task(http.post(CHAT, json=ASK)) for _ in range(60)]
        done, waiting = await asyncio.wait(tasks, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 50:
            more, waiting = await asyncio.wait(waiting, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            done |= more
        ready = await http.get("/ready")
        engine.gate.set()
        served = [await task for task in waiting]
    assert len(waiting) == 10
    assert {response.status_code for response in served} == {200}
    for task in done:
        response = task.result()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "server_is_overloaded")
        assert int(response.headers["retry-after"]) >= 1
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert tokenizer.num_encoded == 10, "what is refused is not tokenized"
    assert len(engine.requests) == 10
    exposition = app.state.service.metrics.exposition()
    assert b'quire:admission_rejections_total{model_name="stub",reason="server_is_overloaded"} 50.0' in exposition
    assert_idle(app, engine)


async def test_choices_count(engine: StubEngine) -> None:
    """All places of a call or none: 3 x 4 do not fit 4 + 6."""
    app = create_app(ServerSettings(served_model_name=["stub"], max_num_queued_reqs=6), engine, StubTokenizer())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        many = await http.post(COMPLETIONS, json={"model": "stub", "prompt": ["a", "b", "c"], "n": 4})
        few = await http.post(COMPLETIONS, json={"model": "stub", "prompt": ["a", "b"], "n": 4})
    assert (many.status_code, few.status_code) == (503, 200)
    assert_idle(app, engine)


async def test_draining_refuses_and_lets_finish(app: FastAPI, http: httpx.AsyncClient, engine: StubEngine) -> None:
    """F08: /ready first, then new work; what runs ends."""
    engine.gate = asyncio.Event()
    running = asyncio.create_task(http.post(CHAT, json=ASK))
    await engine.entered.wait()
    service = app.state.service
    service.leaving = True
    assert (await http.get("/ready")).json()["error"]["code"] == "server_draining"
    assert (await http.get("/health")).status_code == 200
    engine.gate.set()
    assert (await running).status_code == 200
    assert (await http.post(CHAT, json=ASK)).status_code == 200, "the grace: still taken"
    service.draining = True
    assert (await http.post(CHAT, json=ASK)).json()["error"]["code"] == "server_draining"
    assert await service.admission.wait_idle(1)


async def test_bodies_in_flight_are_bounded_while_they_arrive(engine: StubEngine) -> None:
    limits = Limits(in_flight_body_bytes=1000)
    app = create_app(ServerSettings(served_model_name=["stub"]), engine, StubTokenizer(), limits=limits)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        refused = await http.post(CHAT, json={**ASK, "metadata": {"a": "x" * 2000}})
        served = await http.post(CHAT, json=ASK)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_is_overloaded")
    assert refused.headers["connection"] == "close", "the rest stays unread"
    assert served.status_code == 200
    assert_idle(app, engine)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_admission_gives_back_whatever_the_end() -> None:
    admission = Admission(Limits(in_flight_body_bytes=100, queued_token_bytes=40), 2, Clock())
    with admission.enter() as ticket:
        ticket.take_body(60)
        ticket.take_sequences(2, max_running=1)
        ticket.take_tokens(10)
        with pytest.raises(ApiError) as full:
            ticket.take_body(41)
        assert full.value.code == "server_is_overloaded"
        with admission.enter() as other:
            other.take_body(40)
            with pytest.raises(ApiError):
                other.take_sequences(2, max_running=1)
            other.take_sequences(1, max_running=1)
            with pytest.raises(ApiError):
                other.take_tokens(1)
        assert (admission.num_requests, admission.num_sequences, admission.body_bytes) == (1, 2, 60)
    assert (admission.num_requests, admission.num_sequences) == (0, 0)
    assert (admission.body_bytes, admission.token_bytes) == (0, 0)


def test_wait_is_estimated_from_the_rate_of_ends() -> None:
    clock = Clock()
    admission = Admission(Limits(), 100, clock)
    assert admission.estimated_wait(1, 50) == 0.0, "unknown yet"
    for _ in range(10):
        with admission.enter() as ticket:
            ticket.take_sequences(1, max_running=1)
            clock.now += 2.0
        clock.now += 100.0
    with admission.enter() as ticket:
        ticket.take_sequences(11, max_running=1)
        wait = admission.estimated_wait(1)
        assert 15 <= wait <= 20, "ten wait, one ends about every two seconds"
        with admission.enter() as late:
            with pytest.raises(ApiError) as refused:
                late.take_sequences(1, max_running=1, deadline_seconds=5)
            late.take_sequences(1, max_running=1, deadline_seconds=60)
    assert refused.value.code == "server_is_overloaded"
    assert 12 <= int(refused.value.headers[0][1]) <= 26
