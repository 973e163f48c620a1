"""`quire batch` against the HTTP side with a stub engine, and against scripted failures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from support.server import free_port, wait_until
from support.stub_engine import StubEngine, StubTokenizer
from support.terminal import Terminal

from quire.clients import cli
from quire.clients.batch import Sender
from quire.clients.batch_lines import Request, Result, answered, failed, read_requests
from quire.clients.batch_output import Output
from quire.clients.errors import ConnectionFailed
from quire.clients.servers import Server
from quire.clients.terminal import CommandFailed
from quire.server.app import create_app
from quire.server.settings import ServerSettings

CHAT = "/v1/chat/completions"


class StubServer(uvicorn.Server):
    """The real HTTP side before a stub engine, on a thread of its own."""

    def __init__(self, path: str) -> None:
        self.engine = StubEngine()
        app = create_app(ServerSettings(served_model_name=["stub"]), self.engine, StubTokenizer())
        self.service = app.state.service
        super().__init__(uvicorn.Config(app, uds=path, lifespan="off", log_config=None))
        self.loop: asyncio.AbstractEventLoop | None = None
        self.url = f"unix:{path}"

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def serve(self, sockets: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StubServer]:
    server = StubServer(str(tmp_path_factory.mktemp("batch") / "socket"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, "the stub server")
    yield server
    server.should_exit = True
    thread.join()
    server.service.text.close()


@pytest.fixture
def stub(running: StubServer, monkeypatch: pytest.MonkeyPatch) -> StubServer:
    for name in ("QUIRE_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QUIRE_BASE_URL", running.url)
    running.engine.requests.clear()
    return running


def chat(custom_id: str, text: str = "hello", **fields: Any) -> dict[str, Any]:
    body = {"model": "stub", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **fields}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(path: Path) -> dict[str | None, dict[str, Any]]:
    """Results by custom_id; each must be there once."""
    results = [json.loads(line) for line in path.read_text().splitlines()]
    assert max(Counter(result["custom_id"] for result in results).values(), default=0) <= 1
    assert len({result["id"] for result in results}) == len(results)
    return {result["custom_id"]: result for result in results}


@pytest.fixture
def batch(tmp_path: Path) -> Callable[..., int]:
    """Runs `quire batch` from `in.jsonl`, which gets the given lines, to `out.jsonl`."""

    def batch(lines: list[Any], *words: str) -> int:
        write(tmp_path / "in.jsonl", *lines)
        return cli.main(["batch", "-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), *words])

    return batch


def test_every_line_has_its_result(
    stub: StubServer, batch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    complete = {"custom_id": "text", "method": "POST", "url": "/v1/completions", "body": {"prompt": "abc"}}
    lines = [
        *(chat(f"chat-{number}", f"hello {number}") for number in range(20)),
        complete,
        "",
        chat("refused", temperature=-1),
        "not json",
        {"custom_id": "streamed", **{k: v for k, v in chat("x", stream=True).items() if k != "custom_id"}},
    ]
    assert batch(lines, "--max-concurrency", "3") == 1
    assert capsys.readouterr().err == "24 lines: 21 answered, 3 failed\n"
    results = read(tmp_path / "out.jsonl")
    assert len(results) == 24
    good = results["chat-7"]
    assert good["error"] is None
    assert (good["response"]["status_code"], good["response"]["body"]["object"]) == (200, "chat.completion")
    assert good["response"]["request_id"]
    assert results["text"]["response"]["body"]["model"] == "stub"
    assert results["refused"]["response"]["status_code"] == 400
    assert results["refused"]["response"]["body"]["error"]["param"] == "temperature"
    assert results["refused"]["error"] is None
    assert results["streamed"]["response"] is None
    assert results["streamed"]["error"]["message"] == "line 25: stream: a batch is not streamed; leave the field out"
    assert results[None]["error"]["line"] == 24
    assert len(stub.engine.requests) == 21


def test_a_line_without_a_model_asks_for_the_servers_own(
    stub: StubServer, batch: Callable[..., int], tmp_path: Path
) -> None:
    """Whatever the other lines ask for."""
    nameless = {"custom_id": "nameless", "method": "POST", "url": "/v1/completions", "body": {"prompt": "abc"}}
    assert batch([nameless, chat("wrong", model="another")]) == 1
    results = read(tmp_path / "out.jsonl")
    assert results["nameless"]["response"]["body"]["model"] == "stub"
    assert results["wrong"]["response"]["status_code"] == 404


def test_no_more_at_a_time_than_asked_for(stub: StubServer, batch: Callable[..., int], tmp_path: Path) -> None:
    active: list[int] = []
    gate = asyncio.Event()
    engine, plain = stub.engine, stub.engine.script
    engine.gate, engine.script = gate, lambda request: (active.append(engine.active), plain(request))[1]

    def open_when_full() -> None:
        try:
            wait_until(lambda: engine.active == 3, "three requests at a time")
        finally:
            assert stub.loop is not None
            stub.loop.call_soon_threadsafe(gate.set)

    opener = threading.Thread(target=open_when_full)
    opener.start()
    try:
        assert batch([chat(str(number)) for number in range(9)], "--max-concurrency", "3") == 0
    finally:
        opener.join()
        engine.gate, engine.script = None, plain
    assert (max(active), len(read(tmp_path / "out.jsonl"))) == (3, 9)


def test_resume_asks_what_has_no_result(
    stub: StubServer, batch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [chat("a"), chat("b", temperature=-1), "bad", chat("c")]
    out = tmp_path / "out.jsonl"
    assert batch(lines[:3]) == 1
    before = out.read_text()
    assert batch(lines) == 2
    assert "is not empty; --resume goes on with it" in capsys.readouterr().err
    out.write_text(before + '{"id": "batch_req_1", "custom_id": "c", "resp')
    stub.engine.requests.clear()
    assert batch(lines, "--resume") == 1
    assert capsys.readouterr().err == "4 lines: 2 answered, 2 failed\n"
    assert out.read_text().startswith(before)
    assert set(read(out)) == {"a", "b", None, "c"}
    assert len(stub.engine.requests) == 1
    assert batch(lines, "--resume") == 1
    assert len(stub.engine.requests) == 1


def test_a_wrong_file_is_not_resumed(
    stub: StubServer, batch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch([chat("a")]) == 0
    assert batch([chat("b")], "--resume") == 2
    assert "is this the output of another batch?" in capsys.readouterr().err
    (tmp_path / "out.jsonl").write_text("notes\n")
    assert batch([chat("b")], "--resume") == 2
    assert "out.jsonl:1: no result of a batch" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "notes\n"


def test_two_lines_of_one_name_are_refused_before_anything_is_sent(
    stub: StubServer, batch: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch([chat("a"), chat("b"), {"custom_id": "a"}]) == 2
    assert "in.jsonl:3: custom_id 'a' is that of line 1 too; nothing was sent" in capsys.readouterr().err
    assert stub.engine.requests == []
    assert not (tmp_path / "out.jsonl").exists()


def test_pipes(stub: StubServer) -> None:
    command = [sys.executable, "-P", "-m", "quire.clients.cli", "batch", "-i", "-", "-o", "-", "--keep-order"]
    lines = "\n".join(json.dumps(chat(str(number))) for number in range(5))
    run = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stderr) == (0, "5 lines: 5 answered, 0 failed\n")
    assert [json.loads(line)["custom_id"] for line in run.stdout.splitlines()] == ["0", "1", "2", "3", "4"]


def test_a_bar_on_a_terminal_and_ctrl_c(stub: StubServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", chat("a"), chat("b"))
    command = [sys.executable, "-P", "-m", "quire.clients.cli", "batch", "-i", str(source), "-o"]
    stub.engine.gate = asyncio.Event()
    try:
        with Terminal([*command, str(tmp_path / "out.jsonl")], os.environ) as terminal:
            terminal.wait_for("0/2")
            wait_until(lambda: stub.engine.active == 2, "both requests at work")
            terminal.type("\x03")
            terminal.wait_for("stopped: 0 of 2 lines are written; --resume goes on")
            assert terminal.wait_end() == 130
        wait_until(lambda: stub.engine.active == 0, "the server dropped both")
    finally:
        stub.engine.gate = None


USAGE = [
    (["-o", "x"], "the following arguments are required: -i/--input"),
    (["-i", "/nowhere", "-o", "x"], "/nowhere: No such file or directory"),
    (["-i", "/dev/null", "-o", "/nowhere/x"], "/nowhere/x: No such file or directory"),
    (["-i", "/dev/null", "-o", "-", "--resume"], "--resume: needs a file"),
    (["-i", "/dev/null", "-o", "x", "--max-concurrency", "0"], "--max-concurrency: expected 1 or more, found 0"),
]


@pytest.mark.parametrize(("words", "sentence"), USAGE)
def test_usage(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["batch", *words]) == 2
    assert sentence in capsys.readouterr().err


FAULTS = [
    ("[1]", None, "expected a batch line: Expected `object`, got `array`"),
    ('{"custom_id": "a"}', "a", "Object missing required field `method`"),
    ('{"custom_id": 7, "method": "POST", "url": "/v1/completions", "body": {}}', None, "at `$.custom_id`"),
    ('{"custom_id": "", "method": "POST", "url": "/v1/completions", "body": {}}', None, "a text that is not empty"),
    ('{"custom_id": "a", "method": "GET", "url": "/v1/completions", "body": {}}', "a", "expected POST, found GET"),
    ('{"custom_id": "a", "method": "POST", "url": "http://x/v1/completions", "body": {}}', "a", "url: expected one"),
    ('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": []}', "a", "Expected `object`"),
    ('{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"model": 1}}', "a", "at `$.model`"),
    ('{"custom_id": "\xff', None, "expected a batch line"),
    ("[" * 100_000, None, "expected a batch line"),
]


@pytest.mark.parametrize(("line", "custom_id", "fault"), FAULTS, ids=[fault for _, _, fault in FAULTS])
def test_bad_lines(line: str, custom_id: str | None, fault: str) -> None:
    [request] = read_requests("in", [line.encode("latin-1")])
    assert request.custom_id == custom_id
    assert fault in (request.fault or "")


def test_a_body_is_sent_as_it_was_written() -> None:
    body = '{"prompt":  "a", "model": "m", "seed": 12345678901234567890}'
    line = f'\ufeff{{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {body}}}\r\n'
    [request] = read_requests("in", [line.encode()])
    assert (request.fault, request.body_for("other")) == (None, body.encode())


REQUEST = Request(1, "a", "/v1/completions", b'{"prompt":"p"}')


def send(handler: Callable[[httpx.Request], httpx.Response]) -> tuple[Result, list[float]]:
    """One request through a scripted network, and how long was waited between attempts."""
    waits: list[float] = []
    results: list[Result] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    server = Server("http://server", None, None)
    sender = Sender(server, "m", 4, transport=httpx.MockTransport(handler), sleep=sleep)
    asyncio.run(sender.send([REQUEST], lambda position, result: results.append(result)))
    [result] = results
    return result, waits


def scripted(*answers: httpx.Response | Exception, alive: bool = True) -> Callable[[httpx.Request], httpx.Response]:
    """Gives the answers in order to posts, the last one for ever; GET /version works while `alive`."""
    rest = list(answers)

    def handle(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            if alive:
                return httpx.Response(200, json={"version": "0"})
            raise httpx.ConnectError("refused")
        assert json.loads(request.content) == {"prompt": "p", "model": "m"}
        answer = rest.pop(0) if len(rest) > 1 else rest[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handle


def test_a_full_server_is_waited_for() -> None:
    full = [httpx.Response(503, json={}, headers={"retry-after": "4"}) for _ in range(12)]
    result, waits = send(scripted(*full, httpx.Response(200, json={"ok": 1}, headers={"x-request-id": "r"})))
    assert result.good
    assert result.response is not None
    assert (result.response.request_id, result.response.body) == ("r", {"ok": 1})
    assert len(waits) == 12
    assert all(4.0 <= wait <= 5.0 for wait in waits)


OUTCOMES = [
    (httpx.Response(500, json={"error": {"message": "broke"}}), 2, 500, None),
    (httpx.Response(404, json={}), 0, 404, None),
    (httpx.Response(200, text="<html>"), 0, None, "invalid_response"),
    (httpx.ReadTimeout("late"), 0, None, "timed_out"),
    (httpx.RemoteProtocolError("cut off"), 2, None, "connection_failed"),
]


@pytest.mark.parametrize(("answer", "attempts", "status", "code"), OUTCOMES)
def test_what_fails_for_good(
    answer: httpx.Response | Exception, attempts: int, status: int | None, code: str | None
) -> None:
    result, waits = send(scripted(answer))
    assert not result.good
    assert len(waits) == attempts
    assert (result.response and result.response.status_code, result.error and result.error.code) == (status, code)


def test_a_server_that_is_gone_is_no_fault_of_a_line() -> None:
    with pytest.raises(ConnectionFailed):
        send(scripted(httpx.ConnectError("refused"), alive=False))


def test_a_server_that_comes_back_is_waited_for() -> None:
    refused = [httpx.ConnectError("refused") for _ in range(6)]
    result, waits = send(scripted(*refused, httpx.Response(200, json={}), alive=False))
    assert (result.good, len(waits)) == (True, 6)


def test_no_server_and_no_way_to_start_one(
    batch: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QUIRE_BASE_URL", f"http://127.0.0.2:{free_port()}")
    monkeypatch.setattr("quire.clients.servers.is_local", lambda url: False)
    assert batch([chat("a")]) == 1
    assert "0 of 1 lines are written; --resume goes on" in capsys.readouterr().err


def test_results_in_order_or_at_once(tmp_path: Path) -> None:
    requests = [Request(number, str(number)) for number in range(4)]
    for keep_order, expected in ((True, ["0", "1", "2"]), (False, ["2", "0", "1"])):
        path = tmp_path / str(keep_order)
        with Output(str(path), requests, resume=False, keep_order=keep_order) as output:
            for position in (2, 0, 1):
                output.write(position, answered(requests[position], 200, None, {"line": "one\ntwo"}))
        assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == expected


def test_one_writer_at_a_time_and_a_full_disk(tmp_path: Path) -> None:
    path = str(tmp_path / "out")
    with (
        Output(path, [], resume=False, keep_order=False),
        pytest.raises(CommandFailed, match="another batch is writing it"),
    ):
        Output(path, [], resume=True, keep_order=False)
    with (
        Output("/dev/full", [REQUEST], resume=False, keep_order=False) as output,
        pytest.raises(CommandFailed, match="No space left on device; 0 of 1 lines are written"),
    ):
        output.write(0, failed(REQUEST, "timed_out", "late"))
