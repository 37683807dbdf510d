"""compare - Quantize a model by several recipes, measured side by side."""

from typing import Annotated

import typer

from lowbit.cli import _options as options
from lowbit.cli._output import Output
from lowbit.cli._progress import Lines
from lowbit.cli._verbs import verbs


def command(
    original: Annotated[str, typer.Argument(help="Model folder or Hub id.", metavar="ORIGINAL", show_default=False)],
    recipes: Annotated[list[str], typer.Argument(help="Sentences or presets.", metavar="RECIPE", show_default=False)],
    out: options.Out = None,
    text: options.Text = [],  # noqa: B006 - typer reads the default, nothing changes it
    windows: options.Windows = None,
    calibration: options.Calibration = "bundled",
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Quantize a model by several recipes and measure them side by side; writes a table, pictures and a page.

    \b
    lowbit compare models/lowbit-tiny "rtn(int4-g128)" "gptq(int4-g128)" --windows 8

    Recipes that the folder already holds are not made again.
    """
    with Output(json) as output:
        result = verbs().compare(
            original,
            recipes,
            out=out,
            text=text,
            windows=windows,
            calibration=calibration,
            samples=samples,
            length=length,
            seed=seed,
            device=device,
            progress=Lines(),
        )
        output.object(result)
        if not json:
            from lowbit.report import table

            output.show(*table.comparison(result))
            output.say(f"page: {result['folder']}/report.html")
