"""--health-port: /health, /ready and /metrics from a thread and a listener of their own, which no load can delay.

Requests of the main port wait for the event loop; these do not. One thread serves them all without ever blocking on
one, and what it says comes from memory (`quire.server.vitals`). HTTP is what probes speak of it: GET and HEAD, no body,
one request a connection, never TLS.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from quire.server.errors import ApiError

MAX_CONNECTIONS = 64
MAX_REQUEST_BYTES = 8192
CONNECTION_SECONDS = 5.0
_REASONS = {200: "OK", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"}


class Answered(NamedTuple):
    """A body and its type."""

    body: bytes
    content_type: str = "application/json"


Answer = Callable[[str, bytes | None], Answered]
"""Path and Authorization header to answer; raises ApiError. Called in the thread of the port."""


class _Connection:
    def __init__(self) -> None:
        self.received = b""
        self.unsent = b""
        self.ends_at = time.monotonic() + CONNECTION_SECONDS


class HealthPort:
    """Serves `listener` from the moment it is made until `close`; `answer` says what."""

    def __init__(self, listener: socket.socket, answer: Answer) -> None:
        self._listener, self._answer = listener, answer
        self._selector = selectors.DefaultSelector()
        self._connections: dict[socket.socket, _Connection] = {}
        self._wake, self._waker = socket.socketpair()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="quire-health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread and every connection; the listener is the caller's."""
        self._waker.send(b"x")
        self._thread.join()
        for connection in list(self._connections):
            self._drop(connection)
        self._selector.close()
        self._wake.close()
        self._waker.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(1.0):
                if key.fileobj is self._wake:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._move(key.fileobj)
            now = time.monotonic()
            for connection in [c for c, state in self._connections.items() if state.ends_at < now]:
                self._drop(connection)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # it left again, or there is no descriptor: the next one may have more luck
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            self._drop(min(self._connections, key=lambda each: self._connections[each].ends_at))
        connection.setblocking(False)
        self._connections[connection] = _Connection()
        self._selector.register(connection, selectors.EVENT_READ)

    def _move(self, connection: socket.socket) -> None:
        """Read a piece of the request, or write a piece of the answer."""
        state = self._connections[connection]
        try:
            if not state.unsent:
                piece = connection.recv(MAX_REQUEST_BYTES)
                state.received += piece
                if not piece or len(state.received) > MAX_REQUEST_BYTES:
                    self._drop(connection)
                    return
                if b"\r\n\r\n" not in state.received and b"\n\n" not in state.received:
                    return
                state.unsent = self._respond(state.received)
                self._selector.modify(connection, selectors.EVENT_WRITE)
            state.unsent = state.unsent[connection.send(state.unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._drop(connection)
            return
        if not state.unsent:
            self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        del self._connections[connection]
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        connection.close()

    def _respond(self, request: bytes) -> bytes:
        """The whole answer to a whole request."""
        line, *lines = request.replace(b"\r", b"").split(b"\n")
        method, _, rest = line.decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        status = 200
        extra: tuple[tuple[str, str], ...] = ()
        try:
            if method not in ("GET", "HEAD"):
                raise ApiError("method_not_allowed", "Use GET.", headers=(("allow", "GET, HEAD"),))
            answered = self._answer(path, headers.get(b"authorization"))
        except ApiError as error:
            status, answered, extra = error.status, Answered(error.encode()), error.headers
        except Exception as error:  # a fault of ours must not take the port away
            fault = ApiError("internal_error", f"This probe could not be answered: {type(error).__name__}.")
            status, answered = fault.status, Answered(fault.encode())
        head = [
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Service Unavailable')}",
            f"content-type: {answered.content_type}",
            f"content-length: {len(answered.body)}",
            "connection: close",
            *(f"{name}: {value}" for name, value in extra),
        ]
        body = b"" if method == "HEAD" else answered.body
        return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body
