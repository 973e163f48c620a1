"""The goals on a GPU: bounds, rows and verdicts from planted figures, and the engine's figures on a stub."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import tiny_checkpoint
from support.device_stub import StubDevice
from support.tensor_kernels import TensorKernels

from quire.benchmarks import gpu_kernels, offline
from quire.benchmarks.goal_rows import table
from quire.benchmarks.gpu_engine import GpuEngine
from quire.benchmarks.gpu_goals import file_name, rows, served_rate
from quire.benchmarks.gpu_rows import (
    Decode,
    GpuLimits,
    GpuMeasured,
    Offline,
    Prefix,
    gpu_goals,
    offline_bound,
    step_bound,
)
from quire.benchmarks.shapes import write_shape
from quire.clients.terminal import CommandFailed
from quire.engine import hardware, process
from quire.engine.gpu import Gpu
from quire.engine.model_source import read_config
from quire.engine.models.config import ModelConfig

H200 = GpuLimits(copy_gb_per_s=4300, tflop_per_s=790)
PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
NO_KERNELS = gpu_kernels.Result("none", "", "", 1.0, 1.0, [])


def shape(name: str, folder: Path) -> ModelConfig:
    return read_config(write_shape(name, folder), name)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("llama-3.1-8b", {1: 3.52, 8: 3.74, 32: 4.49, 128: 7.49, 256: 12.85}),
        ("qwen3-0.6b", {1: 0.30, 8: 0.50, 32: 1.15, 128: 3.77, 256: 7.38}),
    ],
)
def test_the_bound_of_a_step(name: str, wanted: dict[int, float], tmp_path: Path) -> None:
    """The figures that were worked out by hand for this device."""
    model = shape(name, tmp_path)
    assert {batch: 1e3 * step_bound(model, H200, batch, 1024) for batch in wanted} == pytest.approx(wanted, rel=0.02)


def test_the_bound_of_requests_together_is_that_of_their_steps(tmp_path: Path) -> None:
    model = shape("qwen3-0.6b", tmp_path)
    alone = offline_bound(model, H200, [(100, 1)])
    assert offline_bound(model, H200, [(100, 3)]) == pytest.approx(
        alone + step_bound(model, H200, 1, 101) + step_bound(model, H200, 1, 102)
    )
    both = offline_bound(model, H200, [(100, 3), (100, 2)])
    assert both == pytest.approx(2 * alone + step_bound(model, H200, 2, 101) + step_bound(model, H200, 1, 102))


def steps(name: str, batch: int, **figures: Any) -> Decode:
    planted = {"context": 1024, "step_ms": 10.0, "bound_ms": 8.5, "host_ms": 0.4, "device_ms": 9.7, "host_syncs": 0}
    return Decode(shape=name, batch=batch, **planted | figures)


PLANTED = GpuMeasured(
    device="planted",
    limits=H200,
    decode=[
        steps("llama-3.1-8b", 1, step_ms=4.0, bound_ms=3.52),
        steps("llama-3.1-8b", 32, step_ms=6.0, bound_ms=4.49),
        steps("llama-3.1-8b", 128),
        steps("qwen3-0.6b", 1, step_ms=1.1),
        steps("qwen3-0.6b", 256, host_ms=0.8, host_syncs=1),
    ],
    offline=Offline(seconds=20.0, bound_seconds=15.0, output_tokens_per_second=7000.0, kv_waste=0.03),
    prefix=Prefix(cost=0.005, gain=6.0),
    served_tokens_per_second=6860.0,
)


def test_rows_and_verdicts_of_planted_figures() -> None:
    found = [(row.id, row.value and round(row.value, 3), row.verdict) for row in gpu_goals(PLANTED)]
    assert found == [
        ("E1", 0.88, "stretch"),
        ("E1", 0.748, "short of the gate"),
        ("E1", 0.85, "gate"),
        ("E2", 1.1, "stretch"),
        ("E3", 0.75, "gate"),
        ("E6", None, "not measured"),
        ("E8", 0.03, "gate"),
        ("E9", 0.8, "gate"),
        ("E9", 1.0, "short of the gate"),
        ("E10", 0.98, "stretch"),
        ("E11", 0.03, "gate"),
        ("E12", 0.005, "stretch"),
        ("E12", 6.0, "gate"),
    ]


def test_nothing_measured_claims_nothing_and_the_page_lists_it() -> None:
    everything = rows(NO_KERNELS, GpuMeasured("none"))
    assert {row.verdict for row in everything} == {"not measured"}
    assert len({row.id for row in everything}) >= 12
    assert table(everything) in PAGE.read_text()


def test_files(tmp_path: Path) -> None:
    assert file_name("NVIDIA H200 (SXM)") == "gpu_nvidia_h200_sxm.json"
    served = tmp_path / "served.json"
    served.write_text('{"output_throughput": 12.5}')
    assert served_rate(served) == 12.5
    served.write_text("{}")
    with pytest.raises(CommandFailed, match="output_throughput"):
        served_rate(served)


class CountingStub(StubDevice):
    """Implements `quire.benchmarks.gpu_engine.Books` with planted times."""

    def __init__(self) -> None:
        super().__init__(watch=False)
        self.wait_seconds = 0.0

    def take_device_seconds(self) -> float:
        return 0.006


@pytest.fixture
def engine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> GpuEngine:
    folder = tiny_checkpoint(tmp_path_factory.getbasetemp() / "tiny", "llama")
    monkeypatch.setattr(process.kernels, "select", lambda *arguments, **options: TensorKernels())
    monkeypatch.setattr(hardware, "find_gpu", lambda: Gpu("stub", 600 << 20, 600 << 20))
    options: dict[str, Any] = {"max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 128, "threads": 1}
    return GpuEngine("tiny", folder, make_device=CountingStub, enable_prefix_caching=False, **options)


def test_what_is_measured_of_an_engine(engine: GpuEngine) -> None:
    found = engine.decode(H200, 3, 16, 4)
    assert (found.batch, found.device_ms, found.host_syncs) == (3, pytest.approx(1.5), 0)
    assert 0 < found.host_ms <= found.step_ms
    assert found.bound_ms == pytest.approx(1e3 * step_bound(engine.model, H200, 3, 16))
    assert not engine.core.has_work()
    run = engine.offline(H200, [(20, 10), (30, 10), (40, 10)])
    assert run.output_tokens_per_second == pytest.approx(30 / run.seconds)
    assert 0 < run.kv_waste < 0.5
    assert engine.first_token(engine.prompt(8)) > 0


def test_a_shape_wants_dummy_weights(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="say --load-format dummy"):
        offline.main(["--shape", "qwen3-0.6b"])
    with pytest.raises(CommandFailed, match="has no tokenizer"):
        offline.main(["--shape", "qwen3-0.6b", "--load-format", "dummy", "--dataset-name", "sharegpt"])


def test_offline_runs_a_shape(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Lengths as they were ordered, and the line of the field."""
    seen: list[list[tuple[int, int]]] = []

    class Engine:
        def __init__(self, name: str, folder: Path, **options: Any) -> None:
            assert options == {"device": "cpu", "load_format": "dummy"}

        def all_at_once(self, lengths: list[tuple[int, int]]) -> tuple[float, float]:
            seen.append(lengths)
            return 2.0, 0.0

    monkeypatch.setattr(offline, "GpuEngine", Engine)
    words = "--shape qwen3-0.6b --load-format dummy --num-prompts 3 --input-len 10 --output-len 4"
    assert offline.main([*words.split(), "--random-range-ratio", "0.5"]) == 0
    chooser = random.Random(0)
    assert seen == [[(chooser.randint(5, 15), chooser.randint(2, 6)) for _ in range(3)]]
    assert "Throughput: 1.50 requests/s" in capsys.readouterr().out
