"""diagnose - Show outliers, what quantizing each part costs, and a recipe."""

from typing import Annotated

import typer

from lowbit.cli import _options as options
from lowbit.cli._output import Output
from lowbit.cli._progress import Lines
from lowbit.cli._verbs import verbs


def command(
    model: options.Model,
    out: options.Out = None,
    text: Annotated[str, typer.Option(help="Text to measure on.", metavar="TEXT")] = "bundled",
    windows: Annotated[
        int | None, typer.Option(min=1, help="Windows of the text. [default: 4]", metavar="N", show_default=False)
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=128, help="Tokens of a window. [default: 512]", metavar="N", show_default=False)
    ] = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Show a model's outliers, what quantizing weights, inputs and cache costs alone, and recommend a recipe.

    \b
    lowbit diagnose models/lowbit-tiny

    Writes pictures and a page into a folder.
    """
    with Output(json) as output:
        result = verbs().diagnose(model, out=out, text=text, windows=windows, length=length, device=device, progress=Lines())
        output.object(result)
        if not json:
            from lowbit.report import diagnosis

            output.show(*diagnosis.terminal(result))
            output.say(f"page: {result['folder']}/report.html")
