"""The Triton kernels on a real GPU, in bfloat16: the cases of the interpreter, and what only a device shows."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from support import triton_cases as cases
from support.kernel_cases import CASES, AttentionCase, cut_plan

from quire.kernels import AttentionPlan, select
from quire.kernels.fused import FusedKernels, SamplingTensors
from quire.kernels.triton import matmul
from quire.kernels.triton.settings import MatmulSettings

pytestmark = pytest.mark.gpu
BF16 = torch.bfloat16


@pytest.fixture(scope="module", params=[False, True], ids=["fast", "invariant"])
def kernels(request: pytest.FixtureRequest) -> FusedKernels:
    return select("triton", "cuda", batch_invariant=request.param)  # type: ignore[return-value]


@pytest.mark.parametrize("case", cases.CASES, ids=str)
def test_attention(case: cases.TritonCase) -> None:
    chosen = select("triton", "cuda", batch_invariant=case.invariant)
    cases.check_attention(chosen, case.attention, torch.float16 if case.half else BF16)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_of_the_shared_cases(case: AttentionCase, dtype: torch.dtype, kernels: FusedKernels) -> None:
    cases.check_attention(kernels, case, dtype)


def test_padding(kernels: FusedKernels) -> None:
    cases.check_padding(kernels, BF16)


def test_write(kernels: FusedKernels) -> None:
    cases.check_write(kernels, BF16)


def test_a_row_is_its_own() -> None:
    """Over more keys than a split has: whole, in chunks and token by token."""
    chosen = select("triton", "cuda", batch_invariant=True)
    cases.check_rows(chosen, BF16, 2200, 7)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="no float8")
def test_float8(kernels: FusedKernels) -> None:
    cases.check_float8(kernels, BF16)


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32], ids=str)
def test_elementwise(dtype: torch.dtype, kernels: FusedKernels) -> None:
    cases.check_elementwise(kernels, dtype)


@pytest.mark.parametrize("is_plain", [False, True])
def test_layer(is_plain: bool, kernels: FusedKernels) -> None:
    cases.check_layer(kernels, BF16, is_plain=is_plain)


@pytest.mark.parametrize(("tokens", "num_experts"), [(5, 8), (40, 3), (600, 64)])
def test_experts(tokens: int, num_experts: int, kernels: FusedKernels) -> None:
    cases.check_experts(kernels, BF16, tokens, num_experts)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 4096, 6144), (16, 14336, 4096), (7, 1100, 300)])
def test_few_rows(rows: int, inputs: int, outputs: int, splits: int) -> None:
    x = torch.randn(rows, inputs, device="cuda", dtype=BF16)
    weight = torch.randn(outputs, inputs, device="cuda", dtype=BF16) * inputs**-0.5
    found = matmul.multiply(x, weight, None, MatmulSettings("few_rows", 0, 0, 0, 16, 32, 256, 4, 4, splits))
    torch.testing.assert_close(found.float(), x.float() @ weight.float().T, rtol=2e-2, atol=3e-2)


def test_a_row_of_linear_is_its_own() -> None:
    chosen = select("triton", "cuda", batch_invariant=True)
    packed = chosen.pack(torch.randn(6144, 4096, device="cuda", dtype=BF16), None)
    x = torch.randn(300, 4096, device="cuda", dtype=BF16)
    whole = chosen.linear(x, packed)
    for begin, end in ((0, 1), (33, 70), (299, 300), (0, 256)):
        assert torch.equal(chosen.linear(x[begin:end], packed), whole[begin:end])


@pytest.mark.parametrize("columns", [111, 5000, 151_936])
@pytest.mark.parametrize("position", [0, 1000])
def test_sampling(columns: int, position: int, kernels: FusedKernels) -> None:
    cases.check_sampling(kernels, columns, position)


@pytest.mark.parametrize("num_top", [0, 5, 20])
@pytest.mark.parametrize("columns", [5000, 151_936])
def test_logprobs(num_top: int, columns: int, kernels: FusedKernels) -> None:
    cases.check_logprobs(kernels, columns, num_top)


def test_block_ids_are_wide(kernels: FusedKernels) -> None:
    """Blocks whose slots lie beyond 2^31 elements: 4.6 GB a cache."""
    dim, size, blocks = 256, 128, 70_000  # 70,000 * 128 * 256 = 2.3e9 elements
    caches = [torch.empty(blocks, 1, size, dim, dtype=BF16, device="cuda") for _ in "kv"]
    tables = [[blocks - 1, blocks - 3]]
    key, value, query = (torch.randn(200, 1, dim, device="cuda", dtype=BF16) for _ in "kvq")
    plan = cases.move(cut_plan([(0, 200)], tables, size), torch.device("cuda"))
    kernels.write_kv(key, value, *caches, plan)
    kernels.copy_blocks(*caches, torch.tensor([[blocks - 3, blocks - 2]], device="cuda"))
    last = cases.move(cut_plan([(199, 1)], [[blocks - 1, blocks - 2]], size), torch.device("cuda"))
    found = kernels.paged_attention(query[199:], *caches, last, scale=dim**-0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query[199:].transpose(0, 1).float(), key.transpose(0, 1).float(), value.transpose(0, 1).float()
    )
    torch.testing.assert_close(found.float(), expected.transpose(0, 1), rtol=0.02, atol=0.02)


def test_a_step_in_a_graph(kernels: FusedKernels) -> None:
    """Recorded once, replayed over other lengths, blocks and scores: what a fresh call gives."""
    device, rows = torch.device("cuda"), 4
    caches = [torch.randn(64, 2, 16, 64, device=device, dtype=BF16) for _ in "kv"]
    tables = torch.randperm(64)[: rows * 8].view(rows, 8).to(torch.int32).to(device)
    lengths = torch.tensor([1, 1, 1, 0], dtype=torch.int32, device=device)
    slots = torch.full((rows,), -1, dtype=torch.int64, device=device)
    starts = torch.arange(rows + 1, dtype=torch.int32, device=device)
    plan = AttentionPlan(starts, lengths, tables, slots, tuple(range(rows + 1)), (0,) * rows)
    qkv = torch.randn(rows, 12, 64, device=device, dtype=BF16)
    scores, parameters = cases.sampling_rows(rows, 5000, 0)
    scores = scores.to(device)
    fields = dataclasses.fields(parameters)
    there = SamplingTensors(**{field.name: getattr(parameters, field.name).to(device) for field in fields})
    angles, positions = cases.angles(200, 64).to(device), torch.zeros(rows, dtype=torch.int64, device=device)

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        query = kernels.rope_and_write_kv(qkv, positions, angles, *caches, plan)
        return kernels.paged_attention(query, *caches, plan, scale=0.125), kernels.sample(scores, there)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    for length in (1, 17, 100, 128):
        lengths.copy_(torch.tensor([length, 128, 5, 0], dtype=torch.int32))
        positions.copy_((lengths - 1).clamp(min=0))
        blocks = tables.gather(1, (positions // 16)[:, None])[:, 0].long()
        slots.copy_(torch.where(lengths > 0, blocks * 16 + positions % 16, -1))
        qkv.normal_()
        scores.normal_()
        graph.replay()
        again = [result.clone() for result in recorded]
        fresh = step()
        assert torch.equal(again[0], fresh[0])
        assert torch.equal(again[1], fresh[1])
