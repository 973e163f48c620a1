"""What one key may use: buckets, the refusals and their headers, and the share of a key among several."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from support.stub_engine import StubEngine, StubTokenizer

from quire.engine.errors import UsageError
from quire.server.admission import Admission, Pressure
from quire.server.api_keys import read_api_keys
from quire.server.app import create_app
from quire.server.errors import ApiError
from quire.server.key_limits import Bucket, KeyLimits, KeyMeter
from quire.server.limits import Limits
from quire.server.settings import ServerSettings

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef00"
COMPLETIONS = "/v1/completions"
ASK: dict[str, Any] = {"model": "stub", "prompt": "hello", "max_tokens": 5}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def app_with(tmp_path: Path, keys: str, engine: StubEngine, clock: Clock, **settings: Any) -> FastAPI:
    path = tmp_path / "keys"
    path.write_text(keys)
    path.chmod(0o600)
    given = ServerSettings(served_model_name=["stub"], api_key_file=str(path), **settings)
    return create_app(given, engine, StubTokenizer(), clock=clock)


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def error_of(response: httpx.Response) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["type"], error["code"]


class TestBucket:
    def test_it_refills_evenly_up_to_a_minutes_worth(self) -> None:
        bucket = Bucket(60, 0.0)
        bucket.take(60, 0.0)
        assert (bucket.level(0.0), bucket.level(1.5), bucket.level(1000.0)) == (0.0, 1.5, 60.0)
        assert bucket.seconds_until(3, 0.0) == 3.0

    def test_more_than_a_minutes_worth_needs_a_full_bucket_and_leaves_a_debt(self) -> None:
        bucket = Bucket(60, 0.0)
        bucket.take(1, 0.0)
        assert bucket.seconds_until(90, 0.0) == 1.0
        bucket.take(90, 1.0)
        assert bucket.level(1.0) == -30.0
        assert bucket.seconds_until(1, 1.0) == 31.0

    def test_what_comes_back_never_makes_more_than_a_minutes_worth(self) -> None:
        bucket = Bucket(60, 0.0)
        bucket.take(-20, 0.0)
        assert bucket.level(0.0) == 60.0


def test_a_refused_request_has_used_nothing() -> None:
    meter = KeyMeter(KeyLimits(requests_per_minute=60, parallel=1), 0.0)
    meter.enter(0.0)
    for _ in range(5):
        with pytest.raises(ApiError) as refused:
            meter.enter(0.0)
    assert refused.value.code == "concurrency_limit_exceeded"
    assert dict(refused.value.headers)["x-ratelimit-remaining-requests"] == "59"
    meter.leave()
    meter.enter(0.0)


async def test_requests_a_minute(tmp_path: Path, engine: StubEngine) -> None:
    clock = Clock()
    app = app_with(tmp_path, f"alice {ALICE} requests-per-minute=2\nbob {BOB}\n", engine, clock)
    async with client(app) as http:
        answers = [await http.post(COMPLETIONS, json=ASK, headers=bearer(ALICE)) for _ in range(3)]
        other = await http.post(COMPLETIONS, json=ASK, headers=bearer(BOB))
        clock.now += 30.0
        later = await http.post(COMPLETIONS, json=ASK, headers=bearer(ALICE))
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert error_of(answers[2]) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert "2 requests a minute" in answers[2].json()["error"]["message"]
    assert 24 <= int(answers[2].headers["retry-after"]) <= 36
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["1", "0", "0"]
    assert (other.status_code, later.status_code) == (200, 200)
    assert "x-ratelimit-limit-requests" not in other.headers
    assert len(engine.requests) == 4, "what is refused reaches no engine"
    exposition = app.state.service.metrics.exposition()
    assert b'admission_rejections_total{model_name="stub",reason="rate_limit_exceeded"} 1.0' in exposition


async def test_tokens_a_minute_are_reserved_and_what_is_unused_comes_back(tmp_path: Path, engine: StubEngine) -> None:
    """A prompt of 5 tokens; an answer of 5 echoed ones although 50 were possible."""
    clock = Clock()
    app = app_with(tmp_path, f"alice {ALICE} tokens-per-minute=60\n", engine, clock)
    ask = {**ASK, "max_tokens": 50}
    async with client(app) as http:
        answers = [await http.post(COMPLETIONS, json=ask, headers=bearer(ALICE)) for _ in range(2)]
        clock.now += 10.0
        later = await http.post(COMPLETIONS, json=ask, headers=bearer(ALICE))
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[0].json()["usage"]["total_tokens"] == 10
    assert error_of(answers[1]) == (429, "rate_limit_error", "rate_limit_exceeded")
    text = answers[1].json()["error"]["message"]
    assert "60 tokens a minute" in text
    assert "has 50 left" in text
    assert "may use 55" in text
    assert later.status_code == 200


async def test_requests_at_once(tmp_path: Path, engine: StubEngine) -> None:
    app = app_with(tmp_path, f"alice {ALICE} parallel=1\nbob {BOB}\n", engine, Clock())
    engine.gate = asyncio.Event()
    async with client(app) as http:
        first = asyncio.create_task(http.post(COMPLETIONS, json=ASK, headers=bearer(ALICE)))
        await engine.entered.wait()
        second = await http.post(COMPLETIONS, json=ASK, headers=bearer(ALICE))
        engine.gate.set()
        assert (await first).status_code == 200
        third = await http.post(COMPLETIONS, json=ASK, headers=bearer(ALICE))
    assert error_of(second) == (429, "rate_limit_error", "concurrency_limit_exceeded")
    assert "1 requests under way" in second.json()["error"]["message"]
    assert third.status_code == 200


async def test_the_weight_of_a_key_reaches_the_engine(tmp_path: Path, engine: StubEngine) -> None:
    app = app_with(tmp_path, f"alice {ALICE} weight=2.5\nbob {BOB}\n", engine, Clock())
    async with client(app) as http:
        for key in (ALICE, BOB):
            assert (await http.post(COMPLETIONS, json=ASK, headers=bearer(key))).status_code == 200
    assert [(request.key_id, request.weight) for request in engine.requests] == [("alice", 2.5), ("bob", 1.0)]


def test_one_of_several_keys_may_hold_half_of_the_queue() -> None:
    admission = Admission(Limits(), 6, Clock(), {"alice": KeyLimits(), "bob": KeyLimits()})
    with admission.enter("alice") as alice, admission.enter("bob") as bob:
        alice.take_sequences(7, max_running=4)
        with pytest.raises(ApiError) as refused:
            alice.take_sequences(1, max_running=4)
        bob.take_sequences(3, max_running=4)
    assert (refused.value.code, refused.value.status) == ("concurrency_limit_exceeded", 429)
    with admission.enter("alice") as alice:
        alice.take_sequences(7, max_running=4)
    alone = Admission(Limits(), 6, Clock(), {"alice": KeyLimits()})
    with alone.enter("alice") as ticket:
        ticket.take_sequences(10, max_running=4)


def test_without_memory_the_queue_is_halved_and_then_nothing_is_taken() -> None:
    admission = Admission(Limits(), 6, Clock())
    admission.pressure = Pressure.HIGH
    with admission.enter() as ticket, pytest.raises(ApiError):
        ticket.take_sequences(8, max_running=4)
    with admission.enter() as ticket:
        ticket.take_sequences(7, max_running=4)
    admission.pressure = Pressure.FULL
    with pytest.raises(ApiError) as refused:
        admission.enter()
    assert (refused.value.code, refused.value.close) == ("server_is_overloaded", True)
    assert admission.num_requests == 0


async def test_a_full_server_refuses_before_it_reads_the_body(engine: StubEngine) -> None:
    app = create_app(ServerSettings(served_model_name=["stub"], max_num_queued_reqs=1), engine, StubTokenizer())
    admission = app.state.service.admission
    with admission.enter() as ticket:
        ticket.take_sequences(5, max_running=4)
        async with client(app) as http:
            refused = await http.post(COMPLETIONS, content=b"{", headers={"content-type": "application/json"})
    assert error_of(refused)[::2] == (503, "server_is_overloaded")


def keys_of(tmp_path: Path, text: str) -> dict[str, KeyLimits]:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(0o600)
    return {key.key_id: key.limits for key in read_api_keys((), str(path))}


def test_limits_stand_behind_the_key(tmp_path: Path) -> None:
    found = keys_of(
        tmp_path,
        f"alice {ALICE} requests-per-minute=60 tokens-per-minute=10k parallel=4 weight=0.5\n{BOB} parallel=2\n",
    )
    assert found["alice"] == KeyLimits(60, 10_000, 4, 0.5)
    assert [limits for name, limits in found.items() if name != "alice"] == [KeyLimits(parallel=2)]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (f"alice {ALICE} parallel=0", "line 1: parallel=0: expected a whole number of more than 0"),
        (f"alice {ALICE} parallel=many", "parallel=many"),
        (f"alice {ALICE} parallel=1.5", "parallel=1.5"),
        (f"alice {ALICE} weight=-1", "weight=-1: expected a number of more than 0"),
        (f"alice {ALICE} weight=nan", "weight=nan"),
        (f"alice {ALICE} weight=1 weight=2", "weight stands twice"),
        (f"alice {ALICE} rpm=60", "requests-per-minute=, tokens-per-minute=, parallel=, weight="),
        ("weight=2", "found other words"),
    ],
)
def test_limits_that_are_refused(tmp_path: Path, line: str, part: str) -> None:
    with pytest.raises(UsageError) as refused:
        keys_of(tmp_path, line + "\n")
    assert part in str(refused.value)
    assert ALICE not in str(refused.value)
