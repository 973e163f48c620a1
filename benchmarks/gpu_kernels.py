"""`quire bench kernels --device cuda`: the Triton kernels against what the GPU can do, the rows K1, K4, K5 and K7.

Calls are recorded into CUDA graphs and replayed, so that the host's time is left out. The bandwidth is that of a large
copy, the matmul rate that of a large bfloat16 matmul, both in the same run. K5's peer is FlashAttention 3; what torch's
own attention reaches on keys side by side stands beside it, and is named so.
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor

from quire.benchmarks.goal_rows import Goal
from quire.benchmarks.studies.record import record
from quire.clients.terminal import USAGE, CommandFailed

HIDDEN, INNER = 4096, 14336
_BLOCK_SIZE = 16


@dataclass(frozen=True)
class Sizes:
    """What is measured, in Llama 3.1 8B's shape."""

    decode_large: tuple[tuple[int, int], ...] = ((64, 4096), (256, 1024), (8, 16384))
    """(sequences, tokens of each): half a gigabyte and more of keys and values."""
    decode_small: tuple[int, ...] = (1024, 2048, 4096)
    prefill: tuple[int, ...] = (2048, 4096, 16384)
    rows: int = 16384


class Row(msgspec.Struct, frozen=True):
    """One operation on one backend, at the median of its replays."""

    goal: str
    op: str
    backend: str
    us: float
    gb_per_s: float
    tflop_per_s: float


class Result(msgspec.Struct, frozen=True):
    """One run."""

    device: str
    triton: str
    settings: str
    """Where the settings table comes from."""
    copy_gb_per_s: float
    bfloat16_tflop_per_s: float
    rows: list[Row]


def main(words: list[str], options: Namespace) -> int:
    """Measure, print, write what was asked for."""
    if not torch.cuda.is_available():
        raise CommandFailed(f"--device cuda: torch {torch.__version__} finds no CUDA device on this machine", USAGE)
    result = measure()
    print(
        f"{result.device}: copies {result.copy_gb_per_s:.0f} GB/s, multiplies {result.bfloat16_tflop_per_s:.0f} TFLOP/s"
    )
    for row in result.rows:
        rates = f"{row.gb_per_s:.0f} GB/s, {row.tflop_per_s:.0f} TFLOP/s"
        print(f"{row.goal} {row.op}, {row.backend}: {row.us:.1f} us, {rates}")
    for goal in goals(result):
        value = "-" if goal.value is None else f"{goal.value:.2f}"
        print(f"{goal.id} {goal.what}: {value} {goal.unit}(gate {goal.gate}, stretch {goal.stretch}): {goal.verdict}")
    if options.output_json is not None:
        record(shlex.join(["quire", "bench", "kernels", *words]), result).save(options.output_json)
        print(f"wrote {options.output_json}")
    return 0


def measure() -> Result:
    """Everything, one group after the other."""
    import triton

    from quire.kernels.triton.search import seconds
    from quire.kernels.triton.settings import load

    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e9
    square = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    multiplied = 2 * 8192**3 / seconds(lambda: square @ square) / 1e12
    rows = []
    for goal, op, backend, call, nbytes, flops in cases(torch.device("cuda"), Sizes()):
        time = seconds(call)
        rows.append(Row(goal, op, backend, 1e6 * time, nbytes / time / 1e9, flops / time / 1e12))
    return Result(torch.cuda.get_device_name(), triton.__version__, load().source, copied, multiplied, rows)


Measured = tuple[str, str, str, Callable[[], object], float, float]
"""Goal, operation, backend, call, bytes, flops."""


def cases(device: torch.device, sizes: Sizes) -> Iterator[Measured]:
    """What a case holds in memory is gone before the next one is made."""
    for sequences, length in sizes.decode_large:
        yield from _attention(device, "K1", f"decode {sequences} x {length}", sequences, length, 1)
    for length in sizes.decode_small:
        yield from _attention(device, "K4", f"decode 1 x {length}", 1, length, 1)
    for length in sizes.prefill:
        yield from _attention(device, "K5", f"prefill 1 x {length}", 1, length, length)
    yield from _elementwise(device, sizes.rows)


def _attention(device: torch.device, goal: str, op: str, sequences: int, length: int, new: int) -> Iterator[Measured]:
    from quire.kernels.triton.backend import TritonKernels
    from quire.kernels.triton.shapes import AttentionShape, make_attention

    shape = AttentionShape(block_size=_BLOCK_SIZE, sequences=sequences, length=length, new=new)
    inputs, kernels = make_attention(shape, device), TritonKernels(device)

    def ours() -> Tensor:
        return kernels.paged_attention(
            inputs.query, inputs.k_cache, inputs.v_cache, inputs.plan, scale=inputs.options["scale"]
        )

    yield goal, op, "triton", ours, shape.kv_bytes, shape.flops
    heads = shape.group * shape.kv_heads
    query = torch.randn(sequences, heads, new, shape.head_dim, device=device, dtype=shape.dtype)
    key, value = (
        torch.randn(sequences, shape.kv_heads, length, shape.head_dim, device=device, dtype=shape.dtype) for _ in "kv"
    )
    call = partial(F.scaled_dot_product_attention, query, key, value, is_causal=new > 1, enable_gqa=True)
    yield goal, op, "torch SDPA, side by side", call, shape.kv_bytes, shape.flops


def _elementwise(device: torch.device, rows: int) -> Iterator[Measured]:
    from quire.kernels.triton.backend import TritonKernels
    from quire.kernels.triton.shapes import AttentionShape, make_attention

    kernels = TritonKernels(device)
    x, residual = (torch.randn(rows, HIDDEN, device=device, dtype=torch.bfloat16) for _ in "xr")
    weight = torch.ones(HIDDEN, device=device, dtype=torch.bfloat16)
    norm = partial(kernels.add_rms_norm, x, residual, weight, 1e-6)
    yield "K7", f"add and norm {rows} x {HIDDEN}", "triton", norm, 4 * x.nbytes, 0
    gate_up = torch.randn(rows, 2 * INNER, device=device, dtype=torch.bfloat16)
    gate, up = gate_up.chunk(2, dim=1)
    activation = partial(kernels.gated_activation, gate, up, "silu")
    yield "K7", f"silu(gate) * up {rows} x {INNER}", "triton", activation, 1.5 * gate_up.nbytes, 0
    inputs = make_attention(AttentionShape(sequences=1, length=rows, new=rows), device)
    inputs.plan.slot_mapping.copy_(torch.randperm(rows))
    qkv = torch.randn(rows, 48, 128, device=device, dtype=torch.bfloat16)
    table = torch.randn(rows, 2, 64, device=device)
    rotate = partial(
        kernels.rope_and_write_kv,
        qkv,
        torch.arange(rows, device=device),
        table,
        inputs.k_cache,
        inputs.v_cache,
        inputs.plan,
    )
    yield "K7", f"rope and cache write {rows} x 48 x 128", "triton", rotate, 2 * qkv.nbytes + table.nbytes, 0


def goals(found: Result) -> list[Goal]:
    """The rows: the worst of the shapes that a goal names."""

    def of(goal: str) -> list[Row]:
        return [row for row in found.rows if row.goal == goal and row.backend == "triton"]

    shares = {goal: [row.gb_per_s / found.copy_gb_per_s for row in of(goal)] for goal in ("K1", "K7")}
    beside = {row.op: row.us for row in found.rows if row.backend != "triton"}
    return [
        Goal("K1", "decode attention over copy bandwidth", min(shares["K1"], default=None), "", 0.80, 0.90),
        Goal(
            "K4", "decode attention alone", max([row.us for row in of("K4")], default=None), "us ", 15, 10, at_most=True
        ),
        Goal(
            "K5",
            "prefill attention over torch's SDPA (the goal is over FlashAttention 3)",
            min([beside[row.op] / row.us for row in of("K5") if row.op in beside], default=None),
            "x ",
            0.70,
            0.85,
        ),
        Goal("K7", "fused elementwise over copy bandwidth", min(shares["K7"], default=None), "", 0.80, 0.90),
    ]
