"""_bar - a run's events as a live bar on stderr, or as plain lines where there is no terminal."""

import os
import sys
import time
from typing import TYPE_CHECKING

from lowbit.cli._progress import Lines, clock

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


def progress() -> Lines:
    """The receiver that suits stderr."""
    return Bar() if sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb" else Lines()


class Bar(Lines):
    """A bar over blocks with the current layer, its error and the time left."""

    _bar: "RichProgress | None" = None

    def start(self, what: str, blocks: int) -> None:
        from rich import progress as rich
        from rich.console import Console

        super().start(what, blocks)
        columns = [
            rich.TextColumn("{task.description}"),
            rich.BarColumn(bar_width=28),
            rich.MofNCompleteColumn(),
            rich.TextColumn("{task.fields[left]}"),
            rich.TextColumn("[dim]{task.fields[layer]}"),
        ]
        self._bar = bar = rich.Progress(*columns, console=Console(stderr=True), refresh_per_second=4)
        self._task = bar.add_task(what, total=blocks, layer="", left="")
        bar.start()

    def layer(self, name: str, error: float | None, seconds: float) -> None:
        told = name if error is None else f"{name}  error {error:.4f}"
        if self._bar:
            self._bar.update(self._task, layer=told)

    def block(self, index: int, error: float | None, seconds: float) -> None:
        self._done += 1
        left = f"left {clock(self.left())}" if self._done < self._blocks else f"took {clock(time.monotonic() - self._start)}"
        if self._bar:
            self._bar.update(self._task, advance=1, left=left)

    def say(self, text: str) -> None:
        if self._bar is None:
            super().say(text)
        else:
            self._bar.console.print(text, highlight=False, markup=False)

    def end(self) -> None:
        if self._bar:
            self._bar.update(self._task, layer="")
            self._bar.stop()
            self._bar = None
