"""What a model takes of memory, and how many blocks there is room for: arithmetic alone, torch-free.

`quire plan` prints these figures from config.json, and the engine allocates by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from quire.engine.cache_groups import ONE_GROUP, CacheGroup, group_layers, has_window
from quire.engine.config import EngineConfig
from quire.engine.errors import CapacityError
from quire.engine.hardware import Hardware
from quire.engine.models.config import CacheSpec, ModelConfig
from quire.engine.models.shapes import WeightCounts, count_bytes, count_weights
from quire.engine.precision import Precision, choose_precision
from quire.engine.resolve import Resolved, resolve

PROCESS_BYTES = 200 << 20
"""What the HTTP process and the engine take beside weights and cache (measured: 50 MiB the one, 150 the other)."""

DEFAULT_BYTES = 4 << 30
DEFAULT_SHARE = 0.4
SMALL_SHARE = 1 / 8


@dataclass(frozen=True)
class CachePlan:
    """How much is cached: `num_blocks` of `block_size` tokens, for sequences of at most `max_model_len` tokens."""

    num_blocks: int
    block_size: int
    max_model_len: int
    bytes: int
    is_small: bool = False
    """At most `SMALL_SHARE` of what is free."""
    notes: tuple[str, ...] = ()
    """What the operator should know: a context that was reduced."""
    flag: str = "--kv-cache-memory-bytes"
    """What changes the number of blocks."""
    groups: tuple[CacheGroup, ...] = ONE_GROUP
    """Each has blocks of its own for the same tokens."""

    @property
    def has_null_block(self) -> bool:
        """Whether block 0 is nobody's."""
        return has_window(self.groups)

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that sequences can hold."""
        return max(0, self.num_blocks - self.has_null_block)

    @property
    def num_tokens(self) -> int:
        """Tokens that fit, before any window has slid past them."""
        return self.num_usable_blocks // len(self.groups) * self.block_size

    @property
    def max_concurrency(self) -> float:
        """How many sequences of the greatest length fit at once, before any window has slid past their tokens."""
        return self.num_usable_blocks / self.blocks_of(self.max_model_len)

    def blocks_of(self, num_tokens: int) -> int:
        """Blocks that one sequence of `num_tokens` holds, at most."""
        return len(self.groups) * -(-num_tokens // self.block_size)

    def blocks_held(self, num_tokens: int) -> int:
        """Blocks that it still holds when it gets its last token: without those that a window has slid past."""
        through = -(-num_tokens // self.block_size)
        return sum(through - group.first_block(num_tokens - 1, self.block_size) for group in self.groups)

    def concurrency(self, num_tokens: int) -> float:
        """How many sequences of `num_tokens` can run at once."""
        return self.num_usable_blocks / self.blocks_held(num_tokens)

    def check_fits(self, available_bytes: int) -> None:
        """Raises CapacityError, naming the flag to change, when the cache is more than there is."""
        if self.bytes <= available_bytes:
            return
        most = f"{available_bytes * self.num_blocks // self.bytes}"
        if self.flag == "--kv-cache-memory-bytes":
            most = f"{available_bytes >> 20}MiB"
        raise CapacityError(
            f"the KV cache wants {gib(self.bytes)} ({self.num_blocks} blocks of {self.block_size} tokens), and after "
            f"the weights {gib(available_bytes)} of memory are there; lower {self.flag} to {most} at most"
        )


@dataclass(frozen=True)
class CacheWish:
    """What is wanted of the cache. `wanted_bytes` and `num_blocks` are the operator's, None: found here."""

    block_size: int
    max_model_len: int
    max_model_len_given: bool
    """Whether the operator asked for `max_model_len`; the model's own is reduced to what fits, with a note."""
    max_num_seqs: int
    wanted_bytes: int | None = None
    num_blocks: int | None = None
    default_bytes: int = DEFAULT_BYTES
    """Without a wish: at most this many bytes,"""
    default_share: float = DEFAULT_SHARE
    """and at most this share of what is there."""
    groups: tuple[CacheGroup, ...] = ONE_GROUP


def block_bytes(specs: Sequence[CacheSpec], block_size: int, slot_bytes: Callable[[int], int]) -> int:
    """Bytes of one block over all layers of the largest cache group; `slot_bytes` says them of one head's key."""
    sizes = [2 * spec.num_kv_heads * slot_bytes(spec.head_dim) for spec in specs]
    return max(sum(sizes[layer] for layer in group.layers) for group in group_layers(specs)) * block_size


def plan_cache(wish: CacheWish, bytes_per_block: int, available_bytes: int) -> CachePlan:
    """Decide the number of blocks.

    `available_bytes` is what can be taken after the weights. Without wishes: the least of the default bytes, the
    default share of that, and what max_num_seqs sequences of max_model_len can use. Raises CapacityError, naming the
    flag to change, when the wish is more than there is, or when not even one sequence of max_model_len fits.
    """
    blocks_per_sequence = len(wish.groups) * -(-wish.max_model_len // wish.block_size)
    needed = blocks_per_sequence + has_window(wish.groups)
    flag = "--kv-cache-memory-bytes"
    if wish.num_blocks is not None:
        num_blocks, flag = wish.num_blocks, "--num-gpu-blocks-override"
    elif wish.wanted_bytes is not None:
        num_blocks = wish.wanted_bytes // bytes_per_block
    else:
        given = min(wish.default_bytes, int(wish.default_share * available_bytes))
        useful = blocks_per_sequence * wish.max_num_seqs + has_window(wish.groups)
        num_blocks = min(useful, given // bytes_per_block)
    size = num_blocks * bytes_per_block
    small = size <= SMALL_SHARE * available_bytes
    plan = CachePlan(num_blocks, wish.block_size, wish.max_model_len, size, small, flag=flag, groups=wish.groups)
    plan.check_fits(available_bytes)
    if num_blocks >= needed:
        return plan
    found = f"{gib(size)} ({plan.num_tokens} tokens) are set aside of {gib(available_bytes)} there after the weights"
    wanted = f"{wish.max_model_len} tokens want {gib(needed * bytes_per_block)} of KV cache"
    most = min(needed, available_bytes // bytes_per_block)
    more = f"raise {flag} to {most}"
    if flag == "--kv-cache-memory-bytes":
        mebibytes = -(-most * bytes_per_block >> 20)
        more = f"raise {flag} to {f'{mebibytes}MiB' if mebibytes << 20 <= available_bytes else most * bytes_per_block}"
    if plan.num_tokens == 0:
        more = more if most else "use a smaller model or a machine with more memory"
        raise CapacityError(f"one block of {wish.block_size} tokens wants {gib(bytes_per_block)}, and {found}; {more}")
    if wish.max_model_len_given:
        fix = f"lower --max-model-len to {plan.num_tokens} at most"
        fix = f"{more}, or {fix}" if most == needed else fix
        raise CapacityError(f"one sequence of --max-model-len {wanted}, and {found}; {fix}")
    if most == num_blocks:
        more = "there is no memory for more"
    elif most < needed:
        more = f"{more} for {replace(plan, num_blocks=most).num_tokens}"
    note = f"context reduced to {plan.num_tokens} tokens: {wanted}, {found}; {more}"
    return replace(plan, max_model_len=plan.num_tokens, notes=(note,))


@dataclass(frozen=True)
class Footprint:
    """What a model asks of memory under the operator's settings, whatever memory there is."""

    model_name: str
    resolved: Resolved
    precision: Precision
    num_weights: int
    weights: WeightCounts
    """Bytes by part."""
    tables_bytes: int
    """Cosines and sines of the rotary positions, float32."""
    block_bytes: int
    wish: CacheWish

    @property
    def weights_bytes(self) -> int:
        """As the engine keeps them."""
        return self.weights.total

    @property
    def token_bytes(self) -> float:
        """Of keys and values of one token."""
        return len(self.wish.groups) * self.block_bytes / self.wish.block_size


def footprint_of(
    config: EngineConfig, model: ModelConfig, hardware: Hardware, device: Literal["cpu", "gpu"] | None = None
) -> Footprint:
    """What `model` will take. `device`: of a plan for another machine; None: what the settings say.

    Raises UsageError or ModelError as `resolve` does.
    """
    resolved = resolve(config, model, hardware, for_gpu=device == "gpu")
    device = "cpu" if resolved.device == "cpu" else "gpu"
    precision = choose_precision(model, config, device)
    wish = CacheWish(
        block_size=resolved.block_size,
        max_model_len=resolved.max_model_len,
        max_model_len_given=resolved.max_model_len_given,
        max_num_seqs=resolved.max_num_seqs,
        wanted_bytes=config.kv_cache_memory_bytes,
        num_blocks=config.num_blocks_override,
        groups=group_layers(model.cache_specs()),
    )
    if device == "gpu":
        wish = replace(wish, default_bytes=1 << 60, default_share=1.0)
    ropes = {layer.attention.rope for layer in model.layers if layer.attention.rope is not None}
    return Footprint(
        model_name=config.model_name,
        resolved=resolved,
        precision=precision,
        num_weights=count_weights(model).total,
        weights=count_bytes(model, precision),
        tables_bytes=sum(rope.rotary_dim // 2 * 2 * 4 for rope in ropes) * resolved.max_model_len,
        block_bytes=block_bytes(model.cache_specs(), resolved.block_size, precision.slot_bytes),
        wish=wish,
    )


def fit(footprint: Footprint, available_bytes: int) -> CachePlan:
    """Divide `available_bytes`, before anything is loaded, between weights and cache.

    Raises CapacityError with the sentence that `quire serve` and `quire plan` both end with.
    """
    needed = footprint.weights_bytes
    if needed > available_bytes:
        fix = "use a smaller model or a machine with more memory"
        if footprint.precision.name == "float32" and needed // 2 <= available_bytes:
            fix = f"--dtype bfloat16 needs {gib(needed // 2)}"
        raise CapacityError(
            f"model {footprint.model_name}: the weights need {gib(needed)} in {footprint.precision.name}, "
            f"{gib(available_bytes)} of memory are available; {fix}"
        )
    rest = max(0, available_bytes - needed - footprint.tables_bytes)
    return plan_cache(footprint.wish, footprint.block_bytes, rest)


def gib(size: int) -> str:
    """A size for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 // 10 else f"{size / 2**20:.2f} MiB"
