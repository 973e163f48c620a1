"""Metric names, buckets and labels as dashboards expect them; what requests add to them."""

from __future__ import annotations

import re
from typing import Any

import httpx
import msgspec
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from support.stub_engine import StubEngine, StubTokenizer, words

from quire.engine.messages import Statistics
from quire.engine.outputs import TextDelta
from quire.server.app import create_app
from quire.server.busy_log import busy_line
from quire.server.metrics import ITL_BUCKETS, LATENCY_BUCKETS, TTFT_BUCKETS, CallTimer, EngineView, Metrics
from quire.server.settings import ServerSettings

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "hi"}]}

# CONVENTIONS, section 5.
GAUGES = "num_requests_running num_requests_waiting kv_cache_usage_perc cache_config_info"
COUNTERS = """
    prompt_tokens prompt_tokens_cached generation_tokens prefix_cache_queries prefix_cache_hits num_preemptions
    request_success admission_rejections engine_restarts
"""
HISTOGRAMS = """
    time_to_first_token_seconds inter_token_latency_seconds request_time_per_output_token_seconds
    e2e_request_latency_seconds request_queue_time_seconds request_prefill_time_seconds request_decode_time_seconds
    request_prompt_tokens request_generation_tokens iteration_tokens_total
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock, engine: StubEngine) -> Metrics:
    view = EngineView(lambda: engine.statistics, lambda: engine.facts, lambda: engine.restarts)
    return Metrics("quire", "stub", view, clock)


def value(metrics: Metrics, sample: str, **labels: str) -> float:
    found = metrics.registry.get_sample_value(sample, {"model_name": "stub", **labels})
    assert found is not None, sample
    return found


@pytest.mark.parametrize("prefix", ["quire", "vllm"])
async def test_names(engine: StubEngine, prefix: str) -> None:
    settings = ServerSettings(served_model_name=["stub"], metrics_prefix=prefix)
    app = create_app(settings, engine, StubTokenizer())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        response = await http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    kinds = {family.name: family.type for family in text_string_to_metric_families(response.text)}
    for kind, stems in (("gauge", GAUGES.split()), ("counter", COUNTERS.split()), ("histogram", HISTOGRAMS.split())):
        for stem in stems:
            assert kinds[f"{prefix}:{stem}"] == kind
    for name in ("prompt_tokens_total", "engine_restarts_total", "request_success_total"):
        assert f"\n{prefix}:{name}" in response.text
    assert "_created" not in response.text


def test_buckets(metrics: Metrics) -> None:
    text = metrics.exposition().decode()
    for stem, buckets in (
        ("time_to_first_token_seconds", TTFT_BUCKETS),
        ("inter_token_latency_seconds", ITL_BUCKETS),
        ("e2e_request_latency_seconds", LATENCY_BUCKETS),
    ):
        found = re.findall(rf'quire:{stem}_bucket{{le="([^"]+)"', text)
        assert [float(bound) for bound in found] == [*buckets, float("inf")]
    assert TTFT_BUCKETS[0] == 0.001
    assert TTFT_BUCKETS[-1] == 160
    assert len(TTFT_BUCKETS) == 20
    assert len(ITL_BUCKETS) == 17
    assert len(LATENCY_BUCKETS) == 19


async def test_labels_come_from_configuration_only(app: FastAPI, http: httpx.AsyncClient) -> None:
    """F56."""
    before = len(app.state.service.metrics.exposition().splitlines())
    for i in range(50):
        await http.post(CHAT, json={**ASK, "model": f"zebra{i}"})
        await http.post(CHAT, json={**ASK, "user": f"zebra{i}"}, headers={"x-request-id": f"zebra{i}"})
        await http.get(f"/zebra{i}")
    text = app.state.service.metrics.exposition()
    assert b"zebra" not in text
    assert len(text.splitlines()) == before


def delta(count: int, **fields: Any) -> TextDelta:
    return TextDelta(**{"choice": 0, "text": "", "token_ids": (1,), "num_output_tokens": count, **fields})


def test_times_of_a_call(metrics: Metrics, clock: Clock) -> None:
    timer = CallTimer(metrics, 100.0, [7], 1)
    clock.now = 100.5
    timer.observe(0, delta(1, queue_seconds=0.2, num_cached_tokens=4))
    clock.now = 100.6
    timer.observe(0, delta(2))
    clock.now = 100.9
    timer.observe(0, delta(5, finish_reason="stop"))
    assert value(metrics, "quire:prompt_tokens_total") == 7
    assert value(metrics, "quire:prompt_tokens_cached_total") == 4
    assert value(metrics, "quire:generation_tokens_total") == 5
    assert value(metrics, "quire:time_to_first_token_seconds_sum") == pytest.approx(0.5)
    assert value(metrics, "quire:request_queue_time_seconds_sum") == pytest.approx(0.2)
    assert value(metrics, "quire:request_prefill_time_seconds_sum") == pytest.approx(0.3)
    assert value(metrics, "quire:request_decode_time_seconds_sum") == pytest.approx(0.4)
    assert value(metrics, "quire:e2e_request_latency_seconds_sum") == pytest.approx(0.9)
    assert value(metrics, "quire:inter_token_latency_seconds_count") == 4
    assert value(metrics, "quire:inter_token_latency_seconds_sum") == pytest.approx(0.4)
    assert value(metrics, "quire:request_time_per_output_token_seconds_sum") == pytest.approx(0.1)
    assert value(metrics, "quire:request_success_total", finished_reason="stop") == 1
    timer.cut_off("aborted")
    assert value(metrics, "quire:request_success_total", finished_reason="aborted") == 0


def test_choices_that_were_cut_off(metrics: Metrics) -> None:
    timer = CallTimer(metrics, 100.0, [7, 7], 2)
    timer.observe(1, delta(1, choice=1, finish_reason="length"))
    timer.cut_off("aborted")
    assert value(metrics, "quire:request_success_total", finished_reason="length") == 1
    assert value(metrics, "quire:request_success_total", finished_reason="aborted") == 3


def test_steps_are_observed_once(metrics: Metrics, engine: StubEngine) -> None:
    for steps, tokens in ((1, 30), (1, 30), (2, 8)):
        engine.statistics = Statistics(num_steps=steps, step_tokens=tokens)
        metrics.observe_step()
    assert value(metrics, "quire:iteration_tokens_total_count") == 2
    assert value(metrics, "quire:iteration_tokens_total_sum") == 38


def test_counters_go_on_after_a_restart(metrics: Metrics, engine: StubEngine) -> None:
    seen = []
    for hits, restarts in ((5, 0), (9, 0), (0, 1), (2, 1)):
        engine.statistics = Statistics(prefix_cache_hits=hits, num_blocks=10, num_used_blocks=5)
        engine.restarts = restarts
        seen.append(value(metrics, "quire:prefix_cache_hits_total"))
    assert seen == [5, 9, 9, 11]
    assert value(metrics, "quire:engine_restarts_total") == 1
    assert value(metrics, "quire:kv_cache_usage_perc") == 0.5


async def test_a_call_is_counted(app: FastAPI, http: httpx.AsyncClient, engine: StubEngine) -> None:
    engine.script = lambda request: words(request, ["a", "b", "c"])
    await http.post(CHAT, json={**ASK, "n": 2})
    metrics = app.state.service.metrics
    assert value(metrics, "quire:generation_tokens_total") == 6
    assert value(metrics, "quire:request_success_total", finished_reason="stop") == 2
    assert value(metrics, "quire:time_to_first_token_seconds_count") == 1


def test_busy_line() -> None:
    idle = Statistics(num_steps=5)
    assert busy_line(idle, idle, 10) is None
    busy = Statistics(
        num_running=3, num_waiting=1, num_blocks=8, num_used_blocks=2, num_steps=9, num_prompt_tokens=500,
        num_generation_tokens=70, prefix_cache_queries=400, prefix_cache_hits=100,
    )  # fmt: skip
    assert busy_line(idle, busy, 10) == (
        "Avg prompt throughput: 50.0 tokens/s, Avg generation throughput: 7.0 tokens/s, Running: 3 reqs, "
        "Waiting: 1 reqs, KV cache usage: 25.0%, Prefix cache hit rate: 25.0%"
    )
    restarted = msgspec.structs.replace(busy, num_steps=1, num_prompt_tokens=20, num_generation_tokens=0)
    line = busy_line(busy, restarted, 10)
    assert line is not None
    assert line.startswith("Avg prompt throughput: 2.0 tokens/s, Avg generation throughput: 0.0")
