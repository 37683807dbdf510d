"""progress - what a long run tells while it works; the command line draws it, the Python call may pass its own."""

from typing import Protocol


class Progress(Protocol):
    """Receiver of a run's events. `error` is the relative error of a layer's output (None: not known)."""

    def start(self, what: str, blocks: int) -> None:
        """A phase of `blocks` steps begins."""

    def layer(self, name: str, error: float | None, seconds: float) -> None:
        """One matrix is quantized."""

    def block(self, index: int, error: float | None, seconds: float) -> None:
        """One step of the phase is finished."""

    def say(self, text: str) -> None:
        """A line for the reader: a fallback, an expert that saw few tokens."""

    def end(self) -> None:
        """The phase is over, whether it succeeded or not."""


class Silent:
    """Says nothing."""

    def start(self, what: str, blocks: int) -> None: ...

    def layer(self, name: str, error: float | None, seconds: float) -> None: ...

    def block(self, index: int, error: float | None, seconds: float) -> None: ...

    def say(self, text: str) -> None: ...

    def end(self) -> None: ...
