"""The tensors of the KV cache, and what is said when they cannot be had."""

from __future__ import annotations

import errno

import pytest
import torch

from quire.engine import kv_cache
from quire.engine.cache_groups import group_layers
from quire.engine.errors import CapacityError
from quire.engine.kv_cache import KVCache
from quire.engine.models.config import CacheSpec
from quire.engine.plan import CachePlan, block_bytes

GIB = 1 << 30
BYTES = 1 << 20


@pytest.mark.parametrize("is_small", [True, False])
def test_tensors_are_apart_zero_and_of_the_right_shape(is_small: bool) -> None:
    specs = [CacheSpec(2, 8, None), CacheSpec(1, 4, None)]
    plan = CachePlan(5, 4, max_model_len=16, bytes=0, is_small=is_small)
    cache = KVCache(specs, plan, torch.float32, torch.device("cpu"))
    assert [tuple(tensor.shape) for tensor in cache.layers[0]] == [(5, 2, 4, 8)] * 2
    assert [tuple(tensor.shape) for tensor in cache.layers[1]] == [(5, 1, 4, 4)] * 2
    tensors = [tensor for layer in cache.layers for tensor in layer]
    assert not any(tensor.any() for tensor in tensors)
    for number, tensor in enumerate(tensors):
        tensor.fill_(number + 1)
    assert [tensor.unique().tolist() for tensor in tensors] == [[1], [2], [3], [4]]


def test_layers_in_the_same_place_of_their_groups_share_memory() -> None:
    specs = [CacheSpec(2, 8, window) for window in (None, 24, 24, None, 24)]
    groups = group_layers(specs)
    plan = CachePlan(5, 4, max_model_len=16, bytes=0, groups=groups)
    cache = KVCache(specs, plan, torch.float32, torch.device("cpu"))
    assert [group.layers for group in groups] == [(0, 3), (1, 2), (4,)]
    allocated = sum(tensor.nbytes for pair in cache.stripes for tensor in pair)
    assert allocated == 5 * block_bytes(specs, 4, lambda head_dim: 4 * head_dim)
    places = {layer: keys.data_ptr() for layer, (keys, _) in enumerate(cache.layers)}
    assert places[0] == places[1] == places[4] != places[2] == places[3]
    assert cache.by_layer(["full", "window", "rest"]) == ["full", "window", "window", "full", "rest"]
    cache.layers[1][0][3] = 1.0
    assert cache.layers[0][0][3].eq(1).all()
    assert cache.layers[0][0].sum() == 4 * 2 * 8


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOMEM])
def test_pages_that_cannot_be_had_at_once(error: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "_populate", lambda whole: error)
    plan = CachePlan(5, 4, max_model_len=16, bytes=BYTES)
    if error == errno.EINVAL:
        assert KVCache([CacheSpec(1, 16, None)], plan, torch.float32, torch.device("cpu")).layers[0][0].shape[0] == 5
    else:
        with pytest.raises(CapacityError, match="Cannot allocate memory"):
            KVCache([CacheSpec(1, 16, None)], plan, torch.float32, torch.device("cpu"))


def test_an_allocation_that_fails_is_a_capacity_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(kv_cache.mmap, "mmap", refuse)
    with pytest.raises(CapacityError, match=r"2\.00 GiB.*--kv-cache-memory-bytes"):
        KVCache([CacheSpec(1, 16, None)], CachePlan(1, 16, 16, bytes=2 * GIB), torch.float32, torch.device("cpu"))
