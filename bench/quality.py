"""quality - the recipes of the main job on lowbit-tiny by the protocol of the house: KL in milli-nats, bits, seconds, memory.

    python bench/quality.py DATA [--recipe=... ...] [--windows=32] [--samples=64] [--out=FOLDER]

DATA: a folder with calibration.txt, evaluation-books.txt, evaluation-docs.txt and wikitext2-test.txt.
"""

import sys
import tempfile
from pathlib import Path

from _rows import keep

import lowbit
from lowbit.cli._bar import progress

MODEL = Path(__file__).parent.parent / "models" / "lowbit-tiny"
TEXTS = ("evaluation-books.txt", "evaluation-docs.txt", "wikitext2-test.txt")
RECIPES = (
    "rtn(int4-g128-asym)",
    "hqq(int4-g128-asym)",
    "awq(int4-g128-asym)",
    "gptq(int4-g128-asym)",
    "awq + gptq(int4-g128-asym)",
    "balanced",
    "gptaq(int4-g128-asym)",
    "gptq(int3-g128-asym)",
    "gptaq(int3-g128-asym)",
    "gptq(int2-g128-asym)",
    "gptaq(int2-g128-asym)",
)


def main() -> None:
    options = [a.removeprefix("--").split("=", 1) for a in sys.argv[1:] if a.startswith("--")]
    data = Path(next(a for a in sys.argv[1:] if not a.startswith("--")))
    recipes = [value for key, value in options if key == "recipe"] or list(RECIPES)
    single = dict(o for o in options if o[0] != "recipe")
    with tempfile.TemporaryDirectory() as temporary:
        found = lowbit.compare(
            str(MODEL),
            recipes,
            out=single.get("out", temporary),
            text=[str(data / name) for name in TEXTS],
            calibration=str(data / "calibration.txt"),
            samples=int(single.get("samples", 64)),
            windows=int(single.get("windows", 32)),
            progress=progress(),
        )
    for row in found["rows"]:
        kl = {name: round(1000 * t["kl"], 2) for name, t in row["texts"].items()}
        error = {name: round(1000 * t["kl_se"], 2) for name, t in row["texts"].items()}
        perplexity = {name: round(t["perplexity"], 3) for name, t in row["texts"].items()}
        keep(
            "quality",
            recipe=row["recipe"],
            bits_per_weight=round(row["bits_per_weight"], 4),
            kl=kl,
            kl_se=error,
            perplexity=perplexity,
            seconds=row["seconds"],
            peak_memory=row["peak_memory"],
            samples=int(single.get("samples", 64)),
            windows=int(single.get("windows", 32)),
        )


if __name__ == "__main__":
    main()
