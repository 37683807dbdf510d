"""fresh - commands of the command line, each in a process of its own that does not wait for its imports.

In / Out  arguments of `lowbit` -> exit code, what was printed on stdout, what on stderr.
Idea      Importing torch and transformers takes seconds. A server process imports them once and runs nothing itself; for every
          command it forks, so that each begins with the libraries loaded and no trace of an earlier one: its peak memory is
          its own.
Traps     A fork copies one thread: the server must never compute, or the pools of threads that its children need are lost.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IMPORTS = ("lowbit.pipeline.quantize", "lowbit.report.card")
"""What nearly every command imports."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


class Fresh:
    """The server of fresh processes; a context, at whose end it stops."""

    def __enter__(self) -> "Fresh":
        command = [sys.executable, "-m", "lowbit.evaluation.fresh"]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.communicate()

    def run(self, arguments: list[str], *, live: bool) -> Ended:
        """Run `lowbit` with arguments to its end. live: what it prints on stderr is seen at once, not returned."""
        with tempfile.TemporaryDirectory() as folder:
            stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
            asked = {"arguments": arguments, "stdout": str(stdout), "stderr": None if live else str(stderr)}
            pipes: Any = self._server
            pipes.stdin.write(json.dumps(asked) + "\n")
            pipes.stdin.flush()
            answer = pipes.stdout.readline()  # "" when the server was killed
            return Ended(int(answer or 1), *(p.read_text() if p.exists() else "" for p in (stdout, stderr)))


def serve() -> None:
    """Fork a process for every line of stdin, and write the exit code of each when it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command that runs
    for name in IMPORTS:
        __import__(name)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(**asked)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n")
        sys.stdout.flush()


def _become(arguments: list[str], stdout: str, stderr: str | None) -> None:
    """Run the command line in this process, as if it had been started with `arguments`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for stream, path in ((0, os.devnull), (1, stdout), (2, stderr)):
        if path is not None:
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), stream)
    sys.argv = ["lowbit", *arguments]
    runpy.run_module("lowbit", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    serve()
