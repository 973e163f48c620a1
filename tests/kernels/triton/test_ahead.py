"""Compiled for GPUs that are not here: registers, shared memory, spills, and whether loops copy ahead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

import triton

from quire.kernels.triton import ahead, settings
from quire.kernels.triton.backend import TritonKernels
from quire.kernels.triton.shapes import AttentionShape, launch_layer, launch_matmuls, launch_sampling


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled here is compiled anew, and leaves nothing behind."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))


def compile_all(launches: list[ahead.Launch], capability: int) -> list[ahead.Compiled]:
    """Each of them once, within its bounds, and said."""
    found = [ahead.compile_launch(launch, capability) for launch in ahead.distinct(launches, capability)]
    for compiled in found:
        print(compiled)
        assert not ahead.broken_bounds(compiled), (str(compiled), ahead.broken_bounds(compiled))
    return found


DECODE, PREFILL = AttentionShape(), AttentionShape(new=200, sequences=1)
EVERYTHING = AttentionShape(head_dim=80, group=7, block_size=64, window=100, softcap=30.0, sinks=True)


@pytest.mark.parametrize(
    ("shape", "capability", "registers"),
    [(DECODE, 90, 168), (DECODE, 80, 168), (PREFILL, 90, 255), (EVERYTHING, 90, 200)],
    ids=["decode-90", "decode-80", "prefill-90", "everything-90"],
)
def test_attention(shape: AttentionShape, capability: int, registers: int) -> None:
    """Decoding keeps three programs of 128 threads on a multiprocessor: 168 registers are the most."""
    compiled = compile_all(ahead.attention_launches(shape), capability)[0]
    assert compiled.name == "attention_kernel"
    assert compiled.registers <= registers
    assert compiled.copies_ahead >= 16
    if shape is PREFILL:
        assert "wgmma" in compiled.ptx, "prompts use the matrix instructions of Hopper"


def test_float8_attention() -> None:
    compile_all(ahead.attention_launches(AttentionShape(float8=True, block_size=64)), 90)


def test_batch_invariant_attention() -> None:
    compile_all(ahead.attention_launches(DECODE, invariant=True), 90)


def launch_all_matmuls(kernels: TritonKernels) -> None:
    launch_matmuls(settings.load())


@pytest.mark.parametrize("launch", [launch_layer, launch_sampling, launch_all_matmuls])
def test_the_other_kernels(launch: Callable[[TritonKernels], None]) -> None:
    kernels = TritonKernels(torch.device("cpu"))
    with ahead.recorded() as launches:
        launch(kernels)
    assert all(compiled.spilled == 0 for compiled in compile_all(launches, 90))


def test_alignment_is_what_makes_copies_wide() -> None:
    """The same kernel with a cache at an odd address copies nothing ahead: the check can fail."""
    launch = ahead.attention_launches(DECODE)[0]
    query, k_cache, v_cache, *rest = launch.args
    odd = [torch.empty(cache.numel() + 1, dtype=cache.dtype)[1:] for cache in (k_cache, v_cache)]
    compiled = ahead.compile_launch(ahead.Launch(launch.kernel, (query, *odd, *rest), launch.kwargs), 90)
    assert "does not copy ahead: its loop is not pipelined" in ahead.broken_bounds(compiled)
