"""A command on a pseudo-terminal: what a person would type, and what would be seen."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

SECONDS = 30.0


def _sit_down() -> None:
    """Take the terminal, with Ctrl-C at work: who starts the tests in a shell's background has it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """Runs a command as the only one on a terminal of `columns`; `seen` is everything that it wrote."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], columns: int = 80) -> None:
        self._own, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.process = subprocess.Popen(
            command,
            stdin=other,
            stdout=other,
            stderr=other,
            env={**environment, "TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=_sit_down,
        )
        os.close(other)
        self.seen = ""
        self._after = 0

    def type(self, text: str) -> None:
        """Press the keys; Ctrl-C not before the command waits for something.

        A signal that arrives after the prompt was written and before Python waits for keys is noticed with the next
        key only. No person is as quick as that; a test is.
        """
        deadline = time.monotonic() + SECONDS
        while "\x03" in text and not self._waits() and time.monotonic() < deadline:
            os.sched_yield()
        os.write(self._own, text.encode())

    def wait_for(self, text: str) -> str:
        """Until the text is there, after what earlier calls waited for; returns what came up to it."""
        deadline = time.monotonic() + SECONDS
        while (found := self.seen.find(text, self._after)) < 0:
            assert self._read(deadline), f"{text!r} never came:\n{self.seen}"
        before = self.seen[self._after : found]
        self._after = found + len(text)
        return before

    def wait_end(self) -> int:
        """The exit code, when the command has ended."""
        deadline = time.monotonic() + SECONDS
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def text(self) -> str:
        """Everything seen, without line editing's escapes and with plain line ends."""
        return re.sub(r"\x1b\[\?\d+[hl]\r?", "", self.seen).replace("\r\n", "\n")

    def _waits(self) -> bool:
        """Whether its main thread sleeps."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "S"

    def _read(self, deadline: float) -> bool:
        """More of the output; False when the command has closed the terminal or time is up."""
        ready, _, _ = select.select([self._own], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._own, 65536)
        except OSError:  # how Linux says that nobody has the other side open
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._own)
