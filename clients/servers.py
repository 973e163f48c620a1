"""Whom a command talks to: a server that runs, or one of its own for the while."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from quire.clients import protocol
from quire.clients.client import Client
from quire.clients.errors import ClientError, ConnectionFailed, NotFound, Unavailable
from quire.clients.local_server import STARTER, LocalServer
from quire.clients.terminal import StatusLine, dim
from quire.clients.transport import is_local
from quire.clients.types import Model

_PATIENCE = 5
"""Attempts after the first, at a server that is full, loading or restarting."""


@dataclass(frozen=True)
class Server:
    """Where requests go. `model` is what they ask for; None: the first that the server names."""

    url: str
    api_key: str | None
    model: str | None

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client that knows which model it asks for, so that no answer's clock counts the question.

        A server that loads or restarts is waited for, and a terminal is told so.
        """
        models = self._models()
        with Client(self.url, api_key=self.api_key, model=self.model, max_retries=_PATIENCE) as client:
            client.model = client.model or protocol.first_model(models)
            yield client

    def _models(self) -> list[Model]:
        with StatusLine(sys.stderr) as status:

            def wait(seconds: float) -> None:
                status.show(f"waiting for {self.url} ...")
                time.sleep(seconds)

            with Client(self.url, api_key=self.api_key, max_retries=_PATIENCE, sleep=wait) as client:
                while True:
                    try:
                        return client.models()
                    except Unavailable as error:
                        if error.code not in ("model_loading", "engine_restarting"):
                            raise
                    except NotFound:
                        if self.model is None:
                            raise
                        return []


@contextmanager
def running_or_own(
    base_url: str | None, api_key: str | None, model: str | None, *, serve: str | None = None
) -> Iterator[Server]:
    """The server at the address, asked for `model`, or one of our own with `model` or `serve` when none is there."""
    url = protocol.base_url(base_url, os.environ)
    if _answers(url, api_key):
        yield Server(url, api_key, model)
        return
    print(dim(f"no server at {url}: starting one with {_called(model or serve)} ..."), file=sys.stderr)
    with own(model or serve) as server:
        yield server


@contextmanager
def own(model: str | None) -> Iterator[Server]:
    """A server of our own, for this command alone; a terminal is told how long it takes to load."""
    with StatusLine(sys.stderr) as status, LocalServer(model) as server:

        def tell(seconds: float, stage: str) -> None:
            status.show(f"loading {_called(model)} ... {seconds:.0f} s{f' ({stage})' if stage else ''}")

        server.wait_ready(tell)
        status.clear()
        yield Server(server.url, None, None)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP leave through the `with` blocks, so that no server of ours stays behind."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _answers(url: str, api_key: str | None) -> bool:
    """Whether anything answers there. Raises ConnectionFailed where nothing does and we cannot start anything."""
    with Client(url, api_key=api_key, max_retries=0) as client:
        try:
            client.version()
        except ConnectionFailed:
            if not is_local(url):
                raise
            return False
        except ClientError:
            pass
    return True


def _called(model: str | None) -> str:
    return "the starter model" if model in (None, STARTER) else str(model)
