"""kill - `kill -9` at random moments, then the same command: the result must have the same bytes each time.

python bench/kill.py [--times=10] [--seed=0] [--recipe="gptq(int4-g128)"]
"""

import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _rows import keep

MODEL = Path(__file__).parent.parent / "models" / "lowbit-tiny"


def digest(folder: Path) -> str:
    """One hash over the names and bytes of all files."""
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        total.update(file.name.encode() + file.read_bytes())
    return total.hexdigest()


def main() -> None:
    options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
    recipe, times = options.get("recipe", "gptq(int4-g128)"), int(options.get("times", 10))
    rng = random.Random(int(options.get("seed", 0)))
    with tempfile.TemporaryDirectory() as temporary:

        def command(out: Path) -> list[str]:
            return [
                sys.executable,
                "-m",
                "lowbit",
                "quantize",
                str(MODEL),
                recipe,
                f"--out={out}",
                "--samples=8",
                "--length=1024",
                "--json",
            ]

        whole = Path(temporary) / "whole"
        start = time.perf_counter()
        subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        expected = digest(whole)
        moments, same, killed, resumed = [], 0, 0, 0
        for _ in range(times):
            out = Path(temporary) / "killed"
            process = subprocess.Popen(command(out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            moments.append(round(rng.uniform(0.25, 0.98) * seconds, 2))
            time.sleep(moments[-1])
            process.kill()
            killed += process.wait() != 0
            resumed += out.with_name("killed.partial").exists()
            if not out.exists():  # a kill between the rename and the exit leaves the whole result
                subprocess.run(command(out), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            same += digest(out) == expected
            shutil.rmtree(out)
        keep(
            "kill",
            recipe=recipe,
            times=times,
            killed=killed,
            found_unfinished=resumed,
            same_bytes=same,
            moments=moments,
            whole_seconds=round(seconds, 2),
        )
    raise SystemExit(0 if same == times else 1)


if __name__ == "__main__":
    main()
