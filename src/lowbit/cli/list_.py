"""list - List methods, formats, presets and what else can be named."""

from typing import Annotated

import typer

from lowbit.cli import _options as options
from lowbit.cli._output import Output
from lowbit.cli._verbs import verbs


def command(
    kind: Annotated[
        str, typer.Argument(help="One of the lists that `lowbit list` shows.", metavar="KIND", show_default=False)
    ] = "kinds",
    json: options.Json = False,
) -> None:
    """List methods, presets, formats and what else can be named, each with one line; without KIND what lists there are.

    \b
    lowbit list
    lowbit list methods
    """
    with Output(json) as output:
        rows = verbs().listing(kind)
        output.object({kind: rows})
        if not json:
            from lowbit.report import table

            output.show(table.rows(rows))
