"""What the engine does on a GPU, step by step in this process, with random weights in a model's shape.

Time is taken on a device that keeps books: what the host waited for, and what the device computed (events around each
piece of work that was enqueued).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

import torch

from quire.benchmarks.gpu_rows import Decode, GpuLimits, Offline, offline_bound, step_bound
from quire.engine.config import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.device import CudaDevice, Device, Mark, Work
from quire.engine.messages import Add, Cancel, OutputRow, Ready, pack_ids
from quire.engine.model_source import read_config
from quire.engine.process import build_engine
from quire.engine.sampling_params import SamplingParams

_SETTLE = 5
"""Steps that go uncounted."""


class Books(Device, Protocol):
    """A device that counts."""

    wait_seconds: float
    """That the host spent in `Mark.wait` and `synchronize`."""
    num_waits: int

    def take_device_seconds(self) -> float:
        """What was computed since the last call; waits for the device."""


class CountingCudaDevice(CudaDevice):
    """Implements `Books`."""

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.wait_seconds, self.num_waits = 0.0, 0
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def enqueue(self, work: Work) -> None:
        """Between two events."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")  # type: ignore[no-untyped-call]
        begin.record(self._stream)
        super().enqueue(work)
        end.record(self._stream)
        self._spans.append((begin, end))

    def mark(self) -> Mark:
        """One whose waiting is counted."""
        return _CountingMark(super().mark(), self)

    def synchronize(self) -> None:
        """Counted."""
        self.count(super().synchronize)

    def count(self, wait: Callable[[], None]) -> None:
        """Wait, and write it down."""
        begun = perf_counter()
        wait()
        self.wait_seconds += perf_counter() - begun
        self.num_waits += 1

    def take_device_seconds(self) -> float:
        """From the events."""
        super().synchronize()
        spans, self._spans = self._spans, []
        return sum(float(begin.elapsed_time(end)) for begin, end in spans) / 1e3


class _CountingMark:
    def __init__(self, mark: Mark, device: CountingCudaDevice) -> None:
        self._mark, self._device = mark, device

    def wait(self) -> None:
        self._device.count(self._mark.wait)


class GpuEngine:
    """An engine on a device that counts; `options` are fields of EngineConfig."""

    def __init__(
        self, shape: str, folder: Path, *, make_device: Callable[[], Books] = CountingCudaDevice, **options: Any
    ) -> None:
        self.shape, self.model = shape, read_config(folder, shape)
        self.device: Books | None = None

        def make() -> Device:
            self.device = make_device()
            return self.device

        config = EngineConfig(
            model=str(folder), model_name=shape, **{"device": "cuda", "load_format": "dummy"} | options
        )
        self.core: EngineCore
        self.facts: Ready
        self.core, self.facts = build_engine(config, make_device=make)
        self._number, self._chooser = 0, random.Random(0)

    def prompt(self, length: int) -> list[int]:
        """Random tokens."""
        return [self._chooser.randrange(self.facts.vocab_size) for _ in range(length)]

    def add(self, prompt: Sequence[int], max_tokens: int) -> str:
        """A greedy request that ends at its length."""
        self._number += 1
        request_id = f"{self._number:032x}"
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0)
        self.core.add(Add(request_id, pack_ids(prompt), params), perf_counter())
        return request_id

    def step(self) -> tuple[OutputRow, ...]:
        """Rows of one step. Raises RuntimeError where one of them failed."""
        outputs = self.core.step(perf_counter)
        rows = () if outputs is None else outputs.rows
        if failures := [row.failure for row in rows if row.failure is not None]:
            raise RuntimeError(f"a request failed: {failures[0]}")
        return rows

    def finish(self) -> None:
        """Step until nobody is left."""
        while self.core.has_work():
            self.step()

    def decode(self, limits: GpuLimits, batch: int, context: int, num_steps: int) -> Decode:
        """Steps in which `batch` sequences decode at about `context` tokens."""
        device = self.device
        assert device is not None
        spare = num_steps + 2 * _SETTLE
        for _ in range(batch):
            self.add(self.prompt(context - num_steps // 2), 2 * spare + batch)
        settled = 0
        while settled < _SETTLE:
            settled += len(self.step()) == batch
        device.take_device_seconds()
        walls, hosts, waits = [], [], device.num_waits
        for _ in range(num_steps):
            begun, waited = perf_counter(), device.wait_seconds
            self.step()
            walls.append(perf_counter() - begun)
            hosts.append(walls[-1] - (device.wait_seconds - waited))
        syncs = round((device.num_waits - waits) / num_steps) - 1
        computed = device.take_device_seconds() / num_steps
        self.cancel_all()
        return Decode(
            shape=self.shape,
            batch=batch,
            context=context,
            step_ms=1e3 * statistics.median(walls),
            bound_ms=1e3 * step_bound(self.model, limits, batch, context),
            host_ms=1e3 * statistics.median(hosts),
            device_ms=1e3 * computed,
            host_syncs=max(0, syncs),
        )

    def cancel_all(self) -> None:
        """End every request."""
        for request_id in self.core.request_ids():
            self.core.cancel(Cancel(request_id, None, "client_gone"), perf_counter())
        self.finish()

    def offline(self, limits: GpuLimits, lengths: Sequence[tuple[int, int]]) -> Offline:
        """All requests of (prompt, answer) tokens at once, against the bound."""
        seconds, waste = self.all_at_once(lengths)
        return Offline(
            seconds=seconds,
            bound_seconds=offline_bound(self.model, limits, lengths),
            output_tokens_per_second=sum(answer for _, answer in lengths) / seconds,
            kv_waste=waste,
        )

    def all_at_once(self, lengths: Sequence[tuple[int, int]]) -> tuple[float, float]:
        """Seconds until requests of (prompt, answer) tokens have ended, and the mean share of KV slots in vain.

        Steps count for the second in which more than half of the requests decode, and nobody else runs.
        """
        held = {self.add(self.prompt(prompt), answer): prompt for prompt, answer in lengths}
        begun, wastes, running = perf_counter(), [], set[str]()
        while self.core.has_work():
            for row in self.step():
                held[row.request_id] += len(row.token_ids) // 4
                running.add(row.request_id)
                if row.finish_reason is not None:
                    running.discard(row.request_id)
            now = self.core.statistics()
            if 2 * len(running) > len(lengths) and now.num_running == len(running):
                allocated = now.num_used_blocks * self.facts.block_size
                wastes.append(1 - sum(held[request_id] - 1 for request_id in running) / allocated)
        return perf_counter() - begun, statistics.mean(wastes) if wastes else 0.0

    def first_token(self, prompt: Sequence[int]) -> float:
        """Seconds to the first token of a request alone."""
        self.add(prompt, 1)
        begun = perf_counter()
        while not self.step():
            pass
        seconds = perf_counter() - begun
        self.finish()
        return seconds
