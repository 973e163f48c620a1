"""The page of progress counters that both processes map: one memfd, written by the engine, read by the HTTP process.

It answers, without asking the engine anything: does it live, does it move, and what was it doing when it died.

    offset  type      field
    0       uint64    state (index into STATES)
    8       uint64    steps finished
    16      uint64    ticks: layers finished, tensors loaded; moves whenever anything does
    24      float64   time.monotonic() of the last change (one clock for all processes of the machine)
    32      uint64    number of request ids of the step under way (0: none)
    40      -         free
    64      32 bytes each, at most MAX_STEP_IDS: those request ids, ASCII, padded with NUL
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from typing import Literal, get_args

import msgspec

EngineState = Literal["starting", "loading", "idle", "stepping", "stopping"]
STATES: tuple[EngineState, ...] = get_args(EngineState)
MAX_STEP_IDS = 1024
_ID_BYTES = 32
_IDS_OFFSET = 64
_PAGE_BYTES = _IDS_OFFSET + MAX_STEP_IDS * _ID_BYTES
_STATE, _STEPS, _TICKS, _STAMP, _NUM_IDS = range(5)


class PageSnapshot(msgspec.Struct, frozen=True):
    """What the page said at one moment."""

    state: EngineState
    steps: int
    ticks: int
    stamp: float
    """Monotonic seconds of the last change; 0.0 before the first."""
    step_request_ids: tuple[str, ...]
    """Requests of the step under way, the first MAX_STEP_IDS of them."""


class ProgressPage:
    """Maps the page behind `fd`, which stays the caller's (to pass on, and to close after `close`)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._map = mmap.mmap(fd, _PAGE_BYTES)
        self._view = memoryview(self._map)
        self._counters = self._view[:_IDS_OFFSET].cast("Q")
        self._stamps = self._view[:_IDS_OFFSET].cast("d")
        self._ids = self._view[_IDS_OFFSET:]

    @classmethod
    def create(cls) -> ProgressPage:
        """A fresh page of zeros in a new memfd (closed on exec unless passed on by number)."""
        fd = os.memfd_create("quire-progress")
        os.ftruncate(fd, _PAGE_BYTES)
        return cls(fd)

    def set_state(self, state: EngineState) -> None:
        """Writer: what the engine is doing now."""
        self._counters[_STATE] = STATES.index(state)
        self._stamps[_STAMP] = time.monotonic()

    def tick(self) -> None:
        """Writer: something moved (a layer was computed, a tensor was loaded)."""
        self._counters[_TICKS] += 1
        self._stamps[_STAMP] = time.monotonic()

    def begin_step(self, request_ids: Sequence[str]) -> None:
        """Writer: names the requests of the step that starts now; if the process dies in it, they are suspects."""
        packed = b"".join(name.encode("ascii", "replace")[:_ID_BYTES].ljust(_ID_BYTES, b"\0") for name in request_ids)
        packed = packed[: MAX_STEP_IDS * _ID_BYTES]
        self._counters[_NUM_IDS] = 0
        self._ids[: len(packed)] = packed
        self._counters[_NUM_IDS] = len(packed) // _ID_BYTES
        self.set_state("stepping")

    def end_step(self) -> None:
        """Writer: the step is done."""
        self._counters[_NUM_IDS] = 0
        self._counters[_STEPS] += 1
        self._counters[_TICKS] += 1
        self.set_state("idle")

    def moved_at(self) -> float:
        """Reader, from any thread: monotonic seconds of the last change. Raises ValueError once the page is closed."""
        return self._stamps[_STAMP]

    def read(self) -> PageSnapshot:
        """Reader: the page as it is. Counters are read one by one; each is whole."""
        count = min(self._counters[_NUM_IDS], MAX_STEP_IDS)
        packed = bytes(self._ids[: count * _ID_BYTES])
        ids = (packed[i : i + _ID_BYTES] for i in range(0, len(packed), _ID_BYTES))
        return PageSnapshot(
            state=STATES[min(self._counters[_STATE], len(STATES) - 1)],
            steps=self._counters[_STEPS],
            ticks=self._counters[_TICKS],
            stamp=self._stamps[_STAMP],
            step_request_ids=tuple(name.rstrip(b"\0").decode("ascii", "replace") for name in ids),
        )

    def close(self) -> None:
        """Unmap; the file descriptor stays open."""
        for view in (self._counters, self._stamps, self._ids, self._view):
            view.release()
        self._map.close()
