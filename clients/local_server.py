"""A server of our own for as long as a command runs."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import httpx

from quire.clients.terminal import CommandFailed
from quire.clients.transport import blocking_transport, settings

STARTER = "starter"
"""The name of the model that ships with Quire."""
START_SECONDS = 600.0
_POLL_SECONDS = 0.05
_STOP_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
_LONGEST_FOLDER = 80
"""Of 108 bytes that the path of a Unix socket may have."""


class LocalServer:
    """`quire serve [MODEL]` in the background until the block is left, on a Unix socket that only this user can reach.

    It also ends when this process is killed. Other settings are read from QUIRE_* as `quire serve` reads them. Raises
    CommandFailed with what the server said when it does not come up, and with its exit code.
    """

    def __init__(self, model: str | None) -> None:
        temporary = tempfile.gettempdir()
        self._folder = tempfile.TemporaryDirectory(
            prefix="quire-", dir=temporary if len(temporary) < _LONGEST_FOLDER else "/tmp"
        )
        path = Path(self._folder.name) / "socket"
        self.url = f"unix:{path}"
        named = [] if model in (None, STARTER) else [str(model)]
        # Our own server is asked without a key.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QUIRE_API_KEY")}
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the server)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quire.clients.cli", "serve", "--uds", str(path), "--shutdown-timeout", "0", *named],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**environment, "PYTHONSAFEPATH": "1"},
            # Ctrl-C in the terminal stops a reply, not this server.
            start_new_session=True,
            preexec_fn=_end_with_parent(),
        )

    def wait_ready(self, waiting: Callable[[float, str], None] = lambda seconds, stage: None) -> None:
        """Until it accepts requests; `waiting` hears how many seconds that has taken, and what the server is at."""
        begun = time.monotonic()
        with httpx.Client(**settings(self.url, None, 5.0), transport=blocking_transport(self.url)) as http:
            while (stage := _stage(http)) is not None:
                seconds = time.monotonic() - begun
                if self._process.poll() is not None:
                    raise CommandFailed(f"the server did not start: {self._last_words()}", self._process.returncode)
                if seconds > START_SECONDS:
                    raise CommandFailed(f"the server is not ready after {START_SECONDS:.0f} s: {self._last_words()}")
                waiting(seconds, stage)
                time.sleep(_POLL_SECONDS)

    def stop(self) -> None:
        """End it and wait for it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._output.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _last_words(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines)[-1]


def _stage(http: httpx.Client) -> str | None:
    """What the server is at while it loads, as far as it says; None when it accepts requests."""
    try:
        if http.get("/ready").status_code == 200:
            return None
        return str(http.get("/health").json().get("stage", ""))
    except httpx.HTTPError:
        return ""


def _end_with_parent() -> Callable[[], None]:
    """What makes the kernel send SIGTERM to a child when this process dies (prctl(2)); to be called in the child."""
    libc = ctypes.CDLL(None)

    def ask() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    return ask
