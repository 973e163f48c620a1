"""The file of a batch's results: whole lines, one for each request, also over several runs."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from pathlib import Path
from typing import Self

import msgspec

from quire.clients.batch_lines import Earlier, Request, Result, read_earlier
from quire.clients.terminal import USAGE, CommandFailed


class Output:
    """Writes results as they come, or in the order of their positions with `keep_order`; nobody else may write
    meanwhile. `-` is stdout.

    `earlier` is what the file held before, which only `resume` allows. Raises CommandFailed.
    """

    def __init__(self, name: str, requests: list[Request], *, resume: bool, keep_order: bool) -> None:
        self.name, self.num_requests = name, len(requests)
        self.earlier = Earlier(set(), set(), 0, 0)
        self._keep_order, self._held, self._due = keep_order, dict[int, Result](), 0
        self._written = self.failures = 0
        if name == "-":
            if resume:
                raise CommandFailed("--resume: needs a file; stdout holds nothing from before", USAGE)
            self._descriptor = os.dup(sys.stdout.fileno())
            return
        try:
            self._descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CommandFailed(f"{name}: {error.strerror}", USAGE) from None
        try:
            if stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                self._take(Path(name), resume, requests)
        except CommandFailed:
            os.close(self._descriptor)
            raise
        self.failures = self.earlier.failures

    def write(self, position: int, result: Result) -> None:
        """Add the result of the request at a position among those that were sent."""
        if not self._keep_order:
            self._write(result)
            return
        self._held[position] = result
        while self._due in self._held:
            self._write(self._held.pop(self._due))
            self._due += 1

    def state(self) -> str:
        """How far the batch is, for one who has to stop."""
        done = self._written + len(self.earlier.custom_ids) + len(self.earlier.numbers)
        return f"{done} of {self.num_requests} lines are written" + ("" if self.name == "-" else "; --resume goes on")

    def _write(self, result: Result) -> None:
        line = memoryview(msgspec.json.encode(result) + b"\n")
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CommandFailed(f"{self.name}: {error.strerror}; {self.state()}") from None
        self._written += 1
        self.failures += not result.good

    def _take(self, path: Path, resume: bool, requests: list[Request]) -> None:
        """Make the file ours, and find where to go on."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CommandFailed(f"{path}: another batch is writing it", USAGE) from None
        if resume:
            self.earlier = read_earlier(path, requests)
            os.ftruncate(self._descriptor, self.earlier.whole_bytes)
        elif os.fstat(self._descriptor).st_size:
            raise CommandFailed(f"{path} is not empty; --resume goes on with it, or choose another name", USAGE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        os.close(self._descriptor)
