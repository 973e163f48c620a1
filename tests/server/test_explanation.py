"""The object `quire` of an answer: asked for by name, on the last chunk, and its parts add up to the whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import pytest
from support.stub_engine import StubEngine, StubTokenizer, words

from quire.engine.messages import CacheReport, Delay, Timings
from quire.engine.outputs import GenerateRequest, TextDelta
from quire.server.app import create_app
from quire.server.settings import ServerSettings

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "hi there"}]}
BOTH = {"timings": True, "cache_report": True}
DELAYS = (Delay("1f3a9c02" + "0" * 24, 5_000_000), Delay(None, 4_000_000))
TIMINGS = Timings(
    began=100.020, ended=100.520, queue=50_000_000, prefill=100_000_000, others_prefill=60_000_000,
    decode=250_000_000, preempted=0, sampling=40_000_000, delayed_by=DELAYS,
)  # fmt: skip
REPORT = CacheReport(
    num_prompt_tokens=12,
    num_cached_tokens=4,
    block_size=4,
    reason="diverged",
    position=5,
    neighbour_token_ids=tuple(b"oon"),
)


class Clock:
    """Arrival, body read, answer taken; then it stands."""

    def __init__(self) -> None:
        self.times = [100.000, 100.005, 100.540]

    def __call__(self) -> float:
        return self.times.pop(0) if len(self.times) > 1 else self.times[0]


def explains(*pieces: str) -> Callable[[GenerateRequest], list[TextDelta]]:
    """An engine that tells all it was asked."""

    def script(request: GenerateRequest) -> list[TextDelta]:
        deltas = words(request, pieces)
        if request.cache_report:
            deltas[0] = msgspec.structs.replace(deltas[0], cache_report=REPORT)
        if request.timings:
            deltas[-1] = msgspec.structs.replace(deltas[-1], timings=TIMINGS, delivered_at=100.530)
        return deltas

    return script


@pytest.fixture
def frozen(engine: StubEngine, tokenizer: StubTokenizer) -> httpx.AsyncClient:
    """The stub engine behind a clock that a test can predict."""
    engine.script = explains("a", "b")
    # The metrics read the clock too; here only the ledger's readings count.
    app = create_app(ServerSettings(served_model_name=["stub"]), engine, tokenizer, clock=(clock := Clock()))
    app.state.service.metrics.clock = app.state.service.admission._clock = lambda: 100.0
    assert len(clock.times) == 3
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")


async def chunks_of(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
    response = await http.post(path, json={**body, "stream": True})
    assert response.status_code == 200
    return [json.loads(frame[6:]) for frame in response.text.split("\n\n") if frame.startswith("data: {")]


async def test_every_part_is_cut_where_its_clock_was_read(frozen: httpx.AsyncClient) -> None:
    response = await frozen.post(CHAT, json={**ASK, "quire": BOTH})
    timings = response.json()["quire"]["timings"]
    delays = timings.pop("delayed_by")
    assert timings == {
        "queue_ms": 50.0,
        "prefill_ms": 100.0,
        "others_prefill_ms": 60.0,
        "decode_ms": 250.0,
        "preempted_ms": 0.0,
        "sampling_ms": 40.0,
        "text_ms": 15.0 + 10.0,
        "client_ms": 5.0 + 10.0,
        "total_ms": 540.0,
    }
    assert delays == [{"request_id": "1f3a9c02", "ms": 5.0}, {"request_id": "another key's request", "ms": 4.0}]


async def test_the_report_shows_the_text_around_the_first_token_that_differs(frozen: httpx.AsyncClient) -> None:
    response = await frozen.post(CHAT, json={**ASK, "quire": {"cache_report": True}})
    told = response.json()["quire"]
    assert "timings" not in told
    assert told["cache_report"] == {
        "prompt_tokens": 12,
        "cached_tokens": 4,
        "missed_tokens": 8,
        "block_size": 4,
        "reason": "diverged",
        "message": "The prompt is like a cached one for 5 tokens; there it has 't', that one 'o'.",
        "divergence": {
            "position": 5,
            "before": "u:hi ",
            "token_id": ord("t"),
            "text": "t",
            "after": "he",
            "cached_token_id": ord("o"),
            "cached_text": "o",
            "cached_after": "on",
        },
    }


@pytest.mark.parametrize(("path", "ask"), [(CHAT, ASK), (COMPLETIONS, {"model": "stub", "prompt": "hi there, you"})])
@pytest.mark.parametrize("usage", [False, True])
async def test_in_a_stream_the_last_chunk_tells(
    http: httpx.AsyncClient, engine: StubEngine, path: str, ask: dict[str, Any], usage: bool
) -> None:
    engine.script = explains("a", "b")
    options = {"stream_options": {"include_usage": True}} if usage else {}
    chunks = await chunks_of(http, path, {**ask, **options, "quire": BOTH, "n": 2})
    assert [("quire" in chunk) for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert ("usage" in chunks[-1]) is usage
    assert set(chunks[-1]["quire"]) == {"timings", "cache_report"}


@pytest.mark.parametrize(("path", "ask"), [(CHAT, ASK), (COMPLETIONS, {"model": "stub", "prompt": "hi there, you"})])
async def test_the_whole_answer_tells_the_same(
    http: httpx.AsyncClient, engine: StubEngine, path: str, ask: dict[str, Any]
) -> None:
    engine.script = explains("a", "b")
    whole = (await http.post(path, json={**ask, "quire": BOTH})).json()
    *_, last = await chunks_of(http, path, {**ask, "quire": BOTH})
    assert whole["quire"]["cache_report"] == last["quire"]["cache_report"]
    assert set(whole["quire"]["timings"]) == set(last["quire"]["timings"])


async def test_who_does_not_ask_is_told_nothing(http: httpx.AsyncClient, engine: StubEngine) -> None:
    engine.script = explains("a")
    for quire in (None, {}, {"timings": False, "cache_report": None}):
        response = await http.post(CHAT, json={**ASK, "quire": quire})
        assert "quire" not in response.json()
    assert not any(request.timings or request.cache_report for request in engine.requests)


async def test_the_engine_calls_a_request_as_its_client_does(http: httpx.AsyncClient, engine: StubEngine) -> None:
    answer = (await http.post(COMPLETIONS, json={"model": "stub", "prompt": ["one", "two"]})).json()
    digits = answer["id"].removeprefix("cmpl-")
    names = [request.request_id for request in engine.requests]
    assert names[0] == digits
    assert int(names[1][:8], 16) == (int(digits[:8], 16) + 1) % 2**32
    assert names[1][8:] == digits[8:]


@pytest.mark.parametrize(
    ("quire", "code", "param"),
    [
        ({"timing": True}, "unknown_parameter", "quire.timing"),
        ({"timings": 1}, "invalid_type", "quire.timings"),
        (True, "invalid_type", "quire"),
    ],
)
async def test_what_cannot_be_told_is_refused(http: httpx.AsyncClient, quire: Any, code: str, param: str) -> None:
    response = await http.post(CHAT, json={**ASK, "quire": quire})
    assert response.status_code == 400
    assert (response.json()["error"]["code"], response.json()["error"]["param"]) == (code, param)


async def test_a_report_is_about_one_prompt(http: httpx.AsyncClient) -> None:
    response = await http.post(COMPLETIONS, json={"model": "stub", "prompt": ["a", "b"], "quire": BOTH})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported_parameter"


@pytest.mark.parametrize(("key", "status"), [(None, 403), ("a-key-of-24-characters--", 200)])
async def test_strangers_prompts_are_not_shown(
    engine: StubEngine, tokenizer: StubTokenizer, key: str | None, status: int
) -> None:
    """Token by token, whoever may ask often enough could read what others sent."""
    settings = ServerSettings(served_model_name=["stub"], host="0.0.0.0", api_key=[key] if key else [])
    app = create_app(settings, engine, tokenizer)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host", headers=headers) as http:
        response = await http.post(CHAT, json={**ASK, "quire": {"cache_report": True}})
        assert response.status_code == status
        assert (await http.post(CHAT, json={**ASK, "quire": {"timings": True}})).status_code == 200
