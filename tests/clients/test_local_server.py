"""`quire chat`, `complete` and `run` where no server runs: one is started, asked, and stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from support.server import free_port, wait_until

from quire.clients.local_server import LocalServer
from quire.clients.transport import socket_path

SECONDS = 120.0


def run(*words: str, mark: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with an address where nobody listens."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("QUIRE_", "OPENAI_"))}
    environment |= {"QUIRE_BASE_URL": f"http://127.0.0.1:{free_port()}", "TEST_MARK": mark, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, "-m", "quire.clients.cli", *words]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS, env=environment
    )


def processes(mark: str) -> list[str]:
    """Command lines of the living processes that inherited the mark."""
    found: list[str] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def test_a_question_without_a_server_starts_one_and_leaves_none() -> None:
    mark = uuid.uuid4().hex
    answer = run("chat", "-q", "What is 17 + 25?", "--temperature", "0", "--max-tokens", "32", "--stats", mark=mark)
    assert answer.returncode == 0, answer.stderr
    assert "42" in answer.stdout
    assert "starting one with the starter model" in answer.stderr
    assert "tokens/s" in answer.stderr
    assert processes(mark) == []


def test_a_long_name_of_the_folder_for_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    with LocalServer("/nowhere") as server:
        path = socket_path(server.url)
        assert path is not None
        assert len(path) < 108
        folder = Path(path).parent
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()


def test_a_model_that_cannot_be_served_is_said_with_its_exit_code() -> None:
    mark = uuid.uuid4().hex
    answer = run("run", "/nowhere/at/all", "Once", mark=mark)
    assert answer.returncode == 3
    assert answer.stderr.splitlines()[-1].startswith("error: the server did not start: ")
    assert "/nowhere/at/all" in answer.stderr
    assert processes(mark) == []


def test_a_server_of_our_own_ends_when_we_are_killed() -> None:
    mark = uuid.uuid4().hex
    code = "from quire.clients.local_server import LocalServer\nLocalServer(None)\nprint('up', flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "TEST_MARK": mark},
        text=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        assert len(processes(mark)) >= 2
        parent.kill()
    wait_until(lambda: processes(mark) == [], "the server ended", SECONDS)
