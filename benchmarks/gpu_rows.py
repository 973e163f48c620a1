"""The goals of the engine on a GPU, E1 to E12, and what one run says about them. Pure: measurements in, rows out.

A step's bound is what its bytes and products take at the bandwidth and the matmul rate that were measured in the same
run: each weight is read or multiplied once, each token of the cache is read once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from quire.benchmarks.goal_rows import Goal, ratio
from quire.engine.models.config import ModelConfig
from quire.engine.models.shapes import count_head, count_weights

_HALF = 2
"""Bytes of a weight, or of a value of the cache, in bfloat16."""


class GpuLimits(msgspec.Struct, frozen=True):
    """Of the device, measured in the run."""

    copy_gb_per_s: float
    tflop_per_s: float


class Decode(msgspec.Struct, frozen=True):
    """Steps in which all of `batch` sequences decode, at a context of about `context` tokens."""

    shape: str
    batch: int
    context: int
    step_ms: float
    """Median, from one result to the next."""
    bound_ms: float
    host_ms: float
    """Median of what the host works in a step, without waiting for the device."""
    device_ms: float
    """What the device computes in a step, when nothing keeps it waiting."""
    host_syncs: int
    """Waits of a step but for the result of the step before."""


class Offline(msgspec.Struct, frozen=True):
    """All requests at once, until the last one has ended."""

    seconds: float
    bound_seconds: float
    output_tokens_per_second: float
    kv_waste: float
    """(allocated - used) / allocated slots, averaged over the steps with more than half of the requests running."""


class Prefix(msgspec.Struct, frozen=True):
    """The prefix cache: prompts that it never hits, and prompts of which it has nine tenths."""

    cost: float
    """Time of prompts that miss with the cache, over without it, less one."""
    gain: float
    """Time to the first token without a hit over with one."""


class GpuMeasured(msgspec.Struct, frozen=True):
    """Everything that the rows need; parts may be missing."""

    device: str
    limits: GpuLimits | None = None
    decode: list[Decode] = []
    offline: Offline | None = None
    prefix: Prefix | None = None
    served_tokens_per_second: float | None = None
    """Over HTTP, 256 at once."""
    transformers_tokens_per_second: float | None = None
    """Continuous batching of transformers, on the offline run's requests."""


def step_bound(model: ModelConfig, limits: GpuLimits, batch: int, context: int) -> float:
    """Seconds that one decode step takes at least."""
    counts = count_weights(model)
    weights = counts.attention + counts.feed_forward + count_head(model)
    bandwidth, flops = 1e9 * limits.copy_gb_per_s, 1e12 * limits.tflop_per_s
    return max(weights * _HALF / bandwidth, 2 * weights * batch / flops) + batch * _kv_bytes(model, context) / bandwidth


def offline_bound(model: ModelConfig, limits: GpuLimits, lengths: Sequence[tuple[int, int]]) -> float:
    """Seconds that requests of (prompt, answer) tokens take at least when all of them run at once."""
    counts = count_weights(model)
    flops = 1e12 * limits.tflop_per_s
    prompt_tokens = sum(prompt for prompt, _ in lengths)
    pairs = sum(prompt * (prompt + 1) // 2 for prompt, _ in lengths)
    attention = 4 * sum(layer.attention.num_heads * layer.attention.head_dim for layer in model.layers) * pairs
    seconds = (2 * (counts.attention + counts.feed_forward) * prompt_tokens + attention) / flops
    for step in range(1, max(answer for _, answer in lengths)):
        running = [prompt + step for prompt, answer in lengths if answer > step]
        seconds += step_bound(model, limits, len(running), round(sum(running) / len(running)))
    return seconds


def _kv_bytes(model: ModelConfig, context: int) -> int:
    """Of one sequence's keys and values."""
    return sum(
        2 * spec.num_kv_heads * spec.head_dim * _HALF * min(context, spec.window or context)
        for spec in model.cache_specs()
    )


def gpu_goals(found: GpuMeasured) -> list[Goal]:
    """E1 to E12, without those of other pages."""
    return [*_decode(found), *_offline(found), *_overlap(found), *_rest(found)]


def _steps(found: GpuMeasured, shape: str, batch: int) -> Decode | None:
    return next((each for each in found.decode if (each.shape, each.batch) == (shape, batch)), None)


def _decode(found: GpuMeasured) -> Iterator[Goal]:
    for batch in (1, 32, 128):
        steps = _steps(found, "llama-3.1-8b", batch)
        value = ratio(steps.bound_ms, steps.step_ms) if steps is not None else None
        note = f"{steps.step_ms:.2f} ms, bound {steps.bound_ms:.2f}" if steps is not None else ""
        yield Goal("E1", f"8B decode step, fraction of bound, batch {batch} at 1k", value, "", 0.80, 0.87, note=note)
    steps = _steps(found, "qwen3-0.6b", 1)
    value = steps.step_ms if steps is not None else None
    yield Goal("E2", "0.6B decode alone, a token", value, "ms", 2.0, 1.2, at_most=True)


def _offline(found: GpuMeasured) -> Iterator[Goal]:
    run = found.offline
    value = ratio(run.bound_seconds, run.seconds) if run is not None else None
    note = f"{run.output_tokens_per_second:.0f} output tokens/s" if run is not None else ""
    yield Goal("E3", "offline throughput, fraction of bound, 256 sequences", value, "", 0.70, 0.80, note=note)
    ours = run.output_tokens_per_second if run is not None else None
    peer = found.transformers_tokens_per_second
    yield Goal("E6", "transformers' continuous batching", ratio(ours, peer), "x", 1.8, 2.5)


def _overlap(found: GpuMeasured) -> Iterator[Goal]:
    steps = _steps(found, "llama-3.1-8b", 128)
    idle = None if steps is None else max(0.0, 1 - steps.device_ms / steps.step_ms)
    yield Goal("E8", "device idle in steady decode, 8B at batch 128", idle, "", 0.05, 0.02, at_most=True)
    steps = _steps(found, "qwen3-0.6b", 256)
    host = steps.host_ms if steps is not None else None
    yield Goal("E9", "host time of a decode step at batch 256", host, "ms", 1.0, 0.5, at_most=True)
    syncs = float(steps.host_syncs) if steps is not None else None
    yield Goal("E9", "host syncs of a decode step", syncs, "", 0.0, 0.0, at_most=True)


def _rest(found: GpuMeasured) -> Iterator[Goal]:
    ours = found.offline.output_tokens_per_second if found.offline is not None else None
    served = ratio(found.served_tokens_per_second, ours)
    yield Goal("E10", "served over offline throughput, 256 at once", served, "", 0.92, 0.97)
    waste = found.offline.kv_waste if found.offline is not None else None
    yield Goal("E11", "KV slots allocated and not used", waste, "", 0.04, 0.02, at_most=True)
    cost = found.prefix.cost if found.prefix is not None else None
    yield Goal("E12", "prefix cache: cost where it never hits", cost, "", 0.01, 0.01, at_most=True)
    gain = found.prefix.gain if found.prefix is not None else None
    yield Goal("E12", "prefix cache: first token at 90 % of 4k hit", gain, "x", 5.0, 8.0)
