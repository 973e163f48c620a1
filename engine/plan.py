"""What a model takes of memory, and how many blocks there is room for: arithmetic alone, torch-free.

`quire plan` prints these figures from config.json, and the engine allocates by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire.engine.errors import CapacityError
from quire.engine.models.config import CacheSpec

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

    @property
    def num_tokens(self) -> int:
        """Tokens that fit."""
        return self.num_blocks * self.block_size

    @property
    def max_concurrency(self) -> float:
        """How many sequences of the greatest length fit at once."""
        return self.num_blocks / -(-self.max_model_len // self.block_size)


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


def block_bytes(specs: Sequence[CacheSpec], block_size: int, itemsize: int) -> int:
    """Bytes of one block over all layers, keys and values of `itemsize` bytes each."""
    return sum(2 * spec.num_kv_heads * spec.head_dim for spec in specs) * block_size * itemsize


def plan_cache(wish: CacheWish, bytes_per_block: int, available_bytes: int) -> CachePlan:
    """Decide the number of blocks.

    `available_bytes` is what can be taken after the weights. Without wishes: the least of 4 GiB, 40 % of that, and what
    max_num_seqs sequences of max_model_len can use. Raises CapacityError, naming the flag to change, when the wish is
    more than there is, or when not even one sequence of max_model_len fits.
    """
    blocks_per_sequence = -(-wish.max_model_len // wish.block_size)
    usable = blocks_per_sequence * wish.max_num_seqs
    if wish.num_blocks is not None:
        num_blocks, flag = wish.num_blocks, "--num-gpu-blocks-override"
    elif wish.wanted_bytes is not None:
        num_blocks, flag = wish.wanted_bytes // bytes_per_block, "--kv-cache-memory-bytes"
    else:
        given = min(DEFAULT_BYTES, int(DEFAULT_SHARE * available_bytes))
        num_blocks, flag = min(usable, given // bytes_per_block), "--kv-cache-memory-bytes"
    size = num_blocks * bytes_per_block
    if size > available_bytes:
        raise CapacityError(
            f"the KV cache wants {gib(size)} ({num_blocks} blocks of {wish.block_size} tokens), and after the weights "
            f"{gib(available_bytes)} of memory are there; lower {flag}"
        )
    max_model_len = wish.max_model_len
    notes: tuple[str, ...] = ()
    if num_blocks < blocks_per_sequence:
        max_model_len = num_blocks * wish.block_size
        wanted = f"{wish.max_model_len} tokens want {gib(blocks_per_sequence * bytes_per_block)} of KV cache"
        found = f"{gib(size)} ({max_model_len} tokens) are set aside of {gib(available_bytes)} there after the weights"
        if wish.max_model_len_given or max_model_len < 1:
            raise CapacityError(
                f"one sequence of --max-model-len {wanted}, and {found}; "
                f"raise {flag}, or lower --max-model-len to {max_model_len} at most"
            )
        notes = (f"context reduced to {max_model_len} tokens: {wanted}, {found}; raise {flag} for more",)
    small = size <= SMALL_SHARE * available_bytes
    return CachePlan(num_blocks, wish.block_size, max_model_len, size, small, notes)


def gib(size: int) -> str:
    """A size for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 // 10 else f"{size / 2**20:.2f} MiB"
