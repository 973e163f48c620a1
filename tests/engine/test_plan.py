"""How many blocks: memory, use, the operator's wish; what does not fit says bytes wanted, bytes there, and the flag."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest

from quire.benchmarks.shapes import SHAPES
from quire.engine.cache_groups import group_layers
from quire.engine.config import EngineConfig
from quire.engine.errors import CapacityError
from quire.engine.hardware import Hardware
from quire.engine.models.architectures import read_model_config
from quire.engine.models.config import CacheSpec
from quire.engine.plan import CacheWish, Footprint, block_bytes, fit, footprint_of, plan_cache

GIB = 1 << 30
BYTES = 1 << 20


def wish(**fields: Any) -> CacheWish:
    return CacheWish(
        **({"block_size": 16, "max_model_len": 1024, "max_model_len_given": True, "max_num_seqs": 8} | fields)
    )


def test_block_bytes_counts_keys_and_values_of_every_layer() -> None:
    specs = [CacheSpec(2, 64, None), CacheSpec(1, 32, 24)]
    assert block_bytes(specs, 16, lambda head_dim: 2 * head_dim) == 2 * 2 * 16 * (2 * 64 + 1 * 32)


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
    ("windows", "num_groups", "null"), [((None, None), 1, 0), ((24, 24), 1, 1), ((None, 24), 2, 1)]
)
def test_each_group_has_blocks_of_its_own(windows: tuple[int | None, ...], num_groups: int, null: int) -> None:
    groups = group_layers([CacheSpec(2, 8, window) for window in windows])
    plan = plan_cache(wish(groups=groups), BYTES, 64 * GIB)
    assert plan.num_blocks == 8 * 64 * num_groups + null, "what 8 sequences of 1024 can use"
    assert (plan.num_tokens, plan.max_concurrency, plan.blocks_of(17)) == (8 * 1024, 8, 2 * num_groups)
    exact = wish(groups=groups, num_blocks=64 * num_groups + null)
    assert plan_cache(exact, BYTES, 64 * GIB).num_tokens == 1024
    with pytest.raises(CapacityError, match="lower --max-model-len to 1008 at most"):
        plan_cache(dataclasses.replace(exact, num_blocks=64 * num_groups + null - 1), BYTES, 64 * GIB)


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


def footprint(folder: Path, values: dict[str, Any], device: Literal["cpu", "gpu"] = "gpu", **fields: Any) -> Footprint:
    (folder / "config.json").write_text(json.dumps(values))
    config = EngineConfig(model=str(folder), model_name="big", **fields)
    return footprint_of(config, read_model_config(folder, "big"), Hardware(cores=4), device)


def test_the_figures_of_llama_3_1_8b(tmp_path: Path) -> None:
    """8,030,261,248 parameters, as its card says; 128 KiB of keys and values a token (docs: PERFORMANCE)."""
    found = footprint(tmp_path, SHAPES["llama-3.1-8b"])
    assert found.num_weights == 8_030_261_248
    assert (found.precision.name, found.weights_bytes, found.token_bytes) == ("bfloat16", 16_060_522_496, 131_072)
    assert found.tables_bytes == 131072 * 128 * 4
    plan = fit(found, 80 * GIB)
    rest = 80 * GIB - found.weights_bytes - found.tables_bytes
    assert plan.num_blocks == rest // (16 * 131_072)
    assert found.resolved.max_num_seqs == 256


def test_weights_that_do_not_fit_name_the_flag_that_helps(tmp_path: Path) -> None:
    found = footprint(tmp_path, SHAPES["llama-3.1-8b"], "cpu", dtype="float32")
    with pytest.raises(CapacityError, match=r"29\.92 GiB in float32, 20\.00 GiB .*; --dtype bfloat16 needs 14\.96 GiB"):
        fit(found, 20 * GIB)
    with pytest.raises(CapacityError, match="use a smaller model or a machine with more memory"):
        fit(found, 10 * GIB)


def test_the_largest_sizes_that_a_config_may_name_are_refused(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 1024, "hidden_size": 131072, "vocab_size": 4_194_304, "intermediate_size": 2**20}
    found = footprint(
        tmp_path, SHAPES["llama-3.1-8b"] | sizes | {"num_attention_heads": 4096, "num_key_value_heads": 4096}
    )
    with pytest.raises(CapacityError, match="the weights need"):
        fit(found, 1000 * GIB)


def test_what_a_sentence_advises_fits() -> None:
    """The amounts that the sentences name are accepted when they are followed."""
    for fields in ({"wanted_bytes": 10 * BYTES}, {"num_blocks": 3}, {}, {"wanted_bytes": 900 * BYTES}):
        with pytest.raises(CapacityError) as caught:
            plan_cache(wish(max_model_len=2048, **fields), BYTES, 150 * BYTES + 7)
        flag, amount = re.findall(r"(?:raise|lower) (--\S+) to (\d+)", str(caught.value))[0]
        follow = {
            "--kv-cache-memory-bytes": {"wanted_bytes": int(amount) * BYTES},
            "--num-gpu-blocks-override": {"num_blocks": int(amount)},
        }[flag]
        assert plan_cache(wish(max_model_len=2048, **follow), BYTES, 150 * BYTES + 7).num_tokens >= 2048


def test_a_note_says_how_much_more_could_be_had() -> None:
    asked = wish(max_model_len=4096, max_model_len_given=False)
    note = plan_cache(asked, BYTES, 100 * BYTES).notes[0]
    assert "raise --kv-cache-memory-bytes to 100MiB for 1600" in note
    assert (
        "there is no memory for more"
        in plan_cache(wish(**vars(asked) | {"num_blocks": 100}), BYTES, 100 * BYTES).notes[0]
    )


@pytest.mark.parametrize(
    ("windows", "num_tokens", "held"),
    [
        ((None,), 1024, 64),
        ((24,), 1024, 2),  # tokens 1000 .. 1023 lie in blocks 62 and 63
        ((24,), 1009, 3),  # 985 .. 1008: blocks 61, 62 and the first slot of 63
        ((24,), 20, 2),
        ((None, 24), 1024, 66),
    ],
)
def test_blocks_that_a_window_has_slid_past_are_not_held(
    windows: tuple[int | None, ...], num_tokens: int, held: int
) -> None:
    groups = group_layers([CacheSpec(2, 8, window) for window in windows])
    plan = plan_cache(wish(groups=groups), BYTES, 64 * GIB)
    assert plan.blocks_held(num_tokens) == held
    assert plan.concurrency(num_tokens) == plan.num_usable_blocks / held
