"""One look for every figure: quiet axes, one colour a thing, written without a display."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

COLOURS = ("#2f6fde", "#e0662b", "#2a9d74", "#8d5bd0", "#c23b6b", "#7a8290")
"""Told apart in print and by most colour-blind readers."""
INK, GRID = "#22262e", "#e4e7ec"

_LOOK: Any = {
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b6bcc6",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": "#596170",
    "ytick.color": "#596170",
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "svg.hashsalt": "quire",
}


@contextmanager
def figure(path: Path, panels: int = 1, *, title: str, size: tuple[float, float] = (6.4, 4.0)) -> Iterator[list[Axes]]:
    """Axes side by side, each of `size` inches, and a title over them; written to `path` (PNG) when the block ends."""
    with mpl.rc_context(_LOOK):
        drawing = Figure(figsize=(size[0] * panels, size[1]), dpi=144, layout="constrained")
        axes = drawing.subplots(1, panels, squeeze=False)[0]
        yield list(axes)
        drawing.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
        path.parent.mkdir(parents=True, exist_ok=True)
        drawing.savefig(path, metadata={"Software": None})


def line(axes: Axes, x: Sequence[float], y: Sequence[float], label: str, colour: int = 0, **style: Any) -> None:
    """A line with dots at what was measured."""
    axes.plot(x, y, marker="o", markeredgecolor="white", color=COLOURS[colour], label=label, **style)


def logarithmic(axes: Axes, which: Literal["x", "y"] = "x") -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5."""
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def band(axes: Axes, x: Sequence[float], low: Sequence[float], high: Sequence[float], colour: int = 0) -> None:
    """The range around a line."""
    axes.fill_between(x, low, high, color=COLOURS[colour], alpha=0.14, linewidth=0)


def bars(axes: Axes, labels: Sequence[str], values: Sequence[float], colours: Sequence[int], unit: str = "") -> None:
    """One bar each, with its value on top."""
    drawn = axes.bar(list(labels), list(values), color=[COLOURS[colour] for colour in colours], width=0.62)
    axes.bar_label(drawn, [f"{value:.3g}{unit}" for value in values], padding=3, fontweight="bold")
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.14)
