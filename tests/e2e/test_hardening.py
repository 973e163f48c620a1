"""One real server under a low limit of descriptors, with a key that must not be seen, told twice to stop."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.server import ServerProcess, children, free_port, wait_until

KEY = "sentinel-key-7d41c0ffee"
PROMPT = "sentinelprompt7d41"
BODY = {"model": "starter", "messages": [{"role": "user", "content": PROMPT}], "ignore_eos": True}
NUM_DESCRIPTORS = 64


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    python = tmp_path_factory.mktemp("bin") / "python"
    python.write_text(f'#!/bin/sh\nulimit -n {NUM_DESCRIPTORS}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    health_port = free_port()
    with ServerProcess("--health-port", str(health_port), env={"QUIRE_API_KEY": KEY}, python=str(python)) as server:
        server.health_url = f"http://127.0.0.1:{health_port}"  # type: ignore[attr-defined]
        yield server


def ask(server: ServerProcess, **changes: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.post(server.url + "/v1/chat/completions", json={**BODY, **changes}, headers=headers, timeout=60)


def test_more_connections_than_descriptors(server: ServerProcess) -> None:
    """F13: told so or kept waiting; the health port and whoever comes afterwards are served."""
    address = ("127.0.0.1", server.port)
    crowd = [socket.create_connection(address, timeout=10) for _ in range(3 * NUM_DESCRIPTORS)]
    refused = crowd[-1]
    answer = refused.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"server_is_overloaded" in answer
    assert httpx.get(server.health_url + "/health").json()["status"] == "ok"  # type: ignore[attr-defined]
    for connection in crowd:
        connection.close()
    wait_until(lambda: httpx.get(server.url + "/ready", timeout=10).status_code == 200, "room again")
    assert ask(server, max_tokens=2).status_code == 200


def test_nothing_shows_a_key_or_a_prompt(server: ServerProcess) -> None:
    """F55, G21: logs, metrics, errors, command lines."""
    assert ask(server, max_tokens=4).status_code == 200
    answers = [
        ask(server, max_tokens=-1),
        ask(server, model=PROMPT),
        ask(server, stop=5),
        httpx.post(server.url + "/v1/chat/completions", json=BODY, headers={"authorization": f"Bearer {KEY}x"}),
        httpx.get(server.url + "/metrics"),
        httpx.get(server.health_url + "/metrics"),  # type: ignore[attr-defined]
    ]
    headers = {"authorization": f"Bearer {KEY}"}
    answers += [httpx.get(base + "/metrics", headers=headers) for base in (server.url, server.health_url)]  # type: ignore[attr-defined]
    answers.append(httpx.get(server.url + "/debug/flight", headers=headers))
    assert [answer.status_code for answer in answers] == [400, 404, 400, 401, 401, 401, 200, 200, 200]
    for answer in (*answers[:1], *answers[2:]):
        assert PROMPT not in answer.text
    assert KEY not in "".join(answer.text for answer in answers)
    assert KEY not in server.text
    assert PROMPT not in server.text
    for pid in (server.process.pid, *children(server.process.pid)):
        assert KEY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_told_twice_it_ends_at_once(server: ServerProcess) -> None:
    """F09: the second signal does not wait for what runs; nothing is left."""
    engine = server.engine_pid()
    headers = {"authorization": f"Bearer {KEY}"}
    with httpx.stream(
        "POST", server.url + "/v1/chat/completions", json={**BODY, "stream": True}, headers=headers, timeout=60
    ) as response:
        next(response.iter_lines())
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "Shutting down" in server.text, "the first signal is heard")
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.process.wait(10) == 128 + signal.SIGTERM
    wait_until(lambda: not Path(f"/proc/{engine}").exists(), "engine gone", 3)
