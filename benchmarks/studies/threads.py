"""How many threads compute, and how they wait for each other, with streams attached."""

from __future__ import annotations

import asyncio
import os
import statistics
from pathlib import Path

import msgspec
import uvloop

from quire.benchmarks import datasets
from quire.benchmarks.backends import Sampling, backend
from quire.benchmarks.figure import figure
from quire.benchmarks.load import Target, connect, run_load
from quire.benchmarks.metrics import summarize
from quire.benchmarks.server_facts import first_model, server_encode
from quire.benchmarks.studies.settings import Settings
from quire.benchmarks.words import guessed, learn
from quire.clients.local_server import LocalServer
from quire.engine.hardware import count_cores

ROUNDS, STREAMS, REQUESTS, INPUT, OUTPUT = 2, (1, 4), 3, 64, 48
"""Requests a stream; tokens of each."""


class Way(msgspec.Struct, frozen=True):
    """What the server is started with; environment variables of OpenMP beside the number of threads."""

    name: str
    threads: int
    environment: dict[str, str]


def ways(cores: int) -> list[Way]:
    """One thread; all cores, asleep, awake or awake for a while when they wait; and each on a core of its own."""
    found = [Way("1 thread", 1, {"OMP_WAIT_POLICY": "PASSIVE"})]
    for name, environment in (
        ("asleep", {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}),
        ("awake for 2,000 turns", {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}),
        ("awake", {"OMP_WAIT_POLICY": "ACTIVE"}),
        ("asleep, bound", {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "OMP_PROC_BIND": "true"}),
    ):
        found.append(Way(f"{cores} threads, {name}", cores, environment))
    return found


class Point(msgspec.Struct, frozen=True):
    """One way with so many streams at once; medians of the rounds."""

    way: str
    streams: int
    output_throughput: float
    """Tokens a second."""
    itl_median: float
    itl_p99: float
    """Milliseconds."""


class Result(msgspec.Struct, frozen=True):
    """All of them."""

    model: str
    rounds: int
    points: list[Point]


def measure(settings: Settings) -> Result:
    """The ways take turns, each with a server of its own."""
    chosen = ways(count_cores())[:2] if settings.tiny else ways(count_cores())
    streams, rounds = ((2,), 1) if settings.tiny else (STREAMS, ROUNDS)
    found: dict[tuple[str, int], list[Point]] = {}
    model = "starter" if settings.model is None else Path(settings.model).name
    for _ in range(rounds):
        for way in chosen:
            kept = dict(os.environ)
            os.environ |= {**way.environment, "QUIRE_THREADS": str(way.threads), "QUIRE_MAX_MODEL_LEN": "1024"}
            try:
                with LocalServer(settings.model) as server:
                    server.wait_ready()
                    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                        for point in runner.run(_measure(server.url, way.name, streams, settings.seed)):
                            found.setdefault((way.name, point.streams), []).append(point)
            finally:
                os.environ.clear()
                os.environ |= kept
    return Result(model, rounds, [_median(points) for points in found.values()])


async def _measure(address: str, way: str, streams: tuple[int, ...], seed: int) -> list[Point]:
    http, url = connect(address)
    points = []
    async with http:
        kind = backend("openai")
        model = await first_model(http, url, {}, "openai")
        target = Target(url + kind.path, kind, Sampling(model, ignore_eos=True))
        encode = await server_encode(http, url, {}, model)
        words = guessed() if encode is None else await learn(encode)
        for count in streams:
            choice = datasets.Choice(seed=seed + count, random_input_len=INPUT, random_output_len=OUTPUT)
            requests = datasets.random_requests(choice, 1 + REQUESTS * count, words, as_text=False)
            await run_load(http, target, requests[:1], [0.0])
            answers, duration = await run_load(
                http, target, requests[1:], [0.0] * REQUESTS * count, max_concurrency=count
            )
            facts = summarize(answers, duration).as_json()
            points.append(Point(way, count, facts["output_throughput"], facts["median_itl_ms"], facts["p99_itl_ms"]))
    return points


def _median(points: list[Point]) -> Point:
    names = ("output_throughput", "itl_median", "itl_p99")
    middle = [statistics.median(getattr(one, name) for one in points) for name in names]
    return Point(points[0].way, points[0].streams, *middle)


def draw(result: Result, path: Path) -> None:
    """A bar a way, for the most streams."""
    most = max(one.streams for one in result.points)
    shown = [one for one in result.points if one.streams == most]
    with figure(path, title=f"{most} streams at once", size=(7.2, 3.6)) as (axes,):
        axes.barh([one.way for one in shown], [one.output_throughput for one in shown])
        axes.invert_yaxis()
        axes.set(xlabel="output tokens/s")


def table(result: Result) -> str:
    """One row a way and number of streams."""
    rows = [
        f"{result.model}, {result.rounds} rounds in turns.",
        "",
        "| threads | streams | output tokens/s | ITL median, ms | ITL p99, ms |",
        "|---|---:|---:|---:|---:|",
    ]
    rows += [
        f"| {one.way} | {one.streams} | {one.output_throughput:.1f} | {one.itl_median:.1f} | {one.itl_p99:.1f} |"
        for one in sorted(result.points, key=lambda one: one.streams)
    ]
    return "\n".join(rows)
