"""A layer in one call gives the bits of its single operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from support.kernel_cases import cut_plan
from torch import Tensor

from quire.kernels.cpu import library
from quire.kernels.cpu.compiled import CompiledKernels
from quire.kernels.interface import AttentionPlan
from quire.kernels.layer import ComputesLayers, LayerParts, NormParts

try:
    ISAS = library.usable()
except library.LibraryMissing as problem:
    pytest.skip(str(problem), allow_module_level=True)

HIDDEN, BLOCK_SIZE, POSITIONS = 72, 16, 700
STEPS = {
    "decode": ((30, 1), (1, 1), (69, 1)),
    "one": ((130, 1),),
    "mixed": ((0, 20), (64, 1), (10, 9)),
    "more rows than a slab": ((0, 600),),
}


@dataclass(frozen=True)
class Kind:
    """What differs between families."""

    heads: int = 4
    kv_heads: int = 2
    dim: int = 32
    rms: bool = True
    head_norm: bool = False
    rotates: bool = True
    gated: bool = True
    window: int | None = None


KINDS = {
    "qwen3": Kind(head_norm=True),
    "gpt2": Kind(heads=3, kv_heads=3, rms=False, rotates=False, gated=False, dim=24),
    "mistral": Kind(heads=6, kv_heads=1, window=40, dim=48),
}


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts the number of threads back."""
    before = torch.get_num_threads()
    yield
    library.load().set_threads(before)


def make_parts(kernels: CompiledKernels, kind: Kind, dtype: torch.dtype) -> LayerParts:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    def matrix(out: int, size: int) -> Any:
        return kernels.pack((normal(out, size) * size**-0.5).to(dtype), None if kind.rms else normal(out))

    def norm() -> NormParts:
        return NormParts(normal(HIDDEN), 1e-5, None if kind.rms else normal(HIDDEN), not kind.rms)

    inner, heads = 100, kind.heads + kind.kv_heads
    angles = normal(POSITIONS, kind.dim // 2)
    return LayerParts(
        norm=norm(),
        qkv=matrix((heads + kind.kv_heads) * kind.dim, HIDDEN),
        head_norm=NormParts(normal(heads, kind.dim), 1e-6) if kind.head_norm else None,
        cos_sin=torch.stack((angles.cos(), angles.sin()), dim=1) if kind.rotates else None,
        heads=kind.heads,
        kv_heads=kind.kv_heads,
        head_dim=kind.dim,
        window=kind.window,
        scale=kind.dim**-0.5,
        out=matrix(HIDDEN, kind.heads * kind.dim),
        feed_forward_norm=norm(),
        up=matrix(2 * inner if kind.gated else inner, HIDDEN),
        is_gated=kind.gated,
        activation="silu" if kind.gated else "gelu_tanh",
        down=matrix(HIDDEN, inner),
    )


def apply_norm(kernels: CompiledKernels, norm: NormParts, x: Tensor) -> Tensor:
    if norm.is_layer_norm:
        return kernels.layer_norm(x, norm.weight, norm.bias, norm.eps)
    return kernels.rms_norm(x, norm.weight, norm.eps)


def one_by_one(
    kernels: CompiledKernels, parts: LayerParts, x: Tensor, positions: Tensor, plan: AttentionPlan, caches: list[Tensor]
) -> Tensor:
    rows, heads = len(x), parts.heads + parts.kv_heads
    qkv = kernels.linear(apply_norm(kernels, parts.norm, x), parts.qkv).view(rows, -1, parts.head_dim)
    turned = qkv[:, :heads]
    if parts.cos_sin is not None:
        norm = parts.head_norm
        turned = kernels.rope(
            turned,
            positions,
            parts.cos_sin,
            norm=None if norm is None else norm.weight,
            eps=0 if norm is None else norm.eps,
        )
    kernels.write_kv(turned[:, parts.heads :], qkv[:, heads:], caches[0], caches[1], plan)
    mixed = kernels.paged_attention(
        turned[:, : parts.heads], caches[0], caches[1], plan, scale=parts.scale, window=parts.window
    )
    x = x + kernels.linear(mixed.reshape(rows, -1), parts.out)
    up = kernels.linear(apply_norm(kernels, parts.feed_forward_norm, x), parts.up)
    if parts.is_gated:
        inner = kernels.gated_activation(*up.chunk(2, dim=-1), parts.activation)
    else:
        inner = kernels.activation(up, parts.activation)
    return x + kernels.linear(inner, parts.down)


def compare(kernels: CompiledKernels, kind: Kind, dtype: torch.dtype, cache_dtype: torch.dtype) -> None:
    parts = make_parts(kernels, kind, dtype)
    layer = kernels.layer(parts)
    random = torch.Generator().manual_seed(1)
    for name, sequences in STEPS.items():
        counts = [-(-(cached + new) // BLOCK_SIZE) for cached, new in sequences]
        order = iter(torch.randperm(sum(counts), generator=random).tolist())
        plan = cut_plan(list(sequences), [[next(order) for _ in range(count)] for count in counts], BLOCK_SIZE)
        row = kind.dim + 4 if cache_dtype == torch.int8 else kind.dim
        shape = (sum(counts), kind.kv_heads, BLOCK_SIZE, row)
        caches = [torch.randn(shape, generator=random).mul_(9).to(cache_dtype) for _ in "kv"]
        if cache_dtype == torch.int8:
            for cache in caches:
                cache[..., -4:] = torch.full((*shape[:-1], 1), 0.02).view(torch.int8)
        others = [cache.clone() for cache in caches]
        positions = torch.cat([torch.arange(cached, cached + new) for cached, new in sequences])
        x = torch.randn(len(positions), HIDDEN, generator=random)
        expected = one_by_one(kernels, parts, x.clone(), positions, plan, others)
        assert torch.isfinite(expected).all()
        assert torch.equal(layer(x, positions, plan, caches[0], caches[1]), expected), name
        for found, other in zip(caches, others, strict=True):
            assert torch.equal(found.view(torch.uint8), other.view(torch.uint8)), name


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("isa", ISAS)
def test_a_layer_is_its_operations(isa: str, kind: str) -> None:
    kernels = CompiledKernels(library.load(isa))
    assert isinstance(kernels, ComputesLayers)
    compare(kernels, KINDS[kind], torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8", "int4", "int8-w8a8"])
@pytest.mark.parametrize("cache_dtype", [torch.float16, torch.int8], ids=str)
def test_in_every_precision(precision: str, cache_dtype: torch.dtype) -> None:
    if precision == "int8-w8a8" and "vnni" not in ISAS[0]:
        pytest.skip("this CPU multiplies no bytes")
    quantized = precision if precision.startswith("int") else None
    dtype = torch.bfloat16 if quantized else getattr(torch, precision)
    compare(CompiledKernels(library.load(), quantized), KINDS["qwen3"], dtype, cache_dtype)


@pytest.mark.parametrize("count", [1, 3])
def test_on_any_number_of_threads(count: int, threads: None) -> None:
    """More threads than cores among them: they wait for each other at every operation."""
    chosen = library.load()
    chosen.set_threads(count)
    compare(CompiledKernels(chosen), KINDS["qwen3"], torch.bfloat16, torch.bfloat16)
    parts = make_parts(CompiledKernels(chosen), KINDS["mistral"], torch.bfloat16)
    plan = cut_plan([(0, 40)], [[0, 1, 2]], BLOCK_SIZE)
    answers = []
    for threads_here in (count, 2):
        chosen.set_threads(threads_here)
        caches = [torch.zeros(3, 1, BLOCK_SIZE, 48, dtype=torch.bfloat16) for _ in "kv"]
        x = torch.randn(40, HIDDEN, generator=torch.Generator().manual_seed(3))
        answers.append(CompiledKernels(chosen).layer(parts)(x, torch.arange(40), plan, caches[0], caches[1]))
    assert torch.equal(answers[0], answers[1])


def test_other_dtypes_are_refused() -> None:
    kernels = CompiledKernels(library.load())
    parts = make_parts(kernels, KINDS["qwen3"], torch.bfloat16)
    norm = dataclasses.replace(parts.norm, weight=parts.norm.weight.double())
    with pytest.raises(TypeError, match="float32"):
        kernels.layer(dataclasses.replace(parts, norm=norm))
