"""Looking for a GPU, and what is decided when one is asked for."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import tiny_checkpoint

from quire.engine import hardware
from quire.engine.config import EngineConfig
from quire.engine.errors import CapacityError, UsageError
from quire.engine.gpu import Gpu, NoGpu, find_gpu
from quire.engine.hardware import Hardware, find_hardware
from quire.engine.model_source import read_config
from quire.engine.models.config import ModelConfig
from quire.engine.plan import fit, footprint_of
from quire.engine.precision import choose_precision
from quire.engine.resolve import Resolved, resolve

GIB = 1 << 30
H200 = Gpu("NVIDIA H200", 140 * GIB, 139 * GIB)
ANSWER = "NVIDIA H200, 143771, 143000\n"


def cuda_build() -> str:
    return "2.13.0+cu130"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    folder: Path = tiny_checkpoint(tmp_path_factory.getbasetemp() / "tiny", "llama")
    return read_config(folder, "tiny")


def test_the_driver_is_asked_for_the_first_visible_gpu() -> None:
    asked: list[Sequence[str]] = []

    def ask(words: Sequence[str]) -> str:
        asked.append(words)
        return ANSWER

    assert find_gpu(ask, {}, cuda_build) == Gpu("NVIDIA H200", 143771 << 20, 143000 << 20)
    find_gpu(ask, {"CUDA_VISIBLE_DEVICES": "3,1"}, cuda_build)
    assert [words[2] for words in asked] == ["0", "3"]


def fails(error: Exception) -> Callable[[Sequence[str]], str]:
    def ask(words: Sequence[str]) -> str:
        raise error

    return ask


@pytest.mark.parametrize(
    ("ask", "environment", "version", "words"),
    [
        (fails(AssertionError()), {}, "2.13.0+cpu", "without CUDA"),
        (fails(AssertionError()), {"CUDA_VISIBLE_DEVICES": ""}, "2.13.0", "hides every GPU"),
        (fails(FileNotFoundError()), {}, "2.13.0", "no NVIDIA driver"),
        (
            fails(subprocess.CalledProcessError(9, "x", "No devices were found\n")),
            {},
            "2.13.0",
            "No devices were found",
        ),
        (fails(subprocess.TimeoutExpired("nvidia-smi", 20)), {}, "2.13.0", "timed out"),
        (lambda words: "[N/A]", {}, "2.13.0", r"nvidia-smi said '\[N/A\]'"),
    ],
)
def test_why_there_is_none(ask: Any, environment: dict[str, str], version: str, words: str) -> None:
    with pytest.raises(NoGpu, match=words):
        find_gpu(ask, environment, lambda: version)


def test_nobody_looks_for_a_gpu_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "find_gpu", lambda: H200)
    assert find_hardware(2, "auto") == Hardware(2)
    assert find_hardware(2, "cuda") == Hardware(2, H200)


def resolved(model: ModelConfig, gpu: Gpu | None = H200, **fields: Any) -> Resolved:
    config = EngineConfig(model="folder", model_name="tiny", device="cuda", **fields)
    return resolve(config, model, Hardware(4, gpu, "no driver"))


def test_what_a_gpu_gets_where_nothing_is_asked(model: ModelConfig) -> None:
    found = resolved(model)
    assert (found.device, found.max_num_seqs, found.max_num_batched_tokens) == ("cuda", 256, 8192)
    assert resolved(model, max_num_batched_tokens=64).max_num_seqs == 64
    assert resolved(model, max_num_seqs=10_000).max_num_batched_tokens == 10_000


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gpu": None}, "--device cuda: no GPU to serve from: no driver; use --device cpu"),
        ({"gpu_memory_utilization": 1.5}, "--gpu-memory-utilization 1.5: must be above 0 and at most 1"),
        ({"batch_invariant": True, "kernels": "reference"}, "only the Triton kernels promise it"),
    ],
)
def test_what_is_refused(model: ModelConfig, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolved(model, **fields)


def test_a_gpu_computes_in_half_precision(model: ModelConfig) -> None:
    def name(torch_dtype: str | None, **fields: Any) -> str:
        config = EngineConfig(model="m", model_name="m", **fields)
        return choose_precision(replace(model, torch_dtype=torch_dtype), config, "gpu").name

    assert [name("float32"), name(None), name("float16"), name("bfloat16")] == ["bfloat16"] * 2 + [
        "float16",
        "bfloat16",
    ]
    assert name("bfloat16", dtype="float32") == "float32"
    for fields in ({"quantization": "int8"}, {"kv_cache_dtype": "int8"}):
        with pytest.raises(UsageError, match="only the compiled CPU kernels have it; leave the flag out on a GPU"):
            name("bfloat16", **fields)


def test_the_share_bounds_weights_and_cache_together(model: ModelConfig) -> None:
    assert H200.limit(None) == 126 * GIB
    assert H200.limit(0.5) == 70 * GIB
    assert replace(H200, free_bytes=GIB).limit(0.5) == GIB
    config = EngineConfig(model="folder", model_name="tiny", device="cuda")
    footprint = footprint_of(config, model, Hardware(4, H200))
    with pytest.raises(CapacityError, match=r"model tiny: the weights need .* in bfloat16"):
        fit(footprint, 1000)
