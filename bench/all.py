"""all - the benchmarks of a machine in a number of minutes, in order of worth, and a table of the bars that hold.

    python bench/all.py [gpu|cpu] [--minutes 10] [--rival NAME=PYTHON ...]
    python bench/all.py page

Each benchmark runs in a process of its own, checks its numbers before it times them, and keeps its rows in bench/results; what
takes longer than its share is stopped. gpu is taken where there is one. The table at the end is of this call's rows alone.
page: writes docs/SPEED.md from all kept rows. Rivals' environments are named as in bars.toml: --rival ggml=PYTHON.
What is run and what must hold stands in bars.toml; benchmarks of quality need hours and texts, and have commands of their own.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _bars import Bar, Verdict, judge, kept, plan, table

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "SPEED.md"
LEAST = 20.0
"""Seconds under which no benchmark is begun."""
HEAD = """# Speed

The bars that lowbit sets itself, and of each the worst of the newest kept rows (bench/results; `make bench` measures and keeps
them). Made by `python bench/all.py page`; how the figures came about stands in the [log](LOG.md).
"""
PARTS = {"gpu": "NVIDIA GPU", "cpu": "CPU"}
PICTURE = "\n![Microseconds against bytes](pictures/gpu_roofline.png)\n"


def gpus() -> int:
    """NVIDIA GPUs here, without importing torch."""
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def command(run: dict[str, Any], given: dict[str, str]) -> list[str]:
    """The words that start a benchmark; options of rivals that are not given are left out."""
    file, *words = shlex.split(run["command"])
    found: list[str] = []
    for word in words:
        missing = word.startswith("{") and word.endswith("}") and word[1:-1] not in given
        if missing:
            found.pop()
        else:
            for name, value in given.items():
                word = word.replace(f"{{{name}}}", value)
            found.append(word)
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={run['gpus']}"] if "gpus" in run else []
    return [sys.executable, *launcher, str(HERE / file), *found]


def refusal(run: dict[str, Any], given: dict[str, str], left: float, there: int) -> str:
    """Why a benchmark is not begun, or ""."""
    lacking = [name for name in run.get("needs", ()) if name not in given]
    if lacking:
        return f"no --rival {lacking[0]}=PYTHON"
    if run.get("gpus", 0) > there:
        return f"{run['gpus']} GPUs are needed, {there} are there"
    return "no time left" if left < LEAST else ""


def carry_out(words: list[str], seconds: float) -> str:
    """Run a command for so long at most; how it ended."""
    start = time.perf_counter()
    process = subprocess.Popen(words, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"stopped after {seconds:.0f} s"
    return f"{time.perf_counter() - start:.0f} s" + (f", ended with {code}" if code else "")


def measure(machine: str, minutes: float, given: dict[str, str]) -> list[str]:
    """Run all that there is time for; lines about the runs and the bars."""
    runs, bars = plan(machine)
    end, there = time.perf_counter() + 60 * minutes, gpus()
    before = {name: len(kept(name)) for name in {bar.rows for bar in bars}}
    told = []
    with tempfile.TemporaryDirectory() as room:
        for run in runs:
            left = end - time.perf_counter()
            why = refusal(run, given, left, there)
            if not why:
                print(f"== {run['command']}", flush=True)
                why = carry_out(command(run, {**given, "room": room}), min(run["seconds"], left))
            told.append(f"{run['command']}: {why}")
    return [*told, "", *table(verdicts(bars, before))]


def verdicts(bars: list[Bar], before: dict[str, int]) -> list[Verdict]:
    return [judge(bar, kept(bar.rows, before.get(bar.rows, 0))) for bar in bars]


def page() -> None:
    """Write docs/SPEED.md and its picture."""
    import gpu_roofline

    gpu_roofline.draw()
    lines = [HEAD]
    for machine, title in PARTS.items():
        lines += [f"## {title}", "", *table(verdicts(plan(machine)[1], {})), PICTURE if machine == "gpu" else ""]
    PAGE.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("gpu", "cpu", "page"), default="gpu" if gpus() else "cpu")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=PYTHON")
    asked = parser.parse_args()
    if asked.what == "page":
        page()
        return
    given = dict(text.split("=", 1) for text in asked.rival)
    print("\n".join(measure(asked.what, asked.minutes, given)))


if __name__ == "__main__":
    main()
