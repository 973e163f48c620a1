"""What can go wrong for a client.

ClientError
├── ConnectionFailed        no server there, or the connection broke before the answer was whole
│   └── TimedOut            nothing came within the timeout
├── ProtocolError           an answer that is not what this client understands
├── StreamFailed            the server gave up in the middle of a stream and said why
└── StatusError             the server refused, with an HTTP status
    ├── BadRequest          400 and every other 4xx that is not below
    ├── AuthenticationFailed    401
    ├── PermissionDenied        403
    ├── NotFound                404
    ├── RateLimited             429: this key is over its limit
    └── ServerError             5xx
        └── Unavailable         503: full, loading, restarting or draining
"""

from __future__ import annotations


class ClientError(Exception):
    """The base of everything that a client raises for a request."""


class ConnectionFailed(ClientError):
    """No server there, or the connection broke before the answer was whole."""


class TimedOut(ConnectionFailed):
    """Nothing came within the timeout."""


class ProtocolError(ClientError):
    """An answer that is not what this client understands."""


class StreamFailed(ClientError):
    """The server gave up in the middle of a stream; `code` is the API's error code, when it gave one."""

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class StatusError(ClientError):
    """The server refused. `code` and `param` are the API's, `retry_after` is in seconds."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.request_id = status, code, param, request_id
        self.retry_after, self.should_retry = retry_after, should_retry


class BadRequest(StatusError):
    """The request itself is at fault."""


class AuthenticationFailed(StatusError):
    """No key, or one that the server does not know."""


class PermissionDenied(StatusError):
    """The key is known and may not do this."""


class NotFound(StatusError):
    """No such route or model."""


class RateLimited(StatusError):
    """This key is over its limit."""


class ServerError(StatusError):
    """The server failed."""


class Unavailable(ServerError):
    """The server is full, loading, restarting or draining."""


def status_error(status: int) -> type[StatusError]:
    """The class for an HTTP status."""
    exact = {401: AuthenticationFailed, 403: PermissionDenied, 404: NotFound, 429: RateLimited, 503: Unavailable}
    if status in exact:
        return exact[status]
    return ServerError if status >= 500 else BadRequest
