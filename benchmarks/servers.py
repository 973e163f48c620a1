"""Servers that a comparison starts itself: each a process and all it starts, held still while another is measured."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp

from quire.benchmarks.load import connect
from quire.clients.terminal import CommandFailed

START_SECONDS = 600.0
_POLL_SECONDS = 0.25
_STOP_SECONDS = 15.0
_LAST_WORDS = 400


class StartedServer:
    """`command` (words as in a shell, NAME=VALUE words before it for its environment) until the block is left.

    `pause` stops it and its descendants where they are (SIGSTOP), so that an idle server costs nobody anything;
    `resume` lets them go on. Raises CommandFailed where it cannot be started.
    """

    def __init__(self, name: str, command: str) -> None:
        self.name, self.command = name, command
        words = shlex.split(command)
        environment = dict(os.environ)
        while words and "=" in words[0] and not words[0].startswith(("-", "/", ".")):
            key, _, value = words.pop(0).partition("=")
            environment[key] = value
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the server)
        try:
            self._process = subprocess.Popen(
                words,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except (OSError, IndexError) as error:
            self._output.close()
            raise CommandFailed(f"--start {name}: {error}") from error

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        return self._process.pid

    async def wait_ready(self, address: str, limit: float = START_SECONDS) -> float:
        """Until it lists its models; returns the seconds since this call.

        Raises CommandFailed when it ends before, or is not ready after `limit` seconds.
        """
        begun = time.monotonic()
        http, url = connect(address)
        async with http:
            while not await _answers(http, url):
                if self._process.poll() is not None:
                    raise CommandFailed(f"{self.name} ended while it started: {self._last_words()}")
                if time.monotonic() - begun > limit:
                    raise CommandFailed(f"{self.name} is not ready after {limit:.0f} s: {self._last_words()}")
                await asyncio.sleep(_POLL_SECONDS)
        return time.monotonic() - begun

    def pause(self) -> None:
        """Stop every process of it, parents first: nobody is left who would miss a child."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let every process of it go on."""
        self._send(signal.SIGCONT)

    def stop(self) -> None:
        """End it and wait for it. Idempotent."""
        self.resume()
        if self._process.poll() is None:
            left = descendants(self._process.pid)
            self._process.terminate()
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                for pid in left:
                    _signal(pid, signal.SIGKILL)
                self._process.wait()
        self._output.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _send(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            for pid in descendants(self._process.pid):
                _signal(pid, number)

    def _last_words(self) -> str:
        self._output.seek(0)
        return self._output.read().decode(errors="replace").strip()[-_LAST_WORDS:] or "it said nothing"


async def _answers(http: aiohttp.ClientSession, url: str) -> bool:
    """Whether it is ready: GET /v1/models, and GET /ready or /health where it has them."""
    try:
        for path in ("/v1/models", "/ready", "/health"):
            async with http.get(url + path) as response:
                if response.status != 200 and not (response.status == 404 and path != "/v1/models"):
                    return False
    except (aiohttp.ClientError, TimeoutError):
        return False
    return True


def descendants(pid: int) -> list[int]:
    """The process and everything that came of it, parents before children."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    """To a process that may have ended meanwhile."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
