"""All that can be said about a model before it is loaded: bytes, blocks, concurrency, speed, advice. Torch-free."""

from __future__ import annotations

import msgspec

from quire.engine.advice import advise
from quire.engine.devices import Device
from quire.engine.errors import CapacityError
from quire.engine.models.config import ModelConfig
from quire.engine.plan import PROCESS_BYTES, CachePlan, Footprint, fit
from quire.engine.roofline import Roofline

DEFAULT_PROMPT = 512


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What config.json says."""

    name: str
    architecture: str
    num_layers: int
    parameters: int
    max_position_embeddings: int
    dtype: str
    dtype_reason: str


class DeviceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is planned for. Rates are peaks, a second."""

    name: str
    title: str
    bandwidth_bytes: float
    flops: float
    flops_dtype: str
    """What activations are in: the rate is of products of these."""
    source: str


class MemoryFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes; what is there, and who takes it."""

    total: int
    reserved: int
    """On a CPU the two processes, on a GPU the share that is kept free."""
    weights: int
    rope_tables: int
    kv_cache: int
    free: int
    """Negative when it does not fit."""


class WeightFacts(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of weights by part."""

    embeddings: int
    attention: int
    feed_forward: int
    norms: int


class CacheFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The KV cache; no blocks when it does not fit."""

    bytes_per_token: float
    bytes_per_block: int
    block_size: int
    num_blocks: int
    num_tokens: int
    max_model_len: int
    max_num_seqs: int


class LoadFacts(msgspec.Struct, frozen=True, kw_only=True):
    """As many sequences of `context` tokens as run at once. Times are predicted."""

    context: int
    concurrency: float
    """That the cache holds."""
    batch: int
    """That run: at most --max-num-seqs."""
    itl_alone_ms: float
    itl_ms: float
    tokens_per_second: float


class PromptFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The first token of a prompt that nobody else delays, predicted."""

    prompt_len: int
    ttft_ms: float
    max_num_batched_tokens: int


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """What `quire plan` prints, and with --json its keys."""

    model: ModelFacts
    device: DeviceFacts
    memory: MemoryFacts
    weights: WeightFacts
    kv_cache: CacheFacts
    loads: tuple[LoadFacts, ...]
    prompt: PromptFacts
    assumptions: str
    fits: bool
    refusal: str | None
    """The sentence with which `quire serve` ends."""
    advice: str | None


def forecast(
    model: ModelConfig,
    footprint: Footprint,
    device: Device,
    *,
    context: int | None = None,
    prompt_len: int | None = None,
    max_num_batched_tokens: int | None = None,
) -> Forecast:
    """Divide the device's memory as the engine would, and predict its speed.

    `context` None: the longest that is served, and some shorter ones. A model that does not fit is no error here:
    `refusal` says why.
    """
    plan, refusal = _fit(footprint, device)
    roofline = Roofline(model, footprint.precision, device)
    budget = roofline.token_budget(max_num_batched_tokens)
    asked = min(prompt_len or DEFAULT_PROMPT, model.max_position_embeddings)
    longest = plan.max_model_len if plan else footprint.resolved.max_model_len
    contexts = [context] if context else [*(size for size in (1024, 4096, 16384) if size * 2 <= longest), longest]
    available = device.memory_bytes - reserved_bytes(device)
    return Forecast(
        model=_model_facts(model, footprint),
        device=_device_facts(device, footprint),
        memory=_memory_facts(footprint, device, plan),
        weights=_weight_facts(footprint),
        kv_cache=_cache_facts(footprint, plan),
        loads=tuple(_load(plan, footprint, roofline, size) for size in contexts) if plan else (),
        prompt=PromptFacts(
            prompt_len=asked,
            ttft_ms=1e3 * roofline.prefill_seconds(asked, budget),
            max_num_batched_tokens=budget,
        ),
        assumptions=_assumptions(device),
        fits=plan is not None,
        refusal=refusal,
        advice=advise(footprint, plan, available, context or longest) if plan else None,
    )


def reserved_bytes(device: Device) -> int:
    """Of the device's memory, what neither weights nor cache get."""
    return PROCESS_BYTES if device.kind == "cpu" else int((1 - device.share) * device.memory_bytes)


def _fit(footprint: Footprint, device: Device) -> tuple[CachePlan | None, str | None]:
    try:
        return fit(footprint, max(0, device.memory_bytes - reserved_bytes(device))), None
    except CapacityError as error:
        return None, str(error)


def _model_facts(model: ModelConfig, footprint: Footprint) -> ModelFacts:
    return ModelFacts(
        name=footprint.model_name,
        architecture=model.architecture,
        num_layers=model.num_layers,
        parameters=footprint.num_weights,
        max_position_embeddings=model.max_position_embeddings,
        dtype=footprint.precision.name,
        dtype_reason=footprint.precision.reason,
    )


def _device_facts(device: Device, footprint: Footprint) -> DeviceFacts:
    return DeviceFacts(
        name=device.name,
        title=device.title,
        bandwidth_bytes=device.bandwidth,
        flops=device.flops[footprint.precision.activations],
        flops_dtype=footprint.precision.activations,
        source=device.source,
    )


def _memory_facts(footprint: Footprint, device: Device, plan: CachePlan | None) -> MemoryFacts:
    cache = plan.bytes if plan else 0
    reserved = reserved_bytes(device)
    return MemoryFacts(
        total=device.memory_bytes,
        reserved=reserved,
        weights=footprint.weights_bytes,
        rope_tables=footprint.tables_bytes,
        kv_cache=cache,
        free=device.memory_bytes - reserved - footprint.weights_bytes - footprint.tables_bytes - cache,
    )


def _weight_facts(footprint: Footprint) -> WeightFacts:
    weights = footprint.weights
    return WeightFacts(
        embeddings=weights.embeddings,
        attention=weights.attention,
        feed_forward=weights.feed_forward,
        norms=weights.norms,
    )


def _cache_facts(footprint: Footprint, plan: CachePlan | None) -> CacheFacts:
    return CacheFacts(
        bytes_per_token=footprint.token_bytes,
        bytes_per_block=footprint.block_bytes,
        block_size=footprint.wish.block_size,
        num_blocks=plan.num_blocks if plan else 0,
        num_tokens=plan.num_tokens if plan else 0,
        max_model_len=plan.max_model_len if plan else footprint.resolved.max_model_len,
        max_num_seqs=min(footprint.resolved.max_num_seqs, plan.num_tokens // plan.block_size) if plan else 0,
    )


def _load(plan: CachePlan, footprint: Footprint, roofline: Roofline, context: int) -> LoadFacts:
    concurrency = plan.concurrency(context)
    batch = max(1, min(footprint.resolved.max_num_seqs, int(concurrency)))
    step = roofline.decode_seconds(batch, context)
    return LoadFacts(
        context=context,
        concurrency=round(concurrency, 2),
        batch=batch,
        itl_alone_ms=1e3 * roofline.decode_seconds(1, context),
        itl_ms=1e3 * step,
        tokens_per_second=batch / step,
    )


def _assumptions(device: Device) -> str:
    assumed = device.efficiency
    return (
        f"{assumed.weights:.0%} of the bandwidth for weights and {assumed.kv:.0%} for keys and values, "
        f"{assumed.matmul:.0%} of the FLOP/s ({assumed.attention:.0%} in attention): {assumed.source}"
    )
