"""_output - results to stdout, everything else to stderr.

While an Output is open, sys.stdout and file descriptor 1 lead to stderr: whatever a library prints, from Python or from C,
cannot reach the result. What the command has to say goes through the Output, which keeps the real stdout.
"""

import contextlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


class Output(contextlib.AbstractContextManager["Output"]):
    """The real stdout. as_json: say one object and no text. Of the processes of torchrun the first one speaks."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json

    def __enter__(self) -> "Output":
        sys.stdout.flush()
        told = os.dup(1) if os.environ.get("RANK", "0") == "0" else os.open(os.devnull, os.O_WRONLY)
        self.stream: IO[str] = os.fdopen(told, "w", encoding="utf-8")
        os.dup2(2, 1)
        self._python = contextlib.redirect_stdout(sys.stderr)
        self._python.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._python.__exit__(None, None, None)
        os.dup2(self.stream.fileno(), 1)
        self.stream.close()

    def console(self) -> "Console":
        """A rich console on the real stdout; so wide that nothing is folded where there is no terminal."""
        from rich.console import Console

        return Console(
            file=self.stream, width=None if self.stream.isatty() else 1000, highlight=False, markup=False, emoji=False
        )

    def say(self, text: str, end: str = "\n") -> None:
        """Text for a reader, at once; nothing when an object is wanted."""
        if not self.as_json:
            self.stream.write(text + end)
            self.stream.flush()

    def show(self, *renderables: Any) -> None:
        """Rich tables for a reader; nothing when an object is wanted."""
        console = self.console()
        with console.capture() as told:
            console.print(*renderables, sep="\n")
        self.say("\n".join(line.rstrip() for line in told.get().splitlines()).strip("\n"))

    def object(self, value: Mapping[str, Any]) -> None:
        """The one object, when it is wanted."""
        if self.as_json:
            self.stream.write(json.dumps(plain(value), ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: Any) -> Any:
    """`value` as JSON can say it: what is not finite becomes null, what has no JSON form its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
