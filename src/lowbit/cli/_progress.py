"""_progress - a run's events as a live bar on stderr, or as plain lines where there is no terminal."""

import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from lowbit.pipeline.progress import Progress


def progress() -> "Progress":
    """The receiver that suits stderr."""
    return Bar() if sys.stderr.isatty() and os.environ.get("TERM") not in {None, "dumb"} else Lines()


def clock(seconds: float) -> str:
    """3:04, or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class Lines:
    """One line for each block."""

    def start(self, what: str, blocks: int) -> None:
        self._what, self._blocks, self._start, self._done = what, blocks, time.monotonic(), 0

    def layer(self, name: str, error: float | None, seconds: float) -> None:
        """Nothing: a line for each layer would be too many."""

    def block(self, index: int, error: float | None, seconds: float) -> None:
        self._done += 1
        told = "" if error is None else f" · error {error:.4f}"
        self.say(f"{self._what} {index + 1}/{self._blocks}{told} · {seconds:.1f} s · left {clock(self.left())}")

    def left(self) -> float:
        """Seconds still to go, at the pace so far."""
        return (time.monotonic() - self._start) / max(1, self._done) * (self._blocks - self._done)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Nothing: the last line stands."""


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
