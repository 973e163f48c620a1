"""Time to the first token behind a shared prefix: never seen, seen before, and without a prefix cache."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import msgspec

from quire.benchmarks.figure import figure, line
from quire.benchmarks.studies.engine import Engine
from quire.benchmarks.studies.settings import Settings

PREFIXES = (128, 256, 512, 1024, 1920)
SUFFIX = 32


class Point(msgspec.Struct, frozen=True):
    """Milliseconds to the first token; medians of the rounds."""

    prefix: int
    without_ms: float
    """The prefix cache is switched off."""
    miss_ms: float
    hit_ms: float
    hit_tokens: int
    """Of the prompt, from the cache."""


class Result(msgspec.Struct, frozen=True):
    """The curve."""

    model: str
    suffix: int
    rounds: int
    points: list[Point]


def measure(settings: Settings) -> Result:
    """Each round asks each length three times in turn: without a cache, first sight, and another suffix behind it."""
    prefixes, rounds = (PREFIXES[:2], 1) if settings.tiny else (PREFIXES, 9)
    budget = prefixes[-1] + SUFFIX
    cached = Engine(settings.model, enable_prefix_caching=True, max_num_batched_tokens=budget, max_num_seqs=4)
    plain = Engine(settings.model, enable_prefix_caching=False, max_num_batched_tokens=budget, max_num_seqs=4)
    chooser = random.Random(settings.seed)
    found: dict[tuple[int, str], list[float]] = {}
    hits: dict[int, int] = {}
    for _ in range(rounds):
        for length in prefixes:
            prefix = cached.prompt(chooser, length)
            for name, engine in (("without", plain), ("miss", cached), ("hit", cached)):
                times = engine.time_one(prefix + engine.prompt(chooser, SUFFIX), 1)
                found.setdefault((length, name), []).append(1000 * times.first)
                hits[length] = times.cached
    points = []
    for length in prefixes:
        without, miss, hit = (statistics.median(found[length, name]) for name in ("without", "miss", "hit"))
        points.append(Point(length, without, miss, hit, hits[length]))
    return Result(settings.model or "starter", SUFFIX, rounds, points)


def draw(result: Result, path: Path) -> None:
    """Three curves."""
    prefixes = [point.prefix for point in result.points]
    with figure(path, title="Time to the first token behind a shared prefix", size=(7.2, 4.4)) as (axes,):
        line(axes, prefixes, [point.without_ms for point in result.points], "no prefix cache", 5, linestyle="--")
        line(axes, prefixes, [point.miss_ms for point in result.points], "first sight of the prefix", 1)
        line(axes, prefixes, [point.hit_ms for point in result.points], "prefix in the cache", 0)
        axes.set(xlabel=f"tokens of the prefix, {result.suffix} more behind it", ylabel="ms to the first token")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper left")


def table(result: Result) -> str:
    """One row a length."""
    rows = [
        "| prefix | cache off, ms | first sight, ms | in the cache, ms | first sight / in the cache |",
        "|---:|---:|---:|---:|---:|",
    ]
    rows += [
        f"| {point.prefix} | {point.without_ms:.1f} | {point.miss_ms:.1f} | {point.hit_ms:.1f} "
        f"| {point.miss_ms / point.hit_ms:.1f} |"
        for point in result.points
    ]
    return "\n".join(rows)
