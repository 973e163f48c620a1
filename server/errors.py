"""The errors of the HTTP API: one table of codes, one envelope.

    {"error": {"message": str, "type": str, "param": str | null, "code": str | null}}

Routes raise `ApiError`; `Exchange` turns it into an answer, or, after the 200 of a stream, into its last frame.
"""

from __future__ import annotations

import random

import msgspec

from quire.engine.messages import Failure

MAX_QUOTED = 200
"""Characters of a client's value that a message repeats."""

INVALID_REQUEST = "invalid_request_error"
PERMISSION = "permission_error"
RATE_LIMIT = "rate_limit_error"
UNAVAILABLE = "service_unavailable_error"
SERVER = "server_error"

STATUS_OF_CODE: dict[str, int] = {
    "chat_template_error": 400,
    "chat_template_missing": 400,
    "conflicting_parameters": 400,
    "context_length_exceeded": 400,
    "duplicate_key": 400,
    "empty_prompt": 400,
    "invalid_http": 400,
    "invalid_json": 400,
    "invalid_type": 400,
    "invalid_value": 400,
    "json_too_deep": 400,
    "json_too_large": 400,
    "missing": 400,
    "prompt_too_slow": 400,
    "token_out_of_range": 400,
    "too_many_items": 400,
    "too_many_sequences": 400,
    "unknown_parameter": 400,
    "unsupported_parameter": 400,
    "api_key_disabled": 401,
    "invalid_api_key": 401,
    "foreign_host": 403,
    "foreign_origin": 403,
    "insufficient_permissions": 403,
    "model_not_found": 404,
    "not_built": 404,
    "unknown_url": 404,
    "method_not_allowed": 405,
    "request_too_large": 413,
    "unsupported_encoding": 415,
    "unsupported_media_type": 415,
    "concurrency_limit_exceeded": 429,
    "rate_limit_exceeded": 429,
    "too_many_watchers": 429,
    "headers_too_large": 431,
    "internal_error": 500,
    "request_quarantined": 500,
    "engine_failed": 503,
    "engine_hung": 503,
    "server_stalled": 503,
    "engine_restarting": 503,
    "model_loading": 503,
    "server_draining": 503,
    "server_is_overloaded": 503,
    "request_timeout": 504,
}
"""Every code that this process makes, with its status. `request_timeout` is also sent with 408 (a slow upload)."""


def type_of_status(status: int) -> str:
    """The `type` of the envelope that goes with an HTTP status."""
    if status == 403:
        return PERMISSION
    if status == 429:
        return RATE_LIMIT
    if status == 503:
        return UNAVAILABLE
    return SERVER if status >= 500 else INVALID_REQUEST


class ErrorBody(msgspec.Struct, frozen=True):
    """What stands under "error"."""

    message: str
    type: str
    param: str | None
    code: str | None


class Envelope(msgspec.Struct, frozen=True):
    """The body of every error answer."""

    error: ErrorBody


class ApiError(Exception):
    """A request that is answered with an error.

    `code` is a key of `STATUS_OF_CODE`, or one that came from the engine together with its status. `param` names the
    field at fault (`messages[0].role`). `close` asks for the connection to end, because its body was left unread.
    """

    def __init__(
        self,
        code: str,
        message: str,
        param: str | None = None,
        *,
        status: int | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.param, self.close = code, message, param, close
        self.status = STATUS_OF_CODE[code] if status is None else status
        self.headers = headers

    def encode(self) -> bytes:
        """The envelope as JSON."""
        return _ENCODER.encode(Envelope(ErrorBody(self.message, type_of_status(self.status), self.param, self.code)))


_ENCODER = msgspec.json.Encoder()


NO_RETRY = ("x-should-retry", "false")
"""What clients' libraries read before they send a request again that got a 5xx."""


def retry_after(seconds: float, jitter: float | None = None) -> tuple[str, str]:
    """A Retry-After header: `seconds` within 1..60, spread by 20 % so that refused clients do not return together.

    `jitter` in 0..1 replaces the random draw.
    """
    spread = 0.8 + 0.4 * (random.random() if jitter is None else jitter)
    return "retry-after", str(max(1, min(60, round(seconds * spread))))


def unavailable(code: str, message: str, seconds: float) -> ApiError:
    """A 503 that says when to come back."""
    return ApiError(code, message, headers=(retry_after(seconds),))


def from_failure(failure: Failure, seconds: float | None = None) -> ApiError:
    """The error of a request that failed after it was accepted. `seconds`: when to come back, None for never."""
    headers = () if seconds is None and failure.status != 503 else (retry_after(1.0 if seconds is None else seconds),)
    if failure.code == "request_quarantined":
        headers = (NO_RETRY,)
    return ApiError(failure.code, failure.message, status=failure.status, headers=headers)


def quoted(value: object) -> str:
    """A client's value for a message: as JSON, non-printable characters escaped, at most 200 characters."""
    if isinstance(value, str):
        # Escaping can only lengthen, so a cut before it is safe and keeps a megabyte from being escaped.
        text = ascii(value[:MAX_QUOTED])[1:-1]
        text = f'"{text}"'
    elif isinstance(value, list):
        return f"a list of {len(value)}"
    elif isinstance(value, dict):
        return "an object"
    elif value is None:
        return "null"
    elif isinstance(value, bool):
        return "true" if value else "false"
    elif isinstance(value, int) and value.bit_length() > 512:
        return "an integer of more than 150 digits"
    else:
        text = str(value)
    return text if len(text) <= MAX_QUOTED else text[: MAX_QUOTED - 3] + "..."
