"""pictures - a comparison -> KL divergence against bits, error by layer; PNG and SVG files, and SVG to put into a page.

Idea      One colour for each method in every picture, in the order of the sentences. Direct labels at the left end of the
          curves, moved apart where they would touch. Colours of the SVG for pages are CSS variables: dark page, dark picture.
Traps     The same numbers must give the same bytes: SVG ids are salted, no date is written.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from lowbit.core.words import counted
from lowbit.report.table import method_of

COLOURS = ("#2f74c0", "#d8741c", "#23926b", "#b8437f", "#7a62cf", "#a58312", "#2693a6", "#c4453a")
INK, SOFT, GRID, PAPER = "#1b1f24", "#67707b", "#e3e6ea", "#fefefe"
VARIABLES = {INK: "var(--ink)", SOFT: "var(--soft)", GRID: "var(--line)", PAPER: "var(--paper)"}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 10, "svg.fonttype": "none", "svg.hashsalt": "lowbit", "axes.edgecolor": SOFT,
    "axes.labelcolor": INK, "text.color": INK, "xtick.color": SOFT, "ytick.color": SOFT, "axes.facecolor": PAPER,
    "figure.facecolor": PAPER, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "grid.color": GRID,
    "grid.linewidth": 0.8, "axes.axisbelow": True,
}  # fmt: skip
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1.2, 1.4)), "-.")
"""Line of the most bits, of the next, ..."""
LABEL_STEP = 15.0
"""Least distance of two labels, in pixels of 100 to the inch."""
Rows = Sequence[Mapping[str, Any]]


def write(result: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write kl.png, kl.svg, layers.png and layers.svg; the SVG of each for a page, by name."""
    drawn = {}
    with matplotlib.rc_context(STYLE):
        figures = {"kl": divergence(result)} | ({"layers": errors(result)} if _kinds(result["rows"]) else {})
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=160)
            buffer = io.StringIO()
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
            (folder / f"{name}.svg").write_text(buffer.getvalue(), encoding="utf-8")
            drawn[name] = inline(buffer.getvalue(), name)
    return drawn


def inline(svg: str, name: str) -> str:
    """An SVG file as part of a page: no prolog, its width the page's, its colours CSS variables, its ids its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' width="[^"]*pt"', "", re.sub(r' height="[^"]*pt"', "", svg, count=1), count=1)
    svg = re.sub(r"""(\bid="|url\(#|href="#)""", rf"\g<1>{name}-", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg


def colours(rows: Rows) -> dict[str, str]:
    """A colour for each method, in the order of the rows."""
    return {method: COLOURS[i % len(COLOURS)] for i, method in enumerate(dict.fromkeys(map(method_of, rows[1:])))}


def divergence(result: Mapping[str, Any]) -> Figure:
    """KL divergence against bits per weight, a panel for each text."""
    rows = result["rows"]
    texts = [name for name, summary in rows[0]["texts"].items() if all(r["texts"][name].get("kl") for r in rows[1:])]
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
    figure = Figure(figsize=(1.2 + 4.6 * len(texts), 4.7), dpi=100, layout=layout)
    panels = figure.subplots(1, len(texts), sharey=True, squeeze=False)[0]
    for panel, text in zip(panels, texts, strict=True):
        original = rows[0]["texts"][text]["perplexity"]
        panel.set_title(text, loc="left", fontsize=11, fontweight="bold", pad=20)
        windows = rows[0]["texts"][text]["windows"]
        panel.annotate(
            f"original: perplexity {original:.2f}; {counted(windows, 'window')}",
            (0, 1),
            (0, 6),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=8.5,
            color=SOFT,
        )
        panel.set_yscale("log")
        panel.set_xlabel("bits per weight, scales and zeros counted")
        panel.grid(True, axis="y")
        _curves(panel, rows, text)
    panels[0].set_ylabel("KL divergence from the original,\nthousandths of a nat per token")
    for panel in panels:
        log_ticks(panel)
    figure.draw_without_rendering()
    for panel, text in zip(panels, texts, strict=True):
        _labels(panel, rows, text)
    return figure


def _series(rows: Rows, text: str) -> dict[str, list[tuple[float, float, float]]]:
    """(bits, KL in mnat, its error) of every method, from few bits to many."""
    found: dict[str, list[tuple[float, float, float]]] = {}
    for row in rows[1:]:
        summary = row["texts"][text]
        point = (row["bits_per_weight"], 1000 * summary["kl"], 1000 * summary.get("kl_se", 0.0))
        found.setdefault(method_of(row), []).append(point)
    return {method: sorted(points) for method, points in found.items()}


def _curves(panel: Axes, rows: Rows, text: str) -> None:
    for method, points in _series(rows, text).items():
        bits, kl, error = zip(*points, strict=True)
        panel.errorbar(
            bits,
            kl,
            error,
            color=colours(rows)[method],
            marker="o",
            markersize=5.5,
            linewidth=1.8,
            elinewidth=1.2,
            capsize=0,
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
        )
    low, high = min(r["bits_per_weight"] for r in rows[1:]), max(r["bits_per_weight"] for r in rows[1:])
    span = max(high - low, 0.6)
    room = 0.16 + 0.045 * max(map(len, colours(rows)))
    panel.set_xlim(low - room * span, high + 0.1 * span)
    step = 0.5 if span < 3 else 1.0
    ticks = [step * i for i in range(1, 33) if low - 0.25 * span <= step * i <= high + 0.1 * span]
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def log_ticks(panel: Axes) -> None:
    """Plain numbers on a logarithmic axis: 1, 2, 5, 10, ... or tens alone where the range is wide."""
    low, high = panel.get_ylim()
    subs = (1.0, 2.0, 3.0, 5.0) if high / low < 30 else (1.0, 2.0, 5.0) if high / low < 300 else (1.0,)
    panel.yaxis.set_major_locator(LogLocator(subs=subs))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_minor_formatter(NullFormatter())


def spread(wanted: Sequence[float], step: float) -> list[float]:
    """Positions as near to `wanted` as can be with at least `step` between neighbours; the order is kept."""
    groups: list[list[int]] = []
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])

    def middle(group: list[int]) -> float:
        return sum(wanted[i] for i in group) / len(group)

    for i in order:
        groups.append([i])
        while len(groups) > 1 and middle(groups[-1]) - middle(groups[-2]) < step * (len(groups[-1]) + len(groups[-2])) / 2:
            groups[-2:] = [groups[-2] + groups[-1]]
    found = [0.0] * len(wanted)
    for group in groups:
        for place, i in enumerate(group):
            found[i] = middle(group) + step * (place - (len(group) - 1) / 2)
    return found


def _labels(panel: Axes, rows: Rows, text: str) -> None:
    """The method's name left of each curve's first point, with a thin line where it had to move."""
    series = _series(rows, text)
    low = min(points[0][0] for points in series.values())
    edge = panel.transData.transform((low, 1))[0] - 20
    ends = {method: points[0][:2] for method, points in series.items()}
    places = spread([float(panel.transData.transform(end)[1]) for end in ends.values()], LABEL_STEP)
    for (method, end), height in zip(ends.items(), places, strict=True):
        x, y = panel.transData.inverted().transform((edge, height))
        colour = colours(rows)[method]
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6, "shrinkA": 1, "shrinkB": 4}
        place: dict[str, Any] = {"ha": "right", "va": "center", "annotation_clip": False}
        panel.annotate(method, end, (x, y), fontsize=9.5, color=colour, arrowprops=line, **place)


def _kinds(rows: Rows) -> dict[str, dict[int, dict[int, list[float]]]]:
    """Errors by kind of layer ("down_proj"), row and block; experts of one block together."""
    found: dict[str, dict[int, dict[int, list[float]]]] = {}
    for number, row in enumerate(rows):
        for layer in row.get("layers", ()):
            block = re.search(r"\.(\d+)\.", layer["name"])
            if block and isinstance(layer.get("error"), float) and layer["error"] > 0:
                kind = ("expert " if ".experts." in layer["name"] else "") + layer["name"].rpartition(".")[2]
                found.setdefault(kind, {}).setdefault(number, {}).setdefault(int(block[1]), []).append(layer["error"])
    return found


def errors(result: Mapping[str, Any]) -> Figure:
    """Relative squared error of every layer against its block, a panel for each kind of layer."""
    rows, kinds = result["rows"], _kinds(result["rows"])
    columns = min(4, len(kinds) + 1)
    lines = -(-(len(kinds) + 1) // columns)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.08)
    figure = Figure(figsize=(3.1 * columns, 0.5 + 2.55 * lines), dpi=100, layout=layout)
    panels = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    widths = {n: f"{rows[n]['bits_per_weight']:.0f}" for kind in kinds.values() for n in kind}
    dashes = dict(zip(sorted(set(widths.values()), key=int, reverse=True), DASHES, strict=False))
    for place, (panel, (kind, found)) in enumerate(zip(panels, kinds.items(), strict=False)):
        for number, blocks in found.items():
            points = sorted((block, sum(values) / len(values)) for block, values in blocks.items())
            panel.plot(
                *zip(*points, strict=True),
                color=colours(rows)[method_of(rows[number])],
                linewidth=1.6,
                linestyle=dashes.get(widths[number], "-"),
                marker="o",
                markersize=2.6,
                label=rows[number]["recipe"],
            )
        panel.set_title(kind, loc="left", fontsize=10, fontweight="bold")
        panel.set_yscale("log")
        panel.grid(True, axis="y")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.tick_params(labelleft=place % columns == 0, labelbottom=place + columns >= len(kinds))
    for panel in panels[: len(kinds)]:
        log_ticks(panel)
    for panel in panels[len(kinds) :]:
        panel.set_axis_off()
    handles = {h.get_label(): h for panel in panels[: len(kinds)] for h in panel.get_lines()}
    panels[len(kinds)].legend(
        handles.values(),
        handles.keys(),
        loc="upper left",
        frameon=False,
        fontsize=8,
        handlelength=2.6,
        borderaxespad=0,
        labelspacing=0.35,
    )
    figure.supxlabel("decoder block", fontsize=10)
    figure.supylabel("relative squared error", fontsize=10)
    return figure
