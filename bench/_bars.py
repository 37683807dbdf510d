"""_bars - what the rows of bench/results say about the bars of bars.toml."""

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _rows import RESULTS

Row = dict[str, Any]
SUBJECT = (
    "kernel", "format", "element", "shape", "rows", "inputs", "tokens", "kind", "sequences", "recipe", "blocks", "gpus",
    "threads", "cold", "policy", "head", "layers", "dtype",
)  # fmt: skip
"""What two rows must have in common to be of one subject."""


@dataclass(frozen=True)
class Bar:
    """The fields are those of bars.toml."""

    machine: str
    says: str
    rows: str
    where: Row
    figure: str | list[str]
    against: Row | None = None
    least: float | None = None
    most: float | None = None

    @property
    def limit(self) -> str:
        return f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"


@dataclass(frozen=True)
class Verdict:
    """What was found: the figure that is worst, of how many, of which row; `worst` None: no row."""

    bar: Bar
    worst: float | None = None
    count: int = 0
    row: Row | None = None

    @property
    def holds(self) -> bool:
        bar, worst = self.bar, self.worst
        return worst is not None and (worst >= bar.least if bar.least is not None else worst <= (bar.most or 0))

    @property
    def told(self) -> str:
        return "no row" if self.worst is None else "holds" if self.holds else "misses"


def plan(machine: str) -> tuple[list[Row], list[Bar]]:
    """The runs of a machine, gpu or cpu, and its bars."""
    found = tomllib.loads((Path(__file__).parent / "bars.toml").read_text(encoding="utf-8"))
    runs = [run for run in found["run"] if run["machine"] == machine]
    return runs, [bar for bar in (Bar(**given) for given in found["bar"]) if bar.machine == machine]


def kept(name: str, after: int = 0) -> list[Row]:
    """The rows of a benchmark behind the first `after`."""
    file = RESULTS / f"{name}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines[after:]]


def judge(bar: Bar, rows: Sequence[Row]) -> Verdict:
    """A bar and its rows, oldest first."""
    rows, found = newest(rows), []
    for row in rows:
        value = _figure(row, bar.figure)
        if value is None or not _has(row, bar.where):
            continue
        if bar.against is not None:
            others = [_figure(other, bar.figure) for other in rows if _twins(row, other, bar.against)]
            known = [other for other in others if other is not None]
            value = min(known) / value if known else None
        if value is not None:
            found.append((value, row))
    if not found:
        return Verdict(bar)
    worst, row = (min if bar.least is not None else max)(found, key=lambda pair: pair[0])
    return Verdict(bar, worst, len(found), row)


def newest(rows: Sequence[Row]) -> list[Row]:
    """Of each subject the last row."""
    return list({subject(row): row for row in rows}.values())


def subject(row: Row, leaving: Sequence[str] = ()) -> str:
    """What a row is about, but for the keys `leaving`."""
    return json.dumps([row.get(key) for key in SUBJECT if key not in leaving])


def _has(row: Row, where: Row) -> bool:
    return all(row.get(key) in (value if isinstance(value, list) else [value]) for key, value in where.items())


def _twins(row: Row, other: Row, against: Row) -> bool:
    return _has(other, against) and subject(row, tuple(against)) == subject(other, tuple(against))


def _figure(row: Row, name: str | list[str]) -> float | None:
    value: Any = row
    for part in [name] if isinstance(name, str) else name:
        value = value.get(part) if isinstance(value, dict) else None
    return None if value is None else float(value)


def table(verdicts: Sequence[Verdict]) -> list[str]:
    """Lines of Markdown: what holds and what does not."""
    lines = ["| bar | wanted | worst measured | | rows | date, commit, machine |", "|---|---|--:|---|--:|---|"]
    for verdict in verdicts:
        row, worst = verdict.row or {}, "" if verdict.worst is None else f"{verdict.worst:.4g}"
        place = ", ".join(str(row[key]) for key in ("date", "commit", "machine") if key in row)
        lines.append(
            f"| {verdict.bar.says} | {verdict.bar.limit} | {worst} | {verdict.told} | {verdict.count or ''} | {place} |"
        )
    return lines
