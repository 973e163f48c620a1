"""A core whose runner computes on a stub device, two steps in flight; and a watch over blocks in flight."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from support.bare_engine import Engine, Setup
from support.device_stub import StubDevice

from quire.engine.cache_groups import CacheGroup
from quire.engine.decode_graphs import buckets
from quire.engine.device import Device
from quire.engine.device_runner import DEPTH, DeviceRunner
from quire.engine.faults import NO_FAULTS, Faults
from quire.engine.models.decoder import Decoder
from quire.engine.step import RowWork, Sampled, Step


@dataclass
class BlockWatch:
    """What happened to blocks, in order: a step is enqueued, completes; a block is written that another step holds.

    A block may be written only when no step in flight of another row reads or writes it. A window reads no further
    back than it is wide.
    """

    block_size: int
    groups: Sequence[CacheGroup]
    order: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    _tables: dict[int, list[list[int]]] = field(default_factory=dict)
    _owners: dict[int, int] = field(default_factory=dict)
    """Row -> number of its incarnation."""
    _in_flight: deque[tuple[int, set[tuple[int, int]]]] = field(default_factory=deque)
    """(step, {(incarnation, block)}) of steps enqueued and not complete."""
    _count: int = 0

    def enqueue(self, step: Step) -> None:
        """The step is launched."""
        self.order.append(f"enqueue {step.step_id}")
        for row in step.released_rows:
            self._tables.pop(row, None)
            self.order.append(f"free row {row}")
        for new_row in step.new_rows:
            self._count += 1
            self._owners[new_row.row] = self._count
        held: set[tuple[int, int]] = set()
        for work in step.work:
            held |= self._touch(work, step)
        self._in_flight.append((step.step_id, held))

    def _touch(self, work: RowWork, step: Step) -> set[tuple[int, int]]:
        tables = self._tables.setdefault(work.row, [])
        for group, ids in enumerate(work.new_block_ids):
            if group == len(tables):
                tables.append([])
            tables[group] += ids
        owner, held = self._owners[work.row], set()
        first, last = work.start // self.block_size, (work.start + work.num_tokens - 1) // self.block_size
        for cache_group, table in zip(self.groups, tables, strict=True):
            oldest = cache_group.first_block(work.start, self.block_size)
            held |= {(owner, block) for block in table[oldest : last + 1]}
            for block in table[first : last + 1]:
                self._check(owner, block, step)
        return held

    def _check(self, owner: int, block: int, step: Step) -> None:
        for step_id, held in self._in_flight:
            if any(other != owner and held_block == block for other, held_block in held):
                self.faults.append(f"step {step.step_id} writes block {block}, which step {step_id} in flight holds")
                self.order.append(f"reuse {block}")

    def complete(self, step_id: int) -> None:
        """The step's result was collected."""
        self.order.append(f"complete {step_id}")
        assert self._in_flight.popleft()[0] == step_id


class WatchedRunner(DeviceRunner):
    """Counts how often each request began, and tells a `BlockWatch`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.starts: Counter[str] = Counter()
        self.blocks = BlockWatch(self._state.block_size, self.groups)

    def forward(self, step: Step) -> None:
        self.starts.update(new_row.request_id for new_row in step.new_rows)
        self.blocks.enqueue(step)
        super().forward(step)

    def collect(self) -> Sampled:
        sampled = super().collect()
        self.blocks.complete(sampled.step_id)
        return sampled


class DeviceEngine(Engine):
    """`Engine` on a stub device; `device` says what it saw."""

    runner: WatchedRunner

    def __init__(
        self,
        decoder: Decoder,
        setup: Setup,
        *,
        depth: int = DEPTH,
        graphs: bool = True,
        faults: Faults = NO_FAULTS,
        seed: int | None = None,
        graph_sizes: Sequence[int] | None = None,
        watch: bool = False,
        device: Device | None = None,
    ) -> None:
        """`device`: a real one instead of the stub."""
        self.device: Any = device or StubDevice(None if seed is None else random.Random(seed), watch)
        sizes = buckets(setup.max_num_seqs) if graph_sizes is None else graph_sizes
        runner = partial(
            WatchedRunner,
            device=self.device,
            max_num_batched_tokens=setup.budget,
            graph_sizes=sizes if graphs else (),
        )
        super().__init__(decoder, setup, faults=faults, runner=runner, depth=depth, place=self.device.device)

    def num_preempted(self) -> int:
        """How many requests began more than once."""
        return sum(count > 1 for count in self.runner.starts.values())
