"""_rows - one line of JSON per figure, with the machine and the commit that gave it."""

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """The processor's name, the number of usable cores, the GPU's name where there is one."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    cpu = f"{names[0] if names else platform.processor()}, {len(os.sched_getaffinity(0))} cores"
    import torch

    return f"{torch.cuda.get_device_name()} + {cpu}" if torch.cuda.is_available() else cpu


def commit() -> str:
    """The commit that is checked out, with "+" when files other than the rows themselves differ from it."""
    changed = _git("status", "--porcelain", "--untracked-files=no", ":/", ":!results")
    return _git("describe", "--always") + ("+" if changed else "") or "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True).stdout.strip()


def keep(name: str, **figures: Any) -> dict[str, Any]:
    """Append a row to results/NAME.jsonl and print it."""
    import torch

    row = {
        "date": datetime.date.today().isoformat(),
        "commit": commit(),
        "machine": machine(),
        "torch": torch.__version__,
        **figures,
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row))
    return row
