"""Latency of streams against load: a server of our own, Poisson arrivals, over HTTP."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import uvloop

from quire.benchmarks import datasets
from quire.benchmarks.arrivals import arrival_times
from quire.benchmarks.backends import Sampling, backend
from quire.benchmarks.load import Target, connect, run_load
from quire.benchmarks.metrics import summarize
from quire.benchmarks.plot import LoadPoint, load_point, plot_load
from quire.benchmarks.server_facts import first_model, server_encode
from quire.benchmarks.studies.settings import Settings
from quire.benchmarks.words import guessed, learn
from quire.clients.local_server import LocalServer

RATES = (1.0, 2.0, 4.0, 6.0, 8.0, 12.0)
SECONDS = 10.0
INPUT, OUTPUT = 64, 32


class Result(msgspec.Struct, frozen=True):
    """One point a rate."""

    model: str
    input_tokens: int
    output_tokens: int
    failed: int
    points: list[LoadPoint]


def measure(settings: Settings) -> Result:
    """One rate after the other, about ten seconds of arrivals each, and then until the last answer."""
    with LocalServer(settings.model) as server:
        server.wait_ready()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_measure(server.url, settings))


async def _measure(address: str, settings: Settings) -> Result:
    rates, seconds = ((2.0, 4.0), 1.0) if settings.tiny else (RATES, SECONDS)
    http, url = connect(address)
    async with http:
        kind = backend("openai")
        model = await first_model(http, url, {}, "openai")
        target = Target(url + kind.path, kind, Sampling(model, ignore_eos=True))
        encode = await server_encode(http, url, {}, model)
        words = guessed() if encode is None else await learn(encode)
        choice = datasets.Choice(seed=settings.seed, random_input_len=INPUT, random_output_len=OUTPUT)
        counts = [max(4, round(rate * seconds)) for rate in rates]
        requests = datasets.random_requests(choice, 2 + sum(counts), words, as_text=False)
        await run_load(http, target, requests[:2], [0.0, 0.0])
        points, failed, at = [], 0, 2
        for rate, count in zip(rates, counts, strict=True):
            times = arrival_times(count, rate, 1.0, settings.seed)
            answers, duration = await run_load(http, target, requests[at : at + count], times)
            summary = summarize(answers, duration)
            points.append(load_point(rate, summary))
            failed += summary.failed
            at += count
    return Result(model, INPUT, OUTPUT, failed, points)


def draw(result: Result, path: Path) -> None:
    """Throughput, first tokens and gaps."""
    plot_load(result.points, path)


def table(result: Result) -> str:
    """One row a rate."""
    rows = [
        "| requests/s | output tokens/s | TTFT median, ms | TTFT p99, ms | ITL median, ms | ITL p99, ms |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    for point in result.points:
        latencies = (point.ttft_median, point.ttft_p99, point.itl_median, point.itl_p99)
        shown = " | ".join("n/a" if value is None else f"{value:.1f}" for value in latencies)
        rows.append(f"| {point.rate:g} | {point.output_throughput:.0f} | {shown} |")
    return "\n".join(rows)
