"""From a loaded model to a runner on a GPU: profile, size the cache, record decode steps; each part is timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from quire.engine.cache_groups import CacheGroup
from quire.engine.config import EngineConfig
from quire.engine.decode_graphs import buckets
from quire.engine.device import Device
from quire.engine.device_memory import Measured, measure, profiling_plan
from quire.engine.device_runner import DeviceKernels, DeviceRunner
from quire.engine.errors import UsageError
from quire.engine.gpu import Gpu
from quire.engine.kv_cache import KVCache
from quire.engine.models.config import CacheSpec
from quire.engine.plan import CachePlan, Footprint, plan_cache
from quire.engine.runner_seams import Model, StepWatch
from quire.kernels import Kernels


class DeviceStart:
    """What the parts of a start have in common. `gpu`: as it was before anything was loaded; `lap` hears each part."""

    def __init__(
        self,
        config: EngineConfig,
        footprint: Footprint,
        gpu: Gpu,
        device: Device,
        backend: Kernels,
        lap: Callable[[str], None],
    ) -> None:
        """Raises UsageError for kernels that cannot sample on a GPU."""
        if not isinstance(backend, DeviceKernels):
            raise UsageError(f"--kernels {config.kernels}: they do not sample on a GPU; use --kernels triton")
        self._config, self._footprint, self._gpu, self._device = config, footprint, gpu, device
        self._kernels: DeviceKernels = backend
        self._lap = lap
        self._dtype: torch.dtype = getattr(torch, footprint.precision.cache)
        self.records = not config.enforce_eager and backend.name != "reference"
        """Whether decode steps are recorded; the reference loops over the host's lists, so it cannot be."""

    @property
    def launches(self) -> str:
        """How decode steps are launched, for the start-up line."""
        return "decode steps recorded" if self.records else "every kernel launched by itself"

    def run(
        self, model: Model, specs: Sequence[CacheSpec], groups: Sequence[CacheGroup], watch: StepWatch
    ) -> tuple[DeviceRunner, CachePlan]:
        """The runner, and its cache. Raises CapacityError when there is no room for one."""
        room = self._profile(model, specs, groups, watch).room(self._gpu.limit(self._config.gpu_memory_utilization))
        self._lap("profile")
        plan = plan_cache(self._footprint.wish, self._footprint.block_bytes, room)
        cache = KVCache(specs, plan, self._dtype, self._device.device)
        self._lap("kv_cache")
        max_num_seqs = min(self._footprint.resolved.max_num_seqs, plan.num_tokens // plan.block_size)
        sizes = buckets(max_num_seqs) if self.records else ()
        runner = self._runner(model, cache, watch, max_num_seqs, plan.max_model_len, sizes)
        self._lap("recordings")
        return runner, plan

    def _profile(
        self, model: Model, specs: Sequence[CacheSpec], groups: Sequence[CacheGroup], watch: StepWatch
    ) -> Measured:
        resolved = self._footprint.resolved
        cache = KVCache(specs, profiling_plan(resolved, tuple(groups)), self._dtype, self._device.device)
        return measure(
            self._device,
            self._runner(model, cache, watch, resolved.max_num_seqs, resolved.max_model_len, ()),
            resolved,
            max_logprobs=self._config.max_logprobs,
            free_at_start=self._gpu.free_bytes,
            cache_bytes=sum(keys.nbytes + values.nbytes for keys, values in cache.stripes),
            records=self.records,
        )

    def _runner(
        self,
        model: Model,
        cache: KVCache,
        watch: StepWatch,
        max_num_seqs: int,
        max_model_len: int,
        sizes: Sequence[int],
    ) -> DeviceRunner:
        resolved = self._footprint.resolved
        return DeviceRunner(
            model,
            self._kernels,
            cache,
            self._device,
            max_num_seqs=max_num_seqs,
            max_model_len=max_model_len,
            max_num_batched_tokens=resolved.max_num_batched_tokens or max_num_seqs,
            block_size=resolved.block_size,
            vocab_size=resolved.vocab_size,
            graph_sizes=sizes,
            watch=watch,
        )
