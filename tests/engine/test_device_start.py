"""From a configuration with --device cuda to an engine that runs, on a stub in the GPU's place."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import PROMPT, tiny_checkpoint
from support.device_stub import StubDevice
from support.tensor_kernels import TensorKernels

from quire.engine import hardware, process
from quire.engine.config import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.device_memory import Measured, worst_steps
from quire.engine.errors import CapacityError, UsageError
from quire.engine.gpu import Gpu
from quire.engine.messages import Add, Ready, pack_ids, unpack_ids
from quire.engine.resolve import Resolved
from quire.engine.sampling_params import SamplingParams
from quire.kernels.cpu.torch_backend import CpuKernels

MIB = 1 << 20
GPU = Gpu("a stub", 600 * MIB, 600 * MIB)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.getbasetemp() / "tiny", "llama")


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> StubDevice:
    device = StubDevice(watch=False)
    monkeypatch.setattr(process.kernels, "select", lambda *arguments, **options: TensorKernels())
    monkeypatch.setattr(hardware, "find_gpu", lambda: GPU)
    return device


def build_engine(config: EngineConfig, device: StubDevice) -> tuple[EngineCore, Ready]:
    return process.build_engine(config, make_device=lambda: device)


def configuration(folder: Path, **fields: Any) -> EngineConfig:
    options: dict[str, Any] = {"max_num_batched_tokens": 64, "max_num_seqs": 4, "max_model_len": 128, "threads": 1}
    return EngineConfig(model=str(folder), model_name="tiny", device="cuda", dtype="float32", **options | fields)


def answer(config: EngineConfig, device: StubDevice) -> list[int]:
    core, _ = build_engine(config, device)
    core.add(Add("one", pack_ids(list(PROMPT)), SamplingParams(temperature=0, max_tokens=12)), 0.0)
    tokens: list[int] = []
    while core.has_work():
        outputs = core.step(time.monotonic)
        for row in outputs.rows if outputs is not None else ():
            tokens += unpack_ids(row.token_ids)
    return tokens


def test_it_answers_as_the_cpu_does(folder: Path, stub: StubDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    found = answer(configuration(folder), stub)
    assert stub.num_replays > 0
    monkeypatch.undo()
    cpu = EngineConfig(model=str(folder), model_name="tiny", kernels="pytorch", dtype="float32", threads=1)
    assert found == answer(cpu, stub)
    assert len(found) == 12


def test_the_facts_say_what_was_chosen(folder: Path, stub: StubDevice) -> None:
    _, ready = build_engine(configuration(folder), stub)
    assert ready.device == "cuda"
    assert ready.kernels == "tensors kernels on cuda, a stub, decode steps recorded; float32, as asked"
    assert list(ready.seconds) == ["weights", "profile", "kv_cache", "recordings", "warmup"]
    replays = stub.num_replays
    _, ready = build_engine(configuration(folder, enforce_eager=True), stub)
    assert "every kernel launched by itself" in ready.kernels
    assert stub.num_replays == replays


def test_the_cache_takes_what_is_left_of_the_share(folder: Path, stub: StubDevice) -> None:
    """The stub's driver takes 87 MiB, and its tensors are not counted."""
    sizes = [
        build_engine(configuration(folder, gpu_memory_utilization=share, max_num_seqs=64, max_model_len=1024), stub)[1]
        for share in (0.15, 0.16)
    ]
    more, block = sizes[1].kv_cache_bytes - sizes[0].kv_cache_bytes, sizes[0].kv_cache_bytes // sizes[0].num_blocks
    assert abs(more - 6 * MIB) <= block
    with pytest.raises(CapacityError, match=r"a step wants .* lower --max-num-batched-tokens"):
        build_engine(configuration(folder, gpu_memory_utilization=0.1), stub)


def test_kernels_that_cannot_sample_on_a_gpu_are_refused(
    folder: Path, stub: StubDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process.kernels, "select", lambda *arguments, **options: CpuKernels())
    with pytest.raises(UsageError, match="--kernels reference: they do not sample on a GPU; use --kernels triton"):
        build_engine(configuration(folder, kernels="reference"), stub)


def test_what_is_left_for_the_cache() -> None:
    found = Measured(driver=600, worst_step=1000, recordings=300)
    assert found.room(10_000) == 8100
    with pytest.raises(CapacityError, match="--gpu-memory-utilization"):
        found.room(1900)


@pytest.mark.parametrize(("seqs", "budget", "longest"), [(4, 64, 128), (8, 8, 128), (1, 64, 10), (3, 100, 1000)])
def test_the_worst_step_is_as_large_as_a_step_may_be(seqs: int, budget: int, longest: int) -> None:
    resolved = Resolved("cuda", 1, 16, longest, True, seqs, budget, 600)
    prompts, decode = worst_steps(resolved, 1, 20)
    assert prompts.num_tokens == min(budget, seqs * (longest - 1))
    assert decode.num_tokens == seqs == sum(len(work.samples) for work in prompts.work)
    for first, second in zip(prompts.work, decode.work, strict=True):
        assert second.start == first.num_tokens
        assert len(first.new_block_ids[0]) * 16 >= second.start + 1
        assert len(first.new_block_ids[0]) <= -(-longest // 16)
