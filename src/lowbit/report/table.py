"""table - plain rows -> tables for a terminal (rich) and for Markdown.

Defaults  KL divergence in thousandths of a nat per token (mnat), agreement in percent, sizes in decimal units; errors are one
          standard error over windows.
"""

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from lowbit.core.words import counted, duration, size
from lowbit.report import fitting
from lowbit.report.fitting import Fitting

Row = Mapping[str, Any]
DROPPED = ("bytes", "method", "product", "inputs", "kernel", "bits")
"""Columns of layers that a narrow terminal does without, the first to go first."""
NARROW = 24
"""Letters of a recipe where the terminal is narrow."""
QUALITY = ("perplexity", "KL, mnat", "top-1, %")
COST = ("seconds", "peak memory")
NOTE = "± one standard error over windows; differences below two standard errors are no difference."


def measured(value: float | None, error: float | None, digits: int) -> str:
    """A figure with its standard error, both to as many digits as the error deserves; a dash for what was not measured."""
    if value is None:
        return "–"
    if not error:
        return f"{value:z.{digits}f}"
    while digits < 4 and error < 0.5 * 10**-digits:
        digits += 1
    return f"{value:z.{digits}f} ± {error:.{digits}f}"


def quality(summary: Row, original: bool = False) -> tuple[str, str, str]:
    """Perplexity, KL in mnat and agreement in percent of one text; the last two are blank for the original itself."""
    perplexity = measured(summary.get("perplexity"), summary.get("perplexity_se"), 2)
    if original or summary.get("kl") is None:
        return perplexity, "–", "–"
    kl = measured(1000 * summary["kl"], 1000 * summary.get("kl_se", 0.0), 1)
    return perplexity, kl, measured(100 * summary["top1"], 100 * summary.get("top1_se", 0.0), 1)


def bits(row: Row) -> str:
    """Bits per weight of a row."""
    return f"{row['bits_per_weight']:.3f}"


def cost(row: Row, original: bool) -> tuple[str, str]:
    """Seconds and peak memory of a quantization; blank for the original."""
    return ("–", "–") if original else (f"{row['seconds']:.0f}", size(row["peak_memory"]))


def blank(*columns: str, left: int = 1, **options: Any) -> Table:
    """An empty table; all columns but the first `left` hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold", **options)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < left else "right", no_wrap=number >= left, overflow="fold")
    return table


def comparison(result: Row) -> list[Fitting | str]:
    """One table for each text and one of what the recipes cost."""
    rows = result["rows"]
    found: list[Fitting | str] = []
    for text, summary in rows[0]["texts"].items():
        lines = [(row["recipe"], bits(row), *quality(row["texts"][text], row is rows[0])) for row in rows]
        title = f"{text} ({counted(summary['windows'], 'window')})"
        found.append(_compared(("recipe", "bits", *QUALITY), lines, title, QUALITY[0]))
    costs = [(row["recipe"], bits(row), size(row["bytes"]), *cost(row, row is rows[0])) for row in rows]
    return [*found, _compared(("recipe", "bits", "on disk", *COST), costs, "cost", COST[1]), NOTE]


def _compared(columns: Sequence[str], lines: Sequence[Sequence[str]], title: str, dropped: str) -> Fitting:
    """A line for each recipe, the original first. dropped: the column that a narrow terminal does without."""

    def form(kept: Sequence[str], width: int | None) -> Table:
        table = blank(*kept, title=title)
        table.columns[0].max_width = width
        for line in lines:
            told = dict(zip(columns, line, strict=True))
            table.add_row(*(told[column] for column in kept), end_section=line is lines[0])
        return table

    narrower = [functools.partial(form, kept, NARROW) for kept in fitting.without(columns, (dropped,))]
    return Fitting(functools.partial(form, columns, None), *narrower)


def markdown(result: Row) -> str:
    """The whole comparison as one Markdown table."""
    texts = list(result["rows"][0]["texts"])
    head = ["recipe", "bits", "on disk", *(f"{text}: {what}" for text in texts for what in QUALITY), *COST]
    lines = []
    for row in result["rows"]:
        first = row is result["rows"][0]
        cells = [row["recipe"] if first else f"`{row['recipe']}`", bits(row), size(row["bytes"])]
        for text in texts:
            cells += quality(row["texts"][text], first)
        lines.append([*cells, *cost(row, first)])
    return grid(head, lines) + f"\n{NOTE}\n"


def grid(head: Sequence[str], lines: Iterable[Sequence[str]], left: int = 1) -> str:
    """A Markdown table; all columns but the first `left` are aligned to the right."""
    rule = ["---" if number < left else "--:" for number in range(len(head))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, rule, *lines])


def evaluation(result: Row) -> Fitting:
    """The figures of one model, a row for each text."""

    def form(counted: bool) -> Table:
        columns = ("text", *["windows"] * counted, *QUALITY)
        table = blank(*columns, title=f"{result['model']}: {bits(result)} bits per weight")
        for text, summary in result["texts"].items():
            table.add_row(text, *[str(summary["windows"])] * counted, *quality(summary))
        return table

    return Fitting(functools.partial(form, True), functools.partial(form, False))


def layers(rows: Iterable[Row]) -> Fitting:
    """A row for each layer: what is known of format, inputs, method, kernel, product, bits, bytes, error."""
    known = [dict(row) | {"inputs": row.get("activation")} for row in rows]
    columns = ("format", "inputs", "method", "kernel", "product", "bits", "bytes", "error")
    wanted = [c for c in columns if any(row.get(c) is not None for row in known)]
    before = fitting.prefix([row["name"] for row in known])
    shorter = [functools.partial(_layers, known, kept, wanted, before) for kept in fitting.without(wanted, DROPPED)]
    return Fitting(functools.partial(_layers, known, wanted, wanted, ""), *shorter)


def _layers(known: Sequence[Row], kept: Sequence[str], wanted: Sequence[str], before: str) -> Table:
    """The table of some of the columns, names without what is `before` them."""
    left = 1 + sum(column in {"format", "inputs", "method", "kernel", "product"} for column in kept)
    lost = [column for column in wanted if column not in kept]
    told = [f"… is {before}"] * bool(before) + [f"{', '.join(lost)}: on a wider terminal, or --json"] * bool(lost)
    table = blank("layer", *kept, left=left, caption="; ".join(told) or None, caption_justify="left")
    forms = {"bits": "{:.3f}".format, "bytes": size, "error": "{:.4f}".format}
    for row in known:
        cells = ("" if row.get(c) is None else forms.get(c, str)(row[c]) for c in kept)
        table.add_row(fitting.cut(row["name"], before), *cells)
    return table


def result(told: Row) -> Table:
    """What a finished quantization made: folder, size, closing check, cost, fallbacks."""
    table = Table.grid(padding=(0, 2))
    check = told["check"]
    table.add_row("folder", told["out"])
    table.add_row("recipe", told["sentence"])
    table.add_row("size", f"{size(told['bytes'])}, {bits(told)} bits per weight in {counted(len(told['layers']), 'layer')}")
    if check:
        perplexity, kl, top1 = quality(check)
        original = f" (original {check['original_perplexity']:.2f})" if "original_perplexity" in check else ""
        where = f"{counted(check['windows'], 'window')}, {check['text']}"
        table.add_row("check", f"KL {kl} mnat, top-1 {top1} %, perplexity {perplexity}{original}; {where}")
    for name, reason in fallbacks(told["layers"]):
        table.add_row("fallback", f"{name}: {reason}")
    table.add_row("took", f"{duration(told['seconds'])}, peak memory {size(told['peak_memory'])}")
    return table


def rows(found: Sequence[Row]) -> Table:
    """Any list of rows with the same keys; what is empty in all of them is left out."""
    columns = [c for c in (found[0] if found else []) if any(row.get(c) not in {None, ""} for row in found)]
    table = blank(*columns, left=len(columns))
    for row in found:
        table.add_row(*("yes" if row.get(c) is True else "no" if row.get(c) is False else str(row.get(c, "")) for c in columns))
    return table


def facts(found: Row) -> str:
    """The entries of a row that are plain values, or lists of them, a line for each."""
    told = {key: value for key, value in found.items() if not isinstance(value, list | dict)}
    lists = {key: value for key, value in found.items() if isinstance(value, list)}
    told |= {key: ", ".join(map(str, items)) for key, items in lists.items() if not isinstance(next(iter(items), {}), dict)}
    plain = {key: told[key] for key in found if isinstance(told.get(key), str | int | float)}
    forms: dict[str, Callable[[Any], str]] = {"bytes": size, "bits_per_weight": "{:.3f}".format}
    return "\n".join(f"{key.replace('_', ' ')}: {forms.get(key, str)(value)}" for key, value in plain.items())


def method_of(row: Row) -> str:
    """A row's sentence without its formats and selectors: rows of one method at several sizes share it.

    "awq + gptq(int4-g128, damp=0.05)@mlp" -> "awq + gptq(damp=0.05)".
    """
    steps = []
    for step in re.split(r"\s\+\s", row.get("sentence") or row["recipe"]):
        name, _, arguments = step.partition("@")[0].partition("(")
        kept = [a.strip() for a in arguments.rstrip(")").split(",") if "=" in a]
        steps.append(name + (f"({', '.join(kept)})" if kept else ""))
    return " + ".join(dict.fromkeys(steps))


def front(rows: Sequence[Row], text: str) -> list[int]:
    """Numbers of the rows that no other beats on `text`: none has at most its bits and a lower KL divergence."""
    points = [(row["bits_per_weight"], row["texts"][text].get("kl"), i) for i, row in enumerate(rows) if i]
    points = [p for p in points if p[1] is not None]
    return [i for bits, kl, i in points if not any(b <= bits and k < kl for b, k, _ in points)]


def worst(layers: Iterable[Row], count: int = 3) -> list[tuple[str, float]]:
    """The layers of largest error, with it; names from the block's number on."""
    known = sorted((layer for layer in layers if isinstance(layer.get("error"), float)), key=lambda layer: -layer["error"])
    return [(re.sub(r"^.*?(?=\d)", "", layer["name"]), layer["error"]) for layer in known[:count]]


def fallbacks(layers: Iterable[Row]) -> list[tuple[str, str]]:
    """The layers that could not be done as asked, with the reason."""
    return [(layer["name"], str(layer["fallback"])) for layer in layers if layer.get("fallback")]
