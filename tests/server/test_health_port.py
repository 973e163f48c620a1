"""/health and /ready tell the truth on every port; the health port answers whatever the event loop does (F03, G14)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI
from support.stub_engine import StubEngine, StubTokenizer

from quire.engine.errors import BindError
from quire.server.app import create_app
from quire.server.errors import ApiError
from quire.server.health_port import MAX_CONNECTIONS, MAX_REQUEST_BYTES, Answered, HealthPort
from quire.server.listen import bind_health
from quire.server.pulse import INTERVAL_SECONDS, Pulse
from quire.server.settings import ServerSettings
from quire.server.vitals import DEAD_SECONDS, HANG_GRACE_SECONDS, LATE_SECONDS, Vitals


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def vitals(engine: StubEngine, clock: Clock) -> Iterator[Vitals]:
    app = create_app(ServerSettings(), engine, StubTokenizer(), pulse=Pulse(clock))
    yield app.state.vitals
    app.state.service.text.close()


def code(vitals: Vitals, probe: str) -> str | None:
    try:
        getattr(vitals, probe)()
    except ApiError as error:
        return f"{error.status} {error.code}"
    return None


@pytest.mark.parametrize(
    ("state", "health", "ready"),
    [
        ("ready", None, None),
        ("loading", None, "503 model_loading"),
        ("restarting", None, "503 engine_restarting"),
        ("draining", None, "503 server_draining"),
        ("failed", "503 engine_failed", "503 engine_failed"),
    ],
)
def test_states(vitals: Vitals, engine: StubEngine, state: str, health: str | None, ready: str | None) -> None:
    engine.state = state
    assert (code(vitals, "health"), code(vitals, "ready")) == (health, ready)


def test_an_engine_that_stands_still_past_its_limit_is_not_healthy(vitals: Vitals, engine: StubEngine) -> None:
    engine.still = engine.hang_limit + HANG_GRACE_SECONDS
    assert code(vitals, "health") is None
    engine.still += 1
    assert code(vitals, "health") == "503 engine_hung"


def test_a_loop_that_does_not_run_is_first_not_ready_then_not_alive(vitals: Vitals, clock: Clock) -> None:
    clock.now += LATE_SECONDS / 2
    assert (code(vitals, "health"), code(vitals, "ready")) == (None, None)
    clock.now += LATE_SECONDS
    assert (code(vitals, "health"), code(vitals, "ready")) == (None, "503 server_stalled")
    clock.now += DEAD_SECONDS
    assert code(vitals, "health") == "503 server_stalled"


def test_the_lag_is_the_longest_delay_lately(clock: Clock) -> None:
    pulse = Pulse(clock)
    for late in (0.0, 0.3, 0.0):
        clock.now += INTERVAL_SECONDS + late
        pulse.beat()
    assert pulse.lag() == pytest.approx(0.3)
    clock.now += 1.0
    assert pulse.lag() == pytest.approx(1.0 - INTERVAL_SECONDS)
    for _ in range(101):
        pulse.beat()
    assert pulse.lag() == 0.0


# --- the listener


def answer(path: str, authorization: bytes | None) -> Answered:
    if path == "/fault":
        raise ZeroDivisionError
    if path != "/health":
        raise ApiError("unknown_url", "no")
    return Answered(b'{"status":"ok"}' if authorization is None else authorization)


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        health = HealthPort(listener, answer)
        yield listener.getsockname()[1]
        health.close()
    assert not any(thread.name == "quire-health" for thread in threading.enumerate())


def ask(port: int, request: bytes) -> bytes:
    """Everything that comes back for these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        pieces = []
        while piece := connection.recv(1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


def test_probes_are_answered(port: int) -> None:
    base = f"http://127.0.0.1:{port}"
    assert httpx.get(base + "/health?x=1").json() == {"status": "ok"}
    assert httpx.get(base + "/health", headers={"authorization": "Bearer k"}).text == "Bearer k"
    head = httpx.head(base + "/health")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", "15")
    assert httpx.get(base + "/v1/models").status_code == 404
    refused = httpx.post(base + "/health", content=b"x")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
    fault = httpx.get(base + "/fault")
    assert (fault.status_code, fault.json()["error"]["code"]) == (500, "internal_error")


def test_who_sends_slowly_or_nonsense_holds_nobody_up(port: int) -> None:
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_CONNECTIONS + 20)]
    for connection in silent[::2]:
        connection.sendall(b"GET /hea")
    assert ask(port, b"GET /health HTTP/1.1\r\n\r\n").endswith(b'{"status":"ok"}')
    assert b" 405 " in ask(port, b"\x16\x03\x01\x02\r\n\r\n")
    assert ask(port, b"x" * (MAX_REQUEST_BYTES + 1)) == b""
    assert ask(port, b"GET /health HTTP/1.1\n\n").startswith(b"HTTP/1.1 200 OK\r\n")
    for connection in silent:
        connection.close()


def test_a_taken_health_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = holder.getsockname()[1]
        with pytest.raises(BindError, match=rf"port {taken} on 127\.0\.0\.1 .*choose another with --health-port"):
            bind_health(ServerSettings(health_port=taken))
    assert bind_health(ServerSettings()) is None


async def test_the_main_port_says_the_same(app: FastAPI, http: httpx.AsyncClient, engine: StubEngine) -> None:
    assert (await http.get("/health")).json() == app.state.vitals.health()
    engine.still = 1000.0
    assert (await http.get("/health")).json()["error"]["code"] == "engine_hung"
    assert "engine_step_age_seconds" in (await http.get("/metrics")).text
