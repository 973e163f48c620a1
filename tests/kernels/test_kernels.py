"""Every backend gives what the reference gives, and a row of the answer depends on its own history alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from support.kernel_cases import CASES, RAGGED, AttentionCase, AttentionProblem, cut_plan, make_problem
from torch import Tensor

from quire.kernels import AttentionPlan, Kernels, KernelsRefused, select
from quire.kernels.cpu import attention

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS_ARE_KNOWN = torch.backends.mkl.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
"""Where equal bits were measured; elsewhere the promise is 1e-5 in float32."""


@pytest.fixture(scope="module", autouse=True)
def _threads() -> Iterator[None]:
    """As many as equal bits were measured with; other tests of this process may have left more."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def reference() -> Kernels:
    return select("reference", "cpu")


@pytest.fixture(scope="module", params=["pytorch"])
def backend(request: pytest.FixtureRequest) -> Kernels:
    return select(request.param, "cpu")


def assert_as_good(found: Tensor, expected: Tensor, torch_error: float) -> None:
    """`found` is at most twice as far from the float32 `expected` as PyTorch in the same precision."""
    assert found.shape == expected.shape
    assert torch.isfinite(found).all()
    assert (found.float() - expected).abs().max().item() <= 2 * torch_error


def assert_same_rows(found: Tensor, expected: Tensor) -> None:
    """Equal bits where they were measured, 1e-5 elsewhere."""
    if BITS_ARE_KNOWN:
        assert torch.equal(found, expected)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def rounding(dtype: torch.dtype, size: float) -> float:
    """The error that rounding a value of this size to dtype brings; a few units for float32's own sums."""
    return size * torch.finfo(dtype).eps * (8 if dtype == torch.float32 else 1)


def attend(kernels: Kernels, problem: AttentionProblem) -> Tensor:
    k_cache, v_cache = problem.k_cache.clone(), problem.v_cache.clone()
    kernels.write_kv(problem.key, problem.value, k_cache, v_cache, problem.plan)
    return kernels.paged_attention(problem.query, k_cache, v_cache, problem.plan, **problem.options)


# --- attention -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_is_the_reference(case: AttentionCase, reference: Kernels, backend: Kernels) -> None:
    problem = make_problem(case)
    expected = attend(reference, problem)
    assert torch.isfinite(expected).all(), "the reference itself must not read poisoned slots"
    assert_as_good(attend(backend, problem), expected, rounding(torch.float32, 2.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[7]], ids=str)
def test_attention_in_half_precision(
    case: AttentionCase, dtype: torch.dtype, reference: Kernels, backend: Kernels
) -> None:
    problem = make_problem(case, dtype)
    expected = attend(reference, problem).float()
    assert_as_good(attend(backend, problem), expected, rounding(dtype, expected.abs().max().item()))


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 129])
def test_window_ends_where_it_says(window: int, reference: Kernels, backend: Kernels) -> None:
    """One key in all is large: a row sees it exactly while it is among the last `window`."""
    case = AttentionCase(((0, 200),), heads=2, kv_heads=2, window=window)
    problem = make_problem(case)
    problem.query.fill_(1.0)
    problem.key.zero_()
    problem.key[70] = 10.0
    problem.value.zero_()
    problem.value[70] = 1.0
    for kernels in (reference, backend):
        sees = attend(kernels, problem)[:, 0, 0] > 0.5
        assert sees.nonzero().flatten().tolist() == list(range(70, min(70 + window, 200))), kernels.name


@pytest.mark.parametrize("window", [1, 16, 40])
def test_what_lies_behind_the_window_may_be_the_null_block(window: int, backend: Kernels) -> None:
    """Entries that no query of the step reads name block 0, which holds zeros: not a bit of the answer changes."""
    problem = make_problem(AttentionCase(((99, 1), (90, 30), (0, 5)), window=window))
    spare = sorted(set(range(len(problem.k_cache))) - set(problem.plan.block_tables.flatten().tolist()))[0]
    k_cache, v_cache = (cache.clone() for cache in (problem.k_cache, problem.v_cache))
    tables, slots = problem.plan.block_tables.clone(), problem.plan.slot_mapping.clone()
    for cache in (k_cache, v_cache):  # block 0 changes places with one that is in no table
        cache[spare] = problem.k_cache[0] if cache is k_cache else problem.v_cache[0]
        cache[0] = 0.0
    tables[tables == 0] = spare
    slots[slots < 16] += spare * 16
    expected = attend(backend, problem)
    for sequence, start in enumerate((99, 90, 0)):
        tables[sequence, : max(0, start - window + 1) // 16] = 0
    assert (tables == 0).any()
    plan = dataclasses.replace(problem.plan, block_tables=tables, slot_mapping=slots)
    found = attend(backend, dataclasses.replace(problem, k_cache=k_cache, v_cache=v_cache, plan=plan))
    assert torch.equal(found, expected)


def test_wrong_block_changes_the_answer(backend: Kernels) -> None:
    problem = make_problem(AttentionCase(((63, 1), (63, 1))))
    right = attend(backend, problem)
    k_cache, v_cache = problem.k_cache.clone(), problem.v_cache.clone()
    backend.write_kv(problem.key, problem.value, k_cache, v_cache, problem.plan)
    problem.plan.block_tables[0, 1] = problem.plan.block_tables[1, 1]
    wrong = make_plan_like(problem)
    found = backend.paged_attention(problem.query, k_cache, v_cache, wrong, **problem.options)
    assert not torch.allclose(found[0], right[0], atol=1e-3)
    assert torch.equal(found[1], right[1])


def make_plan_like(problem: AttentionProblem) -> AttentionPlan:
    """A new plan of the same values; backends may keep what they built for an old one."""
    return dataclasses.replace(problem.plan)


@pytest.mark.parametrize("block_size", [1, 16, 128])
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (2, 2), (7, 1)])
def test_a_row_of_attention_is_its_own(
    heads: int, kv_heads: int, window: int | None, block_size: int, backend: Kernels
) -> None:
    """Alone, beside others, whole or in chunks, whatever the block size: the same row."""
    length, dim = 300, 64
    random = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(length, h, dim, generator=random) for h in (heads, kv_heads, kv_heads))
    whole = run_chunks(backend, query, key, value, [length], block_size=16, window=window)
    for chunks in ([1] * 5 + [200, 2, 16, 17, 60], [299, 1], [64, 64, 64, 64, 44]):
        found = run_chunks(backend, query, key, value, chunks, block_size=block_size, window=window)
        assert_same_rows(found, whole)
    beside = run_chunks(backend, query, key, value, [290] + [1] * 10, block_size=block_size, window=window, others=5)
    assert_same_rows(beside, whole)


def run_chunks(
    backend: Kernels,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    chunks: list[int],
    *,
    block_size: int,
    window: int | None,
    others: int = 0,
) -> Tensor:
    """Attention of one sequence computed in `chunks`, with `others` decoding beside it."""
    length, heads, dim = query.shape
    random = torch.Generator().manual_seed(2)
    per_sequence = -(-length // block_size)
    order = torch.randperm(per_sequence * (others + 1), generator=random).tolist()
    tables = [order[i * per_sequence : (i + 1) * per_sequence] for i in range(others + 1)]
    caches = [torch.randn(len(order), key.shape[1], block_size, dim, generator=random) for _ in "kv"]
    output, done = [], 0
    for chunk in chunks:
        sequences = [(20 * i + done % 7, 1) for i in range(others)]
        sequences.insert(others // 2, (done, chunk))
        ordered = tables[1 : others // 2 + 1] + tables[:1] + tables[others // 2 + 1 :]
        plan = cut_plan(sequences, ordered, block_size)
        rows = [torch.randn(others // 2, h, dim, generator=random) for h in (heads, key.shape[1], key.shape[1])]
        tail = [torch.randn(others - others // 2, h, dim, generator=random) for h in (heads, *[key.shape[1]] * 2)]
        mine = [x[done : done + chunk] for x in (query, key, value)]
        q, k, v = (torch.cat(parts) for parts in zip(rows, mine, tail, strict=True))
        backend.write_kv(k, v, *caches, plan)
        found = backend.paged_attention(q, *caches, plan, scale=dim**-0.5, window=window)
        output.append(found[others // 2 : others // 2 + chunk])
        done += chunk
    return torch.cat(output)


def test_cuts_that_bound_memory_change_nothing(backend: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long contexts and large batches are computed in smaller passes, to the same bits."""
    problem = make_problem(AttentionCase(RAGGED))
    whole = attend(backend, problem)
    monkeypatch.setattr(attention, "MAX_TILES", 4)
    monkeypatch.setattr(attention, "MAX_SCORES", 1000)
    cut = make_plan_like(problem)
    assert len(attention.make_passes(cut, 2, 16, None)) > len({new for _, new in RAGGED})
    found = attend(backend, dataclasses.replace(problem, plan=cut))
    assert_same_rows(found, whole)


# --- the other operations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 96), (5, 640, 33), (17, 1100, 128), (70, 64, 1)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(
    rows: int, inputs: int, outputs: int, bias: bool, dtype: torch.dtype, reference: Kernels, backend: Kernels
) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows, inputs, generator=random).to(dtype)
    weight = (torch.randn(outputs, inputs, generator=random) * inputs**-0.5).to(dtype)
    added = torch.randn(outputs, generator=random).to(dtype) if bias else None
    expected = x.double() @ weight.double().T + (added.double() if added is not None else 0)
    torch_error = (torch.nn.functional.linear(x, weight, added).double() - expected).abs().max().item()
    for kernels in (reference, backend):
        found = kernels.linear(x, kernels.pack(weight, added))
        assert found.dtype == dtype
        assert_as_good(found, expected.float(), torch_error + rounding(torch.float32, 1.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (640, 256), (1100, 300), (2048, 48)])
def test_a_row_of_linear_is_its_own(inputs: int, outputs: int, dtype: torch.dtype, backend: Kernels) -> None:
    random = torch.Generator().manual_seed(0)
    packed = backend.pack(torch.randn(outputs, inputs, generator=random).to(dtype), None)
    x = torch.randn(300, inputs, generator=random).to(dtype)
    whole = backend.linear(x, packed)
    for begin, end in ((0, 1), (7, 8), (3, 5), (5, 8), (10, 17), (40, 73), (0, 256)):
        if dtype == torch.float32:
            assert_same_rows(backend.linear(x[begin:end], packed), whole[begin:end])
        else:
            torch.testing.assert_close(backend.linear(x[begin:end], packed), whole[begin:end], rtol=0.02, atol=0.1)


def test_embedding_reads_packed_rows(backend: Kernels, reference: Kernels) -> None:
    weight = torch.randn(50, 24)
    ids = torch.tensor([49, 0, 7, 7])
    for kernels in (backend, reference):
        for dtype in DTYPES:
            assert torch.equal(kernels.embedding(ids, kernels.pack(weight.to(dtype), None)), weight.to(dtype)[ids])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 64), (17, 96), (5, 4, 64), (0, 64)], ids=str)
def test_norms(shape: tuple[int, ...], dtype: torch.dtype, reference: Kernels, backend: Kernels) -> None:
    x = (torch.randn(shape) * 3 + 0.5).to(dtype)
    weight, bias = torch.randn(shape[-1]).to(dtype), torch.randn(shape[-1]).to(dtype)
    for expected, found in (
        (reference.rms_norm(x, weight, 1e-5), backend.rms_norm(x, weight, 1e-5)),
        (reference.layer_norm(x, weight, bias, 1e-5), backend.layer_norm(x, weight, bias, 1e-5)),
        (reference.layer_norm(x, weight, None, 1e-5), backend.layer_norm(x, weight, None, 1e-5)),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected.float(), rtol=rounding(dtype, 2), atol=rounding(dtype, 4))


def test_norm_weights_for_each_head(reference: Kernels, backend: Kernels) -> None:
    x, weight = torch.randn(5, 3, 16), torch.randn(3, 16)
    for kernels in (reference, backend):
        found = kernels.rms_norm(x, weight, 1e-6)
        for head in range(3):
            torch.testing.assert_close(found[:, head], reference.rms_norm(x[:, head], weight[head], 1e-6))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rotary_dim", [16, 64])
def test_rope(rotary_dim: int, dtype: torch.dtype, reference: Kernels, backend: Kernels) -> None:
    """The reference against complex numbers, the backend against the reference."""
    x, positions = torch.randn(7, 3, 64).to(dtype), torch.tensor([0, 1, 5, 5, 99, 2, 50])
    angles = torch.outer(torch.arange(100.0), torch.rand(rotary_dim // 2))
    table = torch.stack((angles.cos(), angles.sin()), dim=1)
    pairs = torch.complex(x.float()[..., : rotary_dim // 2], x.float()[..., rotary_dim // 2 : rotary_dim])
    turned = pairs * torch.polar(torch.ones(7, 1, rotary_dim // 2), angles[positions][:, None])
    expected = torch.cat((turned.real, turned.imag, x.float()[..., rotary_dim:]), dim=-1)
    for kernels in (reference, backend):
        before = x.clone()
        found = kernels.rope(x, positions, table)
        assert torch.equal(x, before), "the input is not changed"
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, rtol=rounding(dtype, 2), atol=rounding(dtype, 2))


@pytest.mark.parametrize("kind", ["silu", "gelu", "gelu_tanh", "relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_activations(kind: str, dtype: torch.dtype, reference: Kernels, backend: Kernels) -> None:
    gate, up = (torch.randn(9, 40) * 3).to(dtype), torch.randn(9, 40).to(dtype)
    tolerance = {"rtol": rounding(dtype, 4), "atol": rounding(dtype, 4)}
    for kernels in (reference, backend):
        alone = kernels.activation(gate, kind)
        assert alone.dtype == dtype
        torch.testing.assert_close(alone.float(), plain_activation(gate.float(), kind), **tolerance)
        gated = kernels.gated_activation(gate, up, kind)
        torch.testing.assert_close(gated.float(), plain_activation(gate.float(), kind) * up.float(), **tolerance)


def plain_activation(x: Tensor, kind: str) -> Tensor:
    """The formulas, in double precision."""
    x = x.double()
    formulas = {
        "silu": x / (1 + torch.exp(-x)),
        "gelu": x * 0.5 * (1 + torch.erf(x / 2**0.5)),
        "gelu_tanh": x * 0.5 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
        "relu": x.clamp(min=0),
    }
    return formulas[kind].float()


def test_copy_blocks(reference: Kernels, backend: Kernels) -> None:
    for kernels in (reference, backend):
        k_cache, v_cache = torch.randn(6, 2, 4, 8), torch.randn(6, 2, 4, 8)
        k_before, v_before = k_cache.clone(), v_cache.clone()
        kernels.copy_blocks(k_cache, v_cache, torch.tensor([[1, 4], [1, 5], [3, 0]]))
        for cache, before in ((k_cache, k_before), (v_cache, v_before)):
            assert torch.equal(cache, before[[3, 1, 2, 3, 1, 1]])


def test_select() -> None:
    assert select("pytorch", "cpu").name == "pytorch"
    assert select("reference", "cpu").name == "reference"
    for name, device, reason in (
        ("cpu", "cuda", "CPU alone"),
        ("fast", "cpu", "choose auto, reference"),
    ):
        with pytest.raises(KernelsRefused, match=reason):
            select(name, device)
    with pytest.raises(KernelsRefused, match="only the compiled ones"):
        select("pytorch", "cpu", "int8")


def test_a_norm_before_the_rotation(reference: Kernels, backend: Kernels) -> None:
    x, positions, weight = torch.randn(7, 3, 64), torch.tensor([0, 1, 5, 5, 99, 2, 50]), torch.rand(3, 64)
    angles = torch.outer(torch.arange(100.0), torch.rand(16))
    table = torch.stack((angles.cos(), angles.sin()), dim=1)
    expected = reference.rope(reference.rms_norm(x, weight, 1e-6), positions, table)
    for kernels in (reference, backend):
        found = kernels.rope(x, positions, table, norm=weight, eps=1e-6)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
