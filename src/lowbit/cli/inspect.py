"""inspect - Tell what a model folder stores, and which kernels will run it."""

from lowbit.cli import _options as options
from lowbit.cli._output import Output
from lowbit.cli._verbs import verbs


def command(model: options.Model, device: options.Device = None, json: options.Json = False) -> None:
    """Tell what a model folder stores, layer by layer, and which kernel will run it.

    \b
    lowbit inspect small
    """
    with Output(json) as output:
        result = verbs().inspect(model, device=device)
        output.object(result)
        if not json:
            from lowbit.report import table

            if result["layers"]:
                output.show(table.layers(result["layers"]))
            output.say(table.facts(result))
