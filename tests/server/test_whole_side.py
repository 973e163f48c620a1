"""The HTTP side as a whole, on a fake engine: routes, AsyncEngine, detokenizer, the starter's tokenizer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.fake_engine import FakeEngine, text_script

from quire.engine.async_engine import AsyncEngine
from quire.engine.config import EngineConfig
from quire.engine.model_folder import STARTER, read_generation_config
from quire.engine.tokenizer import Tokenizer
from quire.server.app import create_app
from quire.server.settings import ServerSettings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {"model": "starter", "messages": [{"role": "user", "content": "Say it."}]}
TEXT = "Once upon a time \u2026 na\u00efve \U0001f600. The END is near."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_folder(STARTER, check_template=False)


@pytest.fixture
def fake(tokenizer: Tokenizer) -> FakeEngine:
    return FakeEngine(text_script(tokenizer, TEXT), vocab_size=tokenizer.vocab_size)


@pytest.fixture
async def engine(fake: FakeEngine, tokenizer: Tokenizer) -> AsyncIterator[AsyncEngine]:
    engine = AsyncEngine(EngineConfig(model="none", model_name="starter"), tokenizer, launch=fake.launch)
    await engine.start()
    yield engine
    assert engine.registered() == 0
    await engine.stop()


@pytest.fixture
def app(engine: AsyncEngine, tokenizer: Tokenizer) -> FastAPI:
    return create_app(ServerSettings(), engine, tokenizer, defaults=read_generation_config(STARTER))


@pytest.fixture
async def http(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        yield client
    app.state.service.text.close()


def content(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def streamed(response: httpx.Response) -> str:
    frames = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: {")]
    return "".join(c["delta"].get("content", "") for frame in frames for c in frame["choices"])


async def test_chat(http: httpx.AsyncClient) -> None:
    whole = await http.post(CHAT, json={**ASK, "stop": None})
    assert content(whole) == TEXT
    assert whole.json()["choices"][0]["finish_reason"] == "stop"
    assert streamed(await http.post(CHAT, json={**ASK, "stream": True})) == TEXT


async def test_stop_string(http: httpx.AsyncClient) -> None:
    answer = await http.post(CHAT, json={**ASK, "stop": ["END", "zebra"]})
    assert content(answer) == TEXT[: TEXT.index("END")]
    assert answer.json()["choices"][0]["stop_reason"] == "END"


async def test_completion_with_logprobs(http: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    body = {"model": "starter", "prompt": "Once more", "max_tokens": 5, "echo": True, "logprobs": 2, "n": 2}
    answer = (await http.post(COMPLETIONS, json=body)).json()
    prompt = tokenizer.encode("Once more")
    said = tokenizer.encode(TEXT, add_special_tokens=False)[:5]
    for choice in answer["choices"]:
        assert choice["text"] == "Once more" + tokenizer.decode(said)
        logprobs = choice["logprobs"]
        assert logprobs["tokens"] == [tokenizer.token_text(token_id) for token_id in (*prompt, *said)]
        assert [value is None for value in logprobs["token_logprobs"]] == [True] + [False] * (len(prompt) + 4)
        assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
        assert choice["finish_reason"] == "length"
    assert answer["usage"]["prompt_tokens"] == len(prompt)
    assert answer["usage"]["completion_tokens"] == 10


async def test_many_at_once(http: httpx.AsyncClient) -> None:
    bodies = [{**ASK, "stream": i % 2 == 0, "n": 1 + i % 3} for i in range(30)]
    answers = await asyncio.gather(*(http.post(CHAT, json=body) for body in bodies))
    for body, answer in zip(bodies, answers, strict=True):
        assert answer.status_code == 200
        if body["stream"]:
            assert answer.text.endswith("data: [DONE]\n\n")
        else:
            assert [choice["message"]["content"] for choice in answer.json()["choices"]] == [TEXT] * body["n"]


async def test_engine_that_dies(http: httpx.AsyncClient, fake: FakeEngine, engine: AsyncEngine) -> None:
    fake.hold()
    waiting = [asyncio.create_task(http.post(CHAT, json={**ASK, "stream": stream})) for stream in (False, True)]
    while engine.registered() < 2 or len(fake.sequences) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    fake.step()
    fake.die()
    whole, stream = await asyncio.gather(*waiting)
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "engine_restarting")
    assert int(whole.headers["retry-after"]) >= 1
    if stream.status_code == 200:
        assert stream.text.count('"error"') == 1
        assert stream.text.endswith("data: [DONE]\n\n")
        assert "engine_restarting" in stream.text
    fake.release()
    while (await http.get("/ready")).status_code != 200:  # noqa: ASYNC110
        await asyncio.sleep(0)
    assert content(await http.post(CHAT, json=ASK)) == TEXT
    assert "quire:engine_restarts_total" in (await http.get("/metrics")).text


async def test_deadline(http: httpx.AsyncClient, fake: FakeEngine) -> None:
    """B022."""
    fake.hold()
    response = await http.post(CHAT, json={**ASK, "deadline_ms": 20})
    assert (response.status_code, response.json()["error"]["code"]) == (504, "request_timeout")
    fake.release()


async def test_special_tokens_in_user_text_are_text(http: httpx.AsyncClient, tokenizer: Tokenizer) -> None:
    """B043."""
    special = next(iter(tokenizer.special_tokens))
    ask = {"messages": [{"role": "user", "content": f"{special}system"}]}
    plain = {"messages": [{"role": "user", "content": "system"}]}
    counts = []
    for body in (ask, plain):
        ids = (await http.post("/tokenize", json=body)).json()["tokens"]
        counts.append(ids.count(tokenizer.special_tokens[special]))
    assert counts[0] == counts[1]
