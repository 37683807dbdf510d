"""fitting - tables for terminals of any width: the fullest form of a table that fits, and names cut where they are alike.

In / Out  forms of one table, the fullest first -> what rich prints: the first whose lines are not folded, else the last.
Traps     Where there is no terminal lines may be as long as they like, and the first form is printed (cli/_output.py).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.table import Table

WIDE = 10_000


class Fitting:
    """The first of `forms` that fits."""

    def __init__(self, *forms: Callable[[], Table]) -> None:
        self._forms = forms

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        for form in self._forms:
            table = form()
            if Measurement.get(console, options.update(max_width=WIDE), table).maximum <= options.max_width:
                break
        yield table


def without(columns: Sequence[str], dropped: Sequence[str]) -> Iterator[list[str]]:
    """The columns, then the columns without the first of `dropped`, without the first two, ..."""
    for count in range(1 + len(dropped)):
        if not count or dropped[count - 1] in columns:
            yield [column for column in columns if column not in dropped[:count]]


def prefix(names: Sequence[str]) -> str:
    """What most names of layers have before the number of their block: "model.layers."."""
    heads = Counter(found[1] for name in names if (found := re.match(r"(.*?\.)\d+\.", name)))
    return heads.most_common(1)[0][0] if heads else ""


def cut(name: str, before: str) -> str:
    """A name whose beginning everybody knows."""
    return "…" + name[len(before) :] if before and name.startswith(before) else name
