"""What the Triton kernels must do, whether they are interpreted or run on a GPU: problems, and the checks of them."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from support.kernel_cases import AttentionCase, AttentionProblem, cut_plan, make_problem
from support.pairwise import pairwise_cases
from torch import Tensor

from quire.kernels.fused import FusedKernels, SamplingTensors
from quire.kernels.fused_reference import FusedReference
from quire.kernels.interface import AttentionPlan
from quire.kernels.layer import LayerParts, NormParts
from quire.kernels.noise import row_key

REFERENCE = FusedReference(torch.device("cpu"))
SEQUENCES = (
    ((0, 1), (14, 1), (62, 1)),  # decoding, up to a full tile of keys
    ((15, 1), (16, 1), (130, 1)),
    ((0, 15), (16, 1)),  # a prompt beside one that decodes
    ((47, 16), (0, 2)),
)
COVER = pairwise_cases(
    {
        "sequences": SEQUENCES,
        "heads": ((1, 1), (4, 1), (7, 1), (8, 1), (4, 2)),
        "head_dim": (64, 80, 96, 128, 256),
        "block_size": (1, 16, 48, 64, 128),
        "window": (None, 1, 33),
        "extra": ("plain", "softcap", "sinks", "both"),
        "half": (False, True),
        "invariant": (False, True),
    }
)


@dataclasses.dataclass(frozen=True)
class TritonCase:
    """One of the cover: the problem, whether in half precision, and whether by batch-invariant kernels."""

    attention: AttentionCase
    half: bool
    invariant: bool

    def __str__(self) -> str:
        return f"{self.attention}{'-half' * self.half}{'-invariant' * self.invariant}"


def _case(values: dict[str, object]) -> TritonCase:
    heads, kv_heads = values.pop("heads")  # type: ignore[misc]
    extra, half, invariant = (values.pop(name) for name in ("extra", "half", "invariant"))
    softcap = 5.0 if extra in ("softcap", "both") else None
    case = AttentionCase(heads=heads, kv_heads=kv_heads, softcap=softcap, sinks=extra in ("sinks", "both"), **values)  # type: ignore[arg-type]
    return TritonCase(case, bool(half), bool(invariant))


CASES = tuple(_case(dict(values)) for values in COVER)


def to_device(problem: AttentionProblem, device: torch.device) -> AttentionProblem:
    """The same tensors on another device."""
    options = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in problem.options.items()}
    return AttentionProblem(
        *(getattr(problem, name).to(device) for name in ("query", "key", "value", "k_cache", "v_cache")),
        plan=move(problem.plan, device),
        options=options,
    )


def move(plan: AttentionPlan, device: torch.device) -> AttentionPlan:
    """The same plan on another device."""
    return AttentionPlan(
        plan.query_start_loc.to(device),
        plan.seq_lens.to(device),
        plan.block_tables.to(device),
        plan.slot_mapping.to(device),
        plan.query_start_list,
        plan.seq_lens_list,
    )


def check_attention(kernels: FusedKernels, case: AttentionCase, dtype: torch.dtype) -> None:
    """The reference's answer over the same cache, poison outside the tables included.

    The bound is what rounding to `dtype` brings: half a unit for each weight and half a unit for the result, of values
    as large as the largest; and some units of float32 for the sums.
    """
    problem = make_problem(case, dtype)
    caches = problem.k_cache, problem.v_cache
    REFERENCE.write_kv(problem.key, problem.value, *caches, problem.plan)
    expected = REFERENCE.paged_attention(
        problem.query.float(), *(cache.float() for cache in caches), problem.plan, **problem.options
    )
    assert torch.isfinite(expected).all(), "the reference itself must not read poisoned slots"
    there = to_device(problem, kernels.device)
    found = kernels.paged_attention(there.query, there.k_cache, there.v_cache, there.plan, **there.options)
    assert found.dtype == dtype
    largest = caches[1].float().nan_to_num().abs().max().item()
    unit = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
    error = (found.cpu().float() - expected).abs().max().item()
    assert error <= largest * (unit + 32 * torch.finfo(torch.float32).eps)


def check_write(kernels: FusedKernels, dtype: torch.dtype) -> None:
    """Each key and value in its slot, and every other slot as it was."""
    problem = make_problem(AttentionCase(((3, 5), (40, 1)), head_dim=80, block_size=48), dtype)
    there = to_device(problem, kernels.device)
    REFERENCE.write_kv(problem.key, problem.value, problem.k_cache, problem.v_cache, problem.plan)
    kernels.write_kv(there.key, there.value, there.k_cache, there.v_cache, there.plan)
    for mine, cache in ((there.k_cache, problem.k_cache), (there.v_cache, problem.v_cache)):
        assert torch.equal(mine.cpu().isnan(), cache.isnan())
        assert torch.equal(mine.cpu().nan_to_num(), cache.nan_to_num())


def check_padding(kernels: FusedKernels, dtype: torch.dtype) -> None:
    """Rows of length 0 and slot -1 beside others: nothing is written for them, and their answer is 0."""
    problem = make_problem(AttentionCase(((62, 1), (5, 1))), dtype)
    tables = torch.cat((problem.plan.block_tables, torch.full((2, 4), 2**31 - 1, dtype=torch.int32)))
    padded = AttentionPlan(
        query_start_loc=torch.arange(5, dtype=torch.int32),
        seq_lens=torch.tensor([63, 6, 0, 0], dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.cat((problem.plan.slot_mapping, torch.tensor([-1, -1]))),
        query_start_list=(0, 1, 2, 3, 4),
        seq_lens_list=(0, 0, 0, 0),  # not read
    )
    plan = move(padded, kernels.device)
    random = torch.Generator().manual_seed(1)
    qkv = torch.randn(4, 8, 64, generator=random).to(dtype)
    expected_caches = [problem.k_cache.clone(), problem.v_cache.clone()]
    positions = torch.tensor([62, 5, 0, 0])
    table = angles(70, 64)
    expected_query = REFERENCE.rope_and_write_kv(qkv, positions, table, *expected_caches, padded)
    caches = [cache.to(kernels.device) for cache in (problem.k_cache, problem.v_cache)]
    query = kernels.rope_and_write_kv(
        qkv.to(kernels.device), positions.to(kernels.device), table.to(kernels.device), *caches, plan
    )
    tolerance = 4 * torch.finfo(dtype).eps
    for mine, expected in zip((query, *caches), (expected_query, *expected_caches), strict=True):
        assert torch.equal(mine.cpu().isnan(), expected.isnan())
        torch.testing.assert_close(mine.cpu().nan_to_num(), expected.nan_to_num(), rtol=tolerance, atol=tolerance)
    found = kernels.paged_attention(query, *caches, plan, scale=0.125).cpu()
    expected = REFERENCE.paged_attention(query.cpu(), *(cache.cpu() for cache in caches), padded, scale=0.125)
    assert (found[2:] == 0).all()
    torch.testing.assert_close(found, expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def angles(positions: int, rotary_dim: int) -> Tensor:
    """A table of cosines and sines as `Kernels.rope` reads it."""
    turned = torch.outer(torch.arange(float(positions)), 0.5 ** torch.arange(0.0, rotary_dim // 2, 1) * 3)
    return torch.stack((turned.cos(), turned.sin()), dim=1)


def check_rows(kernels: FusedKernels, dtype: torch.dtype, length: int, group: int) -> None:
    """Whole, in chunks and token by token, beside others: the same bits of each row."""
    random = torch.Generator().manual_seed(2)
    query = torch.randn(length, group, 64, generator=random).to(dtype).to(kernels.device)
    key, value = (torch.randn(length, 1, 64, generator=random).to(dtype).to(kernels.device) for _ in "kv")
    table = torch.randperm(length // 16 + 3, generator=random).tolist()
    found = []
    for chunks, others in (([length], 0), ([3, length - 23, 1, 1, 2, 16], 0), ([length - 2, 1, 1], 2)):
        caches = [torch.zeros(len(table) + 1, 1, 16, 64, dtype=dtype, device=kernels.device) for _ in "kv"]
        done, parts = 0, []
        for chunk in chunks:
            sequences = [(0, 1)] * others + [(done, chunk)]
            tables = [[len(table)] for _ in range(others)] + [table]
            plan = move(cut_plan(sequences, tables, 16), kernels.device)
            rows = slice(done, done + chunk)
            k, v, q = (torch.cat((x[:others] * 3, x[rows])) for x in (key, value, query))
            kernels.write_kv(k, v, *caches, plan)
            parts.append(kernels.paged_attention(q, *caches, plan, scale=0.125)[others:])
            done += chunk
        found.append(torch.cat(parts))
    assert torch.isfinite(found[0]).all()
    assert torch.equal(found[1], found[0])
    assert torch.equal(found[2], found[0])


def check_float8(kernels: FusedKernels, dtype: torch.dtype) -> None:
    """Keys and values in float8 with a scale a head: what is stored is the reference's, and so is the answer.

    Of numbers that float8 holds exactly: Triton's interpreter does not round to it as devices do.
    """
    problem = make_problem(AttentionCase(((20, 3), (62, 1)), heads=4, kv_heads=2), dtype)
    scales = torch.tensor([[0.25, 0.5], [0.125, 2.0]])
    random = torch.Generator().manual_seed(5)

    def exact(like: Tensor, of_heads: Tensor) -> Tensor:
        return torch.randint(-15, 16, like.shape, generator=random) * of_heads

    caches = [
        (exact(cache, torch.tensor(1.0)) + cache.float() * 0).to(torch.float8_e4m3fn)  # poison stays
        for cache in (problem.k_cache, problem.v_cache)
    ]
    key, value = (exact(x, scales[i][:, None]) for i, x in enumerate((problem.key, problem.value)))
    qkv = torch.cat((problem.query, key.to(dtype), value.to(dtype)), dim=1)
    there = [cache.clone().to(kernels.device) for cache in caches]
    positions = torch.tensor([20, 21, 22, 62])
    plan, on = move(problem.plan, kernels.device), kernels.device
    expected_query = REFERENCE.rope_and_write_kv(qkv, positions, None, *caches, problem.plan, kv_scales=scales)
    query = kernels.rope_and_write_kv(
        qkv.to(on), positions.to(on), None, there[0], there[1], plan, kv_scales=scales.to(on)
    )
    assert torch.equal(query.cpu(), expected_query)
    for mine, cache in zip(there, caches, strict=True):
        assert torch.equal(mine.cpu().float().nan_to_num(), cache.float().nan_to_num())
    found = kernels.paged_attention(query, there[0], there[1], plan, scale=0.02, kv_scales=scales.to(on))
    expected = REFERENCE.paged_attention(
        problem.query.float(), caches[0], caches[1], problem.plan, scale=0.02, kv_scales=scales
    )
    largest = 15 * scales[1].max().item()
    assert (found.cpu().float() - expected).abs().max().item() <= largest * torch.finfo(dtype).eps


def check_elementwise(kernels: FusedKernels, dtype: torch.dtype) -> None:
    """Norms, activations, rotation and copies give what the reference gives."""
    random = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    unit = torch.finfo(dtype).eps * (16 if dtype == torch.float32 else 2)
    x, residual, weight, bias = normal(5, 96) * 3, normal(5, 96), normal(96), normal(96)
    wide, heads, per_head = normal(3, 2 * 1100) * 4, normal(5, 3, 64), normal(3, 64)
    positions, pairs = torch.tensor([0, 1, 5, 5, 99]), torch.tensor([[1, 4], [3, 0]])
    for on in (REFERENCE, kernels):
        d = on.device
        caches = [torch.arange(6 * 2 * 4 * 8.0).view(6, 2, 4, 8).to(dtype).to(d) * sign for sign in (1, -1)]
        on.copy_blocks(*caches, pairs.to(d))
        results = [
            *on.add_rms_norm(x.to(d), residual.to(d), weight.to(d), 1e-5),
            on.rms_norm(x.to(d), weight.to(d), 1e-5),
            on.rms_norm(heads.to(d), per_head.to(d), 1e-5),
            on.layer_norm(x.to(d), weight.to(d), bias.to(d), 1e-5),
            on.layer_norm(x.to(d), weight.to(d), None, 1e-5),
            on.rope(heads.to(d), positions.to(d), angles(100, 64).to(d)),
            on.rope(heads.to(d), positions.to(d), angles(100, 16).to(d), norm=per_head.to(d), eps=1e-6),
            *(on.activation(x.to(d), kind) for kind in ("silu", "gelu", "gelu_tanh", "relu")),
            *(on.gated_activation(*wide.to(d).chunk(2, dim=1), kind) for kind in ("silu", "gelu_tanh")),
            *caches,
        ]
        if on is REFERENCE:
            expected = results
    for found, right in zip(results, expected, strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.cpu().float(), right.float(), rtol=2 * unit, atol=2 * unit)


def check_layer(kernels: FusedKernels, dtype: torch.dtype, *, is_plain: bool) -> None:
    """A whole layer against the reference's single operations: Qwen 3's parts, or GPT-2's (`is_plain`)."""
    random = torch.Generator().manual_seed(6)
    hidden, heads, kv_heads, dim, inner = 64, 4, 2, 16, 48

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    def matrix(out: int, size: int) -> tuple[Tensor, Tensor | None]:
        return (normal(out, size) * size**-0.5), normal(out) if is_plain else None

    def norm() -> NormParts:
        return NormParts(normal(hidden), 1e-5, normal(hidden) if is_plain else None, is_plain)

    norms, head_norm = (norm(), norm()), NormParts(normal(heads + kv_heads, dim), 1e-6)
    up_size = inner if is_plain else 2 * inner
    matrices = [
        matrix((heads + 2 * kv_heads) * dim, hidden), matrix(hidden, heads * dim), matrix(up_size, hidden),
        matrix(hidden, inner),
    ]  # fmt: skip
    problem = make_problem(AttentionCase(((20, 3), (62, 1)), heads=heads, kv_heads=kv_heads, head_dim=dim), dtype)
    x, positions, table = normal(4, hidden), torch.tensor([20, 21, 22, 62]), angles(70, dim)
    answers = []
    for on in (REFERENCE, kernels):
        d = on.device
        qkv, out, up, down = (on.pack(w.to(d), b.to(d) if b is not None else None) for w, b in matrices)
        parts = LayerParts(
            norm=there(norms[0], d),
            qkv=qkv,
            head_norm=None if is_plain else there(head_norm, d),
            cos_sin=None if is_plain else table.to(d),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=dim,
            window=None,
            scale=dim**-0.5,
            out=out,
            feed_forward_norm=there(norms[1], d),
            up=up,
            is_gated=not is_plain,
            activation="gelu_tanh" if is_plain else "silu",
            down=down,
        )
        caches = [cache.clone().to(d) for cache in (problem.k_cache, problem.v_cache)]
        layer = kernels.layer(parts) if on is kernels else partial(layer_of_single_operations, on, parts)  # type: ignore[attr-defined]
        answers.append(layer(x.clone().to(d), positions.to(d), move(problem.plan, d), *caches).cpu().float())
    assert torch.isfinite(answers[0]).all()
    unit = torch.finfo(dtype).eps * answers[0].abs().max().item()
    assert (answers[1] - answers[0]).abs().max().item() <= (64 if dtype == torch.float32 else 8) * unit


def there(norm: NormParts, device: torch.device) -> NormParts:
    """The same norm on another device."""
    bias = norm.bias.to(device) if norm.bias is not None else None
    return dataclasses.replace(norm, weight=norm.weight.to(device), bias=bias)


def layer_of_single_operations(
    on: FusedKernels, parts: LayerParts, x: Tensor, positions: Tensor, plan: AttentionPlan, *caches: Tensor
) -> Tensor:
    """What `quire.kernels.layer.LayerParts` says, one operation after the other."""

    def normed(x: Tensor, norm: NormParts) -> Tensor:
        if norm.is_layer_norm:
            return on.layer_norm(x, norm.weight, norm.bias, norm.eps)
        return on.rms_norm(x, norm.weight, norm.eps)

    qkv = on.linear(normed(x, parts.norm), parts.qkv).view(len(x), -1, parts.head_dim)
    head_norm = {} if parts.head_norm is None else {"norm": parts.head_norm.weight, "eps": parts.head_norm.eps}
    query = on.rope_and_write_kv(qkv, positions, parts.cos_sin, caches[0], caches[1], plan, **head_norm)  # type: ignore[arg-type]
    mixed = on.paged_attention(query, caches[0], caches[1], plan, scale=parts.scale)
    x = x + on.linear(mixed.reshape(len(x), -1), parts.out)
    inner = on.linear(normed(x, parts.feed_forward_norm), parts.up)
    if parts.is_gated:
        inner = on.gated_activation(*inner.chunk(2, dim=1), parts.activation)
    else:
        inner = on.activation(inner, parts.activation)
    return x + on.linear(inner, parts.down)


def check_experts(kernels: FusedKernels, dtype: torch.dtype, tokens: int, num_experts: int) -> None:
    """Grouped matmuls, with experts that nobody chose and experts that many did."""
    random = torch.Generator().manual_seed(4)
    x = torch.randn(tokens, 64, generator=random).to(dtype)
    gate_up = (torch.randn(num_experts, 96, 64, generator=random) / 8).to(dtype)
    down = (torch.randn(num_experts, 64, 48, generator=random) / 7).to(dtype)
    chosen = torch.stack([torch.randperm(num_experts - 1, generator=random)[:2] for _ in range(tokens)])
    weights = torch.rand(tokens, 2, generator=random)
    d = kernels.device
    found = kernels.experts(x.to(d), chosen.to(d), weights.to(d), gate_up.to(d), down.to(d), "silu")
    expected = REFERENCE.experts(x, chosen, weights, gate_up, down, "silu")
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(found.cpu().float(), expected.float(), rtol=8 * unit, atol=8 * unit)


def sampling_rows(rows: int, columns: int, position: int) -> tuple[Tensor, SamplingTensors]:
    """Scores with ties, infinities and every filter; row 0 is greedy, the last two fail."""
    random = torch.Generator().manual_seed(position)
    scores = torch.randn(rows, columns, generator=random) * 3
    scores[:, 100] = scores[:, 50]
    scores[:, 17] = scores[:, 50]
    scores[0, [40, 30]] = scores[0].max() + 1
    scores[3, ::3] = -torch.inf
    masked = torch.zeros(rows, dtype=torch.bool)
    masked[3] = masked[-1] = True
    scores[-2, 5] = torch.nan
    scores[-1] = -torch.inf
    choose = torch.tensor

    def cycle(*values: float) -> Tensor:
        return choose([values[i % len(values)] for i in range(rows)])

    return scores, SamplingTensors(
        temperature=cycle(0.0, 1.0, 0.7, 1.5, 1.0, 1e-3, 2.0),
        top_k=cycle(0, 5, 40, 0, 3, 0, 1).to(torch.int32),
        top_p=cycle(1.0, 1.0, 0.8, 0.5, 0.95, 0.3, 1.0),
        min_p=cycle(0.0, 0.0, 0.01, 0.0, 0.1),
        keys=choose([row_key(seed, seed % 2) for seed in range(rows)]),
        positions=torch.arange(rows) + position,
        masked=masked,
    )


def check_sampling(kernels: FusedKernels, columns: int, position: int) -> None:
    """The reference's tokens; the noise is a function of seed, choice, position and token, whatever stands beside."""
    scores, parameters = sampling_rows(9, columns, position)
    values = {field.name: getattr(parameters, field.name) for field in dataclasses.fields(parameters)}
    there = SamplingTensors(**{name: value.to(kernels.device) for name, value in values.items()})
    tokens = kernels.sample(scores.to(kernels.device), there).cpu()
    assert tokens.tolist() == REFERENCE.sample(scores, parameters).tolist()
    alone = SamplingTensors(**{name: value[4:5].to(kernels.device) for name, value in values.items()})
    assert kernels.sample(scores[4:5].to(kernels.device), alone).cpu().tolist() == tokens[4:5].tolist()


def check_logprobs(kernels: FusedKernels, columns: int, num_top: int) -> None:
    """Values within rounding; ranks and the order of equals exactly."""
    scores, _ = sampling_rows(5, columns, 0)
    scores = scores[:3]
    token_ids = torch.tensor([50, 3, -1])
    found = kernels.logprobs(scores.to(kernels.device), token_ids.to(kernels.device), num_top)
    expected = REFERENCE.logprobs(scores, token_ids, num_top)
    assert found.ranks.tolist() == expected.ranks.tolist()
    assert found.top_ids.tolist() == expected.top_ids.tolist()
    torch.testing.assert_close(found.values.cpu(), expected.values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.top_values.cpu(), expected.top_values, rtol=1e-5, atol=1e-5)
