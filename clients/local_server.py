"""A server of our own for as long as a command runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Self

from quire.clients.client import Client
from quire.clients.terminal import CommandFailed

START_SECONDS = 600.0
_POLL_SECONDS = 0.05
_STOP_SECONDS = 10.0


class LocalServer:
    """`quire serve [MODEL]` in the background, on a free port of the loopback interface, until the block is left.

    Raises CommandFailed with what the server said when it does not come up, and with its exit code.
    """

    def __init__(self, model: str | None) -> None:
        self.url = f"http://127.0.0.1:{_free_port()}"
        port = self.url.rpartition(":")[2]
        own = ["--host", "127.0.0.1", "--port", port, "--shutdown-timeout", "0"]
        # Our own server is asked without a key.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QUIRE_API_KEY")}
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the server)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "quire.clients.cli", "serve", *([model] if model else []), *own],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env={**environment, "PYTHONSAFEPATH": "1"},
            # Ctrl-C in the terminal stops a reply, not this server.
            start_new_session=True,
        )

    def wait_ready(self) -> None:
        """Until it accepts requests."""
        deadline = time.monotonic() + START_SECONDS
        with Client(self.url, timeout=5.0) as client:
            while not client.ready():
                if self._process.poll() is not None:
                    raise CommandFailed(f"the server did not start: {self._last_words()}", self._process.returncode)
                if time.monotonic() > deadline:
                    raise CommandFailed(f"the server is not ready after {START_SECONDS:.0f} s: {self._last_words()}")
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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _last_words(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (errors or lines)[-1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
