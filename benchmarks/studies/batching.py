"""Continuous batching against one-shot batches: the same engine, the same requests, the same number of rows.

A one-shot batch is filled, run until its last sequence has ended, and only then followed by the next. Rows that have
ended cost nothing here (the engine drops them), which is kinder to one-shot batches than padding them would be.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import msgspec

from quire.benchmarks.figure import COLOURS, figure
from quire.benchmarks.studies.engine import Engine
from quire.benchmarks.studies.settings import Settings

ROWS = (4, 8, 16)
DRAWN_ROWS = 8
Order = tuple[list[int], int]
"""A prompt, and the tokens of its answer."""


class Comparison(msgspec.Struct, frozen=True):
    """Output tokens a second at one number of rows; medians of the rounds."""

    rows: int
    one_shot: float
    continuous: float


class Timeline(msgspec.Struct, frozen=True):
    """Sequences served in each step, and when the step ended (seconds)."""

    ends: list[float]
    served: list[int]


class Result(msgspec.Struct, frozen=True):
    """Both ways."""

    model: str
    requests: int
    mean_output: float
    rounds: int
    comparisons: list[Comparison]
    one_shot: Timeline
    continuous: Timeline


def orders(engine: Engine, count: int, seed: int) -> list[Order]:
    """Prompts of 16 to 64 tokens; answers log-normal around 48, from 8 to 256: many short ones, some long."""
    chooser = random.Random(seed)
    drawn = []
    for _ in range(count):
        output = min(256, max(8, round(chooser.lognormvariate(math.log(48), 0.9))))
        drawn.append((engine.prompt(chooser, chooser.randint(16, 64)), output))
    return drawn


def serve(engine: Engine, batches: Sequence[Sequence[Order]]) -> Timeline:
    """Each batch is added when the one before has ended."""
    line = Timeline([], [])
    begun = perf_counter()
    for batch in batches:
        for prompt, output in batch:
            engine.add(prompt, output)
        while engine.has_work():
            served = len(engine.step())
            if served:
                line.ends.append(perf_counter() - begun)
                line.served.append(served)
    return line


def measure(settings: Settings) -> Result:
    """Both ways take turns."""
    count, rounds = (6, 1) if settings.tiny else (48, 3)
    comparisons = []
    drawn: dict[str, Timeline] = {}
    mean_output = 0.0
    for rows in ROWS[:2] if settings.tiny else ROWS:
        engine = Engine(settings.model, enable_prefix_caching=False, max_num_seqs=rows, max_model_len=512)
        ordered = orders(engine, count, settings.seed)
        tokens = sum(output for _, output in ordered)
        mean_output = tokens / count
        ways = {"one_shot": [ordered[at : at + rows] for at in range(0, count, rows)], "continuous": [ordered]}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, batches in ways.items():
                timeline = serve(engine, batches)
                seconds[name].append(timeline.ends[-1])
                if rows == DRAWN_ROWS:
                    drawn[name] = timeline
        rates = {name: tokens / statistics.median(found) for name, found in seconds.items()}
        comparisons.append(Comparison(rows, rates["one_shot"], rates["continuous"]))
    return Result(
        model=settings.model or "starter",
        requests=count,
        mean_output=mean_output,
        rounds=rounds,
        comparisons=comparisons,
        one_shot=drawn["one_shot"],
        continuous=drawn["continuous"],
    )


def draw(result: Result, path: Path) -> None:
    """How full the rows are over time, and tokens a second."""
    with figure(path, 2, title="Continuous batching against one-shot batches", size=(5.8, 4.2)) as (left, right):
        for name, timeline, colour in (("one-shot", result.one_shot, 1), ("continuous", result.continuous, 0)):
            left.fill_between(
                [0.0, *timeline.ends], [*timeline.served, timeline.served[-1]], step="post", alpha=0.35,
                color=COLOURS[colour], linewidth=0, label=name,
            )  # fmt: skip
            left.step([0.0, *timeline.ends], [*timeline.served, timeline.served[-1]], where="post",
                      color=COLOURS[colour], linewidth=1)  # fmt: skip
        left.set(
            xlabel="seconds", ylabel="sequences in the step", title=f"{DRAWN_ROWS} rows, {result.requests} requests"
        )
        left.set_ylim(0, DRAWN_ROWS * 1.18)
        left.legend(loc="upper right", ncols=2)
        places = range(len(result.comparisons))
        for shift, name, colour in ((-0.19, "one_shot", 1), (0.19, "continuous", 0)):
            values = [getattr(comparison, name) for comparison in result.comparisons]
            drawn = right.bar([at + shift for at in places], values, 0.36, color=COLOURS[colour],
                              label=name.replace("_", "-"))  # fmt: skip
            right.bar_label(drawn, [f"{value:.0f}" for value in values], padding=3)
        right.set_xticks(places, [f"{comparison.rows} rows" for comparison in result.comparisons])
        right.set(ylabel="output tokens a second", title="throughput")
        right.grid(axis="x", visible=False)
        right.margins(y=0.15)
        right.legend(loc="upper left")


def table(result: Result) -> str:
    """One row a number of rows."""
    rows = ["| rows | one-shot, tokens/s | continuous, tokens/s | ratio |", "|---:|---:|---:|---:|"]
    rows += [
        f"| {found.rows} | {found.one_shot:.0f} | {found.continuous:.0f} | {found.continuous / found.one_shot:.2f} |"
        for found in result.comparisons
    ]
    return "\n".join(rows)
