"""Compiled paged attention, on every instruction set of this machine: the reference's answer, and a row's own bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from support.kernel_cases import CASES, AttentionCase, AttentionProblem, cut_plan, make_problem
from torch import Tensor

from quire.kernels import AttentionPlan, Kernels, select
from quire.kernels.cpu import library
from quire.kernels.cpu.paged import SCALE_BYTES, PagedAttention

try:
    ISAS = library.usable()
except library.LibraryMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)

SMALL_FLOATS = (torch.bfloat16, torch.float16)


@pytest.fixture(params=ISAS)
def paged(request: pytest.FixtureRequest) -> Iterator[PagedAttention]:
    chosen = library.load(request.param)
    chosen.set_threads(2)
    yield PagedAttention(chosen)
    chosen.set_threads(torch.get_num_threads())


@pytest.fixture(scope="module")
def reference() -> Kernels:
    return select("reference", "cpu")


def caches_in(problem: AttentionProblem, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The problem's caches in a cache dtype, as `write` would have left them; poison stays poison."""
    if dtype == torch.int8:
        return quantized(problem.k_cache), quantized(problem.v_cache)
    return problem.k_cache.to(dtype), problem.v_cache.to(dtype)


def quantized(cache: Tensor) -> Tensor:
    """float32 [..., D] -> int8 [..., D + 4]: rounded to largest / 127, whose bytes follow; NaN where a row has one."""
    scale = cache.abs().amax(dim=-1, keepdim=True) / 127
    values = (cache / scale.clamp(min=1e-30)).nan_to_num(0.0).round().to(torch.int8)
    return torch.cat((values, scale.contiguous().view(torch.int8)), dim=-1)


def widened(cache: Tensor) -> Tensor:
    """What a cache of any dtype means, in float32."""
    if cache.dtype != torch.int8:
        return cache.float()
    return cache[..., :-SCALE_BYTES].float() * cache[..., -SCALE_BYTES:].contiguous().view(torch.float32)


def attend(paged: PagedAttention, problem: AttentionProblem, dtype: torch.dtype = torch.float32) -> Tensor:
    k_cache, v_cache = caches_in(problem, dtype)
    paged.write(problem.key, problem.value, k_cache, v_cache, problem.plan)
    return paged.apply(problem.query, k_cache, v_cache, problem.plan, **problem.options)


def expect(reference: Kernels, problem: AttentionProblem, k_cache: Tensor, v_cache: Tensor) -> Tensor:
    return reference.paged_attention(problem.query, widened(k_cache), widened(v_cache), problem.plan, **problem.options)


# --- the answer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, *SMALL_FLOATS, torch.int8], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_is_the_reference(
    case: AttentionCase, dtype: torch.dtype, paged: PagedAttention, reference: Kernels
) -> None:
    """Over one cache, whatever its dtype, both compute in float32: 16 units of the last place of values up to 4."""
    problem = make_problem(case)
    k_cache, v_cache = caches_in(problem, dtype)
    paged.write(problem.key, problem.value, k_cache, v_cache, problem.plan)
    found = paged.apply(problem.query, k_cache, v_cache, problem.plan, **problem.options)
    expected = expect(reference, problem, k_cache, v_cache)
    assert torch.isfinite(expected).all(), "the reference itself must not read poisoned slots"
    assert (found - expected).abs().max().item() <= 16 * torch.finfo(torch.float32).eps * 4


@pytest.mark.parametrize(
    ("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11), (torch.int8, 0.5 / 127)], ids=str
)
def test_a_smaller_cache_costs_its_rounding(
    dtype: torch.dtype, unit: float, paged: PagedAttention, reference: Kernels
) -> None:
    """An element is off by `unit` of its row's largest, 4.5 at most here. Values: directly. Scores: by a sum of 64
    products with the unit's spread, / 8; a weight by as much in relation; so the answer by about 3 units of 4.5."""
    problem = make_problem(CASES[0])
    exact = attend(paged, problem)
    error = (attend(paged, problem, dtype) - exact).abs().max().item()
    assert 0 < error <= 3 * unit * 4.5


@pytest.mark.parametrize("dim", [1, 3, 20, 63, 65, 100, 112, 255])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
def test_any_head_dim(dim: int, dtype: torch.dtype, paged: PagedAttention, reference: Kernels) -> None:
    problem = make_problem(AttentionCase(((70, 3), (0, 20)), head_dim=dim, block_size=5))
    k_cache, v_cache = caches_in(problem, dtype)
    paged.write(problem.key, problem.value, k_cache, v_cache, problem.plan)
    found = paged.apply(problem.query, k_cache, v_cache, problem.plan, **problem.options)
    torch.testing.assert_close(found, expect(reference, problem, k_cache, v_cache), rtol=1e-5, atol=1e-5)


def test_scores_far_apart(paged: PagedAttention, reference: Kernels) -> None:
    """Scores in the thousands, and sinks above and below them all: no overflow, no NaN."""
    for softcap, sink in ((None, 3e4), (None, -3e4), (30.0, 100.0), (1e-3, 0.0)):
        problem = make_problem(AttentionCase(((600, 5),), softcap=softcap))
        problem.query.mul_(1000.0)
        problem.options["sinks"] = torch.full((4,), sink)
        found = attend(paged, problem)
        k_cache, v_cache = (cache.clone() for cache in (problem.k_cache, problem.v_cache))
        reference.write_kv(problem.key, problem.value, k_cache, v_cache, problem.plan)
        torch.testing.assert_close(found, expect(reference, problem, k_cache, v_cache), rtol=1e-3, atol=1e-3)


def test_wrong_block_changes_the_answer(paged: PagedAttention) -> None:
    problem = make_problem(AttentionCase(((63, 1), (63, 1))))
    k_cache, v_cache = caches_in(problem, torch.float32)
    paged.write(problem.key, problem.value, k_cache, v_cache, problem.plan)
    right = paged.apply(problem.query, k_cache, v_cache, problem.plan, **problem.options)
    problem.plan.block_tables[0, 1] = problem.plan.block_tables[1, 1]
    wrong = dataclasses.replace(problem.plan)
    found = paged.apply(problem.query, k_cache, v_cache, wrong, **problem.options)
    assert not torch.allclose(found[0], right[0], atol=1e-3)
    assert torch.equal(found[1], right[1])


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 129])
def test_window_ends_where_it_says(window: int, paged: PagedAttention) -> None:
    problem = make_problem(AttentionCase(((0, 200),), heads=2, kv_heads=2, window=window))
    problem.query.fill_(1.0)
    for tensor, value in ((problem.key, 10.0), (problem.value, 1.0)):
        tensor.zero_()
        tensor[70] = value
    sees = attend(paged, problem)[:, 0, 0] > 0.5
    assert sees.nonzero().flatten().tolist() == list(range(70, min(70 + window, 200)))


# --- the cache -------------------------------------------------------------------------------------------------------


def written(paged: PagedAttention, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """rows [T, D] through a cache of blocks of 3 slots, as they are read again."""
    tokens, dim = rows.shape
    plan = cut_plan([(0, tokens)], [list(range(-(-tokens // 3)))], 3)
    row = dim + SCALE_BYTES if dtype == torch.int8 else dim
    k_cache, v_cache = (torch.zeros(-(-tokens // 3), 1, 3, row, dtype=dtype) for _ in "kv")
    paged.write(rows[:, None], rows[:, None], k_cache, v_cache, plan)
    assert torch.equal(k_cache.view(torch.uint8), v_cache.view(torch.uint8))
    return k_cache.view(-1, row)[:tokens]


@pytest.mark.parametrize("dtype", [torch.float32, *SMALL_FLOATS], ids=str)
def test_write_rounds_as_torch_does(dtype: torch.dtype, paged: PagedAttention) -> None:
    """Every bfloat16 and what lies around it: halves, infinities, NaN, numbers too small and too large."""
    patterns = torch.arange(2**16, dtype=torch.int64)
    around = [
        ((patterns << 16) + low).to(torch.int32) for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0xF000, 0x1000)
    ]
    rows = torch.stack(around).view(torch.float32).view(-1, 256)
    found = written(paged, rows, dtype)
    assert torch.equal(found.isnan(), rows.isnan())
    expected = rows.to(dtype)
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(found.signbit() | found.isnan(), expected.signbit() | expected.isnan())


def test_int8_rows_have_their_own_scale(paged: PagedAttention) -> None:
    random = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 80, generator=random) * torch.logspace(-12, 12, 50)[:, None]
    rows[7], rows[8, 3], rows[9, 4] = 0.0, float("nan"), float("inf")
    found = widened(written(paged, rows, torch.int8))
    assert torch.equal(found[7], rows[7])
    assert found[8:10].isnan().all()
    sane = [index for index in range(50) if index not in (8, 9)]
    largest = rows[sane].abs().amax(dim=1, keepdim=True)
    assert ((found[sane] - rows[sane]).abs() <= 0.5001 / 127 * largest).all()


def test_views_of_one_projection_are_read_in_place(paged: PagedAttention) -> None:
    """Query, key and value as views of one [T, (heads + 2 kv_heads) * D]; heads and rows far apart."""
    problem = make_problem(CASES[0])
    expected = attend(paged, problem)
    joined = torch.cat([problem.query, problem.key, problem.value], dim=1).flatten(1)
    query, key, value = joined.view(-1, 8, 64).split((4, 2, 2), dim=1)
    assert not query.is_contiguous()
    strided = dataclasses.replace(problem, query=query, key=key, value=value)
    assert torch.equal(attend(paged, strided), expected)


def test_other_caches_are_refused(paged: PagedAttention) -> None:
    problem = make_problem(CASES[-1])
    for k_cache in (problem.k_cache[..., :32], problem.k_cache.to(torch.int8), problem.k_cache.double()):
        with pytest.raises(ValueError, match="cache"):
            paged.apply(problem.query, k_cache, k_cache, problem.plan, scale=1.0)


# --- a row is its own ------------------------------------------------------------------------------------------------


def run(
    paged: PagedAttention,
    tensors: tuple[Tensor, Tensor, Tensor],
    chunks: list[int],
    *,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    others: int = 0,
    **options: object,
) -> Tensor:
    """One sequence computed in `chunks`, with `others` decoding beside it, in a cache full of NaN; as [T, heads, D]."""
    length, _, dim = tensors[0].shape
    kv_heads = tensors[1].shape[1]
    random = torch.Generator().manual_seed(2)
    blocks = -(-length // block_size)
    order = torch.randperm(blocks * (others + 1), generator=random).tolist()
    tables = [order[i * blocks : (i + 1) * blocks] for i in range(others + 1)]
    caches = [torch.full((len(order), kv_heads, block_size, dim), float("nan")) for _ in "kv"]
    caches = [quantized(cache) if dtype == torch.int8 else cache.to(dtype) for cache in caches]
    output, done = [], 0
    for chunk in chunks:
        neighbours = [(7 * i + done % 5, 1) for i in range(others)]
        plan = cut_plan([*neighbours, (done, chunk)], tables[1:] + tables[:1], block_size)
        rows = [
            torch.cat((torch.randn(others, *x.shape[1:], generator=random), x[done : done + chunk])) for x in tensors
        ]
        paged.write(rows[1], rows[2], caches[0], caches[1], plan)
        output.append(paged.apply(rows[0], caches[0], caches[1], plan, scale=dim**-0.5, **options)[others:])  # type: ignore[arg-type]
        done += chunk
    return torch.cat(output)


def random_tensors(length: int, heads: int, kv_heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(length, h, dim, generator=random) for h in (heads, kv_heads, kv_heads))
    return query, key, value


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 64), (2, 2, 128), (7, 1, 80)])
def test_a_row_is_its_own(
    heads: int, kv_heads: int, dim: int, window: int | None, dtype: torch.dtype, paged: PagedAttention
) -> None:
    """Alone and beside others, whole, in chunks and token by token, in blocks of any size: equal bits."""
    tensors = random_tensors(600, heads, kv_heads, dim)
    whole = run(paged, tensors, [600], window=window, dtype=dtype)
    assert torch.isfinite(whole).all()
    for chunks, block_size, others in (
        ([300, 1, 1, 1, 100, 2, 195], 16, 0),
        ([64] * 9 + [24], 1, 2),
        ([5, 3, 59, 450, *[1] * 83], 48, 3),
        ([599, 1], 128, 1),
    ):
        found = run(paged, tensors, chunks, window=window, dtype=dtype, block_size=block_size, others=others)
        assert torch.equal(found, whole), (chunks, block_size)


def test_neither_caps_nor_sinks_depend_on_neighbours(paged: PagedAttention) -> None:
    tensors = random_tensors(150, 4, 2, 64)
    options = {"softcap": 15.0, "sinks": torch.randn(4)}
    whole = run(paged, tensors, [150], **options)
    assert torch.equal(run(paged, tensors, [66] + [1] * 84, others=2, **options), whole)


@pytest.mark.parametrize("window", [None, 1100])
def test_threads_share_a_sequence_and_change_no_bits(window: int | None) -> None:
    """With one thread a long sequence is one piece of work, with three it is cut in chunks of keys and merged."""
    chosen = library.load()
    paged = PagedAttention(chosen)
    tensors = random_tensors(2700, 2, 1, 32)
    found = []
    try:
        for threads in (1, 2, 3):
            chosen.set_threads(threads)
            found.append(run(paged, tensors, [2690, 1, 1, 8], window=window))
    finally:
        chosen.set_threads(torch.get_num_threads())
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


@pytest.mark.parametrize("window", [1, 16, 40])
def test_what_lies_behind_the_window_may_be_the_null_block(window: int, paged: PagedAttention) -> None:
    problem = make_problem(AttentionCase(((99, 1), (90, 30), (0, 5)), window=window))
    k_cache, v_cache = caches_in(problem, torch.float32)
    paged.write(problem.key, problem.value, k_cache, v_cache, problem.plan)
    expected = paged.apply(problem.query, k_cache, v_cache, problem.plan, **problem.options)
    zeros = torch.zeros(1, *k_cache.shape[1:])
    tables = problem.plan.block_tables.clone()
    for sequence, start in enumerate((99, 90, 0)):
        tables[sequence, : max(0, start - window + 1) // 16] = len(k_cache)
    assert (tables == len(k_cache)).any()
    plan: AttentionPlan = dataclasses.replace(problem.plan, block_tables=tables)
    found = paged.apply(
        problem.query, torch.cat((k_cache, zeros)), torch.cat((v_cache, zeros)), plan, **problem.options
    )
    assert torch.equal(found, expected)


def test_no_rows(paged: PagedAttention) -> None:
    problem = make_problem(CASES[0])
    plan = cut_plan([(5, 0)], [[0]], 16)
    empty = torch.empty(0, 4, 64)
    paged.write(empty[:, :2], empty[:, :2], problem.k_cache, problem.v_cache, plan)
    assert paged.apply(empty, problem.k_cache, problem.v_cache, plan, scale=1.0).shape == (0, 4, 64)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("window", [None, 20])
def test_a_later_token_that_is_no_number_reaches_nobody_before_it(
    bad: float, window: int | None, paged: PagedAttention
) -> None:
    """It lies in their tile with the weight 0, which times NaN would be NaN."""
    query, key, value = random_tensors(100, 4, 2, 48)
    expected = run(paged, (query, key, value), [100], window=window)
    value = value.clone()
    value[70] = bad
    found = run(paged, (query, key, value), [100], window=window)
    sees = slice(70, 100 if window is None else 90)
    assert not torch.isfinite(found[sees]).any()
    assert torch.equal(found[:70], expected[:70])
    assert torch.equal(found[sees.stop :], expected[sees.stop :])


def test_block_ids_are_wide(paged: PagedAttention) -> None:
    """A block whose slots lie beyond 2^31 elements; the cache is a mapping of which few pages are touched."""
    dim, size, blocks = 256, 128, 70_000  # 70,000 * 128 * 256 = 2.3e9 elements
    k_cache, v_cache = (torch.empty(blocks, 1, size, dim, dtype=torch.bfloat16) for _ in "kv")
    tensors = random_tensors(1, 1, 1, dim)
    plan = cut_plan([(0, 1)], [[blocks - 1]], size)
    paged.write(tensors[1], tensors[2], k_cache, v_cache, plan)
    found = paged.apply(tensors[0], k_cache, v_cache, plan, scale=1.0)
    assert torch.equal(found, tensors[2].bfloat16().float())
