"""A model out of a GGUF file is the model of the folder it was made of: config, weights, logits; and refusals."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from support.checkpoints import FAMILIES, PROMPT, tiny_checkpoint
from support.gguf_files import as_stored, write_gguf
from support.greedy import Driver

from quire.engine.config import EngineConfig
from quire.engine.errors import ModelError
from quire.engine.gguf_file import GgufFile
from quire.engine.gguf_weights import GgufWeights
from quire.engine.llm import LLM
from quire.engine.loader import load_model
from quire.engine.model_folder import resolve_model
from quire.engine.model_source import read_config, read_defaults
from quire.engine.models.decoder import Decoder
from quire.engine.models.rope import inverse_frequencies
from quire.engine.models.shapes import count_bytes
from quire.engine.precision import choose_precision
from quire.engine.sampling_params import SamplingParams
from quire.kernels import select

SMALL = {"num_hidden_layers": 1}
QUANTIZED = [(family, "Q8_0") for family in ("llama", "qwen2", "qwen3", "gpt2")]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to write files of."""
    return tiny_checkpoint(tmp_path_factory.mktemp("small"), "llama", **SMALL)


def load(path: Path, **options: Any) -> Decoder:
    config = read_config(path, "tiny")
    options = {"dtype": torch.float32} | options
    return load_model(path, config, select("reference", "cpu"), model_name="tiny", **options)


@pytest.mark.parametrize(
    ("family", "kind"),
    [*((family, "F32") for family in FAMILIES), *(("llama", kind) for kind in ("F16", "BF16", "Q4_0")), *QUANTIZED],
)
def test_logits_equal_those_of_the_folder(family: str, kind: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, family)
    path = write_gguf(folder, tmp_path / "m.gguf", kind)
    tokens, logits = Driver(load(path)).generate(PROMPT, 4)
    expected_tokens, expected = Driver(load(as_stored(folder, tmp_path / "again", kind))).generate(PROMPT, 4)
    assert tokens == expected_tokens
    if family == "gpt2":  # its folders hold the matrices turned, and a matmul may sum those in another order
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(logits, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_config_equals_that_of_the_folder(family: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, family)
    found = read_config(write_gguf(folder, tmp_path / "m.gguf"), "tiny")
    expected = read_config(folder, "tiny")
    assert replace(found, names=expected.names, bos_token_id=expected.bos_token_id) == expected


@pytest.mark.parametrize(("kind", "dtype"), [("F32", "float32"), ("F16", "float16"), ("Q8_0", "bfloat16")])
def test_what_the_dtype_is_said_to_be(kind: str, dtype: str, small: Path, tmp_path: Path) -> None:
    assert read_config(write_gguf(small, tmp_path / "m.gguf", kind), "tiny").torch_dtype == dtype


def test_smollm3_skips_rope_in_every_fourth_layer(small: Path, tmp_path: Path) -> None:
    config = json.loads((small / "config.json").read_text())
    folder = tiny_checkpoint(tmp_path, "llama", num_hidden_layers=4)
    config |= {"architectures": ["SmolLM3ForCausalLM"], "num_hidden_layers": 4}
    (folder / "config.json").write_text(json.dumps(config))
    path = write_gguf(folder, tmp_path / "m.gguf")
    assert [layer.attention.rope is None for layer in read_config(path, "tiny").layers] == [False] * 3 + [True]
    assert torch.equal(Driver(load(path)).feed(PROMPT), Driver(load(folder)).feed(PROMPT))


def test_weights_are_cast_to_what_the_engine_wants(small: Path, tmp_path: Path) -> None:
    path = write_gguf(small, tmp_path / "m.gguf", "Q8_0")
    heard: list[tuple[int, int]] = []
    decoder = load(path, dtype=torch.bfloat16, progress=lambda done, total: heard.append((done, total)))
    assert decoder.weights_bytes < 2 * load(path).weights_bytes / 3
    assert heard == sorted(heard)
    assert heard[-1][0] == heard[-1][1]


def test_llama_3_factors_divide_the_frequencies(small: Path, tmp_path: Path) -> None:
    factors = np.array([1, 1, 1.5, 2, 4, 8, 8, 8], dtype=np.float32)
    plain = read_config(write_gguf(small, tmp_path / "plain.gguf"), "tiny").layers[0].attention.rope
    path = write_gguf(small, tmp_path / "m.gguf", extra={"rope_freqs.weight": factors})
    rope = read_config(path, "tiny").layers[0].attention.rope
    assert plain is not None
    assert rope is not None
    expected = inverse_frequencies(plain, 64) / torch.from_numpy(factors)
    assert torch.equal(inverse_frequencies(rope, 64), expected)
    assert torch.equal(inverse_frequencies(rope, 1024), expected)
    assert load(path)


@pytest.mark.parametrize(("kind", "factor"), [("linear", 4.0), ("yarn", 4.0)])
def test_stretched_rope_equals_that_of_the_folder(kind: str, factor: float, tmp_path: Path) -> None:
    scaling = {"rope_type": kind, "factor": factor, "original_max_position_embeddings": 256}
    folder = tiny_checkpoint(tmp_path, "qwen2", rope_scaling=scaling, **SMALL)

    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(256)

    path = write_gguf(folder, tmp_path / "m.gguf", change=change)
    assert torch.equal(Driver(load(path)).feed(PROMPT), Driver(load(folder)).feed(PROMPT))


@pytest.mark.parametrize(("kind", "low", "high"), [("Q8_0", -127, 127), ("Q4_0", -8, 7)])
def test_codes_and_scales_make_the_weights(kind: str, low: int, high: int, small: Path, tmp_path: Path) -> None:
    path = write_gguf(small, tmp_path / "m.gguf", kind)
    config = read_config(path, "tiny")
    with closing(GgufFile(path, "tiny")) as file:
        kept = ("q8_0", "q4_0")
        weights = GgufWeights(file, config, lambda shape: torch.float32, True, lambda done, total: None, kept)
        for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.ffn_down.weight", "output.weight"):
            assert weights.common_kind([name.removesuffix(".weight")]) == kind.lower()
            codes, scales = weights.take_codes(name)
            assert (codes.dtype, scales.dtype) == (torch.int8, torch.float32)
            rows, columns = file.tensors[name].shape
            assert codes.shape == (rows, columns)
            assert scales.shape == (rows, columns // 32)
            assert low <= codes.min() < 0 < codes.max() <= high
            values = (codes.view(rows, -1, 32) * scales[..., None]).view(rows, columns)
            assert torch.equal(values, weights.take(name, (rows, columns)))
        assert weights.common_kind(["output_norm"]) is None
        assert weights.common_kind(["blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"]) == kind.lower()
        assert weights.common_kind(["blk.0.attn_q", "output_norm"]) is None


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_the_compiled_kernels_keep_codes_and_scales(kind: str, family: str, tmp_path: Path) -> None:
    """The same weights as worked out in float32: logits differ by the order of roundings alone."""
    path = write_gguf(tiny_checkpoint(tmp_path, family), tmp_path / "m.gguf", kind)
    config, backend = read_config(path, "tiny"), select("cpu", "cpu")
    precision = choose_precision(config, EngineConfig(model=str(path), model_name="tiny"), "cpu")
    assert precision.kept == (kind.lower(),)
    assert precision.name == kind.lower()
    assert precision.reason == f"{kind.lower()} weights, as the file, computed in float32"
    kept = load_model(path, config, backend, dtype=torch.float32, model_name="tiny", kept=precision.kept)
    worked_out = load_model(path, config, backend, dtype=torch.float32, model_name="tiny")
    assert kept.weights_bytes < worked_out.weights_bytes
    torch.testing.assert_close(Driver(kept).feed(PROMPT), Driver(worked_out).feed(PROMPT), rtol=1e-4, atol=1e-5)
    stored = load_model(path, config, backend, dtype=torch.bfloat16, model_name="tiny", kept=precision.kept)
    assert stored.weights_bytes == count_bytes(config, precision).total


def test_what_is_worked_out_is_said(small: Path, tmp_path: Path) -> None:
    path = write_gguf(small, tmp_path / "m.gguf", "Q8_0")
    config = read_config(path, "tiny")
    mixed = replace(config, quantized=(*config.quantized, ("blk.9.attn_q.weight", "q6_k")))
    options = {"model": str(path), "model_name": "tiny"}
    reason = choose_precision(mixed, EngineConfig(**options), "cpu").reason
    assert reason == "q8_0 weights, as the file; bfloat16 weights, worked out of q6_k, computed in float32"
    asked = choose_precision(config, EngineConfig(**options, dtype="bfloat16"), "cpu")
    assert asked.kept == ()
    assert asked.reason == "bfloat16 weights, as asked, computed in float32"


def q4_k(block: bytes) -> list[float]:
    """256 values of 144 bytes: two float16, eight six-bit scales and minima in twelve bytes, 128 bytes of halves."""
    scale, minimum = struct.unpack("<2e", block[:4])
    packed, halves = block[4:16], block[16:]
    values: list[float] = []
    for group in range(8):
        if group < 4:
            s, m = packed[group] & 63, packed[group + 4] & 63
        else:
            s = (packed[group + 4] & 15) | (packed[group - 4] >> 6 << 4)
            m = (packed[group + 4] >> 4) | (packed[group] >> 6 << 4)
        some = halves[group // 2 * 32 : group // 2 * 32 + 32]
        codes = [byte >> 4 if group % 2 else byte & 15 for byte in some]
        values += [scale * s * code - minimum * m for code in codes]
    return values


def q6_k(block: bytes) -> list[float]:
    """256 values of 210 bytes: 128 of low halves, 64 of high quarters, 16 int8 scales, a float16."""
    low, high, scales = block[:128], block[128:192], struct.unpack("16b", block[192:208])
    (scale,) = struct.unpack("<e", block[208:])
    values = []
    for i in range(256):
        half, quarter, place = i // 128, i // 32 % 4, i % 32
        nibble = low[half * 64 + quarter % 2 * 32 + place] >> (4 * (quarter // 2)) & 15
        bits = high[half * 32 + place] >> (2 * quarter) & 3
        values.append(scale * scales[i // 16] * ((nibble | bits << 4) - 32))
    return values


@pytest.mark.parametrize(("kind", "work_out", "scale_at"), [("Q4_K", q4_k, (0, 2)), ("Q6_K", q6_k, (208,))])
def test_k_quants_are_worked_out(
    kind: str, work_out: Callable[[bytes], list[float]], scale_at: tuple[int, ...], tmp_path: Path
) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", hidden_size=256, intermediate_size=256, **SMALL)
    stored = GGMLQuantizationType[kind]
    size = gguf.GGML_QUANT_SIZES[stored][1]
    blocks = np.random.default_rng(0).integers(0, 256, (256, size), dtype=np.uint8)
    for at in scale_at:
        blocks[:, at : at + 2] = np.frombuffer(struct.pack("<e", 0.01), dtype=np.uint8)
    name = "blk.0.ffn_down.weight"
    path = write_gguf(folder, tmp_path / "m.gguf", leave_out=(name,), stored={name: (blocks, stored)})
    config = read_config(path, "tiny")
    with closing(GgufFile(path, "tiny")) as file:
        kept = ("q8_0", "q4_0")
        weights = GgufWeights(file, config, lambda shape: torch.float32, True, lambda done, total: None, kept)
        found = weights.take(name, (256, 256))
        assert weights.common_kind([name.removesuffix(".weight")]) is None
    expected = torch.tensor([work_out(bytes(row)) for row in blocks])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_without_the_package_the_error_says_what_to_install(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", hidden_size=256, intermediate_size=256, **SMALL)
    stored = GGMLQuantizationType.Q4_K
    blocks = np.zeros((256, 144), dtype=np.uint8)
    name = "blk.0.ffn_down.weight"
    path = write_gguf(folder, tmp_path / "m.gguf", leave_out=(name,), stored={name: (blocks, stored)})
    plain = write_gguf(small, tmp_path / "plain.gguf", "Q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setitem(sys.modules, "gguf.quants", None)
    assert load(plain)
    with pytest.raises(ModelError, match=r"weights in Q4_K need the gguf package.*pip install 'quire\[gguf\]'"):
        load(path)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a tensor missing": ({"leave_out": ("blk.0.attn_k.weight",)}, r"tensors missing .*1: blk.0.attn_k.weight"),
    "no embedding": ({"leave_out": ("token_embd.weight",)}, "token_embd.weight is not there"),
    "an unknown tensor": ({"extra": {"blk.0.attn_x": np.zeros(4, np.float32)}}, "unknown tensors .*1: blk.0.attn_x"),
    "another shape": (
        {"leave_out": ("output_norm.weight",), "extra": {"output_norm.weight": np.ones(32, np.float32)}},
        r"wrong tensor shapes .*output_norm.weight is \[32\], expected \[64\]",
    ),
    "experts": ({"change": lambda writer: writer.add_expert_count(8)}, "llama.expert_count is 8"),
    "half a rope": ({"change": lambda writer: writer.add_rope_dimension_count(8)}, "rope.dimension_count is 8, and"),
    "an unknown stretching": (
        {
            "change": lambda writer: (
                writer.add_string("llama.rope.scaling.type", "x"),
                writer.add_rope_scaling_factor(2),
            )
        },
        "unknown rope type .*'x', supported are",
    ),
    "too few factors": ({"extra": {"rope_freqs.weight": np.ones(3, np.float32)}}, "holds 3 factors, expected 8"),
    "keys unlike values": (
        {"change": lambda writer: (writer.add_key_length(16), writer.add_value_length(32))},
        "key_length is 16, attention.value_length 32",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str, small: Path, tmp_path: Path) -> None:
    path = write_gguf(small, tmp_path / "m.gguf", **options)
    with pytest.raises(ModelError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith("model tiny: ")
    assert "(m.gguf)" in str(caught.value)


def bare(path: Path, architecture: str, *pairs: tuple[str, Any]) -> Path:
    """A file of metadata alone."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in pairs:
        if isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value) if isinstance(value, list) else writer.add_uint32(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((8, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("architecture", "pairs", "message"),
    [
        ("gemma3", [], "unknown architecture .*'gemma3', supported are llama, qwen2, qwen3, smollm3, gpt2"),
        ("llama", [], "field missing .*llama.attention.head_count is not given"),
        (
            "llama",
            [("llama.attention.head_count", "four")],
            "llama.attention.head_count is 'four', expected an integer",
        ),
        ("llama", [("llama.attention.head_count", [4, 2])], r"head_count differs from layer to layer: \[2, 4\]"),
        ("llama", [("llama.attention.head_count", 4), ("llama.embedding_length", 10)], "llama.block_count is not"),
    ],
)
def test_metadata_that_cannot_be_served(
    architecture: str, pairs: list[tuple[str, Any]], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        read_config(bare(tmp_path / "m.gguf", architecture, *pairs), "tiny")


def test_nan_is_found_when_asked_for(small: Path, tmp_path: Path) -> None:
    path = write_gguf(small, tmp_path / "m.gguf")
    with closing(GgufFile(path, "tiny")) as file:
        at = file.tensors["blk.0.ffn_up.weight"].begin
    with path.open("r+b") as out:
        out.seek(at + 40)
        out.write(struct.pack("<f", float("nan")))
    assert load(path)
    with pytest.raises(ModelError, match=r"NaN or Inf in the weights .*blk.0.ffn_up.weight"):
        load(path, check_weights=True)


def test_how_the_makers_want_it_sampled(small: Path, tmp_path: Path) -> None:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.add_float32("general.sampling.temp", 0.7)
        writer.add_int32("general.sampling.top_k", 20)
        writer.add_float32("general.sampling.top_p", 0.8)
        writer.add_float32("general.sampling.min_p", 0.0)
        writer.add_float32("general.sampling.penalty_repeat", 1.05)

    found = read_defaults(write_gguf(small, tmp_path / "m.gguf", change=change), "tiny")
    assert set(found.eos_token_ids) == set(read_defaults(small, "tiny").eos_token_ids)
    assert (found.temperature, found.top_k, found.top_p, found.min_p) == (0.7, 20, 0.8, 0.0)
    assert found.repetition_penalty == 1.05


def test_a_folder_with_one_file_stands_for_it(small: Path, tmp_path: Path) -> None:
    path = write_gguf(small, tmp_path / "m.gguf")
    assert resolve_model(str(path)) == path
    assert resolve_model(str(tmp_path)) == path
    assert resolve_model(str(small)) == small
    (tmp_path / "other.gguf").write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match=r"several GGUF files \(m.gguf\): the folder holds 2 of them: m.gguf, other"):
        resolve_model(str(tmp_path))


def test_a_missing_file_is_no_name_of_the_hub() -> None:
    with pytest.raises(ModelError, match="no such folder or GGUF file"):
        resolve_model("nothing-here.gguf")


def test_llm_answers_as_from_the_folder(small: Path, tmp_path: Path) -> None:
    path = write_gguf(small, tmp_path / "m.gguf")
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    answers = []
    for model in (small, path):
        with LLM(model, dtype="float32", kv_cache_memory_bytes=1 << 20, max_model_len=64) as llm:
            answers.append(llm.generate("The small house", params)[0].outputs[0].token_ids)
    assert answers[0] == answers[1]
