"""Search the settings table on a device: measure candidates for shapes, write the best as rows.

    python -m quire.kernels.triton.search [--head-dim 128] [--group 4] [--kv-heads 8] [--block-size 16] [--output FILE]

Rows are written before those of the table that is in use, into `--output` (default: the package's own table). Each
candidate is compiled, recorded into a CUDA graph and replayed; the median time counts. Minutes for one shape.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from triton.runtime.errors import OutOfResources

from quire.kernels.triton import matmul, settings
from quire.kernels.triton.paged import Attention
from quire.kernels.triton.settings import AttentionSettings, MatmulSettings, Table
from quire.kernels.triton.shapes import AttentionShape, make_attention

BATCHES = (1, 4, 16, 64, 256)
"""Sequences that decode together: each is a bucket."""
DECODE_LENGTH = 2048
PREFILL_LENGTH = 4096
CALLS = 20
"""In a graph; the median of REPLAYS replays counts."""
REPLAYS = 9


def seconds(call: Callable[[], Any]) -> float:
    """Of one call on the device, the host left out."""
    for _ in range(2):
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    times: list[float] = []
    for _ in range(REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / CALLS)
    return sorted(times)[REPLAYS // 2]


def candidates(phase: settings.Phase, shape: AttentionShape, bucket: int) -> Iterator[AttentionSettings]:
    """What is tried for attention of a shape."""
    exact = AttentionSettings(phase, shape.head_dim, shape.group, shape.block_size, bucket, 16, 64, 4, 3)
    least = max(16, triton.next_power_of_2(shape.group))
    if phase == "decode":
        for keys, warps, stages, programs in product((16, 32, 64, 128), (2, 4, 8), (3, 4, 5, 6), (1, 2, 3, 4, 6)):
            yield replace(exact, rows=least, keys=keys, warps=warps, stages=stages, programs_per_processor=programs)
    else:
        for rows, keys, warps, stages in product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)):
            yield replace(exact, rows=max(rows, least), keys=keys, warps=warps, stages=stages)


def best_attention(table: Table, shape: AttentionShape, phase: settings.Phase, bucket: int) -> AttentionSettings | None:
    """The fastest candidate; None when none of them runs."""
    device = torch.device("cuda")
    inputs = make_attention(shape, device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    measured: list[tuple[float, AttentionSettings]] = []
    for row in candidates(phase, shape, bucket):
        attention = Attention(replace(table, attention=(row, *table.attention)), processors, invariant=False)
        try:
            measured.append((seconds(lambda attention=attention: inputs.apply(attention)), row))  # type: ignore[misc]
        except OutOfResources:  # a tile too large for this device: not a candidate
            continue
    if not measured:
        return None
    time, row = min(measured, key=lambda entry: entry[0])
    rate = (
        f"{shape.kv_bytes / time / 1e9:.0f} GB/s" if phase == "decode" else f"{shape.flops / time / 1e12:.0f} TFLOP/s"
    )
    print(f"{phase} bucket {bucket}: {time * 1e6:.1f} us, {rate}, {row}", flush=True)
    return row


def best_matmul(rows: int, out_features: int, in_features: int) -> MatmulSettings | None:
    """The fastest candidate for few rows; None where cuBLAS is as fast. Weights rotate, so that caches do not help."""
    copies = max(1, (256 << 20) // (2 * out_features * in_features))
    weights = torch.randn(copies, out_features, in_features, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(rows, in_features, device="cuda", dtype=torch.bfloat16)
    turn = iter(range(1 << 62))
    best_time, best = seconds(lambda: F.linear(x, weights[next(turn) % copies])), None
    for outputs, inputs, warps, stages, splits in product((16, 32, 64), (128, 256), (2, 4, 8), (3, 4, 5), (1, 2, 4, 8)):
        row = MatmulSettings("few_rows", rows, out_features, in_features, 16, outputs, inputs, warps, stages, splits)
        try:
            time = seconds(lambda row=row: matmul.multiply(x, weights[next(turn) % copies], None, row))  # type: ignore[misc]
        except OutOfResources:
            continue
        if time < 0.97 * best_time:
            best_time, best = time, row
    rate = weights[0].nbytes / best_time / 1e9
    print(f"{rows} rows x {out_features} x {in_features}: {rate:.0f} GB/s with {best or 'cuBLAS'}", flush=True)
    return best


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(
        prog="python -m quire.kernels.triton.search", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--group", type=int, default=4, help="query heads a key head")
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--matmul", action="append", default=[], metavar="OUT,IN", help="also matmuls of up to 16 rows")
    parser.add_argument("--output", type=Path, default=settings.TABLE)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        parser.error("no CUDA device is here: settings are measured on the device that they are for")
    table = settings.load()
    shape = AttentionShape(options.head_dim, options.group, options.kv_heads, options.block_size)
    found: list[AttentionSettings | None] = []
    for batch in BATCHES:
        decode = replace(shape, sequences=batch, length=DECODE_LENGTH)
        found.append(best_attention(table, decode, "decode", batch * options.kv_heads))
    prefill = replace(shape, sequences=1, length=PREFILL_LENGTH, new=PREFILL_LENGTH)
    found.append(best_attention(table, prefill, "prefill", 0))
    multiplied = []
    for sizes in options.matmul:
        out_features, in_features = map(int, sizes.split(","))
        multiplied += [best_matmul(rows, out_features, in_features) for rows in (1, 4, 16)]
    rows = [row for row in found if row is not None]
    matmuls = [row for row in multiplied if row is not None]
    source = f"measured on {torch.cuda.get_device_name()} with triton {triton.__version__}; then: {table.source}"
    Table(source, (*rows, *table.attention), (*matmuls, *table.matmul)).save(options.output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
