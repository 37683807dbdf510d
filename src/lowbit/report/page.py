"""page - a comparison -> one HTML file that needs nothing else: pictures, table, recipes with their commands, raw numbers.

Traps     No request leaves the page; the JSON is embedded so that "</script>" in a prompt or name cannot end it early.
"""

import json
import shlex
from collections.abc import Mapping
from html import escape
from importlib import resources
from string import Template
from typing import Any

import lowbit
from lowbit.report import table

CAPTIONS = {
    "kl": ("Divergence against size", "How far each quantized model's predictions are from the original's, by the bits that it "
           "stores for a weight. Lower and further left is better. Bars are one standard error."),
    "layers": ("Error by layer", "Relative error that rounding leaves in each layer's output on the calibration text, "
               "as far as the method tells it."),
}


def render(result: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    """The page of a comparison. drawn: SVG by name, as lowbit.report.pictures.write gives it."""
    name = str(result["original"]).rstrip("/").rpartition("/")[2]
    shell = Template(resources.files("lowbit.report").joinpath("page.html").read_text(encoding="utf-8"))
    return shell.substitute(
        title=escape(f"{name}: {len(result['rows']) - 1} recipes compared"), name=escape(name), facts=_facts(result),
        findings=_findings(result), pictures="\n".join(_picture(key, svg) for key, svg in drawn.items()), table=_table(result),
        note=escape(table.NOTE), recipes="\n".join(_recipe(result, row) for row in result["rows"][1:]), command=_compare(result),
        version=escape(lowbit.__version__), data=json.dumps(result, default=str).replace("</", "<\\/"),
    )


def _facts(result: Mapping[str, Any]) -> str:
    """What was measured, in one line."""
    original = result["rows"][0]
    texts = ", ".join(f"{text} ({summary['windows']} windows)" for text, summary in original["texts"].items())
    facts = {"original": f"{result['original']}, {table.size(original['bytes'])}", "measured on": f"{texts} of {result['length']} tokens",
             "calibrated on": f"{result['calibration']}, {result['samples'] or 64} windows, seed {result['seed']}"}
    return "".join(f"<div><dt>{key}</dt><dd>{escape(value)}</dd></div>" for key, value in facts.items())


def _findings(result: Mapping[str, Any]) -> str:
    """The best recipe of each size on each text, said in words; those within two standard errors named beside it."""
    rows, said = result["rows"], []
    for text in rows[0]["texts"]:
        sizes = sorted({round(row["bits_per_weight"]) for row in rows[1:]}, reverse=True)
        for bits in sizes:
            rivals = [row for row in rows[1:] if round(row["bits_per_weight"]) == bits and row["texts"][text].get("kl") is not None]
            if len(rivals) < 2:
                continue
            best = min(rivals, key=lambda row: row["texts"][text]["kl"])
            close = [row["recipe"] for row in rivals if row is not best and _same(row["texts"][text], best["texts"][text])]
            beside = f"; within two standard errors: {', '.join(f'<code>{escape(name)}</code>' for name in close)}" if close else ""
            said.append(f"<li>{escape(text)}, about {bits} bits: <code>{escape(best['recipe'])}</code> with "
                        f"{table.quality(best['texts'][text])[1]} mnat{beside}.</li>")
    return f"<ul>{''.join(said)}</ul>" if said else ""


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two KL divergences differ by less than two standard errors of their difference."""
    spread = (one.get("kl_se", 0.0) ** 2 + other.get("kl_se", 0.0) ** 2) ** 0.5
    return bool(abs(one["kl"] - other["kl"]) < 2 * spread)


def _picture(key: str, svg: str) -> str:
    title, caption = CAPTIONS[key]
    return f'<section><h2>{title}</h2><figure role="img" aria-label="{title}">{svg}<figcaption>{caption}</figcaption></figure></section>'


def _table(result: Mapping[str, Any]) -> str:
    """All rows; the best of a size and text stand out."""
    rows = result["rows"]
    texts = list(rows[0]["texts"])
    head = "".join(f'<th colspan="3" class="text">{escape(text)}</th>' for text in texts)
    names = '<th class="first">perplexity</th><th>KL, mnat</th><th>top-1, %</th>' * len(texts)
    fronts = {text: table.front(rows, text) for text in texts}
    body = []
    for number, row in enumerate(rows):
        cells = [f"<td>{row['bits_per_weight']:.3f}</td><td>{table.size(row['bytes'])}</td>"]
        for text in texts:
            perplexity, kl, top1 = table.quality(row["texts"][text], not number)
            best = ' class="best" title="no smaller or equal recipe is nearer to the original"' if number in fronts[text] else ""
            cells.append(f'<td class="first">{perplexity}</td><td{best}>{kl}</td><td>{top1}</td>')
        cost = (f"{row['seconds']:.0f}", table.size(row["peak_memory"])) if number else ("–", "–")
        cells.append(f'<td class="first">{cost[0]}</td><td>{cost[1]}</td>')
        body.append(f'<tr><th scope="row">{escape(row["recipe"])}</th>{"".join(cells)}</tr>')
    return (f'<table><thead><tr><th></th><th></th><th></th>{head}<th colspan="2" class="text">cost</th></tr>'
            f'<tr><th>recipe</th><th>bits</th><th>on disk</th>{names}<th class="first">seconds</th><th>peak memory</th></tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table>")


def _recipe(result: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """A recipe: the command that makes it, what it stores, where its error is largest."""
    sentence = row.get("sentence") or row["recipe"]
    command = shlex.join(["lowbit", "quantize", str(result["original"]), sentence, *_options(result)])
    formats: dict[str, int] = {}
    for layer in row["layers"]:
        formats[layer["format"]] = formats.get(layer["format"], 0) + 1
    stored = ", ".join(f"{count} layers in {escape(name)}" for name, count in formats.items()) or "–"
    worst = sorted((layer for layer in row["layers"] if isinstance(layer.get("error"), float)), key=lambda x: -x["error"])[:3]
    told = f"; largest error: {', '.join(f'{escape(w['name'])} {w['error']:.4f}' for w in worst)}" if worst else ""
    fallbacks = "".join(f"<br>{escape(x['name'])}: {escape(str(x['fallback']))}" for x in row["layers"] if x.get("fallback"))
    return f"<dt>{escape(row['recipe'])}</dt><dd><pre>{escape(command)}</pre><p>{stored}{told}{fallbacks}</p></dd>"


def _options(result: Mapping[str, Any]) -> list[str]:
    """The options of a command that differ from the defaults."""
    options = [] if result["calibration"] == "bundled" else ["--calibration", str(result["calibration"])]
    options += ["--samples", str(result["samples"])] if result["samples"] else []
    return options + (["--seed", str(result["seed"])] if result["seed"] else [])


def _compare(result: Mapping[str, Any]) -> str:
    """The command that makes the whole page again."""
    sentences = [row["recipe"] for row in result["rows"][1:]]
    return escape(shlex.join(["lowbit", "compare", str(result["original"]), *sentences, *_options(result)]))
