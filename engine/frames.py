"""Frames of the process line: bytes to messages, messages to bytes, and the outbox between. Pure: no socket, no clock.

A frame is a little-endian uint32 length (at most `MAX_FRAME_BYTES`) and that many bytes. The first frame of each side
is the handshake `MAGIC` + `build_id()`; every later one is one message of `quire.engine.messages` in msgpack with its
fixed schema. Bytes that are anything else raise `ProtocolError`; nothing in them is ever executed.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from quire import __version__
from quire.engine.messages import Add, Failure, FromEngine, OutputRow, PoolPicture, Statistics, StepOutputs, ToEngine
from quire.engine.pool_frame import PoolFold

MAX_FRAME_BYTES = 64 << 20
MAGIC = b"quire-line\x00"
_LENGTH = struct.Struct("<I")
_HANDSHAKE_BYTES = 256


Message = TypeVar("Message")


class TransportClosed(Exception):
    """The other process closed its end, or is gone."""


class ProtocolError(TransportClosed):
    """The other side sent what is no frame of this build; the connection is closed and nothing of it was used."""


@functools.cache
def build_id() -> str:
    """The package's version and a hash of the message schemas: both ends of a line must have the same."""
    _, components = msgspec.json.schema_components((ToEngine, FromEngine), ref_template="{name}")
    digest = hashlib.sha256(msgspec.json.encode(components, order="sorted")).hexdigest()
    return f"{__version__}-{digest[:16]}"


def frame(payload: bytes) -> bytes:
    """`payload` with its length in front; raises ProtocolError beyond MAX_FRAME_BYTES."""
    if len(payload) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a frame of {len(payload)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


def handshake() -> bytes:
    """The first frame of either side."""
    return frame(MAGIC + build_id().encode())


def decode_to_engine(payload: bytes) -> ToEngine:
    """One message to the engine; raises ProtocolError when the bytes are none."""
    message: ToEngine = _decode(_to_engine, payload)
    if isinstance(message, Add) and len(message.prompt_token_ids) % 4:
        raise ProtocolError("Add.prompt_token_ids: the length is no multiple of 4")
    return message


def decode_from_engine(payload: bytes) -> FromEngine:
    """One message from the engine; raises ProtocolError when the bytes are none."""
    message: FromEngine = _decode(_from_engine, payload)
    if isinstance(message, StepOutputs) and any(len(row.token_ids) % 4 for row in message.rows):
        raise ProtocolError("OutputRow.token_ids: the length is no multiple of 4")
    return message


def encode_message(message: ToEngine | FromEngine) -> bytes:
    """The payload of one frame."""
    return _encoder.encode(message)


def encode_from_engine(message: FromEngine) -> list[bytes]:
    """`message` as payloads within the cap: StepOutputs that are too large are cut by rows.

    A single row over the cap (prompt log probabilities of a very long prompt) ends its sequence with an error.
    """
    payload = _encoder.encode(message)
    if len(payload) <= MAX_FRAME_BYTES or not isinstance(message, StepOutputs):
        return [payload]
    if len(message.rows) > 1:
        half = len(message.rows) // 2
        parts = (message.rows[:half], message.rows[half:])
        return [p for rows in parts for p in encode_from_engine(StepOutputs(rows=rows, statistics=message.statistics))]
    row = message.rows[0]
    failure = Failure(code="answer_too_large", message=f"the answer's log probabilities take {len(payload)} bytes")
    row = OutputRow(row.request_id, row.choice, b"", finish_reason="error", failure=failure)
    return [_encoder.encode(StepOutputs(rows=(row,), statistics=message.statistics))]


class FrameReader(Generic[Message]):
    """Bytes in, messages out. Checks the handshake first, then every length and every payload."""

    def __init__(self, decode: Callable[[bytes], Message]) -> None:
        self._decode = decode
        self._buffer = bytearray()
        self._greeted = False

    def feed(self, data: bytes) -> list[Message]:
        """Every message that `data` completes; raises ProtocolError at the first frame that cannot be one."""
        self._buffer += data
        messages: list[Message] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            limit = MAX_FRAME_BYTES if self._greeted else _HANDSHAKE_BYTES
            if length > limit:
                raise ProtocolError(f"a frame announces {length} bytes; the limit is {limit}")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[start + _LENGTH.size : end])
            start = end
            if self._greeted:
                messages.append(self._decode(payload))
            else:
                self._greet(payload)
        del self._buffer[:start]
        return messages

    def finish(self) -> None:
        """Call at the end of the stream: raises ProtocolError when it cuts a frame."""
        if self._buffer:
            raise ProtocolError(f"the connection ended inside a frame ({len(self._buffer)} bytes of it came)")

    def _greet(self, payload: bytes) -> None:
        if not payload.startswith(MAGIC):
            raise ProtocolError("the first frame is no handshake")
        theirs = payload[len(MAGIC) :].decode("ascii", "replace")
        if theirs != build_id():
            raise ProtocolError(
                f"the other process is of build {theirs}, this one of {build_id()}: "
                "both must run the same installation; restart the server"
            )
        self._greeted = True


class Outbox:
    """What the engine has said and the socket has not taken yet, in order.

    StepOutputs that follow unsent StepOutputs are merged into them: one row a sequence, the newer statistics. Pictures
    of the pool wait beside the queue, merged into one, and go last: nobody's tokens wait for them.
    """

    def __init__(self) -> None:
        self._entries: deque[FromEngine | _UnsentRows] = deque()
        self._picture: PoolFold | None = None

    def __bool__(self) -> bool:
        return bool(self._entries) or self._picture is not None

    def put(self, message: FromEngine) -> None:
        """Append `message`, or merge it into what it belongs to."""
        if isinstance(message, PoolPicture):
            self._put_frame(message)
            return
        if not isinstance(message, StepOutputs):
            self._entries.append(message)
            return
        last = self._entries[-1] if self._entries else None
        if not isinstance(last, _UnsentRows):
            last = _UnsentRows(message.statistics)
            self._entries.append(last)
        last.merge(message)

    def take(self) -> FromEngine:
        """The oldest message; call only when there is one."""
        if not self._entries and self._picture is not None:
            picture, self._picture = PoolPicture(self._picture.frame()), None
            return picture
        entry = self._entries.popleft()
        if isinstance(entry, _UnsentRows):
            return StepOutputs(rows=entry.rows(), statistics=entry.statistics)
        return entry

    def _put_frame(self, picture: PoolPicture) -> None:
        if self._picture is None:
            self._picture = PoolFold(picture.frame)
        else:
            self._picture.add(picture.frame)


class _UnsentRows:
    """StepOutputs that still grow.

    Each sequence has a stack of merged runs, each at least twice as long as the next: a row is copied log(n) times, not
    once for every later row.
    """

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        self._runs: dict[tuple[str, int], list[tuple[int, OutputRow]]] = {}

    def merge(self, message: StepOutputs) -> None:
        self.statistics = message.statistics
        for row in message.rows:
            runs = self._runs.setdefault((row.request_id, row.choice), [])
            length = 1
            while runs and runs[-1][0] < 2 * length:
                earlier_length, earlier = runs.pop()
                row, length = earlier.merge(row), earlier_length + length
            runs.append((length, row))

    def rows(self) -> tuple[OutputRow, ...]:
        """One row a sequence."""
        return tuple(functools.reduce(OutputRow.merge, (row for _, row in runs)) for runs in self._runs.values())


_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)
_encoder = msgspec.msgpack.Encoder()


def _decode(decoder: msgspec.msgpack.Decoder[Message], payload: bytes) -> Message:
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"a frame of {len(payload)} bytes is no message of this build: {error}") from error
