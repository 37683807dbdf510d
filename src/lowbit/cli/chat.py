"""chat - Talk with a model, turn by turn."""

import sys
from collections.abc import Iterator

from lowbit.cli import _options as options
from lowbit.cli._output import Output
from lowbit.cli._verbs import verbs


def command(
    model: options.Model,
    tokens: options.Tokens = 512,
    temperature: options.Temperature = 0.7,
    seed: options.Seed = 0,
    kv: options.Kv = None,
    bits: options.Bits = None,
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Talk with a model, turn by turn; each line of the input is one turn, its end leaves.

    \b
    lowbit chat small
    echo "What is a monad?" | lowbit chat small --json
    """
    with Output(json) as output:
        partner = verbs().chat(model, seed=seed, kv=kv, device=device, bits=bits)
        messages: list[dict[str, str]] = []
        for line in _turns():
            messages.append({"role": "user", "content": line})
            answer = ""
            for piece in partner.reply(messages, tokens, temperature):
                output.say(piece, end="")
                answer += piece
            output.say("")
            messages.append({"role": "assistant", "content": answer})
        output.object({"model": model, "messages": messages})


def _turns() -> Iterator[str]:
    """The lines that the user types, without empty ones."""
    asks = sys.stdin.isatty()
    while True:
        if asks:
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
