"""page - a comparison -> one HTML file that needs nothing else: pictures, table, recipes with their commands, raw numbers.

Traps     No request leaves the page; the JSON is embedded so that "</script>" in a prompt or name cannot end it early.
"""

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from html import escape
from importlib import resources
from string import Template
from typing import Any

import lowbit
from lowbit.core.words import counted, size
from lowbit.report import table

CAPTIONS = {
    "kl": (
        "Divergence against size",
        "How far each quantized model's predictions are from the original's, by the bits that it "
        "stores for a weight. Lower and further left is better. Bars are one standard error.",
    ),
    "layers": (
        "Error by layer",
        "Squared error that rounding leaves in a layer, relative: in its output where the method saw "
        "calibration inputs, in its weights where it did not; compare like with like.",
    ),
}


def render(result: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    """The page of a comparison. drawn: SVG by name, as lowbit.report.pictures.write gives it."""
    name = str(result["original"]).rstrip("/").rpartition("/")[2]
    shell = Template(resources.files("lowbit.report").joinpath("page.html").read_text(encoding="utf-8"))
    return shell.substitute(
        title=escape(f"{name}: {len(result['rows']) - 1} recipes compared"),
        facts=_facts(result),
        findings=_findings(result),
        pictures="\n".join(_picture(key, svg) for key, svg in drawn.items()),
        table=_table(result),
        note=escape(table.NOTE),
        recipes="\n".join(_recipe(result, row) for row in result["rows"][1:]),
        command=_compare(result),
        version=escape(lowbit.__version__),
        data=json.dumps(result, default=str).replace("</", "<\\/"),
    )


def _facts(result: Mapping[str, Any]) -> str:
    """What was measured, on what."""
    original = result["rows"][0]
    texts = ", ".join(f"{text} ({counted(summary['windows'], 'window')})" for text, summary in original["texts"].items())
    facts = {
        "original": f"{result['original']}, {size(original['bytes'])}",
        "measured on": f"{texts} of {result['length']} tokens",
        "calibrated on": f"{result['calibration']}, {counted(result['samples'] or 64, 'window')}, seed {result['seed']}",
    }
    return "".join(f"<div><dt>{key}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())


def _findings(result: Mapping[str, Any]) -> str:
    """The best recipe of each size on each text, in words, with those that are as good within the noise."""
    rows, said = result["rows"], []
    sizes = sorted({round(row["bits_per_weight"]) for row in rows[1:]}, reverse=True)
    for text in rows[0]["texts"]:
        for bits in sizes:
            rivals = [(row["recipe"], row["texts"][text]) for row in rows[1:] if round(row["bits_per_weight"]) == bits]
            if len(rivals) < 2:
                continue
            name, best = min(rivals, key=lambda rival: rival[1]["kl"])
            close = [f"<code>{escape(other)}</code>" for other, summary in rivals if other != name and _same(summary, best)]
            beside = f"; within two standard errors of it: {', '.join(close)}" if close else ""
            figure = table.quality(best)[1]
            said.append(f"<li>{escape(text)}, {bits} bits: <code>{escape(name)}</code> is nearest, {figure} mnat{beside}.</li>")
    return f"<ul>{''.join(said)}</ul>" if said else ""


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two KL divergences differ by less than two standard errors of their difference."""
    spread = (one.get("kl_se", 0.0) ** 2 + other.get("kl_se", 0.0) ** 2) ** 0.5
    return bool(abs(one["kl"] - other["kl"]) < 2 * spread)


def _picture(key: str, svg: str) -> str:
    title, caption = CAPTIONS[key]
    figure = f'<figure role="img" aria-label="{title}">{svg}<figcaption>{caption}</figcaption></figure>'
    return f"<section><h2>{title}</h2>{figure}</section>"


def _table(result: Mapping[str, Any]) -> str:
    """All rows; the best of a size and text stand out."""
    rows = result["rows"]
    texts = list(rows[0]["texts"])
    groups = "".join(f'<th colspan="3" class="text">{escape(text)}</th>' for text in texts)
    fronts = {text: table.front(rows, text) for text in texts}
    body = []
    for number, row in enumerate(rows):
        cells = [_cell(table.bits(row)), _cell(size(row["bytes"]))]
        for text in texts:
            perplexity, kl, top1 = table.quality(row["texts"][text], not number)
            cells += [_cell(perplexity, "first"), _cell(kl, "best" if number in fronts[text] else ""), _cell(top1)]
        seconds, memory = table.cost(row, not number)
        cells += [_cell(seconds, "first"), _cell(memory)]
        body.append(f'<tr><th scope="row">{escape(row["recipe"])}</th>{"".join(cells)}</tr>')
    names = ["recipe", "bits", "on disk", *table.QUALITY * len(texts), *table.COST]
    head = "".join(f'<th class="first">{n}</th>' if n in {"perplexity", "seconds"} else f"<th>{n}</th>" for n in names)
    above = f'<tr><th colspan="3"></th>{groups}<th colspan="2" class="text">cost</th></tr>'
    return f"<table><thead>{above}<tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _cell(text: str, kind: str = "") -> str:
    return f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>"


def _recipe(result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """A recipe: the command that makes it, what it stores, where its error is largest."""
    sentence = row.get("sentence") or row["recipe"]
    command = shlex.join(["lowbit", "quantize", str(result["original"]), sentence, *_options(result)])
    counts = Counter(layer["format"] for layer in row["layers"])
    told = ", ".join(f"{counted(count, 'layer')} in {name}" for name, count in counts.items())
    largest = ", ".join(f"{name} {error:.4f}" for name, error in table.worst(row["layers"]))
    told += f"; largest errors: {largest}" if largest else ""
    lines = [told, *(f"{name}: {reason}" for name, reason in table.fallbacks(row["layers"]))]
    return f"<dt>{escape(row['recipe'])}</dt><dd><pre>{escape(command)}</pre><p>{'<br>'.join(map(escape, lines))}</p></dd>"


def _options(result: Mapping[str, Any]) -> list[str]:
    """The options of a command that differ from the defaults."""
    options = [] if result["calibration"] == "bundled" else ["--calibration", str(result["calibration"])]
    options += ["--samples", str(result["samples"])] if result["samples"] else []
    return options + (["--seed", str(result["seed"])] if result["seed"] else [])


def _compare(result: Mapping[str, Any]) -> str:
    """The command that makes the whole page again."""
    sentences = [row["recipe"] for row in result["rows"][1:]]
    return escape(shlex.join(["lowbit", "compare", str(result["original"]), *sentences, *_options(result)]))
