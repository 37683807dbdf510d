"""list - List methods, formats, presets and what else can be named."""

from typing import Annotated

import typer

from lowbit.cli import _options as options
from lowbit.cli._output import Output, verbs


def command(
    kind: Annotated[
        str,
        typer.Argument(
            help="methods, formats, policies (KV cache), presets, architectures or kernels.", metavar="KIND", show_default=False
        ),
    ],
    json: options.Json = False,
) -> None:
    """List methods, formats, policies, presets, architectures or kernels, each with one line.

    \b
    lowbit list methods
    """
    with Output(json) as output:
        rows = verbs().listing(kind)
        output.object({kind: rows})
        if not json:
            from lowbit.report import table

            output.show(table.rows(rows))
