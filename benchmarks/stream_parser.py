"""Bytes as the network cuts them, to the payloads of a stream: server-sent events, or JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class StreamParser(Protocol):
    """Both formats are read the same way."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The payloads that end within `data`."""

    def close(self) -> Iterator[bytes]:
        """What a server left unfinished when it closed the connection."""


class _Lines:
    """Whole lines, without their ends (LF, CRLF or CR, also where the network cuts between CR and LF)."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        data = self._rest + data
        start = 0
        while (end := _line_end(data, start)) >= 0:
            yield data[start:end]
            start = end + (2 if data[end : end + 2] == b"\r\n" else 1)
        self._rest = data[start:]

    def close(self) -> Iterator[bytes]:
        rest, self._rest = self._rest.rstrip(b"\r"), b""
        if rest:
            yield rest


def _line_end(data: bytes, start: int) -> int:
    """Where the line ends; -1 when that is not known yet: a CR that comes last may be half of a CRLF."""
    feed, carriage = data.find(b"\n", start), data.find(b"\r", start)
    if carriage < 0 or 0 <= feed < carriage:
        return feed
    return carriage if carriage + 1 < len(data) else -1


class EventParser:
    """Server-sent events (WHATWG HTML, section 9.2): the `data` of each event, its lines joined by LF.

    Comments, `event`, `id` and `retry` are passed over, also between the chunks of one event; a space after the colon
    may be missing. The end of the stream ends an event that has no empty line behind it, as some servers send it.
    """

    def __init__(self) -> None:
        self._lines = _Lines()
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """See `StreamParser.feed`."""
        for line in self._lines.feed(data):
            yield from self._line(line)

    def close(self) -> Iterator[bytes]:
        """See `StreamParser.close`."""
        for line in self._lines.close():
            yield from self._line(line)
        yield from self._line(b"")

    def _line(self, line: bytes) -> Iterator[bytes]:
        if not line:
            if self._data:
                data, self._data = b"\n".join(self._data), []
                yield data
            return
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))


class JsonLineParser:
    """One JSON object a line, as Ollama streams."""

    def __init__(self) -> None:
        self._lines = _Lines()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """See `StreamParser.feed`."""
        return (line for line in self._lines.feed(data) if line)

    def close(self) -> Iterator[bytes]:
        """See `StreamParser.close`."""
        return self._lines.close()
