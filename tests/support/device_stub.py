"""A device that computes on the CPU as late as it can, and watches for what a GPU would not forgive.

Work that is enqueued runs when somebody waits for a mark behind it (or, with a `chooser`, now and then before): a
runner that reads a result too early, or overwrites a buffer that has not been sent, answers wrong. While work runs,
whatever would make the host wait for a GPU is counted. A capture is a tape of the operations on the very tensors that
they had then, so that what a step took from the host's variables is frozen, as in a CUDA graph.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from quire.engine.device import DeviceMemory, Mark, Work

POISON = 0x55555555
_WAITING_CALLS = {
    "tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select",
    "unique", "is_nonzero", "equal", "allclose", "tensor", "as_tensor", "from_numpy", "frombuffer", "__array__",
}  # fmt: skip
"""Calls that read a tensor on the host, or make one of the host's values."""
_WAITING_OPS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}


class _Calls(TorchFunctionMode):
    def __init__(self, syncs: list[str]) -> None:
        super().__init__()
        self._syncs = syncs

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in _WAITING_CALLS:
            self._syncs.append(name)
        if name in ("__getitem__", "__setitem__") and _is_list_index(args[1]):
            self._syncs.append(f"{name} with a list")
        return func(*args, **(kwargs or {}))


def _is_list_index(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, list) for part in parts)


class _Ops(TorchDispatchMode):
    def __init__(self, syncs: list[str]) -> None:
        super().__init__()
        self._syncs = syncs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        masks = [part for part in tree_flatten(args)[0] if isinstance(part, Tensor) and part.dtype == torch.bool]
        indexes = func in (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)
        if func in _WAITING_OPS or (indexes and masks):
            self._syncs.append(str(func))
        return func(*args, **(kwargs or {}))


class _Tape(TorchDispatchMode):
    """Records operations; `play` repeats them on the same tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._ops: list[tuple[Any, Sequence[Any], Mapping[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        storages = {t.untyped_storage().data_ptr() for t in tree_flatten((args, given))[0] if isinstance(t, Tensor)}
        made = [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)]
        fresh = [t for t in made if t.untyped_storage().data_ptr() not in storages]
        self._ops.append((func, args, given, fresh))
        return result

    def play(self) -> None:
        for func, args, kwargs, fresh in self._ops:
            result = func(*args, **kwargs)
            if fresh:
                for old, new in zip(fresh, [t for t in tree_flatten(result)[0] if isinstance(t, Tensor)], strict=True):
                    old.copy_(new)


class StubDevice:
    """Implements `quire.engine.device.Device`."""

    def __init__(self, chooser: random.Random | None = None, watch: bool = True) -> None:
        """`watch`: whether calls that wait are looked for, which takes most of the time."""
        self.device = torch.device("cpu")
        self._watch = watch
        self.syncs: list[str] = []
        """What enqueued work did that waits for a GPU."""
        self.num_waits = 0
        """Marks that were waited for before the work ahead of them had run."""
        self.num_synchronized = 0
        self.num_replays = 0
        self._chooser = chooser
        self._queue: deque[Work] = deque()
        self.num_enqueued = self._num_run = 0

    def enqueue(self, work: Work) -> None:
        """Keep it for later."""
        self._queue.append(work)
        self.num_enqueued += 1
        while self._queue and self._chooser is not None and self._chooser.random() < 0.3:
            self._run_one()

    def mark(self) -> Mark:
        """A number in the order of work."""
        return StubMark(self, self.num_enqueued)

    def capture(self, work: Work) -> Work:
        """A tape."""
        self.run_through(self.num_enqueued)
        tape = _Tape()
        before = len(self.syncs)
        self._run(work)
        with tape:
            self._run(work)
        assert len(self.syncs) == before, f"waits in a recording: {self.syncs[before:]}"

        def replay() -> None:
            self.num_replays += 1
            tape.play()

        return replay

    def pinned(self, num_words: int) -> Tensor:
        """Poison until somebody writes."""
        return torch.full((num_words,), POISON, dtype=torch.int32)

    def synchronize(self) -> None:
        """Run everything."""
        self.num_synchronized += 1
        self.run_through(self.num_enqueued)

    def memory(self) -> DeviceMemory:
        """A gibibyte, half of it taken."""
        return DeviceMemory(1 << 30, 1 << 29)

    def peak_bytes(self, work: Work) -> int:
        """No tensor is counted: a mebibyte."""
        work()
        self.synchronize()
        return 1 << 20

    def reserved_bytes(self) -> int:
        """As much."""
        return 1 << 20

    def passed(self, number: int) -> bool:
        """Whether everything up to the mark `number` has run."""
        return self._num_run >= number

    def run_through(self, number: int) -> None:
        """Run what was enqueued before the mark `number`."""
        while self._num_run < number:
            self._run_one()

    def _run_one(self) -> None:
        self._run(self._queue.popleft())
        self._num_run += 1

    def _run(self, work: Work) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self._watch:
                stack.enter_context(_Calls(self.syncs))
                stack.enter_context(_Ops(self.syncs))
            work()


class StubMark:
    """Implements `quire.engine.device.Mark`."""

    def __init__(self, device: StubDevice, number: int) -> None:
        self._device, self._number = device, number

    def wait(self) -> None:
        """Run what lies before."""
        if not self._device.passed(self._number):
            self._device.num_waits += 1
            self._device.run_through(self._number)
