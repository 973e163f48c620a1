"""From a configuration to an engine that runs: resolve, load, size the cache, warm up."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from quire import kernels
from quire.engine.block_pool import BlockPool
from quire.engine.cache_report import ExplainingIndex
from quire.engine.compiled_sampler import CompiledSampler
from quire.engine.config import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.device import CudaDevice, Device
from quire.engine.device_runner import DEPTH
from quire.engine.device_start import DeviceStart
from quire.engine.errors import UsageError
from quire.engine.hardware import available_memory, count_cores, find_hardware
from quire.engine.kv_cache import KVCache
from quire.engine.loader import load_model
from quire.engine.messages import Progress, Ready
from quire.engine.model_folder import STARTER
from quire.engine.model_source import read_config
from quire.engine.models.config import ModelConfig
from quire.engine.models.decoder import Decoder
from quire.engine.plan import CachePlan, Footprint, fit, footprint_of
from quire.engine.planted_faults import plant
from quire.engine.precision import Precision
from quire.engine.resolve import Resolved
from quire.engine.runner import ModelRunner
from quire.engine.runner_seams import Model, StepWatch, Unwatched
from quire.engine.sampler import TorchSampler
from quire.engine.scheduler import Scheduler, SchedulerConfig
from quire.engine.warm_up import (
    SMALL_WEIGHTS,
    STEP_SECONDS,
    WarmRunner,
    choose_threads,
    find_token_budget,
    run_prompt,
)
from quire.kernels.cpu.compiled import CompiledKernels


def ignore_progress(progress: Progress) -> None:
    """For callers who do not watch the start."""


@dataclass
class Stopwatch:
    """Seconds by part of the start."""

    seconds: dict[str, float] = field(default_factory=dict)
    _last: float = field(default_factory=time.perf_counter)

    def lap(self, part: str) -> None:
        """The time since the last lap was `part`'s."""
        now = time.perf_counter()
        self.seconds[part] = now - self._last
        self._last = now


def build_engine(
    config: EngineConfig,
    progress: Callable[[Progress], None] = ignore_progress,
    watch: StepWatch | None = None,
    *,
    planted: dict[str, str] | None = None,
    stopwatch: Stopwatch | None = None,
    make_device: Callable[[], Device] = CudaDevice,
) -> tuple[EngineCore, Ready]:
    """Load the model and everything around it. `watch` hears each layer, while loading each piece of the weights.

    `planted` are faults for tests (`quire.engine.planted_faults`). `make_device`: what --device cuda computes on.
    Raises a QuireError with its exit code: UsageError, ModelError, or CapacityError.
    """
    stopwatch, watch = stopwatch or Stopwatch(), watch or Unwatched()
    folder = Path(config.model)
    model_config = read_config(folder, config.model_name)
    hardware = find_hardware(min(count_cores(), torch.get_num_threads()), config.device)
    footprint = footprint_of(config, model_config, hardware)
    resolved, gpu = footprint.resolved, hardware.gpu
    plan = fit(footprint, available_memory() if gpu is None else gpu.limit(config.gpu_memory_utilization))
    backend = _select_kernels(config, resolved, footprint.precision)
    backend.set_threads(resolved.threads)
    decoder = _load(config, model_config, resolved, backend, footprint.precision, progress, watch)
    stopwatch.lap("weights")
    model = plant(decoder, planted or {})
    if gpu is None:
        started = _start_on_cpu(config, footprint, plan, backend, model, decoder, watch, stopwatch)
    else:
        start = DeviceStart(config, footprint, gpu, make_device(), backend, stopwatch.lap)
        runner, plan = start.run(model, decoder.cache_spec(), plan.groups, watch)
        started = Started(runner, plan, f"{gpu.name}, {start.launches}", DEPTH)
    plan = started.plan
    max_num_seqs = min(resolved.max_num_seqs, plan.num_tokens // plan.block_size)
    budget = _warm_up(started.runner, resolved.max_num_batched_tokens, plan, max_num_seqs)
    progress(Progress("warmup", 1, 1))
    stopwatch.lap("warmup")
    ready = Ready(
        max_model_len=plan.max_model_len,
        vocab_size=resolved.vocab_size,
        num_blocks=plan.num_blocks,
        block_size=plan.block_size,
        num_cache_groups=len(plan.groups),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        weights_bytes=decoder.weights_bytes,
        kv_cache_bytes=plan.bytes,
        dtype=footprint.precision.name,
        cache_dtype=footprint.precision.cache,
        device=resolved.device,
        kernels=f"{backend.name} kernels on {resolved.device}, {started.with_what}; {footprint.precision.reason}",
        seconds=stopwatch.seconds,
        # The Python code in the starter's folder is ours: it made the weights.
        notes=(*(model_config.warnings if folder != STARTER else ()), *plan.notes),
    )
    return EngineCore(_scheduler(config, plan, max_num_seqs, budget), started.runner, depth=started.depth), ready


@dataclass(frozen=True)
class Started:
    """A runner, the cache that it has, and what the start-up line says of where it computes."""

    runner: WarmRunner
    plan: CachePlan
    with_what: str
    depth: int
    """Steps in flight."""


def _start_on_cpu(
    config: EngineConfig,
    footprint: Footprint,
    plan: CachePlan,
    backend: kernels.Kernels,
    model: Model,
    decoder: Decoder,
    watch: StepWatch,
    stopwatch: Stopwatch,
) -> Started:
    """A runner in this thread, one step at a time."""
    resolved = footprint.resolved
    plan.check_fits(available_memory())
    cache = KVCache(decoder.cache_spec(), plan, getattr(torch, footprint.precision.cache), backend.device)
    stopwatch.lap("kv_cache")
    runner = ModelRunner(
        model,
        backend,
        cache,
        max_num_seqs=min(resolved.max_num_seqs, plan.num_tokens // plan.block_size),
        max_model_len=plan.max_model_len,
        block_size=plan.block_size,
        vocab_size=resolved.vocab_size,
        watch=watch,
        sampler=CompiledSampler(backend.sampling) if isinstance(backend, CompiledKernels) else TorchSampler(),
    )
    threads = _threads(config, resolved, runner, plan, backend, decoder.weights_bytes)
    return Started(runner, plan, f"{threads} thread{'s' * (threads > 1)}", depth=1)


def _select_kernels(config: EngineConfig, resolved: Resolved, precision: Precision) -> kernels.Kernels:
    try:
        return kernels.select(
            config.kernels, resolved.device, precision.quantization, batch_invariant=config.batch_invariant
        )
    except kernels.KernelsRefused as error:
        raise UsageError(f"--kernels {config.kernels}: {error}") from error


def _load(
    config: EngineConfig,
    model_config: ModelConfig,
    resolved: Resolved,
    backend: kernels.Kernels,
    precision: Precision,
    progress: Callable[[Progress], None],
    watch: StepWatch,
) -> Decoder:
    def report(done: int, total: int) -> None:
        watch.tick()
        progress(Progress("weights", done, total))

    return load_model(
        Path(config.model),
        model_config,
        backend,
        dtype=getattr(torch, precision.stored),
        kept=precision.kept,
        load_format=config.load_format,
        seed=config.seed,
        check_weights=config.check_weights,
        progress=report,
        num_positions=resolved.max_model_len,
        model_name=config.model_name,
    )


def _threads(
    config: EngineConfig,
    resolved: Resolved,
    runner: ModelRunner,
    plan: CachePlan,
    backend: kernels.Kernels,
    weights_bytes: int,
) -> int:
    """Compute threads: for a small model fewer than there are cores when more do not pay."""
    if config.threads is not None or resolved.threads == 1 or weights_bytes > SMALL_WEIGHTS:
        return resolved.threads
    num_tokens_that_fit = min(plan.num_tokens, plan.max_model_len)
    return choose_threads(
        runner,
        resolved.threads,
        backend.set_threads,
        num_tokens_that_fit=num_tokens_that_fit,
        block_size=plan.block_size,
    )


def _warm_up(runner: WarmRunner, given: int | None, plan: CachePlan, max_num_seqs: int) -> int:
    """The token budget of a step; at least one for each sequence."""
    num_tokens_that_fit = min(plan.num_tokens, plan.max_model_len)
    if given is None:
        budget = find_token_budget(runner, num_tokens_that_fit=num_tokens_that_fit, block_size=plan.block_size)
        return max(budget, max_num_seqs)
    run_prompt(runner, min(given, num_tokens_that_fit, 32), plan.block_size)
    return given


def _scheduler(config: EngineConfig, plan: CachePlan, max_num_seqs: int, budget: int) -> Scheduler:
    order = list(range(plan.num_blocks - plan.num_usable_blocks, plan.num_blocks))
    if config.shuffle_blocks:
        random.Random(config.seed).shuffle(order)
    index = ExplainingIndex(secrets.token_bytes(32)) if config.enable_prefix_caching else None
    pool = BlockPool(plan.num_blocks, plan.block_size, prefix_index=index, order=order, null_block=plan.has_null_block)
    bounds = SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=plan.max_model_len,
        long_prefill_token_threshold=config.long_prefill_token_threshold,
        policy=config.scheduling_policy,
        target_itl=None if config.target_itl_ms is None else config.target_itl_ms / 1000,
        token_seconds=STEP_SECONDS / budget if config.max_num_batched_tokens is None else None,
    )
    return Scheduler(bounds, pool, groups=plan.groups)
