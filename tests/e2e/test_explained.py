"""What answers of the real starter tell of themselves."""

from __future__ import annotations

import time
from typing import Any

import pytest
from support.server import ServerProcess

from quire.benchmarks import ledger
from quire.clients.client import Client

SYSTEM = "You are a patient teacher. Answer in one short sentence, and say so when you do not know. "


@pytest.fixture
def http(starter: ServerProcess) -> Any:
    with Client(starter.url, timeout=60) as client:
        yield client


def digits(answer_id: str) -> str:
    return answer_id.rpartition("-")[2][:8]


def test_the_parts_add_up_to_what_the_client_measured(
    starter: ServerProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--base-url", starter.url, "--num-requests", "8", "--max-concurrency", "4", "--max-tokens", "4"]
    exit_code = ledger.main(options)
    said = capsys.readouterr().out
    assert exit_code == 0, said
    assert "8 requests, 4 at a time" in said


def test_a_noisy_neighbour_is_named(http: Client) -> None:
    fields: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "quire": {"timings": True}}
    with http.complete("Once upon a time", max_tokens=48, stream=True, **fields) as stream:
        deltas = iter(stream)
        next(deltas)
        noisy = http.complete(" ".join(f"{number} birds" for number in range(40)), max_tokens=1)
        *_, last = deltas
    assert last.quire is not None
    timings = last.quire["timings"]
    assert timings["delayed_by"][0]["request_id"] == digits(noisy.id)
    assert 0 < timings["delayed_by"][0]["ms"] <= timings["others_prefill_ms"] + timings["queue_ms"] + 0.01


def test_an_answer_that_a_stop_string_ended_has_its_ledger(http: Client) -> None:
    free = http.complete("Once upon a time", max_tokens=12, temperature=0).text
    begun = time.perf_counter()
    answer = http.complete("Once upon a time", max_tokens=12, temperature=0, stop=[free[4:12]], quire={"timings": True})
    client_ms = 1000 * (time.perf_counter() - begun)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.quire is not None
    timings = answer.quire["timings"]
    assert sum(timings[part] for part in ledger.PARTS) == pytest.approx(timings["total_ms"], abs=0.005)
    assert 0 < timings["prefill_ms"] + timings["decode_ms"] < timings["total_ms"] <= client_ms


def test_a_timestamp_at_the_head_of_a_system_prompt_is_pointed_at(http: Client) -> None:
    reports = []
    for clock in ("09:30:12", "09:31:55"):
        messages = [{"role": "system", "content": f"It is {clock}. {SYSTEM}"}, {"role": "user", "content": "Hello"}]
        answer = http.chat(messages, max_tokens=1, quire={"cache_report": True})
        assert answer.quire is not None
        reports.append(answer.quire["cache_report"])
    report = reports[-1]
    assert (report["reason"], report["cached_tokens"]) == ("diverged", 0)
    divergence = report["divergence"]
    assert divergence["before"].endswith("It is 09:3")
    assert (divergence["text"][0], divergence["cached_text"][0]) == ("1", "0")
