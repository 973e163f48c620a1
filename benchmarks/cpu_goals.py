"""The table of the CPU's goals, C1 to C7, from one run: ours, the peers and the machine's limits in turns.

`python -m quire.benchmarks.cpu_goals` measures the engine, llama.cpp's batched bench and transformers itself, each in a
process of its own; what `quire bench compare` and `quire bench kernels` have just written it takes from their files.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from quire.benchmarks import compare, contenders, kernels
from quire.benchmarks.bench_model import default_folder
from quire.benchmarks.engine_rates import Rates
from quire.benchmarks.goal_rows import Goal, Measured, goals, rate, table
from quire.benchmarks.limits import Limits, measure_limits
from quire.benchmarks.studies.record import PageError, Record, record, update_page
from quire.clients.terminal import USAGE, CommandFailed, Parser
from quire.engine.hardware import count_cores


class Result(msgspec.Struct, frozen=True):
    """What was measured, and the rows that follow from it."""

    measured: Measured
    goals: list[Goal]


def main(words: list[str] | None = None) -> int:
    """Measure, print the table, write what was asked for."""
    words = sys.argv[1:] if words is None else words
    options = _parser().parse(words)
    if options.redraw is not None:
        old = _read(options.redraw, Result)
        measured = old.result.measured
        found = msgspec.structs.replace(old, result=Result(measured, goals(measured)))
    else:
        measured = measure(options)
        command = shlex.join(["python", "-m", "quire.benchmarks.cpu_goals", *words])
        found = record(command, Result(measured, goals(measured)))
    print(rates_table(measured))
    print()
    print(table(found.result.goals))
    if options.output_json is not None:
        found.save(options.output_json)
        print(f"wrote {options.output_json}")
    if options.update_page is not None:
        try:
            update_page(options.update_page, "cpu-goals", section(found, options.output_json or options.redraw))
        except (PageError, FileNotFoundError) as error:
            raise CommandFailed(str(error), USAGE) from error
        print(f"updated {options.update_page}")
    return 0


def measure(options: Namespace) -> Measured:
    """Everything that was not measured elsewhere; what is quick, and may fail, comes first."""
    measured = Measured(
        served=_read(options.compare, compare.Result).result if options.compare is not None else None,
        kernels=_read(options.kernels, kernels.Result).result if options.kernels is not None else None,
        first_token_seconds=_startup(options),
        step_p50_ms=[_steps() for _ in range(options.step_runs)],
        versions=contenders.versions(options.llama),
    )
    limits, rates = _take_turns(options)
    return msgspec.structs.replace(measured, limits=limits, rates=rates)


def _take_turns(options: Namespace) -> tuple[Limits | None, dict[str, list[Rates]]]:
    """Each contender once a round, in turns with the machine's limits; every other round backwards."""
    threads = count_cores()
    torch.set_num_threads(threads)
    rates: dict[str, list[Rates]] = {}
    limits: list[Limits] = []
    everybody = contenders.contenders(options.model, options.llama, threads)
    begun = time.monotonic()
    for number in range(options.rounds):
        limits.append(measure_limits())
        for contender in reversed(everybody) if number % 2 else everybody:
            if number and (contender.once or time.monotonic() - begun > 60 * options.minutes):
                continue
            try:
                found = contender.run()
            except CommandFailed as failure:
                print(f"skipped: {failure}", file=sys.stderr, flush=True)
                continue
            rates.setdefault(contender.name, []).append(found)
            print(f"round {number + 1}, {contender.name}: {_line(found)}", flush=True)
        limits.append(measure_limits())
    return _best(limits) if limits else None, rates


def _best(found: Sequence[Limits]) -> Limits:
    """Field by field: a limit is the most that was seen."""
    fields = Limits.__struct_fields__
    return Limits(**{name: max(getattr(one, name) for one in found) for name in fields})


def _line(found: Rates) -> str:
    return (
        f"prefill {found.prefill:.1f}, decode {found.decode:.1f}, at batch {found.batch} {found.batch_decode:.1f} "
        f"tokens/s"
    )


def _startup(options: Namespace) -> list[float]:
    """Seconds to the first token, one a run."""
    if options.startup_runs == 0:
        return []
    words = ["-m", "quire.clients.cli", "bench", "startup", str(options.model), "--json"]
    found = _json([*words, "--runs", str(options.startup_runs)])
    return list(found["seconds"]["token"])


def _steps() -> float:
    return float(_json(["-m", "quire.benchmarks.engine_step", "--json"])["p50_ms"])


def _json(words: Sequence[str]) -> dict[str, Any]:
    """What a Python command prints as its last line."""
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode:
        raise CommandFailed(f"{shlex.join(words)}: {done.stderr.strip()[-400:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _read(file: Path, kind: type[Any]) -> Record:
    try:
        found = msgspec.json.decode(file.read_bytes(), type=Record)
        return msgspec.structs.replace(found, result=msgspec.convert(found.result, kind))
    except (OSError, msgspec.DecodeError) as error:
        raise CommandFailed(f"{file}: {error}", USAGE) from error


def rates_table(measured: Measured) -> str:
    """Tokens a second of everybody, medians of the rounds."""
    rows = [
        f"| tokens/s, {contenders.TOKENS_IN} in, {contenders.TOKENS_OUT} out | prefill | decode alone "
        f"| decode at batch {contenders.BATCH} |",
        "|---|---:|---:|---:|",
    ]
    for name in measured.rates:
        figures = (rate(measured.rates, name, field) for field in ("prefill", "decode", "batch_decode"))
        rows.append(f"| {name} | " + " | ".join("n/a" if value is None else f"{value:.1f}" for value in figures) + " |")
    return "\n".join(rows)


def section(found: Record, file: Path | None) -> str:
    """What stands on the page."""
    measured, machine = found.result.measured, found.machine
    lines = [table(found.result.goals), "", rates_table(measured), ""]
    if measured.limits is not None:
        lines += [kernels.describe(measured.limits), ""]
    versions = ", ".join(f"{name} {text}" for name, text in measured.versions.items())
    source = f"; `{file.name}`" if file is not None else ""
    lines.append(
        f"`python -m quire.benchmarks.cpu_goals` on {found.date}, {machine['cores']} cores of {machine['processor']}; "
        f"{versions}{source}."
    )
    return "\n".join(lines)


def _parser() -> Parser:
    parser = Parser("bench goals", "C1 to C7: ours, the peers and the machine, in one run.")
    parser.prog = "python -m quire.benchmarks.cpu_goals"
    parser.add_argument(
        "--model", type=Path, default=default_folder(), metavar="DIR", help="[as bench_model writes it]"
    )
    parser.add_argument("--llama", type=Path, metavar="DIR", help="with llama-batched-bench and llama-server")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="what `quire bench compare` has written")
    parser.add_argument("--kernels", type=Path, metavar="FILE", help="what `quire bench kernels` has written")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="turns of each contender [2]")
    parser.add_argument("--minutes", type=float, default=60.0, help="after so many, only the first round goes on [60]")
    parser.add_argument("--startup-runs", type=int, default=3, metavar="N", help="[3]")
    parser.add_argument("--step-runs", type=int, default=3, metavar="N", help="[3]")
    parser.add_argument("--redraw", type=Path, metavar="FILE", help="only print again what this file holds")
    parser.add_argument("--output-json", type=Path, metavar="FILE", help="write everything")
    parser.add_argument("--update-page", type=Path, metavar="FILE", help="put the table on this page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
