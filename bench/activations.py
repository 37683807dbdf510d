"""activations - W8A8 and W4A4 on lowbit-tiny as it is and with planted outliers: KL in milli-nats by the protocol of the house.

    python bench/activations.py DATA [--device=cuda] [--jobs=6] [--windows=32] [--samples=64] [--only=TABLE] [SENTENCE ...]

DATA: a folder with calibration.txt, evaluation-books.txt, evaluation-docs.txt and wikitext2-test.txt. A table is one of w8a8,
w4a4 (both on the planted model too) and plain. Each row runs in a process of its own; rows go to results/activations.jsonl.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _rows import keep

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models" / "lowbit-tiny"
TEXTS = ("evaluation-books", "evaluation-docs", "wikitext2-test")
A4 = "act(int4-token, clip=0.9)"
W8A8 = (
    "rtn(int8-row) + act(int8-tensor)",
    "smoothquant(alpha=0.85, edges=all) + rtn(int8-row) + act(int8-tensor)",
    "quarot + rtn(int8-row) + act(int8-tensor)",
    "llm_int8",
)
W4A4 = (
    f"rtn(int4-row) + {A4}",
    f"smoothquant(alpha=0.85, edges=all) + gptq(int4-row) + {A4}",
    f"quarot + gptq(int4-row) + {A4}",
    f"quarot + gptaq(int4-row) + {A4}",
    f"quarot + smoothquant(alpha=0.5, edges=all) + gptq(int4-row) + {A4}",
    f"spinquant + gptq(int4-row) + {A4}",
    f"ostquant + gptq(int4-row) + {A4}",
    f"flatquant + gptq(int4-row) + {A4}",
    f"smoothquant(alpha=0.6, edges=all) + duquant + gptq(int4-row) + {A4}",
    f"quik(int4-row-keep32) + {A4}",
    "atom(int4-g128-byte32) + act(int4-g128, clip=0.9)",
)
TABLES = {"w8a8": W8A8, "w4a4": W4A4, "plain": (*W8A8, *W4A4)}


def planted(folder: Path) -> Path:
    """The bundled model with planted outliers."""
    if not folder.exists():
        subprocess.run([sys.executable, ROOT / "examples" / "plant_outliers.py", folder], check=True)
    return folder


def one(sentence: str, model: Path, options: argparse.Namespace) -> None:
    """Quantize by one sentence, measure, keep the row."""
    import torch

    import lowbit
    from lowbit.evaluation import measure
    from lowbit.layers.loading import load
    from lowbit.pipeline.source import tokenizer_of

    torch.set_num_threads(3 if options.device == "cuda" else torch.get_num_threads())
    text = options.data / "calibration.txt"
    with tempfile.TemporaryDirectory() as temporary:
        out, start = str(Path(temporary) / "out"), time.perf_counter()
        lowbit.quantize(str(model), sentence, out, calibration=str(text), samples=options.samples, device=options.device)
        seconds = time.perf_counter() - start
        found = load(out, dtype=torch.float32, device=options.device)
        bits = measure.bits_per_weight(found)
        reference = measure.Reference(load(str(model), dtype=torch.float32, device=options.device))
        texts = measure.read_texts([str(options.data / f"{t}.txt") for t in TEXTS], tokenizer_of(model), 2048, options.windows)
        rows = {name: measure.divergence(found, windows, reference).summary() for name, windows in texts.items()}
    milli = {key: {n: round(1000 * row[key], 2) for n, row in rows.items()} for key in ("kl", "kl_se")}
    told = {"recipe": sentence, "planted": model != MODEL, "bits_per_weight": round(bits, 4), "seconds": round(seconds, 1)}
    keep("activations", **told, samples=options.samples, windows=options.windows, **milli)


def run(options: argparse.Namespace, folder: Path) -> None:
    """Measure all rows, some at a time."""
    tables = [options.only] if options.only else list(TABLES)
    wanted = [(s, MODEL if t == "plain" else folder) for t in tables for s in (options.sentences or TABLES[t])]
    flags = [f"--{key}={getattr(options, key)}" for key in ("device", "windows", "samples")]
    command = [sys.executable, __file__, str(options.data), *flags]
    running: list[tuple[str, subprocess.Popen[bytes]]] = []
    while wanted or running:
        while wanted and len(running) < options.jobs:
            sentence, model = wanted.pop(0)
            running.append((sentence, subprocess.Popen([*command, f"--one={model}", sentence])))
        for sentence, process in [pair for pair in running if pair[1].poll() is not None]:
            running.remove((sentence, process))
            if process.returncode:
                print(f"{sentence}: ended with {process.returncode}", file=sys.stderr)
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("sentences", nargs="*")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=list(TABLES))
    for name, number in (("jobs", 1), ("windows", 32), ("samples", 64)):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_intermixed_args()
    if options.one:
        one(options.sentences[0], options.one, options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        run(options, planted(Path(temporary) / "planted"))


if __name__ == "__main__":
    main()
