"""diagnosis - a diagnosis -> tables for a terminal, and one HTML page with pictures, tables, the recipe and the raw numbers.

Traps     The page's head is that of the comparison's page: one style for both.
"""

import functools
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from rich.table import Table

import lowbit
from lowbit.report import fitting, table
from lowbit.report.fitting import Fitting

Row = Mapping[str, Any]
CAPTIONS = {
    "losses": (
        "What each part loses alone",
        "KL divergence from the original when only this is rounded: weights in groups of 128 and to nearest, inputs of "
        "linears by token or all together, keys and values of the cache by token. Further left is better.",
    ),
    "ranges": (
        "Ranges by block",
        "How far the largest channel of an input, or of the keys, stands above the median channel, and how heavy the tails of "
        "all numbers are.",
    ),
    "channels": (
        "Channels that stand out",
        "The magnitude that a channel stays below in 99 of 100 tokens, in medians of its input: a dark line through all blocks "
        "is an outlier channel. Where there are more channels than columns, a column shows the largest of its run.",
    ),
    "tokens": (
        "Tokens that stand out",
        "The largest magnitude of each token at the first positions, in medians of its window. A dark first column is an "
        "attention sink.",
    ),
}
COLUMNS = ("block", "kind", "max", "rms", "ratio", "kurtosis", "channels", "tokens")


LISTS = ("channels", "tokens")
NARROW = 20
"""Letters of a list of channels or tokens where the terminal is narrow."""


def terminal(result: Row) -> list[Fitting | str]:
    """Ranges, losses and the recipe, for a reader."""
    advice = result["advice"]
    head = f"{result['model']}: {_windows(result)} of {result['text']}, "
    return [
        f"{head}perplexity {result['perplexity']:.2f}",
        _fitted_ranges(_ranges(result)),
        _fitted_losses(result["losses"]),
        f"recipe: {advice['sentence']}",
        *(f"  {reason}" for reason in advice["reasons"]),
        *(f"or: {other['sentence']}\n  {other['reason']}" for other in advice["others"]),
    ]


def render(result: Row, drawn: Mapping[str, str]) -> str:
    """The page. drawn: SVG by name, as lowbit.report.portrait.write gives it."""
    name = str(result["model"]).rstrip("/").rpartition("/")[2]
    head = resources.files("lowbit.report").joinpath("page.html").read_text(encoding="utf-8").partition("<body>")[0]
    facts = {
        "model": result["model"],
        "measured on": f"{result['text']}, {_windows(result)}",
        "perplexity": f"{result['perplexity']:.2f}",
    }
    told = "".join(f"<div><dt>{key}</dt><dd>{escape(str(value))}</dd></div>" for key, value in facts.items())
    command = shlex.join(["lowbit", "quantize", str(result["model"]), result["advice"]["sentence"]])
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in result["advice"]["reasons"])
    others = "".join(f"<pre>{escape(o['sentence'])}</pre><p>{escape(o['reason'])}</p>" for o in result["advice"]["others"])
    columns, rows = _losses(result["losses"])
    body = [
        f'<header><h1><small>lowbit diagnosis</small>{escape(name)}</h1><dl class="facts">{told}</dl></header>',
        f"<section><h2>Recipe to begin with</h2><pre>{escape(command)}</pre><ul>{reasons}</ul>{others}</section>",
        *(_picture(key, svg) for key, svg in drawn.items()),
        _section("What quantizing this alone costs: KL, thousandths of a nat", columns, rows),
        _section("What goes into linears, and keys", COLUMNS, _ranges(result)),
        f"<footer>Made by lowbit {escape(lowbit.__version__)}. The numbers behind this page are in it, as JSON.</footer>",
    ]
    data = json.dumps(result, default=str).replace("</", "<\\/")
    page = head.replace("$title", escape(f"{name}: diagnosis")) + "<body>\n<main>\n" + "\n".join(body)
    return f'{page}\n</main>\n<script type="application/json" id="data">{data}</script>\n</body>\n</html>\n'


def _windows(result: Row) -> str:
    """How much text was read."""
    number = result["windows"]
    return f"{number} window{'s' if number != 1 else ''} of {result['length']} tokens"


def _ranges(result: Row) -> list[list[str]]:
    """A line for each stage and each layer's keys, in the model's order."""
    rows = sorted([*result["layers"], *result["keys"]], key=lambda row: row["block"])
    return [
        [
            str(row["block"]), row["kind"], f"{row['max']:.3g}", f"{row['rms']:.3g}", f"{row['ratio']:.1f}",
            f"{row['kurtosis']:.1f}", _list(f"{c['channel']} ({c['ratio']:.0f}x)" for c in row["channels"]),
            _list(f"{t['token']!r} at {t['position']} ({t['ratio']:.0f}x)" for t in row["tokens"]),
        ]
        for row in rows
    ]  # fmt: skip


def _list(words: Iterable[str]) -> str:
    return ", ".join(words)


def _losses(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """A line for each kind, a column for each way of rounding."""
    ways = list(dict.fromkeys(row["what"] for row in rows))
    kl = {(row["kind"], row["what"]): table.measured(1000 * row["kl"], 1000 * row["kl_se"], 2) for row in rows}
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    return ["kind", *ways], [[kind, *(kl.get((kind, way), "") for way in ways)] for kind in kinds]


def _fitted_ranges(rows: Sequence[Sequence[str]]) -> Fitting:
    """All figures and lists in one line; where that is too wide lists are folded, then figures left out."""

    def form(columns: Sequence[str], width: int | None) -> Table:
        found = table.blank(*columns, left=2, title="what goes into linears, and keys")
        for column in found.columns:
            if column.header in LISTS:
                column.justify, column.no_wrap, column.max_width = "left", False, width
        for row in rows:
            told = dict(zip(COLUMNS, row, strict=True))
            found.add_row(*(told[column] for column in columns))
        return found

    narrower = [functools.partial(form, kept, NARROW) for kept in fitting.without(COLUMNS, ("rms", "kurtosis", "max"))]
    return Fitting(functools.partial(form, COLUMNS, None), *narrower)


def _fitted_losses(rows: Sequence[Row]) -> Fitting:
    """A column for each way of rounding; where that is too wide a line."""
    title = "what quantizing this alone costs: KL, mnat"

    def wide() -> Table:
        columns, lines = _losses(rows)
        return _grid(title, columns, lines, 1)

    def narrow() -> Table:
        lines = [(row["what"], row["kind"], table.measured(1000 * row["kl"], 1000 * row["kl_se"], 2)) for row in rows]
        return _grid(title, ("what", "kind", "KL"), lines, 2)

    return Fitting(wide, narrow)


def _grid(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> Table:
    found = table.blank(*columns, left=left, title=title)
    for row in rows:
        found.add_row(*row)
    return found


def _picture(key: str, svg: str) -> str:
    title, caption = CAPTIONS[key]
    figure = f'<figure role="img" aria-label="{title}">{svg}<figcaption>{caption}</figcaption></figure>'
    return f"<section><h2>{title}</h2>{figure}</section>"


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    inner = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<section><h2>{title}</h2><div class="scroll">{inner}</div></section>'
