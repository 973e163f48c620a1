"""KV memory that holds nothing: blocks against contiguous reservations, on lengths like those of ShareGPT.

A computation, not a measurement: every sequence lives from its prompt to its last token, one token a step, and at each
step memory is allocated of which the tokens so far use a part. The reservations are those that the PagedAttention
paper compares with (Kwon et al., 2023, section 2.3): the longest that is possible, the next power of two, and the final
length if an oracle knew it.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import msgspec
import numpy as np

from quire.benchmarks.figure import bars, figure, line
from quire.benchmarks.studies.settings import Settings

MAX_LEN = 2048
BLOCK_SIZES = (1, 8, 16, 32, 64, 128, 256)
PROMPT_MEAN, OUTPUT_MEAN = 161.0, 338.0
"""Means that the paper gives for ShareGPT (section 6.1, figure 11)."""
_SPREAD = 1.0
"""Of the logarithms: many short ones and a long tail."""
COUNT = 20_000

Lengths = np.ndarray[tuple[int], np.dtype[np.int64]]


class Scheme(msgspec.Struct, frozen=True):
    """One way to allocate."""

    name: str
    waste: float
    """Share of allocated memory that holds no token, over all steps of all sequences."""
    sequences: float
    """How many run at once in the memory of one reservation of the longest possible sequence."""


class Result(msgspec.Struct, frozen=True):
    """Waste by scheme, and by block size."""

    max_len: int
    count: int
    mean_prompt: float
    mean_output: float
    schemes: list[Scheme]
    by_block_size: list[tuple[int, float]]


def lengths(seed: int, count: int) -> tuple[Lengths, Lengths]:
    """Prompts and answers, log-normal around the paper's means; a prompt is at most three quarters of the context."""
    chooser = np.random.default_rng(seed)

    def draw(mean: float) -> Lengths:
        drawn = chooser.lognormal(np.log(mean) - _SPREAD**2 / 2, _SPREAD, count)
        return np.maximum(4, drawn.round()).astype(np.int64)

    prompts = np.minimum(draw(PROMPT_MEAN), 3 * MAX_LEN // 4)
    return prompts, np.minimum(draw(OUTPUT_MEAN), MAX_LEN - prompts)


def allocated_by_blocks(prompts: Lengths, outputs: Lengths, block_size: int) -> float:
    """Token slots in blocks, summed over the steps of every sequence: at n tokens it has ceil(n / size) blocks."""

    def up_to(tokens: Lengths) -> Lengths:
        full, rest = tokens // block_size, tokens % block_size
        total: Lengths = block_size * (block_size * full * (full + 1) // 2 + rest * (full + 1))
        return total

    return float((up_to(prompts + outputs) - up_to(prompts)).sum())


def measure(settings: Settings) -> Result:
    """Compute it; well below a second."""
    count = 200 if settings.tiny else COUNT
    prompts, outputs = lengths(settings.seed, count)
    final = prompts + outputs
    used = allocated_by_blocks(prompts, outputs, 1)
    powers = np.int64(2) ** np.ceil(np.log2(final)).astype(np.int64)
    allocated = {
        "longest possible": float((MAX_LEN * outputs).sum()),
        "next power of two": float((powers * outputs).sum()),
        "final length, if known": float((final * outputs).sum()),
        "blocks of 16": allocated_by_blocks(prompts, outputs, 16),
    }
    longest = allocated["longest possible"]
    return Result(
        max_len=MAX_LEN,
        count=count,
        mean_prompt=float(prompts.mean()),
        mean_output=float(outputs.mean()),
        schemes=[Scheme(name, 1 - used / slots, longest / slots) for name, slots in allocated.items()],
        by_block_size=[(size, 1 - used / allocated_by_blocks(prompts, outputs, size)) for size in BLOCK_SIZES],
    )


def draw(result: Result, path: Path) -> None:
    """Waste by scheme, and by block size."""
    with figure(path, 2, title="KV memory that is allocated and holds nothing", size=(5.6, 4.2)) as (left, right):
        names = [textwrap.fill(scheme.name, 12) for scheme in result.schemes]
        bars(left, names, [100 * scheme.waste for scheme in result.schemes], (5, 5, 5, 0), " %")
        left.set(ylabel="% of allocated memory", title="by way of allocating")
        sizes = [str(size) for size, _ in result.by_block_size]
        waste = [100 * share for _, share in result.by_block_size]
        line(right, range(len(sizes)), waste, "waste", 0)
        right.set_xticks(range(len(sizes)), sizes)
        for at, share in enumerate(waste):
            right.annotate(f"{share:.1f}", (at, share), xytext=(-4, 7), textcoords="offset points", ha="right")
        right.set(xlabel="tokens a block", title="by block size")
        right.set_ylim(bottom=0)
        right.margins(x=0.1, y=0.15)


def table(result: Result) -> str:
    """One row a scheme."""
    rows = ["| memory for a sequence | wasted | sequences at once, in the same memory |", "|---|---:|---:|"]
    rows += [f"| {scheme.name} | {100 * scheme.waste:.1f} % | {scheme.sequences:.2f} x |" for scheme in result.schemes]
    return "\n".join(rows)
