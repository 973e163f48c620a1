"""What happens when clients leave, the engine is killed, and the server is told to stop."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from pathlib import Path

import httpx
from support.server import ServerProcess, wait_until

STORY = {"model": "starter", "messages": [{"role": "user", "content": "Tell me a story."}], "ignore_eos": True}


def libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def load(server: ServerProcess) -> dict[str, int]:
    answer: dict[str, int] = httpx.get(server.url + "/load").json()
    return answer


def test_http_process_has_no_torch(starter: ServerProcess) -> None:
    assert "libtorch" in libraries(starter.engine_pid())
    assert "libtorch" not in libraries(starter.process.pid)


def test_tokens_arrive_while_the_answer_grows(starter: ServerProcess) -> None:
    """As `curl -N` shows it: frames come one after another, the first long before the last."""
    num_pieces = 0
    frames: list[str] = []
    with httpx.stream(
        "POST", starter.url + "/v1/chat/completions", json={**STORY, "stream": True, "max_tokens": 64}, timeout=60
    ) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        for piece in response.iter_raw():
            num_pieces += 1
            frames += [frame for frame in piece.decode().split("\n\n") if frame]
    assert frames[-1] == "data: [DONE]"
    assert all(frame.startswith("data: ") for frame in frames)
    assert num_pieces >= 16


async def test_two_hundred_abandoned_streams_leave_nothing(starter: ServerProcess) -> None:
    choice = random.Random(3)
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:

        async def open_and_leave(number: int) -> None:
            body = {**STORY, "stream": True, "max_tokens": 400, "seed": number, "temperature": 1.0}
            frames = choice.randrange(0, 6)
            async with client.stream("POST", starter.url + "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                async for _ in response.aiter_lines():
                    if frames == 0:
                        return
                    frames -= 1

        await asyncio.gather(*(open_and_leave(number) for number in range(200)))
    starter.wait_idle()
    assert load(starter)["num_requests"] == 0


async def test_killed_engine_under_load() -> None:
    """Every waiting client gets a clear error within seconds, and the next request works."""
    with ServerProcess() as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:

            async def stream() -> str:
                async with client.stream("POST", "/v1/chat/completions", json={**STORY, "stream": True}) as response:
                    return "".join([line + "\n" async for line in response.aiter_lines()])

            waiting = [asyncio.create_task(stream()) for _ in range(4)]
            waiting_whole = [asyncio.create_task(client.post("/v1/chat/completions", json=STORY)) for _ in range(4)]
            await asyncio.to_thread(
                wait_until, lambda: server.metric("quire:generation_tokens_total") > 40, "tokens flow"
            )
            first_engine = server.engine_pid()
            killed = time.monotonic()
            os.kill(first_engine, signal.SIGKILL)
            streams = await asyncio.gather(*waiting)
            wholes = await asyncio.gather(*waiting_whole)
            assert time.monotonic() - killed < 5
            for text in streams:
                frames = [line for line in text.splitlines() if line]
                assert frames[-1] == "data: [DONE]"
                error = json.loads(frames[-2].removeprefix("data: "))["error"]
                assert error["code"] == "engine_restarting"
            for response in wholes:
                assert response.status_code == 503
                assert response.json()["error"]["code"] == "engine_restarting"
                assert int(response.headers["retry-after"]) >= 1
        server.wait_ready()
        assert server.engine_pid() != first_engine
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            answer = await client.post("/v1/chat/completions", json={**STORY, "max_tokens": 5})
        assert answer.status_code == 200
        assert server.metric("quire:engine_restarts_total") == 1


def test_sigterm_drains_and_leaves_no_process() -> None:
    with ServerProcess() as server:
        engine = server.engine_pid()
        with httpx.stream(
            "POST", server.url + "/v1/chat/completions", json={**STORY, "stream": True, "max_tokens": 150}, timeout=60
        ) as response:
            lines = response.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert server.process.wait(20) == 0
        wait_until(lambda: not Path(f"/proc/{engine}").exists(), "engine gone")


def test_engine_follows_a_killed_server() -> None:
    with ServerProcess() as server:
        engine = server.engine_pid()
        server.process.kill()
        server.process.wait()
        wait_until(lambda: not Path(f"/proc/{engine}").exists(), "engine gone", 3)
