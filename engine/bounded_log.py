"""Logging that cannot hurt: lines go through a bounded queue to a thread; a full disk or a closed pipe drops them."""

from __future__ import annotations

import logging
import os
import queue
import threading

_MAX_LINES = 10_000
_CLOSE_SECONDS = 1.0


class BoundedHandler(logging.Handler):
    """Formats in the caller's thread, writes in its own; never raises, never blocks; counts what it drops."""

    def __init__(self, descriptor: int, max_lines: int = _MAX_LINES) -> None:
        super().__init__()
        self.dropped = 0
        self._descriptor = descriptor
        self._lines: queue.Queue[bytes | None] = queue.Queue(max_lines)
        self._writer = threading.Thread(target=self._write, name="quire-log", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue one line; when the queue is full, drop and count it."""
        try:
            self._lines.put_nowait((self.format(record) + "\n").encode("utf-8", "backslashreplace"))
        except queue.Full:
            self.dropped += 1
        except Exception:  # a record whose arguments do not fit its text: losing a line is better than a request
            self.dropped += 1

    def close(self) -> None:
        """Write what is queued, at most for a second, and end the thread."""
        try:
            self._lines.put_nowait(None)
        except queue.Full:
            self.dropped += 1
        if self._writer is not threading.current_thread():
            self._writer.join(_CLOSE_SECONDS)
        super().close()

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                self.dropped += 1
