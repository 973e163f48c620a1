"""A real `quire serve` in a process of its own, for the end-to-end tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx


def free_port() -> int:
    """A port of the loopback interface that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Poll until the condition holds; fails with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Process ids of the living direct children of `pid`."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in path.read_text().split()]
    return found


_FAULTY = """
import functools, sys
from quire.clients import cli
from quire.server import serve
serve.AsyncEngine = functools.partial(serve.AsyncEngine, faults={faults!r})
sys.exit(cli.main())
"""


class ServerProcess:
    """`quire serve ...` on a free port; `output` collects what it prints. `faults` are planted in its engine."""

    def __init__(
        self,
        *arguments: str,
        wait: bool = True,
        env: dict[str, str] | None = None,
        python: str = sys.executable,
        faults: dict[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output: list[str] = []
        program = ["-m", "quire.clients.cli"] if faults is None else ["-c", _FAULTY.format(faults=faults)]
        self.process = subprocess.Popen(
            [python, *program, "serve", *arguments, "--port", str(self.port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONSAFEPATH": "1", **(env or {})},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if wait:
            self.wait_ready()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)

    @property
    def text(self) -> str:
        """Everything printed so far."""
        return "".join(self.output)

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Until /ready answers 200; fails at once when the process ends before."""

        def ready() -> bool:
            assert self.process.poll() is None, f"serve ended with {self.process.returncode}:\n{self.text}"
            try:
                return httpx.get(self.url + "/ready", timeout=5).status_code == 200
            except httpx.TransportError:
                return False

        wait_until(ready, f"ready:\n{self.text}", seconds)

    def engine_pid(self) -> int:
        """The process id of the engine: the child whose command line names quire.engine."""
        for pid in children(self.process.pid):
            if b"quire.engine" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError(f"no engine process among the children of {self.process.pid}")

    def metric(self, name: str) -> float:
        """The sum over labels of one sample of /metrics, by its full name (without labels)."""
        text = httpx.get(self.url + "/metrics", timeout=10).text
        values = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
        assert values, f"no sample {name} in:\n{text}"
        return sum(float(value) for value in values)

    def wait_idle(self, seconds: float = 30.0) -> None:
        """Until no request runs or waits and no block is used."""
        gauges = ("quire:num_requests_running", "quire:num_requests_waiting", "quire:kv_cache_usage_perc")
        wait_until(lambda: all(self.metric(name) == 0 for name in gauges), "idle", seconds)

    def stop(self, seconds: float = 20.0) -> int:
        """SIGTERM, then the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._reader.join(5)
            if self.process.stdout is not None:
                self.process.stdout.close()
        return code

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()
