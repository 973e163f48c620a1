"""How much of a GPU's memory the KV cache may take: what the worst step needs is measured first, then the rest is it.

The profiling pass runs two steps on a small cache of its own: one of as many prompt tokens as a step may have, with
every row sampling and all the log probabilities that may be asked for, and one in which every row decodes. What both
need beside the cache, what the driver needs beside tensors, and what recordings will keep is taken off.
"""

from __future__ import annotations

from dataclasses import dataclass

from quire.engine.cache_groups import NULL_BLOCK, CacheGroup
from quire.engine.device import Device
from quire.engine.device_runner import DeviceRunner
from quire.engine.errors import CapacityError
from quire.engine.messages import pack_ids
from quire.engine.plan import CachePlan, gib
from quire.engine.resolve import Resolved
from quire.engine.sampling_params import SamplingParams
from quire.engine.step import NewRow, RowWork, Step


@dataclass(frozen=True)
class Measured:
    """Bytes that the profiling pass found."""

    driver: int
    """Context and libraries: gone from the device, and held by no tensor."""
    worst_step: int
    """Tensors of the worst step: weights, the device's state and activations; without the cache."""
    recordings: int
    """What recorded decode steps will keep beside."""

    def room(self, limit: int) -> int:
        """What is left of `limit` for the cache. Raises CapacityError when nothing is."""
        room = limit - self.driver - self.worst_step - self.recordings
        if room <= 0:
            raise CapacityError(
                f"a step wants {gib(self.worst_step)} beside {gib(self.driver + self.recordings)} for the driver and "
                f"recorded steps, and {gib(limit)} of the GPU's memory may be taken; lower --max-num-batched-tokens or "
                "--max-num-seqs, or raise --gpu-memory-utilization"
            )
        return room


def profiling_plan(resolved: Resolved, groups: tuple[CacheGroup, ...]) -> CachePlan:
    """The small cache of the profiling pass: the blocks of the longest row of the worst step, shared by all rows."""
    longest = max(_token_counts(resolved)) + 1
    blocks = -(-longest // resolved.block_size) + 1 + NULL_BLOCK
    return CachePlan(blocks, resolved.block_size, resolved.max_model_len, bytes=0, groups=groups)


def measure(
    device: Device,
    runner: DeviceRunner,
    resolved: Resolved,
    *,
    max_logprobs: int,
    free_at_start: int,
    cache_bytes: int,
    records: bool,
) -> Measured:
    """Run the worst steps on a runner that records none.

    `free_at_start`: the device's free bytes before anything was loaded; `cache_bytes`: what the runner's small cache
    takes; `records`: whether decode steps will be recorded.
    """
    prompts, decode = worst_steps(resolved, len(runner.groups), max_logprobs)
    idle = device.peak_bytes(lambda: None)
    worst = max(device.peak_bytes(lambda: _run(runner, prompts)), device.peak_bytes(lambda: _run(runner, decode)))
    recordings = 0
    if records:
        plain = worst_steps(resolved, len(runner.groups), None)
        _run(runner, plain[0])
        logits = 4 * resolved.max_num_seqs * resolved.vocab_size
        recordings = device.peak_bytes(lambda: _run(runner, plain[1])) - idle + logits
    driver = free_at_start - device.memory().free - device.reserved_bytes()
    return Measured(max(0, driver), worst - cache_bytes, recordings)


def worst_steps(resolved: Resolved, num_groups: int, max_logprobs: int | None) -> tuple[Step, Step]:
    """A step of the largest size in which every row samples, and one in which all of them decode."""
    counts = _token_counts(resolved)
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=0, logprobs=max_logprobs, prompt_logprobs=max_logprobs)
    new_rows, prompts, decode = [], [], []
    for row, count in enumerate(counts):
        blocks = tuple(range(1, 1 - (-(count + 1) // resolved.block_size)))
        new_rows.append(NewRow(row, "profile", 0, params, pack_ids([0] * count), count))
        prompts.append(RowWork(row, 0, count, (blocks,) * num_groups, (row,), max_logprobs is not None and count > 1))
        decode.append(RowWork(row, count, 1, (), (row,)))
    released = tuple(range(len(counts)))
    return Step(0, tuple(prompts), tuple(new_rows), released_rows=released), Step(0, tuple(decode))


def _token_counts(resolved: Resolved) -> list[int]:
    """Prompt tokens of each row: equal parts of the largest step, none longer than a sequence may be."""
    budget = resolved.max_num_batched_tokens or resolved.max_num_seqs
    each = min(max(1, budget // resolved.max_num_seqs), resolved.max_model_len - 1)
    counts = [each] * resolved.max_num_seqs
    counts[0] = min(resolved.max_model_len - 1, each + budget - each * resolved.max_num_seqs)
    return counts


def _run(runner: DeviceRunner, step: Step) -> None:
    runner.forward(step)
    runner.sample(step)
    for row in runner.collect().rows:
        if row.failure is not None and row.failure.code != "model_numerics":
            raise CapacityError(f"the profiling pass failed: {row.failure.message}; lower --max-num-batched-tokens")
