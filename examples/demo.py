"""demo - the main job on the bundled model: quantize by five methods at 4 and 3 bits, measure, draw, reload, generate.

python examples/demo.py [folder]        (`make demo` runs it; under four minutes on two cores)
"""

import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from lowbit.evaluation.comparison import folder_name

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models" / "lowbit-tiny"
RECIPES = tuple(
    method.format(bits=bits)
    for bits in (4, 3)
    for method in (
        "rtn(int{bits}-g128-asym)", "hqq(int{bits}-g128-floatzero)", "awq(int{bits}-g128-asym)", "gptq(int{bits}-g128-asym)",
        "awq + gptq(int{bits}-g128-asym)",
    )
)  # fmt: skip
SHOWN = "gptq(int4-g128-asym)"
PROMPT = "The old house stood at the end of the lane, and"


def lowbit(*arguments: str) -> None:
    """Run one command of the command line in a fresh process, as a user would."""
    subprocess.run([sys.executable, "-m", "lowbit", *arguments], check=True)


def main() -> None:
    console = Console(stderr=True)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    start = time.perf_counter()
    lowbit("compare", str(MODEL), *RECIPES, f"--out={folder}", "--length=1024", "--samples=12", "--windows=4")
    found = folder / folder_name(SHOWN)
    console.rule(f"what {found} holds")
    lowbit("inspect", str(found))
    console.rule("the packed checkpoint, loaded in a fresh process, writes")
    lowbit("generate", str(found), PROMPT, "--tokens=80", "--temperature=0.8")
    console.rule()
    console.print(f"{time.perf_counter() - start:.0f} s. Report: {folder / 'report.html'}")


if __name__ == "__main__":
    main()
