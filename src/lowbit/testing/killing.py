"""killing - runs that end in the middle, and whether two folders hold the same bytes."""

import hashlib
from pathlib import Path

from lowbit.pipeline.progress import Silent


class Killed(Exception):
    """Stands for the end of the process."""


class KillAfter(Silent):
    """Ends a run when so many steps are done. stage: whose steps are counted, as `start` names it ("": of all)."""

    def __init__(self, steps: int, stage: str = "") -> None:
        self.left = steps
        self._stage, self._now = stage, [""]

    def start(self, what: str, blocks: int) -> None:
        self._now.append(what)

    def end(self) -> None:
        self._now.pop()

    def block(self, index: int, error: float | None, seconds: float) -> None:
        self.left -= self._stage in {"", self._now[-1]}
        if self.left == 0:
            raise Killed


def digest(folder: Path) -> str:
    """One hash over the names and bytes of all files."""
    found = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()
