"""The picture of a comparison: tokens a second, time to the first token and time a token, a bar for each server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from quire.benchmarks.figure import COLOURS, figure

if TYPE_CHECKING:
    from quire.benchmarks.compare import Load, Result

_PANELS = (
    ("output_throughput", "output tokens a second", "more is better"),
    ("mean_ttft_ms", "time to first token, mean (ms)", "less is better"),
    ("median_tpot_ms", "time a token after it, median (ms)", "less is better"),
)


def draw(result: Result, path: Path) -> None:
    """Three panels; in each a group of bars for every number of requests at once."""
    names = [peer.name for peer in result.peers]
    title = f"{result.input_tokens} tokens in, {result.output_tokens} out: the same load, in turns"
    with figure(path, len(_PANELS), title=title, size=(4.8, 4.0)) as panels:
        for axes, (field, label, better) in zip(panels, _PANELS, strict=True):
            _bars(axes, result.loads, names, field)
            axes.set(ylabel=label, title=better)
            axes.title.set_fontsize(10)
        panels[-1].legend(loc="upper left")


def _bars(axes: Axes, loads: list[Load], names: list[str], field: str) -> None:
    levels = sorted({load.concurrency for load in loads})
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        values = [getattr(load, field) or 0.0 for level in levels for load in loads
                  if (load.server, load.concurrency) == (name, level)]  # fmt: skip
        places = [at + (number - (len(names) - 1) / 2) * width for at in range(len(levels))]
        drawn = axes.bar(places, values, width * 0.92, color=COLOURS[number % len(COLOURS)], label=name)
        axes.bar_label(
            drawn, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in values], padding=2, fontsize=8.5
        )
    axes.set_xticks(range(len(levels)), [f"{level} at once" for level in levels])
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.2)
