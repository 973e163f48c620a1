"""A device that computes behind the host's back: work is enqueued, never waited for, and marks say how far it is.

The runner on a device (`quire.engine.device_runner`) knows a GPU through this protocol alone. `CudaDevice` is one; the
tests' stub is another, which computes as late as it can and records what came in which order.

    enqueue(work)   `work` launches kernels; they run behind everything enqueued before, in one stream
    mark()          a point in that stream; `Mark.wait` is the only thing here that waits
    capture(work)   the kernels of `work`, recorded once (a CUDA graph); calling the result launches them again
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

Work = Callable[[], None]


class DeviceLost(BaseException):
    """The device gives wrong answers to everyone from now on (an illegal access, a fault of the hardware).

    No `Exception`: it is nobody's request's fault, so the engine ends, and whoever supervises it starts a new one.
    """


class Mark(Protocol):
    """A point in the device's stream."""

    def wait(self) -> None:
        """Until the device has passed it; returns at once when it has."""


class DeviceMemory(NamedTuple):
    """Bytes of the whole device, and of those what nobody has taken."""

    total: int
    free: int


class Device(Protocol):
    """One stream of one device."""

    device: torch.device

    def enqueue(self, work: Work) -> None:
        """Run `work`, which launches kernels in inference mode, behind everything enqueued before.

        `work` handles its exceptions itself: who enqueues may be gone when they are raised.
        """

    def mark(self) -> Mark:
        """The point behind everything enqueued so far."""

    def capture(self, work: Work) -> Work:
        """Run `work` once, then record it: what is returned repeats its kernels on the same tensors.

        To be called outside `enqueue`; what is returned, inside. `work` must not wait for the device. All recordings
        share one pool of memory, so what one of them makes is overwritten by the next.
        """

    def pinned(self, num_words: int) -> Tensor:
        """int32 [num_words] of host memory that the device reads and writes by itself."""

    def synchronize(self) -> None:
        """Wait for everything. Never called in a step."""

    def memory(self) -> DeviceMemory:
        """As the driver counts it."""

    def peak_bytes(self, work: Work) -> int:
        """Run `work` to its end; the most bytes that tensors took meanwhile, those alive before included."""

    def reserved_bytes(self) -> int:
        """Bytes that PyTorch has taken from the driver for tensors; unused ones are given back before."""


class CudaDevice:
    """`Device` on a CUDA GPU, in a stream of its own."""

    def __init__(self, index: int = 0) -> None:
        self.device = torch.device("cuda", index)
        torch.cuda.set_device(self.device)
        torch.cuda.synchronize(self.device)  # what was loaded before, on another stream, is there
        self._stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def enqueue(self, work: Work) -> None:
        """See `Device`; raises DeviceLost."""
        try:
            with torch.inference_mode(), torch.cuda.stream(self._stream):
                work()
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error

    def mark(self) -> Mark:
        """An event."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return _CudaMark(event)

    def capture(self, work: Work) -> Work:
        """A CUDA graph."""
        self.enqueue(work)  # compiles kernels and makes library handles, which a capture must not
        self.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            graph.capture_begin(pool=self._pool)
            try:
                work()
            finally:
                graph.capture_end()
        replay: Work = graph.replay
        return replay

    def pinned(self, num_words: int) -> Tensor:
        """Page-locked memory, which PyTorch keeps for the next caller when it is free again."""
        return torch.empty(num_words, dtype=torch.int32, pin_memory=True)

    def synchronize(self) -> None:
        """Wait for the whole device, the streams that loaded weights included."""
        torch.cuda.synchronize(self.device)

    def memory(self) -> DeviceMemory:
        """Of the driver."""
        free, total = torch.cuda.mem_get_info(self.device)
        return DeviceMemory(total, free)

    def peak_bytes(self, work: Work) -> int:
        """By PyTorch's own counter."""
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device)

    def reserved_bytes(self) -> int:
        """By PyTorch's own counter."""
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self.device)


class _CudaMark:
    def __init__(self, event: torch.cuda.Event) -> None:
        self._event = event

    def wait(self) -> None:
        """Until the event has happened; raises DeviceLost."""
        try:
            self._event.synchronize()
        except torch.AcceleratorError as error:
            raise DeviceLost(str(error)) from error
