"""_progress - a run's events as plain lines on stderr."""

import sys
import time


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
