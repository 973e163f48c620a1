"""The compiled backend as the engine meets it: chosen by name, packed to the bytes that were planned."""

from __future__ import annotations

import pytest
import torch

from quire.kernels import select
from quire.kernels.cpu.compiled import CompiledKernels
from quire.kernels.cpu.layout import KEPT, UNITS, packed_bytes
from quire.kernels.cpu.library import LibraryMissing, load, usable
from quire.kernels.cpu.torch_backend import CpuKernels

try:
    ISAS = usable()
except LibraryMissing:
    pytest.skip("the compiled kernels are not built here", allow_module_level=True)


def test_it_is_what_the_cpu_gets() -> None:
    found = select("auto", "cpu")
    assert isinstance(found, CompiledKernels)
    assert found.name == f"cpu ({ISAS[0]})"


@pytest.mark.parametrize("threads", [2, 1])
def test_the_kernels_get_the_threads_that_were_asked_for(threads: int) -> None:
    """Torch and the library may share one OpenMP: setting the one's threads must not undo the other's."""
    before = torch.get_num_threads()
    kernels = select("cpu", "cpu")
    try:
        kernels.set_threads(threads)
        assert load().get_threads() == threads
    finally:
        kernels.set_threads(before)


def test_without_it_pytorch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    from quire.kernels.cpu import library

    def missing(isa: str | None = None) -> None:
        raise LibraryMissing("they were not built")

    monkeypatch.setattr(library, "load", missing)
    assert isinstance(select("auto", "cpu"), CpuKernels)


PACKED = [name for name in UNITS if name not in KEPT and (name != "int8-w8a8" or "vnni" in ISAS[0])]


@pytest.mark.parametrize("precision", PACKED)
def test_layers_take_the_bytes_that_were_planned(precision: str) -> None:
    quantized = precision if precision.startswith("int") else None
    kernels = select("cpu", "cpu", quantized)
    dtype = torch.float32 if quantized else getattr(torch, precision)
    for out_features, in_features in ((64, 64), (70, 33), (1, 128), (200, 95)):
        weight = torch.randn(out_features, in_features).to(dtype)
        for bias in (None, torch.randn(out_features)):
            for precise in (False, True):
                packed = kernels.pack(weight, bias, precise=precise)
                planned = packed_bytes(out_features, in_features, precision, bias=bias is not None, precise=precise)
                assert packed.nbytes == planned
