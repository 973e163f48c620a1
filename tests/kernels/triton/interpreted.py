"""The Triton kernels, interpreted. `test_interpreted.py` runs this file in a process that has TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch
from support import triton_cases as cases
from support.kernel_cases import AttentionCase

from quire.kernels.fused import FusedKernels
from quire.kernels.triton import matmul, paged
from quire.kernels.triton.backend import TritonKernels
from quire.kernels.triton.settings import MatmulSettings

# NumPy says where exponentials overflow to infinity and where infinities meet; on a GPU both are as intended.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
CPU = torch.device("cpu")
FLOATS = (torch.float32, torch.float16)


@pytest.fixture(scope="module")
def kernels() -> FusedKernels:
    return TritonKernels(CPU)


@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_attention(case: cases.TritonCase) -> None:
    chosen = TritonKernels(CPU, batch_invariant=case.invariant)
    cases.check_attention(chosen, case.attention, torch.float16 if case.half else torch.float32)


@pytest.mark.parametrize("sequence", [(999, 1), (0, 63)])
def test_long(sequence: tuple[int, int], kernels: FusedKernels) -> None:
    """Many splits, and a prompt longer than a tile."""
    cases.check_attention(kernels, AttentionCase((sequence,), heads=7, kv_heads=1, sinks=True), torch.float32)


def test_padding(kernels: FusedKernels) -> None:
    cases.check_padding(kernels, torch.float16)


def test_write(kernels: FusedKernels) -> None:
    cases.check_write(kernels, torch.float16)


def test_a_row_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged, "SPLIT_KEYS", 64)
    monkeypatch.setattr(paged, "MAX_PARTIAL_BYTES", 1 << 15)
    cases.check_rows(TritonKernels(CPU, batch_invariant=True), torch.float32, 66, 1)


def test_float8(kernels: FusedKernels) -> None:
    cases.check_float8(kernels, torch.float16)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_elementwise(dtype: torch.dtype, kernels: FusedKernels) -> None:
    cases.check_elementwise(kernels, dtype)


@pytest.mark.parametrize("is_plain", [False, True])
def test_layer(is_plain: bool, kernels: FusedKernels) -> None:
    cases.check_layer(kernels, torch.float32, is_plain=is_plain)


@pytest.mark.parametrize(("dtype", "tokens", "num_experts"), [(FLOATS[0], 5, 8), (FLOATS[1], 40, 3)])
def test_experts(dtype: torch.dtype, tokens: int, num_experts: int, kernels: FusedKernels) -> None:
    cases.check_experts(kernels, dtype, tokens, num_experts)


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 96), (17, 200, 33)])
def test_matmul(rows: int, inputs: int, outputs: int, splits: int) -> None:
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, inputs, generator=random), torch.randn(outputs, inputs, generator=random)
    bias = torch.randn(outputs, generator=random)
    found = matmul.multiply(x, weight, bias, MatmulSettings("few_rows", 0, 0, 0, 16, 32, 64, 4, 3, splits))
    torch.testing.assert_close(found, x @ weight.T + bias, rtol=1e-5, atol=1e-4)


def test_a_row_of_linear_is_its_own() -> None:
    chosen = TritonKernels(CPU, batch_invariant=True)
    random = torch.Generator().manual_seed(0)
    x, packed = torch.randn(70, 96, generator=random), chosen.pack(torch.randn(40, 96, generator=random), None)
    whole = chosen.linear(x, packed)
    torch.testing.assert_close(whole, x @ packed.weight.T, rtol=1e-5, atol=1e-4)
    for begin, end in ((0, 1), (33, 70), (69, 70)):
        assert torch.equal(chosen.linear(x[begin:end], packed), whole[begin:end])


@pytest.mark.parametrize("position", [0, 77])
def test_sampling(position: int, kernels: FusedKernels) -> None:
    cases.check_sampling(kernels, 5000, position)


def test_few_columns(kernels: FusedKernels) -> None:
    cases.check_sampling(kernels, 111, 3)


@pytest.mark.parametrize("num_top", [0, 5])
def test_logprobs(num_top: int, kernels: FusedKernels) -> None:
    cases.check_logprobs(kernels, 5000, num_top)
