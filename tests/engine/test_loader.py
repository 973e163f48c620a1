"""Weights files that lie, and the loader that says so (RELIABILITY M09-M16, F61, F62)."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import PROMPT, tiny_checkpoint
from support.greedy import Driver, load_tiny

from quire.engine import safetensors_file
from quire.engine.errors import ModelError
from quire.engine.loader import load_model
from quire.engine.models.architectures import read_model_config
from quire.kernels import select
from quire.kernels.cpu.torch_backend import CpuKernels

WEIGHTS = "model.safetensors"
SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "vocab_size": 100}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source"), "llama", **SMALL)


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    for name in ("config.json", WEIGHTS):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    return tmp_path


def load(folder: Path, **options: Any):  # type: ignore[no-untyped-def]
    config = read_model_config(folder, "tiny")
    return load_model(folder, config, select("cpu", "cpu"), dtype=torch.float32, model_name="tiny", **options)


def failure(folder: Path, **options: Any) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder, **options)
    assert caught.value.exit_code == 3
    assert str(caught.value).startswith("model tiny: ")
    assert "; fix: " in str(caught.value)
    assert str(folder) not in str(caught.value), "a message never shows a full path"
    return str(caught.value)


def with_header(data: bytes, header: bytes) -> bytes:
    """The file's data behind another header."""
    old = struct.unpack("<Q", data[:8])[0]
    return struct.pack("<Q", len(header)) + header + data[8 + old :]


def change(edit: Callable[[dict[str, Any]], Any]) -> Callable[[bytes], bytes]:
    """A spoiler that edits the header's object."""

    def spoil(data: bytes) -> bytes:
        length = struct.unpack("<Q", data[:8])[0]
        header = json.loads(data[8 : 8 + length])
        edit(header)
        return with_header(data, json.dumps(header).encode())

    return spoil


NORM = "model.norm.weight"
SPOILED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut by one byte": (lambda data: data[:-1], r"file truncated .*expected (\d+) bytes, found (\d+)"),
    "cut in half": (lambda data: data[: len(data) // 2], r"file truncated .*expected (\d+) bytes, found (\d+)"),
    "cut in the header": (lambda data: data[:100], "file truncated .*expected a header of"),
    "empty": (lambda data: b"", "file truncated .*0 bytes"),
    "seven bytes": (lambda data: data[:7], "file truncated .*7 bytes"),
    "trailing bytes": (lambda data: data + b"more", r"trailing bytes .*expected (\d+) bytes, found (\d+)"),
    "header longer than the file": (lambda data: struct.pack("<Q", len(data)) + data[8:], "expected a header of"),
    "header over 100 MB": (lambda data: struct.pack("<Q", 2**40) + data[8:], "allowed are 100000000"),
    "header no UTF-8": (lambda data: with_header(data, b'{"\xff": 1}'), "no UTF-8 at byte 2"),
    "header no JSON": (lambda data: with_header(data, b"{'a': 1}"), "no JSON"),
    "header a list": (lambda data: with_header(data, b"[1]"), "expected a JSON object, found list"),
    "header too deep": (lambda data: with_header(data, b"[" * 100_000), "no JSON"),
    "name twice": (
        lambda data: with_header(data, b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{}}'),
        "a name stands twice",
    ),
    "unknown dtype": (change(lambda header: header[NORM].update(dtype="Q4_K")), f"unknown dtype .*Q4_K in {NORM}"),
    "integer weights": (change(lambda header: header[NORM].update(dtype="I32")), f"unsupported dtype .*{NORM} is I32"),
    "negative shape": (change(lambda header: header[NORM].update(shape=[-32])), "shape or data_offsets"),
    "no shape": (change(lambda header: header[NORM].pop("shape")), "shape or data_offsets"),
    "offsets backwards": (change(lambda header: header[NORM]["data_offsets"].reverse()), "shape or data_offsets"),
    "shape and offsets disagree": (change(lambda header: header[NORM].update(shape=[33])), "needs 132 bytes"),
    "overlap": (
        change(lambda header: header[NORM].update(data_offsets=[0, 128])),
        r"begins at byte|expected \d+ bytes|trailing",
    ),
    "no object": (change(lambda header: header.update({NORM: 5})), "unknown dtype"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_file_is_named(name: str, folder: Path) -> None:
    spoil, expected = SPOILED[name]
    (folder / WEIGHTS).write_bytes(spoil((folder / WEIGHTS).read_bytes()))
    message = failure(folder)
    assert re.search(expected, message), message
    assert f"({WEIGHTS})" in message


def test_too_many_entries_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_file, "MAX_TENSORS", 1000)
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({str(number): entry for number in range(1001)}).encode()
    (folder / WEIGHTS).write_bytes(with_header(b"\0" * 8, header))
    assert "1001 tensors, allowed are 1000" in failure(folder)


def rewrite(folder: Path, edit: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    edit(weights)
    save_file(weights, folder / WEIGHTS)


def test_missing_tensors_first_five_and_count(folder: Path) -> None:
    rewrite(folder, lambda weights: [weights.pop(name) for name in list(weights) if ".layers.0." in name])
    message = failure(folder)
    assert "tensors missing" in message
    assert "9: " in message
    assert "and 4 more (9 in all)" in message
    assert message.count("model.layers.0.") == 5


def test_wrong_shape_and_extra_tensors(folder: Path) -> None:
    rewrite(folder, lambda weights: weights.update({NORM: torch.ones(31)}))
    assert f"{NORM} is [31], expected [32]" in failure(folder)
    rewrite(folder, lambda weights: weights.update({NORM: torch.ones(32), "model.layers.7.x.weight": torch.ones(1)}))
    assert "unknown tensors (model.safetensors): 1: model.layers.7.x.weight" in failure(folder)


def test_ignorable_names_are_ignored(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "smollm", **SMALL)
    extra = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "lm_head.weight": torch.zeros(100, 32)}
    expected = Driver(load_tiny(folder)).feed([5, 6])
    rewrite(folder, lambda weights: weights.update(extra))
    assert torch.equal(Driver(load_tiny(folder)).feed([5, 6]), expected), "the tied head is the embedding"


def test_names_without_prefix(tmp_path: Path) -> None:
    """GPT-2's own files lack `transformer.` and hold masks that nothing needs."""
    folder = tiny_checkpoint(tmp_path, "gpt2", n_layer=1)
    expected = Driver(load_tiny(folder)).feed(PROMPT)

    def strip(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[name.removeprefix("transformer.")] = weights.pop(name)
        weights["h.0.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)

    rewrite(folder, strip)
    assert torch.equal(Driver(load_tiny(folder)).feed(PROMPT), expected)


def test_nan_is_found_when_asked_for(folder: Path) -> None:
    rewrite(folder, lambda weights: weights["model.layers.0.mlp.up_proj.weight"][3].fill_(float("inf")))
    load(folder)
    message = failure(folder, check_weights=True)
    assert "NaN or Inf" in message
    assert "model.layers.0.mlp.up_proj.weight" in message


@pytest.mark.parametrize("suffix", [".bin", ".pt"])
def test_pickles_are_never_loaded(suffix: str, folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / f"pytorch_model{suffix}").write_bytes(b"cos\nsystem\n(S'touch marker'\ntR.")
    message = failure(folder)
    assert "pickle files are never loaded" in message
    assert "convert the weights to safetensors" in message
    (folder / f"pytorch_model{suffix}").unlink()
    assert "no weights" in failure(folder)


def test_shards(tmp_path: Path) -> None:
    whole = tiny_checkpoint(tmp_path, "llama", **SMALL)
    folder = tiny_checkpoint(tmp_path, "llama", num_shards=3, **SMALL)
    assert torch.equal(Driver(load_tiny(folder)).feed([5, 6]), Driver(load_tiny(whole)).feed([5, 6]))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    (folder / "model-00002-of-00003.safetensors").rename(folder / "away")
    assert "shard missing (model-00002-of-00003.safetensors): 1 of 3 files" in failure(folder)
    for bad in ({}, {"weight_map": []}, {"weight_map": {"a": "../x.safetensors"}}, {"weight_map": {"a": 5}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(bad))
        assert "bad index" in failure(folder)
    (folder / "away").rename(folder / "model-00002-of-00003.safetensors")
    twice = {**index["weight_map"], "x": "model-00004.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": twice}))
    (folder / "model-00004.safetensors").write_bytes((folder / "model-00001-of-00003.safetensors").read_bytes())
    assert "stored twice" in failure(folder)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_are_cast(dtype: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", dtype=dtype, **SMALL)
    decoder = load_tiny(folder, "pytorch")
    stored = load_file(folder / WEIGHTS)["model.norm.weight"]
    assert stored.dtype == getattr(torch, dtype)
    assert torch.equal(decoder.final_norm.weight, stored.float())
    assert decoder.weights_bytes == sum(tensor.numel() * 4 for tensor in load_file(folder / WEIGHTS).values())


def test_where_vectors_are_float32_matrices_stay_small(tmp_path: Path) -> None:
    class Kernels(CpuKernels):
        def activation_dtype(self, weights: torch.dtype) -> torch.dtype:
            return torch.float32

    folder = tiny_checkpoint(tmp_path, "llama", dtype="bfloat16", **SMALL)
    config = read_model_config(folder, "tiny")
    decoder = load_model(folder, config, Kernels(), dtype=torch.bfloat16)
    assert decoder.final_norm.weight.dtype == torch.float32
    sizes = [tensor.numel() * (4 if tensor.dim() == 1 else 2) for tensor in load_file(folder / WEIGHTS).values()]
    assert decoder.weights_bytes == sum(sizes)


def test_progress_counts_bytes_of_the_files(folder: Path) -> None:
    heard: list[tuple[int, int]] = []
    load(folder, progress=lambda done, total: heard.append((done, total)))
    done = [count for count, _ in heard]
    assert done == sorted(done)
    total = sum(tensor.nbytes for tensor in load_file(folder / WEIGHTS).values())
    assert heard[-1] == (total, total)


def test_dummy_weights_depend_on_the_seed_alone(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    first, again, other = (Driver(load(folder, load_format="dummy", seed=seed)).feed([5, 6, 7]) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.isfinite(first).all()
    assert first.std() > 0.1
