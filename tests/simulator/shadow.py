"""The engine's other half in the simulator: a runner that is caught at once when it reads what is not its own, and a
pool that is watched while it hands out blocks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence

import msgspec

from quire.engine.block_pool import BlockPool
from quire.engine.messages import Failure, unpack_ids
from quire.engine.prefix_index import BlockKey
from quire.engine.step import RowWork, Sampled, SampledRow, Step
from quire.simulator.fake_runner import FakeRunner, Oracle, Row
from quire.simulator.plan import VOCAB_SIZE, Plan
from quire.simulator.swarm import Swarm


class Violation(Exception):
    """An invariant does not hold."""

    def __init__(self, invariant: str, message: str) -> None:
        super().__init__(f"{invariant}: {message}")
        self.invariant = invariant


class PlantedFault(Exception):
    """Raised on purpose."""


class WatchedPool(BlockPool):
    """Spoils blocks when they are freed and when they are handed out; I5 and I7 are checked as it goes."""

    runner: ShadowRunner

    def watch(self, runner: ShadowRunner) -> None:
        """Begin; `runner` keeps the slots."""
        self.runner = runner
        self._released_at = [0] * self.num_blocks
        self._time = 0

    def publish(self, block_id: int, key: BlockKey, group: int = 0) -> None:
        """As the pool's own; I5: what is published has been written, by these tokens, by this tenant."""
        self.runner.check_written(block_id, unpack_ids(key.token_ids), key.scope.salt)
        super().publish(block_id, key, group)

    def release(self, block_ids: Sequence[int]) -> None:
        """As the pool's own; I7: within one table, leaves go to the free list before their parents."""
        super().release(block_ids)
        index = self.prefix_index
        if index is None:
            return
        freed = {block_id for block_id in block_ids if self._references[block_id] == 0}
        for block_id in block_ids:
            key = self._keys[block_id]
            if block_id in freed and key is not None and key.parent is not None:
                parent = index.find(key.parent, self._groups[block_id])
                if parent in freed and self._released_at[parent] < self._released_at[block_id]:
                    raise Violation("I7", f"block {parent} is released before block {block_id}, which follows it")

    def _take_head(self) -> int:
        head = self._next[self._end]
        following = self._next[head] if head != self._end else self._end
        if head == self._end or self._references[head]:
            raise Violation("I7", f"block {head} is handed out, but it is not free")
        both_cached = following != self._end and None not in (self._keys[head], self._keys[following])
        if both_cached and self._released_at[following] < self._released_at[head]:
            raise Violation("I7", f"block {head} is evicted before block {following}, which was used less recently")
        block_id = super()._take_head()
        if block_id != head:
            raise Violation("I7", f"block {block_id} is evicted, but the least recently used one is {head}")
        self.runner.poison((block_id,))
        return block_id

    def _drop_reference(self, block_id: int) -> None:
        super()._drop_reference(block_id)
        if self._references[block_id] == 0:
            self._time += 1
            self._released_at[block_id] = self._time
            if self._keys[block_id] is None:
                self.runner.poison((block_id,))


class ShadowRunner(FakeRunner):
    """A `FakeRunner` that compares every token with the oracle's when it samples it, and breaks down as planned.

    `found` holds what it has seen that must not be: the core takes any exception of a runner for a fault of the device.
    """

    def __init__(
        self,
        plan: Plan,
        swarm: Swarm,
        pool: BlockPool,
        oracle_of: Callable[[str, int], Oracle],
        salt_of: Callable[[str], bytes],
    ) -> None:
        super().__init__(
            plan.num_blocks,
            plan.block_size,
            vocab_size=VOCAB_SIZE,
            groups=plan.groups,
            salt_of=salt_of,
            generation_of=pool.generation,
        )
        self.found: list[Exception] = []
        self.trace = self.num_steps = 0
        """`trace` sums up the steps."""
        self._swarm, self._oracle_of = swarm, oracle_of
        self._fault: str | None = None

    def forward(self, step: Step) -> None:
        """Compute, or break down before or in the middle of the writes."""
        self.log.clear()
        self.num_steps += 1
        payload = msgspec.msgpack.encode(step)
        self.trace = zlib.crc32(payload, self.trace)
        self._fault = self._swarm.step_fault()
        if self._fault == "step.before":
            self.log.append(step)
            raise PlantedFault(self._fault)
        try:
            super().forward(msgspec.msgpack.decode(payload, type=Step))
        except Exception as error:
            self.found.append(error)
            raise
        if self._fault in ("step.during", "step.memory"):
            self._drop_newest(landing=0.5)
            raise MemoryError("planted") if self._fault == "step.memory" else PlantedFault(self._fault)

    def sample(self, step: Step, masks: None) -> None:
        """Nothing, or break down after the writes."""
        super().sample(step, masks)
        if self._fault == "step.after":
            self._drop_newest(landing=1.0)
            raise PlantedFault(self._fault)

    def collect(self) -> Sampled:
        """The oldest step's result, or break down in its place."""
        if self._swarm.rarely("step.collect"):
            _, writes, _ = self._pending.popleft()
            self._abandon(writes, 1.0)
            raise PlantedFault("step.collect")
        return super().collect()

    def poison(self, block_ids: Sequence[int]) -> None:
        """As the runner's own; nobody is known to have written there any more."""
        super().poison(block_ids)
        for block_id in block_ids:
            for slot in range(block_id * self.block_size, (block_id + 1) * self.block_size):
                self.writers.pop(slot, None)

    def check_written(self, block_id: int, token_ids: Sequence[int], salt: bytes) -> None:
        """I5: the block holds the committed work of these tokens, of this tenant, and of its present life."""
        generation = self._generation_of(block_id)
        for offset, token_id in enumerate(token_ids):
            writer = self.writers.get(block_id * self.block_size + offset)
            if writer is None or writer.position % self.block_size != offset:
                raise Violation("I5", f"block {block_id} is published, but its slot {offset} holds {writer}")
            if (writer.token_id, writer.salt, writer.generation) != (token_id, salt, generation):
                raise Violation(
                    "I5", f"block {block_id} (generation {generation}) is published with token {token_id}, but {writer}"
                )

    def _drop_newest(self, landing: float) -> None:
        _, writes, _ = self._pending.pop()
        self._abandon(writes, landing)

    def _abandon(self, writes: Iterable[tuple[Row, int, dict[int, int]]], landing: float) -> None:
        """A step came to nothing, but a part of its writes is in the slots."""
        for row, end, written in writes:
            row.doomed = True
            if self._swarm.chance(landing):
                self._land(row, end, written)
            for slot in written:
                row.in_air.pop(slot, None)

    def _compute(self, work: RowWork) -> tuple[Row, int, dict[int, int]]:
        row = self.rows[work.row]
        begins = not row.block_tables[0]
        if self._swarm.rarely("row.numerics"):
            row.doomed = True
        result = super()._compute(work)
        if begins and work.start and not row.doomed:
            self._check_found(row, work.start)
        return result

    def _check_found(self, row: Row, start: int) -> None:
        """I8: what a sequence finds in its first blocks is what it would have computed itself."""
        expected = self._oracle_of(row.request_id, row.choice).contents(start)
        for number, group in enumerate(self.groups):
            first = max(0, start - group.window + 1) if group.window else 0
            if self._read(row, number, first, start) != expected[number][first:start]:
                raise Violation("I8", self._explain(row, number, first, expected[number][first:start]))

    def _explain(self, row: Row, number: int, first: int, expected: Sequence[int]) -> str:
        """Which slot is not what its reader takes it for."""
        who = f"{row.request_id}/{row.choice}"
        for position, value in enumerate(expected, first):
            if self._read(row, number, position, position + 1) != [value]:
                slot = self._slot(row, number, position)
                block_id, offset = divmod(slot, self.block_size)
                return (
                    f"{who} reads position {position} of group {number} in block {block_id}, slot {offset}, "
                    f"generation {self._generation_of(block_id)}: it holds {self.writers.get(slot, 'poison')}"
                )
        return f"{who} reads what it should"

    def _sampled(self, step: Step) -> Sampled:
        sampled = super()._sampled(step)
        doomed = [work.row for work in step.work if self.rows[work.row].doomed and not work.samples]
        if not doomed:
            return sampled
        failure = Failure("model_numerics", "planted")
        return msgspec.structs.replace(sampled, failed_rows=dict.fromkeys(doomed, failure))

    def _sample_row(self, step: Step, reader: Row, row_number: int, end: int, contents: list[int]) -> SampledRow:
        row = self.rows[row_number]
        if self._swarm.rarely("row.no_token"):
            row.doomed = True
        if reader.doomed or row.doomed:
            row.doomed = True
            row.token_ids.append(0)
            return SampledRow(row_number, (), failure=Failure("model_numerics", "planted"))
        sampled = super()._sample_row(step, reader, row_number, end, contents)
        self._check_token(reader, row, end, sampled.token_ids[0])
        return sampled

    def _check_token(self, reader: Row, row: Row, end: int, token_id: int) -> None:
        """I16: the token is the oracle's, whatever stands beside it in the batch."""
        oracle = self._oracle_of(row.request_id, row.choice)
        expected = oracle.token(end - row.num_prompt_tokens)
        if expected is None or expected == token_id:
            return
        for number, values in enumerate(oracle.contents(end)):
            window = self.groups[number].window
            first = max(0, end - window) if window else 0
            if self._read(reader, number, first, end) != values[first:end]:
                raise Violation("I16", self._explain(reader, number, first, values[first:end]))
        raise Violation("I16", f"{row.request_id}/{row.choice} samples {token_id} at {end}, expected {expected}")
