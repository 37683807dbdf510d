"""budget - formats by layer against one format for all, at the same bytes, on all texts, over several calibration texts.

    python bench/budget.py run DATA [--device cuda] [--jobs 3] [--sentence "gptaq(trellis2.5)"] [--bits 2.57 3.07 3.57]
    python bench/budget.py table

DATA: as in bench/leaderboard.py. Calibration text number k is calibration.txt from k quarters on; 64 windows each. A size and a
text are one process: `budget(bits) + SENTENCE` is carried out, which quantizes the best allocation and the uniform format and
keeps the one that its own check prefers; then both are measured. Sizes are a little above those of a format of the family, so
that the uniform rival fills them: trellis2.5 takes 2.569 bits on lowbit-tiny. With int4-g128-asym: 2.15, 3.15, 4.16.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _rows import RESULTS, keep
from leaderboard import LENGTH, MODEL, TEXTS, dense

PARTS = 4


def one(data: Path, bits: float, number: int, asked: argparse.Namespace) -> None:
    """One size and one calibration text: both rivals measured, a row kept."""
    import torch

    import lowbit
    from lowbit.evaluation import measure
    from lowbit.layers.loading import load
    from lowbit.pipeline.source import tokenizer_of

    torch.set_num_threads(3 if asked.device == "cuda" else 1)
    text = (data / "calibration.txt").read_text(encoding="utf-8")
    reference = measure.Reference(load(str(MODEL), dtype=torch.float32, device=asked.device))
    texts = measure.read_texts([str(data / f"{t}.txt") for t in TEXTS], tokenizer_of(MODEL), LENGTH, asked.windows)

    def measured(folder: str) -> dict[str, float]:
        model = dense(load(folder, device=asked.device), asked.device).float()
        found = {Path(n).stem: measure.divergence(model, t, reference).summary() for n, t in texts.items()}
        return {name: round(1000 * text["kl"], 2) for name, text in found.items()}

    with tempfile.TemporaryDirectory() as temporary:
        calibration = Path(temporary) / "calibration.txt"
        calibration.write_text(text[len(text) * number // PARTS :], encoding="utf-8")
        common: Any = {"calibration": str(calibration), "samples": asked.samples, "device": asked.device}
        start, out = time.perf_counter(), f"{temporary}/budget"
        lowbit.quantize(str(MODEL), f"budget({bits:g}) + {asked.sentence}", out, **common)
        seconds = time.perf_counter() - start
        told = json.loads(Path(out, "lowbit.json").read_text(encoding="utf-8"))["budget"]
        kl = {told["kept"]: measured(out)}
        for name, rival in told["rivals"].items():
            if name not in kl:
                lowbit.quantize(str(MODEL), rival["sentence"], f"{temporary}/{name}", **common)
                kl[name] = measured(f"{temporary}/{name}")
    sizes = {name: round(rival["bits_per_weight"], 4) for name, rival in told["rivals"].items()}
    row = {"sentence": asked.sentence, "bits": bits, "text": number, "kept": told["kept"], "sizes": sizes, "kl": kl}
    keep("budget", **row, seconds=round(seconds, 1), samples=asked.samples, windows=asked.windows)


def run(data: Path, asked: argparse.Namespace) -> None:
    """Every size and text in a process of its own, `jobs` at a time."""
    waiting, running = [(b, n) for b in asked.bits for n in range(asked.texts)], list[subprocess.Popen[bytes]]()
    options = ["--device", asked.device, "--sentence", asked.sentence]
    options += ["--samples", str(asked.samples), "--windows", str(asked.windows)]
    while waiting or running:
        while waiting and len(running) < asked.jobs:
            bits, number = waiting.pop(0)
            command = [sys.executable, __file__, "one", str(data), "--bits", str(bits), "--text", str(number), *options]
            running.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
        running = [process for process in running if process.poll() is None]
        time.sleep(0.5)


def table() -> None:
    """The kept rows: allotted over uniform on each text, and which of the two the run kept."""
    lines = (RESULTS / "budget.jsonl").read_text(encoding="utf-8").splitlines()
    rows = {(r["sentence"], r["bits"], r["text"]): r for r in map(json.loads, lines)}
    print("| recipe | bits | text | bits, allotted / uniform | books | docs | wikitext2 | kept |")
    print("|---|--:|--:|---|--:|--:|--:|---|")
    for (sentence, bits, number), row in sorted(rows.items()):
        both = row["kl"].get("allotted"), row["kl"]["uniform"]
        cells = [f"{both[0][t]:.1f} / {both[1][t]:.1f}" if both[0] else f"{both[1][t]:.1f}" for t in TEXTS]
        sizes = " / ".join(f"{row['sizes'][name]:.3f}" for name in ("allotted", "uniform") if name in row["sizes"])
        print(f"| `{sentence}` | {bits:g} | {number} | {sizes} | {' | '.join(cells)} | {row['kept']} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("action", choices=["run", "one", "table"])
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--sentence", default="gptaq(trellis2.5)")
    parser.add_argument("--bits", type=float, nargs="+", default=[2.57, 3.07, 3.57])
    parser.add_argument("--texts", type=int, default=3)
    parser.add_argument("--text", type=int, default=0)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--windows", type=int, default=32)
    asked = parser.parse_args()
    if asked.action == "table":
        table()
    elif asked.action == "one":
        one(asked.data, asked.bits[0], asked.text, asked)
    else:
        run(asked.data, asked)


if __name__ == "__main__":
    main()
