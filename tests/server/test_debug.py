"""GET /debug/flight: the recorder's dump, with texts only where an admin asks for them."""

from __future__ import annotations

import httpx
import msgspec
import pytest
from support.bench import Bench, prompt
from support.stub_engine import StubEngine

from quire.engine.messages import Add, unpack_ids
from quire.engine.recorder import FlightRecorder, Recording, encode


def tokens(response: httpx.Response) -> list[int]:
    """Of the first prompt of a recording."""
    assert response.status_code == 200, response.text
    recording = msgspec.json.decode(response.content, type=Recording)
    _, add = recording.turns[0].messages[0]
    assert isinstance(add, Add)
    return unpack_ids(add.prompt_token_ids)


@pytest.fixture
def recorded(engine: StubEngine) -> list[int]:
    """The prompt of the one request that the recorder saw."""
    bench = Bench()
    recorder = FlightRecorder(bench.scheduler, 1, lambda: 0.0)
    bench.add("a", prompt(12), max_tokens=2)
    recorder.took(bench.adds["a"], 0.0)
    engine.recording = encode(recorder.dump("asked"))
    return prompt(12)


async def test_prompts_only_when_asked(http: httpx.AsyncClient, recorded: list[int]) -> None:
    hidden = await http.get("/debug/flight")
    assert len(tokens(hidden)) == len(recorded)
    assert not set(tokens(hidden)) & set(recorded)
    assert tokens(await http.get("/debug/flight")) != tokens(hidden), "another secret each time"
    assert tokens(await http.get("/debug/flight?prompts=1")) == recorded


@pytest.mark.parametrize(
    ("query", "param"), [("prompts=yes", "prompts"), ("prompt=1", None), ("prompts=1&prompts=1", "prompts")]
)
async def test_parameters_that_are_none(http: httpx.AsyncClient, query: str, param: str | None) -> None:
    response = await http.get(f"/debug/flight?{query}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


async def test_an_engine_that_is_away(http: httpx.AsyncClient, engine: StubEngine) -> None:
    engine.state = "restarting"
    response = await http.get("/debug/flight")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_restarting")
