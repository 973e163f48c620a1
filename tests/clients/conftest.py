"""A scripted server, and what a test pipes in."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator

import pytest
from support.scripted_server import ScriptedServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    """A running scripted server that the environment names."""
    for name in ("QUIRE_API_KEY", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with ScriptedServer() as server:
        monkeypatch.setenv("QUIRE_BASE_URL", server.url)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what stdin holds."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))
