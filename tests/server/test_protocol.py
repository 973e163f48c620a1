"""Connections: a real socket, uvicorn with our protocol, and clients that do not behave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvicorn
from support.stub_engine import StubEngine, StubTokenizer, words

from quire.engine.outputs import GenerateRequest, TextDelta
from quire.server.app import create_app
from quire.server.gate import Gate
from quire.server.limits import Limits, connection_limit
from quire.server.protocol import protocol_class
from quire.server.settings import ServerSettings

CHAT = "/v1/chat/completions"
ASK: dict[str, Any] = {"model": "stub", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}


class QuietServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


@contextlib.asynccontextmanager
async def serving(app: Any, limits: Limits, max_connections: int = 100) -> AsyncIterator[int]:
    """The app on a free port of loopback, which is yielded."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http=protocol_class(limits, max_connections),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = QuietServer(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


def stub_app(engine: StubEngine, limits: Limits) -> Any:
    return create_app(ServerSettings(served_model_name=["stub"]), engine, StubTokenizer(), limits=limits)


def request(body: dict[str, Any], *headers: str, path: str = CHAT) -> bytes:
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    body = await asyncio.wait_for(reader.readexactly(int(headers.get("content-length", 0))), 5)
    return int(head[0].split()[1]), headers, body


async def test_requests_on_one_connection(engine: StubEngine) -> None:
    limits = Limits(header_seconds=0.2)
    async with serving(stub_app(engine, limits), limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(request(ASK))
            status, _, body = await read_answer(reader)
            assert status == 200
            assert json.loads(body)["choices"][0]["message"]["content"]
        writer.close()


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HTTP/1.1\r\nHost: loc", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: y\r\n"]
)
async def test_slow_headers(engine: StubEngine, sent: bytes) -> None:
    """F23, B010, with 30 ms in place of 10 s."""
    limits = Limits(header_seconds=0.03)
    async with serving(stub_app(engine, limits), limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        status, headers, body = await read_answer(reader)
        assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
        assert headers["connection"] == "close"
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_slow_headers_on_a_second_request(engine: StubEngine) -> None:
    limits = Limits(header_seconds=0.05)
    async with serving(stub_app(engine, limits), limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(ASK))
        assert (await read_answer(reader))[0] == 200
        writer.write(b"POST / HT")
        assert (await read_answer(reader))[0] == 408
        writer.close()


async def test_slow_body(engine: StubEngine) -> None:
    """B008."""
    limits = Limits(body_seconds=0.03)
    async with serving(stub_app(engine, limits), limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(ASK)[:-4])
        status, _, body = await read_answer(reader)
        assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_expect_continue_is_refused_before_the_body(engine: StubEngine) -> None:
    """B006: no `100 Continue` for a body that is too large."""
    limits = Limits()
    async with serving(stub_app(engine, limits), limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = request(ASK, "Expect: 100-continue").split(b"Content-Length")[0]
        writer.write(head + b"Content-Length: 10000000000\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"100 Continue" not in answer
        writer.close()


@pytest.mark.parametrize(
    "lines",
    [
        ["X-Big: " + "x" * 1_000_000],
        [f"X-{i}: y" for i in range(500)],
        ["X-Big: " + "x" * 33_000],
    ],
    ids=["one huge", "many", "one large"],
)
async def test_headers_that_are_too_large(engine: StubEngine, lines: list[str]) -> None:
    """B010: refused while they arrive, not when a megabyte is in memory."""
    limits = Limits()
    async with serving(stub_app(engine, limits), limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(ASK, *lines))
        status, headers, body = await read_answer(reader)
        assert (status, json.loads(body)["error"]["code"]) == (431, "headers_too_large")
        assert headers["connection"] == "close"
        assert headers["x-request-id"].startswith("req-")
        writer.close()
    assert engine.requests == []


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01", b"HELLO\r\n\r\n", b"GET http://[/ HTTP/1.1\r\n\r\n"])
async def test_what_is_no_http(engine: StubEngine, garbage: bytes) -> None:
    limits = Limits(header_seconds=0.2)
    async with serving(stub_app(engine, limits), limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(garbage)
        status, headers, body = await read_answer(reader)
        assert status in (400, 408)
        assert headers["content-type"] == "application/json"
        assert json.loads(body)["error"]["code"] in ("invalid_http", "request_timeout")
        writer.close()


async def test_connections_over_the_cap(engine: StubEngine) -> None:
    """F13: told so at once, and there is room again when others have left."""
    limits = Limits()
    async with serving(stub_app(engine, limits), limits, max_connections=2) as port:
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in opened:
            writer.write(request(ASK))
            assert (await read_answer(reader))[0] == 200
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        status, headers, body = await read_answer(reader)
        assert (status, json.loads(body)["error"]["code"]) == (503, "server_is_overloaded")
        assert headers["retry-after"]
        writer.close()
        for _, other in opened:
            other.close()
            await other.wait_closed()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(ASK))
        assert (await read_answer(reader))[0] == 200
        writer.close()


def test_connection_limit_leaves_descriptors() -> None:
    assert 1 <= connection_limit() <= connection_limit(spare=0)


@pytest.mark.parametrize("stream", [True, False])
async def test_client_that_closes_is_noticed(engine: StubEngine, stream: bool) -> None:
    """F17, F18 through a real connection."""
    limits = Limits()
    engine.gate = asyncio.Event()
    app = stub_app(engine, limits)
    async with serving(app, limits) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request({**ASK, "stream": stream}))
        await asyncio.wait_for(engine.entered.wait(), 5)
        writer.close()
        await writer.wait_closed()
        assert await app.state.service.admission.wait_idle(5)
    assert engine.cancelled == 1


async def test_reader_that_takes_nothing(engine: StubEngine) -> None:
    """F21: a client that stops reading is dropped, with 100 ms in place of 30 s; sockets hold some megabytes."""
    limits = Limits(write_stall_seconds=0.1)

    def megabytes(request: GenerateRequest) -> Iterator[TextDelta]:
        for count in range(1, 65):
            yield TextDelta(choice=0, text="x" * 1_000_000, token_ids=(1,), num_output_tokens=count)

    engine.script = megabytes
    app = stub_app(engine, limits)
    async with serving(app, limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(request({**ASK, "stream": True}))
        await asyncio.wait_for(engine.entered.wait(), 5)
        assert await app.state.service.admission.wait_idle(10)
        assert engine.cancelled == 1
        writer.close()
    with contextlib.suppress(ConnectionResetError):
        await reader.read()


async def test_streamed_chunks_over_the_wire(engine: StubEngine) -> None:
    limits = Limits()
    engine.script = lambda request: words(request, ["a", "b"])
    async with serving(stub_app(engine, limits), limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request({**ASK, "stream": True}, "Connection: close"))
        answer = (await asyncio.wait_for(reader.read(), 5)).decode()
        writer.close()
    head, _, rest = answer.partition("\r\n\r\n")
    assert "transfer-encoding: chunked" in head.lower()
    sizes = []
    while rest:
        size, _, rest = rest.partition("\r\n")
        chunk, rest = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        sizes.append(chunk.count("data: "))
    assert sizes == [1, 1, 1, 1, 1, 0], "one frame a chunk"


async def test_gate_answers_before_there_is_an_application(engine: StubEngine) -> None:
    limits = Limits()
    gate = Gate(limits, lambda: "Downloading model.safetensors: 25%")
    async with serving(gate, limits) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        status, _, body = await read_answer(reader)
        assert status == 200
        assert json.loads(body)["stage"] == "Downloading model.safetensors: 25%"
        writer.write(request(ASK))
        status, headers, body = await read_answer(reader)
        assert (status, json.loads(body)["error"]["code"]) == (503, "model_loading")
        assert headers["retry-after"]
        assert headers["x-request-id"].startswith("req-")
        gate.open(stub_app(engine, limits))
        writer.write(request(ASK))
        assert (await read_answer(reader))[0] == 200
        writer.close()
