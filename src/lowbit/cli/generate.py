"""generate - Continue a prompt."""

from typing import Annotated

import typer

from lowbit.cli import _options as options
from lowbit.cli._output import Output
from lowbit.cli._verbs import verbs


def command(
    model: options.Model,
    prompt: Annotated[str, typer.Argument(help="The text to continue.", metavar="PROMPT", show_default=False)],
    tokens: options.Tokens = 128,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    kv: options.Kv = None,
    bits: options.Bits = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Continue a prompt.

    \b
    lowbit generate small "Once upon a time" --tokens 64 --temperature 0.8
    lowbit generate small "Once upon a time" --kv int4
    """
    with Output(json) as output:
        text = verbs().generate(
            model, prompt, tokens=tokens, temperature=temperature, seed=seed, kv=kv, device=device, bits=bits
        )
        output.object({"model": model, "prompt": prompt, "text": text})
        output.say(prompt + text)
