"""How many blocks: memory, use, the operator's wish; what does not fit says bytes wanted, bytes there, and the flag."""

from __future__ import annotations

from typing import Any

import pytest

from quire.engine.errors import CapacityError
from quire.engine.models.config import CacheSpec
from quire.engine.plan import CacheWish, block_bytes, plan_cache

GIB = 1 << 30
BYTES = 1 << 20


def wish(**fields: Any) -> CacheWish:
    return CacheWish(
        **({"block_size": 16, "max_model_len": 1024, "max_model_len_given": True, "max_num_seqs": 8} | fields)
    )


def test_block_bytes_counts_keys_and_values_of_every_layer() -> None:
    specs = [CacheSpec(2, 64, None), CacheSpec(1, 32, 24)]
    assert block_bytes(specs, 16, itemsize=2) == 2 * 2 * 16 * (2 * 64 + 1 * 32)


@pytest.mark.parametrize(
    ("fields", "available", "num_blocks"),
    [
        ({}, 64 * GIB, 512),  # what 8 sequences of 1024 can use
        ({"max_num_seqs": 1000}, 64 * GIB, 4096),  # 4 GiB
        ({"max_num_seqs": 1000}, 5 * GIB, 2048),  # 40 % of 5 GiB
        ({"wanted_bytes": 200 * BYTES + 5}, GIB, 200),
        ({"num_blocks": 64}, GIB, 64),
        ({"wanted_bytes": GIB, "num_blocks": 70}, GIB, 70),
    ],
)
def test_number_of_blocks(fields: dict[str, Any], available: int, num_blocks: int) -> None:
    plan = plan_cache(wish(**fields), BYTES, available)
    assert (plan.num_blocks, plan.bytes, plan.max_model_len) == (num_blocks, num_blocks * BYTES, 1024)
    assert plan.num_tokens == num_blocks * 16
    assert plan.max_concurrency == num_blocks / 64


@pytest.mark.parametrize(
    ("fields", "available", "words"),
    [
        ({"wanted_bytes": 2 * GIB}, GIB, ["2.00 GiB", "1.00 GiB", "--kv-cache-memory-bytes"]),
        ({"num_blocks": 2048}, GIB, ["2.00 GiB", "1.00 GiB", "--num-gpu-blocks-override"]),
        ({"num_blocks": 63}, GIB, ["1008", "--max-model-len", "--num-gpu-blocks-override"]),
        ({"wanted_bytes": 10 * BYTES}, GIB, ["10.00 MiB", "64.00 MiB", "160", "--max-model-len"]),
        ({}, 100 * BYTES, ["64.00 MiB", "640", "--max-model-len", "--kv-cache-memory-bytes"]),
        ({"max_model_len_given": False}, BYTES, ["--kv-cache-memory-bytes"]),
    ],
)
def test_what_does_not_fit(fields: dict[str, Any], available: int, words: list[str]) -> None:
    with pytest.raises(CapacityError) as caught:
        plan_cache(wish(**fields), BYTES, available)
    assert caught.value.exit_code == 5
    for word in words:
        assert word in str(caught.value)


def test_a_context_nobody_asked_for_is_reduced_with_a_note() -> None:
    plan = plan_cache(wish(max_model_len_given=False), BYTES, 100 * BYTES)
    assert plan.max_model_len == 640 == plan.num_tokens
    assert "640" in plan.notes[0]


def test_small_is_beside_what_is_free() -> None:
    assert plan_cache(wish(), BYTES, 64 * GIB).is_small
    assert not plan_cache(wish(), BYTES, 2 * GIB).is_small
