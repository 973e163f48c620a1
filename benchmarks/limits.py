"""What this machine can do at most, measured in the run that it is compared with, and the timing that both share."""

from __future__ import annotations

import contextlib
import mmap
import statistics
from collections.abc import Callable, Mapping
from time import perf_counter

import msgspec
import torch
from torch import Tensor

_BUFFER_BYTES = 512 << 20
_MATRIX = 2048
_SHORTEST = 0.004
"""Seconds that one timing should take at least; short calls are repeated."""
_MOST_CALLS = 1000

Call = Callable[[], object]


class Timing(msgspec.Struct, frozen=True):
    """Seconds a call."""

    best: float
    median: float


class Limits(msgspec.Struct, frozen=True):
    """Of all threads together; the best that was seen."""

    threads: int
    read_gb_per_s: float
    copy_gb_per_s: float
    """Bytes read and bytes written."""
    float32_gflop_per_s: float
    bfloat16_gflop_per_s: float

    @property
    def gflop_per_s(self) -> float:
        """The larger of both rates: weights may be multiplied in either."""
        return max(self.float32_gflop_per_s, self.bfloat16_gflop_per_s)


def in_turns(calls: Mapping[str, Call], rounds: int) -> dict[str, Timing]:
    """Each call once a round, so that noise of the machine meets all of them; short ones several times in a row.

    Before each turn one call goes uncounted: the threads of the call before it may still be waiting for more work.
    """
    repeats = {name: _repeats(call) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            begun = perf_counter()
            for _ in range(repeats[name]):
                call()
            seconds[name].append((perf_counter() - begun) / repeats[name])
    return {name: Timing(min(found), statistics.median(found)) for name, found in seconds.items()}


def _repeats(call: Call) -> int:
    """After one call that nobody counts: it may build what later calls reuse."""
    call()
    begun = perf_counter()
    call()
    return max(1, min(_MOST_CALLS, round(_SHORTEST / max(perf_counter() - begun, 1e-9))))


def _buffer(count: int) -> Tensor:
    """float32 [count] of ones, in huge pages where the system gives them: small ones would lower the limit."""
    memory = mmap.mmap(-1, 4 * count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).fill_(1.0)


class Yardsticks:
    """The calls that measure the machine; made once, because their buffers are large."""

    def __init__(self, *, tiny: bool = False) -> None:
        count = (1 << 20 if tiny else _BUFFER_BYTES) // 4
        size = 64 if tiny else _MATRIX
        self._source, self._target = _buffer(count), _buffer(count)
        matrix = torch.randn(size, size)
        half = matrix.bfloat16()
        self._flops = 2.0 * size**3
        self.calls: dict[str, Call] = {
            "limit read, sum": self._source.sum,
            "limit read, largest": self._source.amax,
            "limit copy": lambda: self._target.copy_(self._source),
            "limit float32 matmul": lambda: matrix @ matrix,
            "limit bfloat16 matmul": lambda: half @ half,
        }

    def limits(self, timings: Mapping[str, Timing]) -> Limits:
        """From the timings of `calls`."""
        nbytes = self._source.nbytes
        read = min(timings["limit read, sum"].best, timings["limit read, largest"].best)
        return Limits(
            threads=torch.get_num_threads(),
            read_gb_per_s=nbytes / read / 1e9,
            copy_gb_per_s=2 * nbytes / timings["limit copy"].best / 1e9,
            float32_gflop_per_s=self._flops / timings["limit float32 matmul"].best / 1e9,
            bfloat16_gflop_per_s=self._flops / timings["limit bfloat16 matmul"].best / 1e9,
        )


def measure_limits(rounds: int = 5, *, tiny: bool = False) -> Limits:
    """The machine alone."""
    yardsticks = Yardsticks(tiny=tiny)
    return yardsticks.limits(in_turns(yardsticks.calls, rounds))
