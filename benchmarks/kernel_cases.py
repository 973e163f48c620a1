"""The single operations that `quire bench kernels` times, in the bench shape, on every backend that has them.

What a case reads each time is too large for the caches: the calls of a case go round over several copies of weights or
KV caches, as the layers of a model do.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from quire.benchmarks.bench_model import SHAPE
from quire.benchmarks.limits import Call
from quire.engine.compiled_sampler import CompiledSampler
from quire.engine.row_sampling import RowSampling
from quire.engine.sampler import Sampler, TorchSampler
from quire.engine.sampling_params import SamplingParams
from quire.kernels.cpu.compiled import CompiledKernels
from quire.kernels.cpu.library import Library
from quire.kernels.cpu.sampling import Sampling
from quire.kernels.cpu.torch_backend import CpuKernels
from quire.kernels.interface import AttentionPlan, Kernels

HIDDEN, INNER, VOCABULARY = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["vocab_size"]
HEADS, KV_HEADS, HEAD_DIM = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"], SHAPE["head_dim"]
ROWS = (1, 4, 8, 32, 256)
DECODE = ((1, 4096), (8, 512), (8, 1024), (32, 512))
"""(sequences, tokens of each)."""
PREFILL = (256, 2048)
_RING_BYTES = 160 << 20


@dataclass(frozen=True)
class Case:
    """One operation on one backend; the least it must move and compute."""

    op: str
    variant: str
    backend: str
    call: Call
    nbytes: float
    flops: float = 0.0
    copies: bool = False
    """Whether half of the bytes are written: the limit is that of a copy then."""

    @property
    def name(self) -> str:
        """Of a row."""
        return f"{self.op}, {self.variant}, {self.backend}"


@dataclass(frozen=True)
class Choice:
    """What is measured."""

    libraries: Sequence[Library]
    ops: Sequence[str]
    precisions: Sequence[str]
    block_size: int = 16
    ring_bytes: int = _RING_BYTES
    rows: Sequence[int] = ROWS
    decode: Sequence[tuple[int, int]] = DECODE
    prefill: Sequence[int] = PREFILL


def cases(choice: Choice) -> Iterator[list[Case]]:
    """Groups of cases that take turns; what a group holds in memory is gone before the next one is made."""
    makers: dict[str, Callable[[Choice], Iterator[list[Case]]]] = {
        "linear": _linear,
        "decode-attention": _decode_attention,
        "prefill-attention": _prefill_attention,
        "pointwise": _pointwise,
        "sampling": _sampling,
    }
    for op in choice.ops:
        yield from makers[op](choice)


OPS = ("linear", "decode-attention", "prefill-attention", "pointwise", "sampling")


def _ring(items: Sequence[Any], call: Callable[[Any], object]) -> Call:
    """A call that takes the next item each time."""
    endless = itertools.cycle(items)
    return lambda: call(next(endless))


def _copies(choice: Choice, nbytes: int) -> int:
    return max(1, math.ceil(choice.ring_bytes / nbytes))


def _compiled(library: Library, precision: str | None = None) -> CompiledKernels:
    return CompiledKernels(library, precision)


def _linear(choice: Choice) -> Iterator[list[Case]]:
    """The widest layer of the model, gate and up together: [T, 1024] -> [T, 6144]."""
    weight = torch.randn(2 * INNER, HIDDEN) * 0.02
    inputs = {rows: torch.randn(rows, HIDDEN) for rows in choice.rows}
    for precision in choice.precisions:
        found: list[Case] = []
        for library in choice.libraries:
            kernels = _compiled(library, precision)
            first = kernels.pack(weight, None)
            packed = [first] + [replace(first, data=first.data.clone())
                                for _ in range(_copies(choice, first.nbytes) - 1)]  # fmt: skip
            for rows, x in inputs.items():
                call = _ring(packed, partial(kernels.linear, x))
                found.append(_matmul(rows, precision, f"compiled {library.isa}", call, first.nbytes))
        if precision in ("float32", "bfloat16"):
            found += _torch_linear(choice, weight.to(getattr(torch, precision)), precision, inputs)
        yield found


def _torch_linear(choice: Choice, weight: Tensor, precision: str, inputs: dict[int, Tensor]) -> Iterator[Case]:
    weights = [weight.clone() for _ in range(_copies(choice, weight.nbytes))]
    for rows, x in inputs.items():
        x = x.to(weight.dtype)
        call = _ring(weights, partial(F.linear, x))
        yield _matmul(rows, precision, "torch F.linear", call, weight.nbytes)
    if precision == "float32":
        kernels = CpuKernels()
        packed = [kernels.pack(item, None) for item in weights]
        for rows, x in inputs.items():
            call = _ring(packed, partial(kernels.linear, x))
            yield _matmul(rows, precision, "pytorch", call, weight.nbytes)


def _matmul(rows: int, precision: str, backend: str, call: Call, nbytes: int) -> Case:
    flops = 2.0 * rows * HIDDEN * 2 * INNER
    return Case("linear", f"{precision}, M = {rows}", backend, call, nbytes, flops)


def make_plan(lengths: Sequence[int], new: int, block_size: int, first_block: int = 1) -> tuple[AttentionPlan, int]:
    """Sequences of `lengths` tokens of which the last `new` are queries, in shuffled blocks; and how many blocks."""
    counts = [-(-length // block_size) for length in lengths]
    order = torch.randperm(sum(counts), generator=torch.Generator().manual_seed(0)) + first_block
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    slots, at = [], 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mine = order[at : at + count]
        tables[row, :count] = mine.to(torch.int32)
        positions = torch.arange(length - new, length)
        slots.append(mine[positions // block_size] * block_size + positions % block_size)
        at += count
    starts = tuple(range(0, new * len(lengths) + 1, new))
    plan = AttentionPlan(
        query_start_loc=torch.tensor(starts, dtype=torch.int32),
        seq_lens=torch.tensor(list(lengths), dtype=torch.int32),
        block_tables=tables,
        slot_mapping=torch.cat(slots).to(torch.int64),
        query_start_list=starts,
        seq_lens_list=tuple(lengths),
    )
    return plan, first_block + sum(counts)


def _decode_attention(choice: Choice) -> Iterator[list[Case]]:
    for count, length in choice.decode:
        yield _attention(choice, "decode attention", f"{count} x {length}", [length] * count, 1)


def _prefill_attention(choice: Choice) -> Iterator[list[Case]]:
    for length in choice.prefill:
        yield _attention(choice, "prefill attention", f"1 x {length}", [length], length)


def _attention(choice: Choice, op: str, variant: str, lengths: list[int], new: int) -> list[Case]:
    """bfloat16 and int8 caches for the compiled kernels, float32 for PyTorch's path, SDPA over keys side by side."""
    plan, blocks = make_plan(lengths, new, choice.block_size)
    tokens = sum(lengths)
    query = torch.randn(new * len(lengths), HEADS, HEAD_DIM)
    pairs = sum(sum(range(length - new + 1, length + 1)) for length in lengths)
    flops = 4.0 * HEADS * HEAD_DIM * pairs
    found = []
    for dtype in (torch.bfloat16, torch.int8):
        width = HEAD_DIM + 4 if dtype == torch.int8 else HEAD_DIM
        shape = (blocks, KV_HEADS, choice.block_size, width)
        nbytes = 2 * tokens * KV_HEADS * width * dtype.itemsize
        caches = [_caches(shape, dtype) for _ in range(_copies(choice, nbytes))]
        for library in choice.libraries:
            kernels = _compiled(library)
            call = _ring(caches, partial(_attend, kernels, query, plan))
            name = str(dtype).removeprefix("torch.")
            found.append(Case(op, f"{variant}, {name}", f"compiled {library.isa}", call, nbytes, flops))
    shape = (blocks, KV_HEADS, choice.block_size, HEAD_DIM)
    nbytes = 2 * tokens * KV_HEADS * HEAD_DIM * 4
    plain = CpuKernels()
    wide = [_caches(shape, torch.float32) for _ in range(_copies(choice, nbytes))]
    call = _ring(wide, partial(_attend, plain, query, plan))
    found.append(Case(op, f"{variant}, float32", "pytorch", call, nbytes, flops))
    if len(set(lengths)) == 1:
        found.append(_sdpa(choice, op, variant, lengths, new, flops))
    return found


def _attend(kernels: Kernels, query: Tensor, plan: AttentionPlan, pair: tuple[Tensor, Tensor]) -> Tensor:
    return kernels.paged_attention(query, pair[0], pair[1], plan, scale=HEAD_DIM**-0.5)


def _caches(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if dtype != torch.int8:
        return torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    pair = []
    for _ in range(2):
        cache = torch.randint(-127, 128, shape, dtype=torch.int8)
        cache[..., -4:] = torch.full((*shape[:-1], 1), 0.01).view(torch.int8)
        pair.append(cache)
    return pair[0], pair[1]


def _sdpa(choice: Choice, op: str, variant: str, lengths: list[int], new: int, flops: float) -> Case:
    """What torch does when nobody has to gather blocks for it."""
    length, count = lengths[0], len(lengths)
    nbytes = 2 * count * length * KV_HEADS * HEAD_DIM * 2
    query = torch.randn(count, HEADS, new, HEAD_DIM).bfloat16()
    shape = (count, KV_HEADS, length, HEAD_DIM)
    pairs = [_caches(shape, torch.bfloat16) for _ in range(_copies(choice, nbytes))]

    def call(pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.scaled_dot_product_attention(query, pair[0], pair[1], is_causal=new > 1, enable_gqa=True)

    return Case(op, f"{variant}, bfloat16", "torch SDPA, gathered", _ring(pairs, call), nbytes, flops)


def _pointwise(choice: Choice) -> Iterator[list[Case]]:
    """On as many rows as the caches do not hold."""
    backends: list[tuple[str, Kernels]] = [(f"compiled {library.isa}", _compiled(library))
                                           for library in choice.libraries]  # fmt: skip
    backends.append(("pytorch", CpuKernels()))

    def group(op: str, rows: int, width: int, tensors: int, calls: Callable[[Kernels], Call]) -> list[Case]:
        nbytes = tensors * rows * width * 4
        return [Case(op, f"{rows} x {width}", name, calls(kernels), nbytes, copies=True) for name, kernels in backends]

    rows = max(1, choice.ring_bytes // (2 * HIDDEN * 4))
    x, weight = torch.randn(rows, HIDDEN), torch.randn(HIDDEN)
    yield group("rms_norm", rows, HIDDEN, 2, lambda kernels: partial(kernels.rms_norm, x, weight, 1e-6))
    rows = max(1, choice.ring_bytes // (2 * HEADS * HEAD_DIM * 4))
    heads, positions = torch.randn(rows, HEADS, HEAD_DIM), torch.arange(rows)
    angles = torch.randn(rows, HEAD_DIM // 2)
    cos_sin = torch.stack((angles.cos(), angles.sin()), dim=1)
    yield group("rope", rows, HEADS * HEAD_DIM, 2, lambda kernels: partial(kernels.rope, heads, positions, cos_sin))
    rows = max(1, choice.ring_bytes // (3 * INNER * 4))
    gate, up = torch.randn(rows, 2 * INNER).chunk(2, dim=1)
    yield group("silu(gate) * up", rows, INNER, 3, lambda kernels: partial(kernels.gated_activation, gate, up, "silu"))


def _sampling(choice: Choice) -> Iterator[list[Case]]:
    """Greedy, a plain temperature, and top-p with top-k, for 8 rows of the vocabulary; the engine's own samplers."""
    backends: list[tuple[str, Sampler]] = [
        (f"compiled {library.isa}", CompiledSampler(Sampling(library))) for library in choice.libraries
    ]
    backends.append(("pytorch", TorchSampler()))
    logits = torch.randn(8, VOCABULARY) * 3
    found = []
    for name, params in (
        ("greedy", SamplingParams(temperature=0.0)),
        ("temperature 1", SamplingParams(temperature=1.0, seed=1)),
        ("top-p 0.9, top-k 50", SamplingParams(temperature=1.0, seed=1, top_p=0.9, top_k=50)),
    ):
        rows = [RowSampling(params, row, np.array([1], dtype=np.int32), 1, VOCABULARY) for row in range(8)]
        for backend, sampler in backends:
            call = partial(sampler.sample, logits, range(8), rows)
            found.append(Case("sampling", f"8 x {VOCABULARY}, {name}", backend, call, logits.nbytes))
    yield found
