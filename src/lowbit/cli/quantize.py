"""quantize - Pack a model's weights in a few bits, by a recipe."""

import shlex
import sys
from typing import Annotated, Any

import typer

from lowbit.cli import _options as options
from lowbit.cli._bar import progress
from lowbit.cli._output import Output
from lowbit.cli._verbs import verbs


def command(
    model: options.Model,
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A sentence or a preset's name.")] = "balanced",
    out: options.Out = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell layers, sizes, memory and time.")] = False,
    calibration: options.Calibration = "bundled",
    samples: options.Samples = None,
    length: options.Length = None,
    seed: options.Seed = 0,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Pack a model's weights in a few bits by a recipe; write a complete model folder.

    \b
    lowbit quantize models/lowbit-tiny
    lowbit quantize meta-llama/Llama-3.2-1B "awq + gptq(int4-g128)" --out small
    lowbit quantize MODEL "gptq(int4-g128) + gptq(int8-row)@layers.0-1" --dry-run

    RECIPE is a sentence such as the above, or a preset: lowbit list presets.
    A run that was interrupted goes on when the same command is given again.
    """
    with Output(json) as output:
        try:
            made = verbs().quantize(
                model,
                recipe,
                out,
                calibration=calibration,
                samples=samples,
                length=length,
                seed=seed,
                device=device,
                dry_run=dry_run,
                progress=progress(),
            )
        except KeyboardInterrupt:
            again = shlex.join(["lowbit", *sys.argv[1:]])
            print(f"\ninterrupted; the same command goes on where this one stopped:\n  {again}", file=sys.stderr)
            raise typer.Exit(130) from None
        result = made.to_json()
        output.object(result)
        if dry_run:
            _show_outlook(output, result)
        else:
            _show_result(output, result)


def _show_outlook(output: Output, result: dict[str, Any]) -> None:
    from lowbit.core.words import counted, duration, size
    from lowbit.report import table

    outlook = result["outlook"]
    output.show(table.layers(outlook["layers"]))
    layers, bits = counted(len(outlook["layers"]), "layer"), table.bits(result)
    output.say(f"{result['sentence']}\n{layers}, {bits} bits per weight; {size(result['bytes'])} to write to {result['out']}")
    memory, time = size(outlook["peak_memory"]), duration(outlook["seconds"])
    output.say(f"peak memory about {memory}, time about {time} (estimates)")


def _show_result(output: Output, result: dict[str, Any]) -> None:
    from lowbit.report.table import result as told

    output.show(told(result))
    output.say(f'next: lowbit generate {shlex.quote(result["out"])} "Once upon a time"')
