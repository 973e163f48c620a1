"""The KV cache: the tensors behind the blocks that `quire.engine.plan` counts.

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
from typing import TypeVar

import torch
from torch import Tensor

from quire.engine.errors import CapacityError
from quire.engine.models.config import CacheSpec
from quire.engine.plan import CachePlan, gib
from quire.engine.precision import SCALE_BYTES

T = TypeVar("T")

_ALIGNMENT = 4096
_PIECE_BYTES = 2 << 20
_MADV_POPULATE_WRITE = 23
"""Make every page present and writable in one call; Linux 5.14 and later, and without a name in Python's mmap."""


class KVCache:
    """The tensors: `layers[i]` is (keys, values) of layer i, each [blocks, kv_heads, block_size, D].

    In int8 a slot has four more bytes: its scale.

    Where there are several cache groups, layers that have the same place in their groups lie in the same memory, in
    the blocks of their own group: `stripes` has the tensors of each place once. All bytes are zero at first, and those
    of a null block remain so.
    """

    def __init__(self, specs: Sequence[CacheSpec], plan: CachePlan, dtype: torch.dtype, device: torch.device) -> None:
        self.groups = plan.groups
        """Which layers share a block table; a single one is of all layers."""
        scale = SCALE_BYTES if dtype == torch.int8 else 0
        members = [group.layers for group in plan.groups] if len(plan.groups) > 1 else [tuple(range(len(specs)))]
        all_shapes = [(plan.num_blocks, spec.num_kv_heads, plan.block_size, spec.head_dim + scale) for spec in specs]
        shapes = [all_shapes[layer] for layer in max(members, key=len)]
        try:
            tensors = _allocate([shape for shape in shapes for _ in range(2)], dtype, device, plan.is_small)
        except (OSError, MemoryError, RuntimeError) as error:
            raise CapacityError(
                f"the KV cache of {gib(plan.bytes)} could not be allocated ({error}); lower --kv-cache-memory-bytes"
            ) from error
        self.stripes: list[tuple[Tensor, Tensor]] = list(zip(tensors[::2], tensors[1::2], strict=True))
        """(keys, values) of each place in a group."""
        places = {layer: place for layers in members for place, layer in enumerate(layers)}
        self.layers: list[tuple[Tensor, Tensor]] = []
        for layer, shape in enumerate(all_shapes):
            keys, values = self.stripes[places[layer]]
            self.layers.append((keys.view(shape), values.view(shape)))
        self._group_of = {layer: number for number, layers in enumerate(members) for layer in layers}

    def by_layer(self, of_groups: Sequence[T]) -> list[T]:
        """What each layer has, of what its cache group has."""
        return [of_groups[self._group_of[layer]] for layer in range(len(self.layers))]

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
        threading.Thread(target=_populate, args=(whole,), name="kv-cache-pages").start()
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

    Piece by piece: the address space is locked meanwhile, and other threads must get memory in between. It stops when
    the program ends: a daemon thread that comes back from C then would abort the process.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for offset in range(0, whole.nbytes, _PIECE_BYTES):
        if not threading.main_thread().is_alive():
            break
        address = ctypes.c_void_p(whole.data_ptr() + offset)
        length = ctypes.c_size_t(min(_PIECE_BYTES, whole.nbytes - offset))
        if libc.madvise(address, length, _MADV_POPULATE_WRITE):
            return ctypes.get_errno()
    return 0
