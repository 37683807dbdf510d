"""portrait - a diagnosis -> pictures: what each part loses, ranges by block, channels and tokens that stand out.

Idea      The manner of lowbit.report.pictures: its style, colours and SVG for pages. A heat map has a row for each block; its
          colour is the logarithm of a channel's, or a position's, size in medians.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lowbit.report.pictures import COLOURS, SOFT, STYLE, inline, log_ticks

Rows = Sequence[Mapping[str, Any]]
MARKS = "osD^vPX"
HOT = 64.0
"""Medians at which a heat map's colour ends."""
LEAST = 0.003
"""Milli-nats below which a loss is drawn as this."""


def write(result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write a PNG and an SVG of every picture; the SVG for a page, by name."""
    drawn = {}
    with matplotlib.rc_context(STYLE):
        figures = {
            "losses": losses(result["losses"]),
            "ranges": ranges([*result["layers"], *result["keys"]]),
            "channels": heat([*result["layers"], *result["keys"]], "profile", "channel"),
            "tokens": heat(result["layers"], "positions", "position in the window"),
        }
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=160)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
            drawn[name] = inline(buffer.getvalue(), name)
            (folder / f"{name}.svg").write_text(buffer.getvalue(), encoding="utf-8")
    return drawn


def losses(rows: Rows) -> Figure:
    """KL divergence of every kind and way alone, a line of dots for each kind."""
    kinds = list(dict.fromkeys(_label(row) for row in rows))
    ways = list(dict.fromkeys(row["what"] for row in rows))
    figure = Figure(figsize=(8.6, 1.4 + 0.36 * len(kinds)), dpi=100, layout="constrained")
    panel = figure.subplots()
    for number, what in enumerate(ways):
        own = [row for row in rows if row["what"] == what]
        x = [max(1000 * row["kl"], LEAST) for row in own]
        y = [kinds.index(_label(row)) + 0.09 * (number % 5 - 2) for row in own]
        colour = COLOURS[number % len(COLOURS)]
        panel.plot(x, y, linestyle="", marker=MARKS[number % len(MARKS)], markersize=6, color=colour, label=what)
    panel.set_xscale("log")
    panel.set_yticks(range(len(kinds)), kinds)
    panel.set_ylim(len(kinds) - 0.5, -0.5)
    panel.grid(True, axis="x")
    panel.set_xlabel("KL divergence of this alone, thousandths of a nat per token")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.tick_params(axis="y", length=0)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8.5)
    return figure


def _label(row: Mapping[str, Any]) -> str:
    """What a line of dots stands for."""
    part = "cache" if row["what"].startswith("cache") else "linears"
    return f"{part}: {row['kind']}" if row["kind"] == "all" or part == "cache" else row["kind"]


def ranges(rows: Rows) -> Figure:
    """The largest channel in medians and the kurtosis, by block, a line for each kind."""
    figure = Figure(figsize=(9.6, 3.6), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"ratio": "largest channel / median channel", "kurtosis": "kurtosis (3: a normal distribution)"}
    for panel, (name, title) in zip(panels, titles.items(), strict=True):
        for number, (kind, own) in enumerate(_kinds(rows).items()):
            points = [(row["block"], max(row[name], 1.0)) for row in own]
            colour = COLOURS[number % len(COLOURS)]
            panel.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, marker="o", markersize=3.5, label=kind)
        panel.set_yscale("log")
        log_ticks(panel)
        panel.set_title(title, loc="left", fontsize=10, fontweight="bold")
        panel.grid(True, axis="y")
        _blocks(panel, "x")
    panels[0].set_xlabel("decoder block")
    panels[1].set_xlabel("decoder block")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8.5)
    return figure


def heat(rows: Rows, name: str, across: str) -> Figure:
    """A map for each kind: blocks by places, coloured by size in medians."""
    kinds = {kind: own for kind, own in _kinds([row for row in rows if row[name]]).items()}
    columns = min(3, max(1, len(kinds)))
    lines = max(1, -(-len(kinds) // columns))
    figure = Figure(figsize=(9.6, 0.9 + 1.9 * lines), dpi=100, layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    drawn = None
    for panel, (kind, own) in zip(panels, kinds.items(), strict=False):
        width = max(len(row[name]) for row in own)
        values = [[*row[name], *[0.0] * (width - len(row[name]))] for row in own]
        limits = own[0]["block"] - 0.5, own[-1]["block"] + 0.5
        drawn = panel.imshow(
            values, aspect="auto", interpolation="nearest", cmap="inferno_r",
            extent=(0, own[0]["inputs"] if name == "profile" else width, limits[1], limits[0]),
            norm=matplotlib.colors.LogNorm(1.0, HOT, clip=True),
        )  # fmt: skip
        panel.set_title(kind, loc="left", fontsize=9.5, fontweight="bold")
        _blocks(panel, "y")
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    for panel in panels[len(kinds) :]:
        panel.set_axis_off()
    if drawn is not None:
        bar = figure.colorbar(drawn, ax=panels, fraction=0.03, pad=0.015, ticks=[1, 2, 4, 8, 16, 32, 64])
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        bar.ax.minorticks_off()
        bar.outline.set_edgecolor(SOFT)
        bar.set_label("size in medians", fontsize=9)
    figure.supxlabel(across, fontsize=10)
    figure.supylabel("decoder block", fontsize=10)
    return figure


def _kinds(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["kind"], []).append(row)
    return found


def _blocks(panel: Axes, axis: str) -> None:
    """Whole numbers of blocks."""
    (panel.xaxis if axis == "x" else panel.yaxis).set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
