"""The KV cache: how many blocks there are memory and use for, and the tensors behind them.

Each layer has two tensors [blocks, kv_heads, block_size, D]. On the CPU they lie in one mapping of huge pages where the
system gives them, and every page is touched at start, so that too little memory ends the start and not the run. A cache
that is small beside what is free cannot end anything: a thread touches its pages while the engine serves already, since
a virtual machine may take seconds to get them from its host.
"""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quire.engine.errors import CapacityError
from quire.engine.models.config import CacheSpec

DEFAULT_BYTES = 4 << 30
DEFAULT_SHARE = 0.4
SMALL_SHARE = 1 / 8
_ALIGNMENT = 4096
_PIECE_BYTES = 2 << 20
_MADV_POPULATE_WRITE = 23
"""Make every page present and writable in one call; Linux 5.14 and later, and without a name in Python's mmap."""


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


def block_bytes(specs: Sequence[CacheSpec], block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block over all layers, keys and values."""
    return sum(2 * spec.num_kv_heads * spec.head_dim for spec in specs) * block_size * dtype.itemsize


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


class KVCache:
    """The tensors: `layers[i]` is (keys, values) of layer i, each [blocks, kv_heads, block_size, D]."""

    def __init__(self, specs: Sequence[CacheSpec], plan: CachePlan, dtype: torch.dtype, device: torch.device) -> None:
        shapes = [(plan.num_blocks, spec.num_kv_heads, plan.block_size, spec.head_dim) for spec in specs]
        try:
            tensors = _allocate([shape for shape in shapes for _ in range(2)], dtype, device, plan.is_small)
        except (OSError, MemoryError, RuntimeError) as error:
            raise CapacityError(
                f"the KV cache of {gib(plan.bytes)} could not be allocated ({error}); lower --kv-cache-memory-bytes"
            ) from error
        self.layers: list[tuple[Tensor, Tensor]] = list(zip(tensors[::2], tensors[1::2], strict=True))

    def copy_pairs(self, pairs: Sequence[tuple[int, int]]) -> Tensor:
        """(source, target) block ids as the int64 [N, 2] that `Kernels.copy_blocks` reads."""
        return torch.tensor(pairs, dtype=torch.int64, device=self.layers[0][0].device).view(-1, 2)


def _allocate(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device, later: bool) -> list[Tensor]:
    if device.type != "cpu":
        return [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    sizes = [-(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT for shape in shapes]
    mapping = mmap.mmap(-1, max(sum(sizes), _ALIGNMENT), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(mapping, dtype=torch.uint8)
    if later:
        threading.Thread(target=_populate, args=(whole,), name="kv-cache-pages", daemon=True).start()
    elif error := _populate(whole):
        if error != errno.EINVAL:
            raise OSError(error, os.strerror(error))
        whole[::_ALIGNMENT].zero_()
    tensors, offset = [], 0
    for shape, size in zip(shapes, sizes, strict=True):
        part = whole[offset : offset + math.prod(shape) * dtype.itemsize]
        tensors.append(part.view(dtype).view(shape))
        offset += size
    return tensors


def _populate(whole: Tensor) -> int:
    """Make every page present, whatever it holds; 0, or the errno (EINVAL: a kernel that cannot).

    Piece by piece: the address space is locked meanwhile, and other threads must get memory in between.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for offset in range(0, whole.nbytes, _PIECE_BYTES):
        address = ctypes.c_void_p(whole.data_ptr() + offset)
        length = ctypes.c_size_t(min(_PIECE_BYTES, whole.nbytes - offset))
        if libc.madvise(address, length, _MADV_POPULATE_WRITE):
            return ctypes.get_errno()
    return 0


def gib(size: int) -> str:
    """A size for people."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 // 10 else f"{size / 2**20:.2f} MiB"
