"""What people read: how a life ended, what happened in many, which mutant was caught by what."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from quire.clients.terminal import bold
from quire.engine.sampling_params import SamplingParams
from quire.simulator.coverage import EXPECTED, Coverage
from quire.simulator.events import Arrival, Event
from quire.simulator.lives import Life
from quire.simulator.mutants import MUTANTS
from quire.simulator.plan import Plan
from quire.simulator.recorded import Kill, Progress

_WIDTH = 100
_TOLD_ALREADY = ("at", "kind", "params")


def life_story(life: Life, num_steps: int) -> str:
    """A life by its plan and its end; with a violation, its last events and the command that shows it again."""
    lines = [bold(f"seed {life.plan.seed}"), *(f"  {line}" for line in plan_lines(life.plan))]
    if life.violation is None:
        return "\n".join([*lines, f"  {life.num_steps} steps, no violation, trace {life.trace:08x}"])
    lines += ["", bold(f"step {life.num_steps} violates {life.violation}"), "", f"The last {len(life.log)} events:"]
    lines += [_shortened(f"  {now:10.3f} s  {name.strip('_')} {_arguments(values)}") for now, name, values in life.log]
    return "\n".join([*lines, "", f"again: quire simulate --seed {life.plan.seed} --until {num_steps}"])


def plan_lines(plan: Plan) -> list[str]:
    """Sizes, and faults."""
    groups = ", ".join("all" if group.window is None else f"window {group.window}" for group in plan.groups)
    faults = ", ".join(f"{name} {rate:.3g}" for name, rate in plan.rates.items())
    return [
        f"{plan.num_blocks} blocks of {plan.block_size} tokens; cache groups: {groups}; depth {plan.depth}; "
        f"{plan.policy}; contexts of {plan.max_model_len}; {plan.max_num_seqs} rows; budget {plan.budget}; "
        f"prefix caching {'on' if plan.caching else 'off'}, {plan.hash_bits} bits",
        f"faults: {faults or 'none'}",
    ]


def event_line(event: Event) -> str:
    """An event from outside, without what is as always."""
    parts = _told(event) + (_told(event.params) if isinstance(event, Arrival) else [])
    return f"{event.at:.3f} s  {event.kind} {' '.join(parts)}"


def _told(value: Any) -> list[str]:
    """The fields of a struct that are not their defaults."""
    if isinstance(value, SamplingParams):
        usual = SamplingParams()
        fields = [(name, getattr(value, name)) for name in value.__struct_fields__]
        return [f"{name}={found}" for name, found in fields if found != getattr(usual, name)]
    fields = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    usual_values = {field.name: field.default for field in dataclasses.fields(value)}
    return [f"{name}={found}" for name, found in fields if name not in _TOLD_ALREADY and found != usual_values[name]]


def _arguments(values: tuple[object, ...]) -> str:
    return " ".join(str(value) for value in values if not repr(value).startswith("<"))


def _shortened(line: str) -> str:
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 1]}…"


def summary(progress: Progress) -> str:
    """Many lives: how many steps, how fast, what happened how often."""
    rate = progress.num_steps / max(progress.cpu_seconds, 1e-9)
    lines = [
        f"{progress.num_lives} lives, {progress.num_steps:,} steps, {rate:,.0f} steps/s of CPU time, "
        f"{len(progress.violations)} violations",
    ]
    fired = [f"{name} {progress.coverage.get(name, 0):,}" for name in sorted(EXPECTED)]
    width = max(map(len, fired)) + 3
    columns = max(1, _WIDTH // width)
    lines += ["", "What happened:"]
    lines += [
        "  " + "".join(text.ljust(width) for text in fired[start : start + columns]).rstrip()
        for start in range(0, len(fired), columns)
    ]
    rare = Coverage(progress.coverage).missing(1)
    if rare:
        lines.append(f"never: {', '.join(rare)} (more seeds show more)")
    return "\n".join(lines)


def kills_table(kills: Mapping[str, Kill]) -> str:
    """Mutants in the words of docs/simulator.md."""
    rows = ["| mutant | method | what is wrong | caught by | seed | step |", "|---|---|---|---|---|---|"]
    for mutant in MUTANTS.values():
        kill = kills.get(mutant.name)
        found = ("not caught", "", "") if kill is None else (kill.invariant, str(kill.seed), str(kill.step))
        rows.append(f"| {mutant.name} | `{mutant.place}` | {mutant.description} | {' | '.join(found)} |")
    return "\n".join(rows)
