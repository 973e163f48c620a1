"""The goals for the CPU, and what one run says about them. Pure: measurements in, rows out.

A bound is what the ratio would be if ours ran exactly at the machine's limit (bandwidth and matmul rate of the same
run) against the peer as it was measured. Where a goal lies beyond that, and ours is close to the limit, the row is
"at the bound".
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import msgspec

from quire.benchmarks import compare, kernels
from quire.benchmarks.bench_model import SHAPE, weight_bytes
from quire.benchmarks.contenders import BATCH
from quire.benchmarks.engine_rates import Rates
from quire.benchmarks.limits import Limits

Verdict = Literal["stretch", "gate", "at the bound", "short of the gate", "not measured"]
NEAR = 0.8
"""Share of the machine's limit from which a ratio counts as at the bound."""
BITS = {"bf16": 16.0, "int8": 8.5, "int4": 4.5}
"""Of a stored weight, scales included."""


class Measured(msgspec.Struct, frozen=True):
    """Everything that the rows need. `rates` has one entry a round for each contender; parts may be missing."""

    limits: Limits | None = None
    rates: dict[str, list[Rates]] = {}
    served: compare.Result | None = None
    kernels: kernels.Result | None = None
    first_token_seconds: list[float] = []
    step_p50_ms: list[float] = []
    versions: dict[str, str] = {}


class Goal(msgspec.Struct, frozen=True):
    """One row."""

    id: str
    what: str
    value: float | None
    unit: str
    gate: float
    stretch: float
    at_most: bool = False
    """Whether less is better."""
    bound: float | None = None
    """The best value that the machine allows in this run; None: none is computed."""
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """What the value reaches."""
        if self.value is None:
            return "not measured"
        reached = [self.value <= goal if self.at_most else self.value >= goal for goal in (self.gate, self.stretch)]
        beyond = self.bound is not None and self.value >= NEAR * self.bound
        if reached[1]:
            return "stretch"
        if beyond and self.bound is not None and self.bound <= (self.stretch if reached[0] else self.gate):
            return "at the bound"
        return "gate" if reached[0] else "short of the gate"


def goals(found: Measured) -> list[Goal]:
    """C1 to C7."""
    return [*_bandwidth(found), *_transformers(found), *_vllm(found), *_llama(found), *_rest(found)]


def rate(rates: Mapping[str, Sequence[Rates]], name: str, field: str) -> float | None:
    """The median over the rounds, tokens a second."""
    values = [getattr(one, field) for one in rates.get(name, ())]
    return statistics.median(values) if values else None


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """None where one of them is missing."""
    return ours / theirs if ours is not None and theirs else None


def limit_rate(limits: Limits, bits: float, field: str) -> float:
    """Tokens a second that the machine allows: of prefill, decode alone or decode in the batch."""
    read = weight_bytes(SHAPE, bits / 8) / (limits.read_gb_per_s * 1e9)
    product = weight_bytes(SHAPE, 2.0) / (limits.gflop_per_s * 1e9)
    """Seconds to multiply every weight by one token: two operations a weight."""
    if field == "prefill":
        return 1 / product
    batch = BATCH if field == "batch_decode" else 1
    return batch / max(read, batch * product)


def _bandwidth(found: Measured) -> Iterator[Goal]:
    decode = rate(found.rates, "quire bf16", "decode")
    used = None if decode is None else decode * weight_bytes() / 1e9
    limit = found.limits.read_gb_per_s if found.limits is not None else None
    note = f"{used:.1f} of {limit:.1f} GB/s" if used is not None and limit is not None else ""
    yield Goal("C1", "decode alone, weights read over read bandwidth", ratio(used, limit), "", 0.80, 0.92, note=note)


def _versus(
    found: Measured, id_: str, what: str, field: str, ours: str, theirs: str, gate: float, stretch: float
) -> Goal:
    own, other = rate(found.rates, ours, field), rate(found.rates, theirs, field)
    bits = BITS.get(ours.removeprefix("quire "))
    bound = None
    if found.limits is not None and bits is not None:
        bound = ratio(limit_rate(found.limits, bits, field), other)
    note = f"{own:.1f} against {other:.1f} tokens/s" if own is not None and other is not None else ""
    return Goal(id_, what, ratio(own, other), "x", gate, stretch, bound=bound, note=note)


def _transformers(found: Measured) -> Iterator[Goal]:
    for name in ("transformers bf16", "transformers fp32"):
        for field, what, gate, stretch in (
            ("decode", "batch 1", 4.0, 4.4),
            ("batch_decode", f"batch {BATCH}", 10.0, 14.0),
        ):
            yield _versus(found, "C2", f"{name}, `generate`, {what}", field, "quire bf16", name, gate, stretch)


def _llama(found: Measured) -> Iterator[Goal]:
    rows = (
        ("C4", "bf16", "BF16", (1.4, 1.6), (1.25, 1.35), (1.8, 2.3)),
        ("C4q", "int8", "Q8_0", (1.3, 1.6), (1.3, 1.6), (1.5, 2.0)),
        ("C4q", "int8-w8a8", "Q8_0", (1.3, 1.6), (1.3, 1.6), (1.5, 2.0)),
        ("C4q", "int4", "Q4_0", (1.3, 1.6), (1.3, 1.6), (1.5, 2.0)),
    )
    for id_, precision, kind, prefill, decode, batch in rows:
        ours, theirs = f"quire {precision}", f"llama.cpp {kind}"
        parts = (
            ("prefill", "prefill", prefill),
            ("decode", "decode alone", decode),
            ("batch_decode", f"decode at batch {BATCH}", batch),
        )
        for field, what, (gate, stretch) in parts:
            yield _versus(found, id_, f"llama.cpp, {precision} : {kind}, {what}", field, ours, theirs, gate, stretch)
    yield _served(found, "C4s", "llama.cpp", f"{BATCH} at once over HTTP, output tokens/s", BATCH, 1.6, 2.0)


def _vllm(found: Measured) -> Iterator[Goal]:
    yield _served(found, "C3", "vllm", "alone over HTTP, TPOT", 1, 1.45, 1.6)
    yield _served(found, "C3", "vllm", f"{BATCH} at once over HTTP, output tokens/s", BATCH, 1.2, 1.4)


def _served(found: Measured, id_: str, peer: str, what: str, level: int, gate: float, stretch: float) -> Goal:
    by_name = {}
    if found.served is not None:
        by_name = {load.server: load for load in found.served.loads if load.concurrency == level}
    own, other = by_name.get("quire"), by_name.get(peer)
    if own is None or other is None:
        return Goal(id_, f"{peer}, {what}", None, "x", gate, stretch)
    if level == 1:
        value = ratio(other.median_tpot_ms, own.median_tpot_ms)
        note = f"{compare.shown(own.median_tpot_ms)} against {compare.shown(other.median_tpot_ms)} ms"
    else:
        value = ratio(own.output_throughput, other.output_throughput)
        note = f"{own.output_throughput:.1f} against {other.output_throughput:.1f} tokens/s"
    return Goal(id_, f"{peer}, {what}", value, "x", gate, stretch, note=note)


def _rest(found: Measured) -> Iterator[Goal]:
    shares = {}
    if found.kernels is not None:
        shares = {
            row.variant: row.gb_per_s / found.kernels.limits.read_gb_per_s
            for row in found.kernels.rows
            if row.op == "decode attention" and row.backend.startswith("compiled") and row.variant.endswith("bfloat16")
        }
    value = math.prod(shares.values()) ** (1 / len(shares)) if shares else None
    note = "; ".join(f"{variant.partition(',')[0]}: {share:.2f}" for variant, share in shares.items())
    yield Goal("C5", "decode attention, KV read over read bandwidth (bf16, geomean)", value, "", 0.40, 0.60, note=note)
    seconds = sorted(found.first_token_seconds)
    value = statistics.median(seconds) if seconds else None
    note = f"{seconds[0]:.2f} .. {seconds[-1]:.2f} in {len(seconds)} runs" if seconds else ""
    yield Goal("C6", "process start to first token, warm file cache", value, "s", 6.0, 3.0, at_most=True, note=note)
    steps = sorted(found.step_p50_ms)
    value = statistics.median(steps) if steps else None
    note = f"{steps[0]:.2f} .. {steps[-1]:.2f} in {len(steps)} runs" if steps else ""
    yield Goal("C7", "host time of a step, 64 sequences, median", value, "ms", 1.0, 0.3, at_most=True, note=note)


def table(rows: Sequence[Goal]) -> str:
    """One line a goal."""
    lines = [
        "| | goal | found | gate | stretch | bound of this run | | |",
        "|---|---|---:|---:|---:|---:|---|---|",
    ]
    for row in rows:
        sign = "<= " if row.at_most else ""
        unit = f" {row.unit}" if row.unit else ""
        value = "n/a" if row.value is None else f"**{row.value:.2f}{unit}**"
        bound = "" if row.bound is None else f"{row.bound:.2f}{unit}"
        lines.append(
            f"| {row.id} | {row.what} | {value} | {sign}{row.gate:g}{unit} | {sign}{row.stretch:g}{unit} | {bound} "
            f"| {row.verdict} | {row.note} |"
        )
    return "\n".join(lines)
