"""What the host tells the device in a step: numbers of all kinds as one run of int32 words, sent in one copy.

    words = staging.begin()           one of a few pinned buffers, free again
    part = words.put(array)           anywhere, before it is sent
    staging.send(words)               the copy, which waits for nobody
    part()                            on the device, inside enqueued work: the words, int32 [n]

The device's buffer is one and stays where it is, so that a captured graph may read its first words. A pinned buffer is
written again only after its copy has passed a mark. A step that brings more than the buffer holds (the tokens of long
prompts) sends the rest in copies of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from quire.engine.device import Device, Mark

Int32Array = npt.NDArray[np.int32]
Part = Callable[[], Tensor]


class Words:
    """The words of one step."""

    def __init__(self, pinned: Tensor, target: Tensor, device: Device) -> None:
        self._pinned, self._target, self._device = pinned, target, device
        self._host: Int32Array = pinned.numpy()
        self._count = 0
        self._others: list[Tensor] = []
        self._arrived: list[Tensor] = []

    def put(self, values: npt.NDArray[Any] | list[int]) -> Part:
        """Add int32 words, in the order of `values`; what returns them on the device once they have been sent."""
        given = np.asarray(values, dtype=np.int32).reshape(-1)
        first, end = self._count, self._count + given.size
        if end <= self._host.size:
            self._host[first:end] = given
            self._count = end
            return lambda: self._target[first:end]
        source, number = self._device.pinned(given.size), len(self._others)
        source.numpy()[:] = given
        self._others.append(source)
        return lambda: self._arrived[number]

    def copy(self) -> None:
        """To the device; inside enqueued work."""
        if self._count:
            self._target[: self._count].copy_(self._pinned[: self._count], non_blocking=True)
        for source in self._others:
            self._arrived.append(torch.empty(len(source), dtype=torch.int32, device=self._device.device))
            self._arrived[-1].copy_(source, non_blocking=True)


class Staging:
    """Pinned buffers of `num_words` words for `depth` steps in flight, and the device's one, `target`."""

    def __init__(self, device: Device, num_words: int, depth: int) -> None:
        self._device = device
        self.target = torch.zeros(num_words, dtype=torch.int32, device=device.device)
        self._buffers = [device.pinned(num_words) for _ in range(depth + 1)]
        self._marks: list[Mark | None] = [None] * len(self._buffers)
        self._next = 0

    def begin(self) -> Words:
        """The words of the next step; waits only if more steps are in flight than there are buffers for."""
        mark = self._marks[self._next]
        if mark is not None:
            mark.wait()
        return Words(self._buffers[self._next], self.target, self._device)

    def send(self, words: Words) -> None:
        """Enqueue the copy of what `begin` gave last."""
        self._device.enqueue(words.copy)
        self._marks[self._next] = self._device.mark()
        self._next = (self._next + 1) % len(self._buffers)
