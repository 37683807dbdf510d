"""evaluate - Measure a model: perplexity, KL divergence, agreement."""

from typing import Annotated

import typer

from lowbit.cli import _options as options
from lowbit.cli._output import Output
from lowbit.cli._verbs import verbs


def command(
    model: options.Model,
    against: Annotated[
        str | None, typer.Option(help="The original, for KL divergence and agreement.", metavar="ORIGINAL", show_default=False)
    ] = None,
    text: options.Text = [],  # noqa: B006 - typer reads the default, nothing changes it
    windows: options.Windows = None,
    length: options.Length = None,
    bits: options.Bits = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Measure a model: perplexity, divergence from the original, agreement; with standard errors.

    \b
    lowbit evaluate small --against models/lowbit-tiny
    lowbit evaluate small --against models/lowbit-tiny --text books.txt --text pydoc
    """
    with Output(json) as output:
        result = verbs().evaluate(model, against, text, windows, length=length, device=device, bits=bits)
        output.object(result)
        if not json:
            from lowbit.report import table

            output.show(table.evaluation(result))
