"""What a token costs with the KV cache, and what it would cost if the whole context were computed again for it."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import msgspec

from quire.benchmarks.figure import COLOURS, figure, line, logarithmic
from quire.benchmarks.studies.engine import Engine
from quire.benchmarks.studies.settings import Settings

CONTEXTS = (64, 128, 256, 512, 1024, 2000)


class Point(msgspec.Struct, frozen=True):
    """Milliseconds for one token after so many; medians of the rounds."""

    context: int
    cached_ms: float
    recomputed_ms: float


class Result(msgspec.Struct, frozen=True):
    """The curve."""

    model: str
    rounds: int
    points: list[Point]


def measure(settings: Settings) -> Result:
    """The contexts take turns in every round, so that noise of the machine meets all of them.

    Without a cache, a token needs a forward pass over all tokens before it: that is what the first token of a prompt
    of that length costs. With the cache it needs one over the token before it: what every later token costs.
    """
    contexts = CONTEXTS[:2] if settings.tiny else CONTEXTS
    rounds, tokens = (1, 3) if settings.tiny else (7, 17)
    engine = Engine(settings.model, enable_prefix_caching=False, max_num_batched_tokens=contexts[-1], max_num_seqs=4)
    chooser = random.Random(settings.seed)
    first: dict[int, list[float]] = {context: [] for context in contexts}
    later: dict[int, list[float]] = {context: [] for context in contexts}
    for _ in range(rounds):
        for context in contexts:
            times = engine.time_one(engine.prompt(chooser, context), tokens)
            first[context].append(1000 * times.first)
            later[context].append(1000 * statistics.median(times.gaps))
    points = [
        Point(context, statistics.median(later[context]), statistics.median(first[context])) for context in contexts
    ]
    return Result(settings.model or "starter", rounds, points)


def draw(result: Result, path: Path) -> None:
    """Two curves, both axes logarithmic."""
    contexts = [point.context for point in result.points]
    with figure(path, title="What one more token costs", size=(7.2, 4.4)) as (axes,):
        line(axes, contexts, [point.recomputed_ms for point in result.points], "without: compute all of it again", 1)
        line(axes, contexts, [point.cached_ms for point in result.points], "with the KV cache", 0)
        logarithmic(axes)
        logarithmic(axes, "y")
        last = result.points[-1]
        axes.annotate(
            f"{last.recomputed_ms / last.cached_ms:.0f}x", (last.context, (last.recomputed_ms * last.cached_ms) ** 0.5),
            xytext=(-8, 0), textcoords="offset points", ha="right", va="center", fontweight="bold", fontsize=13,
        )  # fmt: skip
        axes.plot([last.context] * 2, [last.cached_ms, last.recomputed_ms], color=COLOURS[5], linewidth=1, zorder=0)
        axes.set(xlabel="tokens before it", ylabel="ms a token")
        axes.legend(loc="upper left")


def table(result: Result) -> str:
    """One row a context."""
    rows = ["| tokens before | with the cache, ms | without, ms | ratio |", "|---:|---:|---:|---:|"]
    rows += [
        f"| {point.context} | {point.cached_ms:.2f} | {point.recomputed_ms:.1f} "
        f"| {point.recomputed_ms / point.cached_ms:.1f} |"
        for point in result.points
    ]
    return "\n".join(rows)
