"""The report of a soak: goals beside what was measured, as a table, as JSON, and as a plot over time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from quire.benchmarks.figure import figure
from quire.benchmarks.soak_watch import MEBIBYTE, Sample


class Row(msgspec.Struct, frozen=True):
    """A goal of the reliability table, what was measured, and whether that keeps it; None: only told."""

    goal: str
    what: str
    measured: str
    limit: str
    kept: bool | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a soak found."""

    machine: str
    command: str
    busy: str
    """The load average at the beginning and at the end: others may have used the machine."""
    rows: list[Row]
    samples: list[Sample] = []
    kills: list[float] = []
    """Moments, on the samples' clock."""


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies; 0 without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def table(report: Report) -> str:
    """Rows as Markdown."""
    lines = ["| # | what | measured | goal | kept |", "|---|---|---|---|---|"]
    words = {True: "yes", False: "**no**", None: ""}
    for row in report.rows:
        lines.append(f"| {row.goal} | {row.what} | {row.measured} | {row.limit} | {words[row.kept]} |")
    return "\n".join(lines)


def plot(report: Report, path: Path) -> None:
    """Memory, descriptors, threads and goodput over the minutes of the mixed load; kills are dotted."""
    samples = report.samples
    minutes = [sample.at / 60 for sample in samples]
    with figure(path, 4, title=f"Mixed load for {minutes[-1]:.0f} minutes", size=(4.2, 3.4)) as panels:
        memory, descriptors, threads, goodput = panels
        for axes, field, scale, label in (
            (memory, "memory", MEBIBYTE, "RssAnon + VmSwap (MiB)"),
            (descriptors, "descriptors", 1, "file descriptors"),
            (threads, "threads", 1, "threads"),
        ):
            axes.plot(
                minutes, [getattr(sample.http, field) / scale for sample in samples], label="HTTP process", lw=1.2
            )
            engine = [float("nan") if s.engine is None else getattr(s.engine, field) / scale for s in samples]
            axes.plot(minutes, engine, label="engine", lw=1.2)
            axes.set(xlabel="minutes", title=label, ylim=(0, None))
        memory.legend(loc="lower right")
        window = 10
        ends = range(window, len(samples))
        rates = [
            (samples[end].finished - samples[end - window].finished) / (samples[end].at - samples[end - window].at)
            for end in ends
        ]
        goodput.plot([minutes[end] for end in ends], rates, lw=1.2)
        goodput.set(xlabel="minutes", title="good answers a second", ylim=(0, None))
        for axes in panels:
            axes.title.set_fontsize(10)
            for at in report.kills:
                axes.axvline(at / 60, color="#7a8290", lw=0.6, ls=":")
