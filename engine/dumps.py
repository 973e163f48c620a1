"""Dumps of the flight recorder to a file: when the loop of the engine died of an error, or when it is asked to.

The supervisor asks by SIGUSR2 when the engine hangs. The loop cannot answer then, so a thread does: the signal writes a
byte to a pipe even while the loop is stuck in native code, and the thread needs only the interpreter. Token ids are
replaced by keyed hashes, since a file outlives its reason.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import tempfile
import threading
from pathlib import Path

import msgspec

from quire.engine.disguise import disguise
from quire.engine.recorder import FlightRecorder

MAX_FILES = 8
PREFIX = "quire-flight-"
log = logging.getLogger("quire.engine")


class Dumps:
    """Writes dumps of `recorder`, once there is one, into `folder` (default: the one for temporary files)."""

    def __init__(self, folder: Path | None = None) -> None:
        self.recorder: FlightRecorder | None = None
        self._folder = folder or Path(tempfile.gettempdir())

    def listen(self) -> None:
        """From now on SIGUSR2 asks for a dump. Call from the main thread."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.signal(signal.SIGUSR2, lambda number, frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._wait, args=(reader,), name="quire-dumps", daemon=True).start()

    def _wait(self, reader: int) -> None:
        while signals := os.read(reader, 64):
            if signal.SIGUSR2 in signals:
                self.write("hang")

    def write(self, reason: str) -> Path | None:
        """Write a dump; its path, or None where there is nothing to write or no way to. Never raises."""
        if self.recorder is None:
            return None
        try:
            recording = disguise(self.recorder.dump(reason), secrets.token_bytes(32))
            data = msgspec.json.encode(recording)
            self._make_room()
            descriptor, name = tempfile.mkstemp(".json", f"{PREFIX}{reason}-", self._folder)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
        except Exception:  # a dump must not add to what is wrong already
            log.exception("the last steps could not be written down")
            return None
        log.error("the last %d steps are in %s, without texts", len(recording.turns), name)
        return Path(name)

    def _make_room(self) -> None:
        """Old dumps of this user go, so that an engine that dies again and again does not fill the disk."""
        files = [path for path in self._folder.glob(f"{PREFIX}*.json") if path.stat().st_uid == os.getuid()]
        for path in sorted(files, key=lambda path: path.stat().st_mtime)[: -MAX_FILES + 1]:
            with contextlib.suppress(OSError):
                path.unlink()
