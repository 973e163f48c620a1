"""Bytes as the network cuts them, to lines, to server-sent events, to JSON lines."""

from __future__ import annotations

_MARK = b"\xef\xbb\xbf"


class Lines:
    """Whole lines without their ends, which are LF, CR or CRLF; a leading byte order mark is dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that this chunk completes."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        buffer = self._rest + chunk
        if not self._begun:
            if len(buffer) < len(_MARK) and _MARK.startswith(buffer):
                self._rest = buffer
                return []
            buffer, self._begun = buffer.removeprefix(_MARK), True
        self._after_cr = buffer.endswith(b"\r")
        lines = buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop()
        return lines

    def close(self) -> list[bytes]:
        """What the stream left without an end."""
        rest, self._rest = self._rest, b""
        return [rest] if rest else []


class ServerSentEvents:
    """The data of each event (WHATWG HTML, section 9.2), its lines joined by LF; all else is passed over."""

    def __init__(self) -> None:
        self._lines = Lines()
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that this chunk completes."""
        return self._events(self._lines.feed(chunk))

    def close(self) -> list[bytes]:
        """The event that the stream left without its blank line: the standard drops it, some servers mean it."""
        return self._events([*self._lines.close(), b""])

    def _events(self, lines: list[bytes]) -> list[bytes]:
        events: list[bytes] = []
        for line in lines:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events


class JsonLines:
    """One JSON object a line, as Ollama streams."""

    def __init__(self) -> None:
        self._lines = Lines()

    def feed(self, chunk: bytes) -> list[bytes]:
        """The objects that this chunk completes."""
        return [line for line in self._lines.feed(chunk) if line]

    def close(self) -> list[bytes]:
        """The one that the stream left without its end."""
        return self._lines.close()
