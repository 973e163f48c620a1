"""`quire bench kernels`: single operations in the bench shape, every backend, against what the machine can do.

GB/s count what an operation must move, GFLOP/s what it must compute; `bound` is the time that the machine needs at
least for both, by the bandwidth and the matmul rate that were measured in the same run, over the time it took.
"""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from quire.benchmarks.kernel_cases import OPS, Case, Choice, cases
from quire.benchmarks.limits import Limits, Timing, Yardsticks, in_turns
from quire.benchmarks.studies.record import PageError, record, update_page
from quire.clients.terminal import USAGE, CommandFailed, Parser
from quire.engine.config import EngineConfig
from quire.engine.hardware import count_cores
from quire.kernels.cpu.library import Library, LibraryMissing, load, usable

PRECISIONS = ("float32", "bfloat16", "int8", "int4", "int8-w8a8")
_TINY: dict[str, Any] = {"ring_bytes": 1 << 16, "rows": (1, 3), "decode": ((2, 40),), "prefill": (33,)}


class Row(msgspec.Struct, frozen=True):
    """One operation on one backend."""

    op: str
    variant: str
    backend: str
    best_us: float
    median_us: float
    gb_per_s: float
    """At the best time."""
    gflop_per_s: float
    bound: float
    """Share of the machine's limit, at the best time."""


class Result(msgspec.Struct, frozen=True):
    """One run."""

    rounds: int
    limits: Limits
    """The best over the whole run."""
    rows: list[Row]


def main(words: list[str]) -> int:
    """Measure, print, write what was asked for."""
    options = _parser().parse(words)
    if options.device == "cuda":
        from quire.benchmarks import gpu_kernels

        return gpu_kernels.main(words, options)
    result = measure(options)
    print(describe(result.limits))
    print(table(result))
    found = record(shlex.join(["quire", "bench", "kernels", *words]), result)
    if options.output_json is not None:
        found.save(options.output_json)
        print(f"wrote {options.output_json}")
    if options.update_page is not None:
        try:
            update_page(options.update_page, "kernels", section(result, found.date, found.machine, options.output_json))
        except (PageError, FileNotFoundError) as error:
            raise CommandFailed(str(error), USAGE) from error
        print(f"updated {options.update_page}")
    return 0


def measure(options: Namespace) -> Result:
    """Every group of cases in turns with the yardsticks."""
    threads = options.threads or count_cores()
    libraries = _libraries(options.isa)
    torch.set_num_threads(threads)
    for library in libraries:
        library.set_threads(threads)
    torch.manual_seed(0)
    choice = Choice(libraries, options.op, options.precision, options.block_size, **(_TINY if options.tiny else {}))
    yardsticks = Yardsticks(tiny=options.tiny)
    timed: list[tuple[Case, Timing]] = []
    machine: dict[str, Timing] = {}
    for group in cases(choice):
        timings = in_turns({**yardsticks.calls, **{case.name: case.call for case in group}}, options.rounds)
        timed += [(case, timings[case.name]) for case in group]
        for name in yardsticks.calls:
            machine[name] = min(machine.get(name, timings[name]), timings[name], key=lambda timing: timing.best)
        print(f"measured {group[0].op}, {group[0].variant} and so on", flush=True)
    limits = yardsticks.limits(machine)
    return Result(options.rounds, limits, [_row(case, timing, limits) for case, timing in timed])


def _libraries(wanted: Sequence[str] | None) -> list[Library]:
    """The instruction sets asked for; by default the best one, `all` for all that this CPU has."""
    try:
        if wanted is None:
            return [load()]
        return [load(isa) for isa in (usable() if "all" in wanted else wanted)]
    except LibraryMissing as reason:
        raise CommandFailed(f"the compiled kernels: {reason}", USAGE) from reason


def _row(case: Case, timing: Timing, limits: Limits) -> Row:
    bandwidth = limits.copy_gb_per_s if case.copies else limits.read_gb_per_s
    needed = max(case.nbytes / bandwidth, case.flops / limits.gflop_per_s) / 1e9
    return Row(
        op=case.op,
        variant=case.variant,
        backend=case.backend,
        best_us=1e6 * timing.best,
        median_us=1e6 * timing.median,
        gb_per_s=case.nbytes / timing.best / 1e9,
        gflop_per_s=case.flops / timing.best / 1e9,
        bound=needed / timing.best,
    )


def describe(limits: Limits) -> str:
    """One line of the machine."""
    return (
        f"This machine, {limits.threads} threads: reads {limits.read_gb_per_s:.1f} GB/s, copies "
        f"{limits.copy_gb_per_s:.1f} GB/s, multiplies {limits.float32_gflop_per_s:.0f} GFLOP/s in float32 and "
        f"{limits.bfloat16_gflop_per_s:.0f} in bfloat16 (torch)."
    )


def table(result: Result) -> str:
    """One row a case."""
    rows = [
        "| operation | | backend | best, us | median, us | GB/s | GFLOP/s | of the limit |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    rows += [
        f"| {row.op} | {row.variant} | {row.backend} | {row.best_us:.1f} | {row.median_us:.1f} | {row.gb_per_s:.1f} "
        f"| {row.gflop_per_s:.0f} | {row.bound:.2f} |"
        for row in result.rows
    ]
    return "\n".join(rows)


def section(result: Result, day: str, machine: dict[str, Any], file: Path | None) -> str:
    """What stands on the page."""
    source = f"; `{file.name}`" if file is not None else ""
    return "\n".join([
        describe(result.limits),
        "",
        table(result),
        "",
        f"`quire bench kernels` on {day}, {machine['cores']} cores of {machine['processor']}, {result.rounds} rounds"
        f"{source}.",
    ])  # fmt: skip


def _parser() -> Parser:
    parser = Parser("bench kernels", "Single operations against the machine's limits.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: the goals K1 to K7 [cpu]")
    parser.add_argument("--op", nargs="+", choices=OPS, default=list(OPS), metavar="OP", help=", ".join(OPS))
    parser.add_argument(
        "--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), metavar="NAME",
        help=f"of matmuls: {', '.join(PRECISIONS)} [all]",
    )  # fmt: skip
    parser.add_argument("--isa", nargs="+", metavar="NAME", help="instruction sets, or all [this CPU's best]")
    parser.add_argument("--threads", type=int, metavar="N", help="[all cores]")
    parser.add_argument(
        "--block-size", type=int, default=EngineConfig(model="", model_name="").block_size, metavar="TOKENS",
        help="of the KV cache [the engine's]",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each case [7]")
    parser.add_argument("--tiny", action="store_true", help="hardly any work, to see that it runs")
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write the figures")
    parser.add_argument("--update-page", type=Path, metavar="FILE", help="put the table on this page")
    return parser
