"""The soak's own parts: what counts as an end, how memory's slope is found, what the report says."""

from __future__ import annotations

import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from quire.benchmarks.soak import main
from quire.benchmarks.soak_clients import ask, ask_body, mixed, read_nothing, send_nonsense
from quire.benchmarks.soak_parts import closed_loop
from quire.benchmarks.soak_report import Report, Row, plot, quantile, table
from quire.benchmarks.soak_watch import Holding, Sample, Tally, Watch, holding, slope
from quire.clients.terminal import CommandFailed

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
PIECE = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
LAST = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
ERROR = {"error": {"message": "m", "type": "service_unavailable_error", "param": None, "code": "engine_restarting"}}


def stream_of(*payloads: object) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for payload in payloads:
            text = payload if isinstance(payload, str) else json.dumps(payload)
            await response.write(f"data: {text}\n\n".encode())
        return response

    return answer


def refusal(status: int, **headers: str) -> Handler:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response(ERROR, status=status, headers=headers)

    return answer


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Handler], Awaitable[str]]]:
    runners = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_post("/{path:.*}", handler)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        return f"http://127.0.0.1:{port}"

    yield start
    for runner in runners:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("handler", "end"),
    [
        (stream_of(PIECE, LAST, "[DONE]"), "finished"),
        (stream_of(PIECE, ERROR, "[DONE]"), "failed"),
        (stream_of(PIECE, PIECE, "[DONE]"), "wrong"),
        (stream_of(PIECE, LAST), "lost"),
        (stream_of(PIECE, ERROR), "lost"),
        (refusal(503, **{"retry-after": "3"}), "refused"),
        (refusal(429, **{"retry-after": "0"}), "wrong"),
        (refusal(503), "wrong"),
        (refusal(500), "failed"),
    ],
)
async def test_how_a_request_ended(serve: Callable[[Handler], Awaitable[str]], handler: Handler, end: str) -> None:
    url = await serve(handler)
    async with aiohttp.ClientSession() as http:
        outcome = await ask(http, url, ask_body(random.Random(0), max_tokens=2, stream=True))
    assert outcome.end == end
    assert outcome.ended >= outcome.began
    if end in ("refused", "failed"):
        assert outcome.code == "engine_restarting"


async def test_a_client_that_leaves_says_so(serve: Callable[[Handler], Awaitable[str]]) -> None:
    url = await serve(stream_of(*[PIECE] * 50, LAST, "[DONE]"))
    async with aiohttp.ClientSession() as http:
        body = ask_body(random.Random(0), max_tokens=2, stream=True)
        outcome = await ask(http, url, body, kind="leaves", leave_after=3)
    assert outcome.end == "left"


async def test_nonsense_must_be_refused(serve: Callable[[Handler], Awaitable[str]]) -> None:
    bad, good = await serve(refusal(400)), await serve(stream_of(LAST, "[DONE]"))
    async with aiohttp.ClientSession() as http:
        assert (await send_nonsense(http, bad, random.Random(0))).end == "failed"
        assert (await send_nonsense(http, good, random.Random(0))).end == "wrong"


async def test_the_mix_has_every_kind(
    serve: Callable[[Handler], Awaitable[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quire.benchmarks.soak_clients.SLOW_SECONDS", 1.0)
    url = await serve(refusal(400))
    async with aiohttp.ClientSession() as http:
        rng = random.Random(3)
        kinds = {(await mixed(http, url, rng)).kind for _ in range(30)}
        assert kinds >= {"good", "leaves", "bad"}
        assert (await read_nothing(url, rng, 0.0)).end == "left"
        assert await closed_loop(0.0, 4, lambda rng: mixed(http, url, rng)) == []


def test_memory_of_a_process_is_its_own() -> None:
    found = holding(os.getpid())
    assert found is not None
    assert found.memory > 1 << 20
    assert found.descriptors >= 3
    assert holding(2**30) is None
    watch = Watch(os.getpid(), Tally(finished=3, ended=5))
    sample = watch.look()
    assert sample is not None
    assert (sample.engine, sample.finished, sample.ended) == (None, 3, 5)


def test_slopes_and_quantiles() -> None:
    assert slope([0.0, 1.0, 2.0, 3.0], [5.0, 7.0, 9.0, 11.0]) == pytest.approx(2.0)
    assert slope([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == slope([1.0], [1.0]) == 0.0
    assert quantile([float(value) for value in range(1, 101)], 0.99) == 100.0
    assert quantile([], 0.5) == 0.0


def test_the_report_names_what_is_not_kept(tmp_path: Path) -> None:
    rows = [
        Row("G3", "kills", "3 s", "<= 5 s", True),
        Row("G2", "left", "1", "0", False),
        Row("G1", "a", "b", "", None),
    ]
    held = Holding(1, 50 << 20, 20, 5)
    samples = [
        Sample(float(second), held, held if second % 7 else None, 2 * second, 3 * second) for second in range(60)
    ]
    report = Report(machine="m", command="c", busy="b", rows=rows, samples=samples, kills=[7.0])
    lines = table(report).splitlines()
    assert [line.split("|")[-2].strip() for line in lines[2:]] == ["yes", "**no**", ""]
    plot(report, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 10_000


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises((CommandFailed, SystemExit)):
        main(["--parts", "nonsense"])
