"""The figures of a load test: latency over time, distributions, and throughput against load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from matplotlib.axes import Axes

from quire.benchmarks.figure import COLOURS, figure, line, logarithmic
from quire.benchmarks.metrics import Summary

if TYPE_CHECKING:
    from quire.benchmarks.serve import Run


def plot_runs(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write `latency.png` and `distributions.png` of the last run, and `load.png` when there are several rates."""
    written = []
    last = runs[-1]
    if any(answer.error is None for answer in last.answers):
        written.append(_latency(last, folder / "latency.png"))
        written.append(_distributions(last, folder / "distributions.png"))
    if len(runs) > 1:
        points = [load_point(run.rate, run.summary) for run in runs]
        written.append(plot_load(points, folder / "load.png"))
    return written


def _latency(run: Run, path: Path) -> Path:
    whole = [answer for answer in run.answers if answer.error is None]
    start = min(answer.sent for answer in run.answers)
    with figure(path, title=f"Latency over time, {rate_name(run.rate)}", size=(8.4, 4.2)) as (axes,):
        for answer in whole:
            at = answer.sent - start
            axes.plot([at, at + answer.e2el], [answer.e2el] * 2, color=COLOURS[0], alpha=0.18, linewidth=1)
        sent = [answer.sent - start for answer in whole]
        axes.scatter(sent, [answer.e2el for answer in whole], s=18, color=COLOURS[0], label="whole answer")
        firsts = [(at, answer.ttft) for at, answer in zip(sent, whole, strict=True) if answer.ttft is not None]
        axes.scatter(
            [at for at, _ in firsts], [ttft for _, ttft in firsts], s=18, color=COLOURS[1], label="first token"
        )
        failed = [answer.sent - start for answer in run.answers if answer.error is not None]
        if failed:
            axes.scatter(failed, [0.0] * len(failed), marker="x", color=COLOURS[4], label="failed")
        axes.set(xlabel="sent at (s)", ylabel="seconds after sending")
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2)
    return path


def _distributions(run: Run, path: Path) -> Path:
    with figure(path, 2, title=f"First token and gaps between tokens, {rate_name(run.rate)}", size=(5.2, 4.0)) as axes:
        distribution(axes[0], run.summary.values["ttft"], "time to first token (ms)", 1)
        distribution(axes[1], run.summary.values["itl"], "gap between tokens (ms)", 0)
    return path


def distribution(axes: Axes, values: Sequence[float], label: str, colour: int) -> None:
    """The share of values up to each value, on a logarithmic scale, with median and 99th percentile marked."""
    axes.set(xlabel=label, ylabel="share at or below", ylim=(0, 1.02))
    found = np.sort([value for value in values if value > 0])
    if found.size == 0:
        return
    logarithmic(axes)
    axes.plot(found, np.arange(1, found.size + 1) / found.size, color=COLOURS[colour], drawstyle="steps-post")
    for share in (0.5, 0.99):
        at = float(np.quantile(found, share))
        axes.plot([at, at], [0, share], color=COLOURS[5], linewidth=1, linestyle=(0, (3, 3)))
        axes.annotate(
            f"p{100 * share:.0f}  {at:.3g}", (at, share), xytext=(7, -13), textcoords="offset points", fontsize=9.5
        )
    axes.margins(x=0.12)


class LoadPoint(msgspec.Struct, frozen=True):
    """One run, as a point of a curve. Latencies in milliseconds; null where there are none."""

    rate: float
    """Requests a second: as they were to come, or as they were answered when all came at once."""
    output_throughput: float
    """Tokens a second."""
    ttft_median: float | None
    ttft_p99: float | None
    itl_median: float | None
    itl_p99: float | None


def load_point(rate: float, summary: Summary) -> LoadPoint:
    """What the curve needs of a run."""
    found = summary.as_json()
    return LoadPoint(
        rate if math.isfinite(rate) else found["request_throughput"],
        found["output_throughput"],
        *(found[f"{kind}_{name}_ms"] for name in ("ttft", "itl") for kind in ("median", "p99")),
    )


def plot_load(points: Sequence[LoadPoint], path: Path) -> Path:
    """Tokens a second, first tokens and gaps, against the requests a second that were sent."""
    points = sorted(points, key=lambda point: point.rate)
    x = [point.rate for point in points]
    with figure(path, 3, title="Throughput and latency against load", size=(4.6, 3.8)) as (speed, first, gap):
        line(speed, x, [point.output_throughput for point in points], "output", 2)
        speed.set(xlabel="requests a second", ylabel="output tokens a second")
        for axes, name, label in ((first, "ttft", "first token (ms)"), (gap, "itl", "gap between tokens (ms)")):
            for colour, kind in enumerate(("median", "p99")):
                values = [getattr(point, f"{name}_{kind}") for point in points]
                line(axes, x, [math.nan if value is None else value for value in values], kind, colour)
            axes.set(xlabel="requests a second", ylabel=label)
            axes.legend()
        for axes in (speed, first, gap):
            axes.set_ylim(bottom=0)
    return path


def rate_name(rate: float) -> str:
    """How a title calls it."""
    return "all requests at once" if math.isinf(rate) else f"{rate:g} requests a second"
