"""journal - what of a run is finished, durable at every moment, so that the same command goes on after a kill.

Idea      The work folder is OUT.partial. `journal.jsonl` starts with a line that says what is being made (sentence, model,
          digests, version); after a block's shard is on the disk a line for it is appended. A torn last line is no line.
          Nothing of a run's state lies elsewhere: the streams are recomputed by running the finished blocks.
"""

import json
import os
from pathlib import Path
from typing import Any

from lowbit.core import ranks
from lowbit.core.errors import CheckpointError

NAME = "journal.jsonl"


class Journal:
    """The finished steps of one run. task: what the run makes; another task in the same folder is an error."""

    def __init__(self, work: Path, task: dict[str, Any]) -> None:
        self.path = work / NAME
        self.steps: list[dict[str, Any]] = []
        work.mkdir(parents=True, exist_ok=True)
        lines = self._read()
        if not lines:
            self._write([task])
            return
        if lines[0] != task:
            changed = ", ".join(k for k in task if lines[0].get(k) != task[k]) or "the version"
            raise CheckpointError(
                f"{work} holds an unfinished run that differs in {changed}. "
                "Repeat the first command, remove the folder, or choose another --out."
            )
        self.steps = lines[1:]
        self._write(lines)

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return lines

    def _write(self, lines: list[dict[str, Any]]) -> None:
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    def __contains__(self, step: str) -> bool:
        return any(line["step"] == step for line in self.steps)

    def add(self, step: str, rows: list[dict[str, Any]], told: dict[str, Any] | None = None) -> None:
        """Note a finished step, the rows of its matrices and what else it tells; its shard must already be on the disk."""
        self.steps.append({"step": step, "rows": rows, **({"told": told} if told else {})})
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.steps[-1]) + "\n")
            file.flush()
            os.fsync(file.fileno())


class Followed(Journal):
    """The steps of rank 0's journal, in a process that writes nothing."""

    def __init__(self, steps: list[dict[str, Any]]) -> None:
        self.steps = steps

    def add(self, step: str, rows: list[dict[str, Any]], told: dict[str, Any] | None = None) -> None:
        self.steps.append({"step": step, "rows": rows})


def shared(work: Path, task: dict[str, Any]) -> Journal:
    """The journal of one run: that of the folder for rank 0, what that holds for the others."""
    book = Journal(work, task) if ranks.mine() == 0 else None
    steps = ranks.told(book.steps if book else None)
    return book or Followed(steps)


def finish(work: Path, out: Path) -> None:
    """Turn the work folder into the result: drop the journal, rename."""
    (work / NAME).unlink(missing_ok=True)
    os.replace(work, out)
