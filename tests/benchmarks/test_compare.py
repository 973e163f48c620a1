"""`quire bench compare` against small servers over real sockets; servers that it starts, holds still and ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.bench_target import BenchTarget

from quire.benchmarks import compare
from quire.benchmarks.cli import main as bench
from quire.benchmarks.servers import StartedServer, descendants
from quire.clients.terminal import CommandFailed

SMALL = ["--num-prompts", "4", "--num-prompts-alone", "2", "--max-concurrency", "1", "3", "--input-len", "10",
         "--output-len", "5", "--rounds", "2"]  # fmt: skip
SERVER = """
import http.server, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.path == "/v1/models"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(b"{}" if known else b"")
http.server.HTTPServer(("127.0.0.1", int(__import__("os").environ["ITS_PORT"])), Handler).serve_forever()
"""


async def test_every_server_gets_the_same_requests_and_no_prompt_comes_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- study compare -->\n<!-- end -->\n")
    file, image = tmp_path / "r.json", tmp_path / "r.png"
    async with BenchTarget(tokenizes=True).served() as one, BenchTarget().served() as two:
        words = ["--server", f"ours={one.url}", "--server", f"peer={two.url}", "--version", "peer=9.9", *SMALL]
        words += ["--output-json", str(file), "--plot", str(image), "--update-page", str(page)]
        assert await asyncio.to_thread(bench, "bench", ["compare", *words]) == 0
    prompts = [json.dumps(body["prompt"]) for body in one.bodies]
    assert sorted(prompts) == sorted(json.dumps(body["prompt"]) for body in two.bodies)
    assert len(set(prompts)) == len(prompts) == 2 + 2 * (2 + 4)
    assert all(body["ignore_eos"] and body["max_tokens"] == 5 and len(body["prompt"]) == 10 for body in one.bodies)
    saved = json.loads(file.read_text())
    assert saved["command"].startswith("quire bench compare --server ours=")
    assert [(load["server"], load["concurrency"], load["completed"]) for load in saved["result"]["loads"]] == [
        ("ours", 1, 4), ("peer", 1, 4), ("ours", 3, 8), ("peer", 3, 8)
    ]  # fmt: skip
    assert [peer["version"] for peer in saved["result"]["peers"]] == [None, "9.9"]
    assert image.read_bytes()[:4] == b"\x89PNG"
    assert "| 3 | peer |" in page.read_text()
    assert "](r.png)" in page.read_text()
    assert "ours: TPOT" in capsys.readouterr().out


async def test_a_server_that_answers_nothing_is_no_success() -> None:
    async with BenchTarget().served() as one, BenchTarget(broken=range(100)).served() as two:
        words = ["compare", "--server", f"a={one.url}", "--server", f"b={two.url}", *SMALL]
        assert await asyncio.to_thread(bench, "bench", words) == 1


async def test_a_server_that_does_not_start_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    async with BenchTarget().served() as one:
        words = [
            "compare",
            "--server",
            f"a={one.url}",
            "--server",
            "b=http://127.0.0.1:9",
            "--start",
            "b=false",
            *SMALL,
        ]
        assert await asyncio.to_thread(bench, "bench", [*words, "--minutes", "0"]) == 1
    shown = capsys.readouterr()
    assert "left out: b ended while it started" in shown.err
    assert "| 3 | a |" in shown.out
    assert "| b |" not in shown.out
    assert "round 2" not in shown.out
    with pytest.raises(CommandFailed, match="c ended while it started"):
        await asyncio.to_thread(bench, "bench", ["compare", "--server", "c=http://127.0.0.1:9", "--start", "c=false"])


def test_ratios_are_how_many_times_better_the_first_is() -> None:
    def load(name: str, rate: float, tpot: float) -> compare.Load:
        return compare.Load(name, 8, 16, 0, rate, [rate], 1.0, 1.0, 1.0, tpot, tpot, tpot, tpot)

    peers = [compare.Peer(name, "", None, None, None) for name in ("ours", "peer")]
    result = compare.Result(256, 64, 16, 1, peers, [load("ours", 90.0, 20.0), load("peer", 60.0, 50.0)])
    assert "| 1.50 x | 2.50 x |" in compare.table(result).splitlines()[-1]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _states(pids: list[int]) -> list[str]:
    return [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in pids]


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not true():  # noqa: ASYNC110 (no event tells of a process's state)
            await asyncio.sleep(0.01)


async def test_a_started_server_is_held_still_with_its_children_and_ended() -> None:
    port = _free_port()
    command = f"ITS_PORT={port} {shlex.join([sys.executable, '-c', SERVER])}"
    with StartedServer("x", command) as server:
        assert await server.wait_ready(f"http://127.0.0.1:{port}") >= 0
        family = descendants(server._process.pid)
        assert len(family) == 2
        server.pause()
        await _until(lambda: _states(family) == ["T", "T"])
        server.resume()
        await _until(lambda: "T" not in _states(family))
        server.pause()
    assert server._process.poll() is not None
    os.kill(family[1], signal.SIGKILL)


async def test_a_server_that_does_not_come_up_is_quoted() -> None:
    words = shlex.join([sys.executable, "-c", "raise SystemExit('no such model')"])
    with StartedServer("x", words) as server, pytest.raises(CommandFailed, match="no such model"):
        await server.wait_ready(f"http://127.0.0.1:{_free_port()}")
    with pytest.raises(CommandFailed, match="--start y"):
        StartedServer("y", "/no/such/program --port 3")


USAGE = [
    ([], "at least one --server"),
    (["--server", "x"], "expected NAME="),
    (["--server", "a=http://x", "--start", "b=true"], "no --server has that name"),
    (["--server", "a=http://x", "--server", "a=http://y"], "the same name"),
    (["--server", "a=http://x", "--rounds", "0"], "at least 1"),
    (["--server", "a=http://127.0.0.1:9"], "is a server running there"),
]


@pytest.mark.parametrize(("words", "part"), USAGE, ids=[part for _, part in USAGE])
def test_usage(words: list[str], part: str) -> None:
    with pytest.raises(CommandFailed, match=re.escape(part)):
        bench("bench", ["compare", *words])
