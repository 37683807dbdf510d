"""overhead - what quantizing costs beside the forward passes that it needs.

A solver with calibration needs two passes of the calibration set (statistics, then outputs). Both are timed in one process in
turn: two passes of the blocks in float32 with the same batches, and a whole run (reading, solving, writing, closing check).

    python bench/overhead.py [--recipe="gptq(int4-g128)"] [--samples=64] [--turns=3]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from _rows import keep

import lowbit
from lowbit.pipeline import text
from lowbit.pipeline.quantize import BATCH_TOKENS
from lowbit.pipeline.source import tokenizer_of

MODEL = Path(__file__).parent.parent / "models" / "lowbit-tiny"
BAR = 1.6


@torch.no_grad()
def passes(model: torch.nn.Module, tokens: torch.Tensor) -> float:
    """Seconds of two passes through embedding and blocks."""
    start = time.perf_counter()
    size = max(1, BATCH_TOKENS["cpu"] // tokens.shape[1])
    for _ in range(2):
        for i in range(0, len(tokens), size):
            model(tokens[i : i + size], use_cache=False)
    return time.perf_counter() - start


def main() -> None:
    options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
    recipe, samples = options.get("recipe", "gptq(int4-g128)"), int(options.get("samples", 64))
    model = lowbit.load(MODEL, dtype=torch.float32)
    tokens = text.windows("bundled", text.read("bundled"), tokenizer_of(MODEL), 2048, samples).tokens
    needed, taken = [], []
    for _ in range(int(options.get("turns", 3))):
        needed.append(passes(model.model, tokens))
        with tempfile.TemporaryDirectory() as temporary:
            taken.append(lowbit.quantize(str(MODEL), recipe, str(Path(temporary) / "out"), samples=samples).seconds)
    ratio = statistics.median(t / n for t, n in zip(taken, needed, strict=True))
    keep(
        "overhead",
        recipe=recipe,
        samples=samples,
        two_passes_s=[round(n, 2) for n in needed],
        run_s=taken,
        ratio=round(ratio, 3),
        bar=BAR,
    )


if __name__ == "__main__":
    main()
