"""act_formats - rounded inputs on lowbit-tiny: W8A8, FP8, NVFP4, MXFP4 and the methods around them, a process for each.

    python bench/act_formats.py run DATA [--device cuda] [--jobs 8] [--limit SECONDS] [SENTENCE ...]
    python bench/act_formats.py one DATA SENTENCE [--samples 64] [--windows 32] [--device cpu]

DATA: a folder with calibration.txt, evaluation-books.txt, evaluation-docs.txt and wikitext2-test.txt. KL divergence in
milli-nats. On a CPU layers run as they do for users, products by the kernel that dispatch takes; on a GPU on the reference.
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
SENTENCES = (
    "gptaq(nvfp4) + act(nvfp4, observer=mse) + kl_tuning",
    "gptaq(nvfp4) + kl_tuning",
    "smoothquant(alpha=0.85) + gptaq(int8-row) + act(int8-token)",
    "gptaq(nvfp4) + act(nvfp4, observer=mse)",
    "gptaq(nvfp4)",
    "rtn(fp8-row) + act(fp8-token)",
    "gptaq(fp8-row) + act(fp8-token)",
    "gptaq(nvfp4) + act(nvfp4) + kl_tuning",
    "smoothquant(alpha=0.85) + gptaq(int8-row) + act(int8-token) + kl_tuning",
    "smoothquant(alpha=0.85) + gptq(int8-row) + act(int8-token)",
    "gptaq(nvfp4) + act(nvfp4)",
    "gptaq(int8-row) + act(int8-tensor, static=true)",
    "rtn(fp8-tensor) + act(fp8-tensor, static=true)",
    "rtn(fp8-b128x128) + act(fp8-g128)",
    "gptaq(mxfp4) + act(mxfp4)",
    "gptaq(mxfp4-had32) + act(mxfp4, observer=mse)",
    "gptaq(mxfp4)",
    "llm_int8",
    'quik(int4-row-keep32) + gptq(int8-row)@"*.down_proj" + act(int4-token, clip=0.9) + act(int8-token)@"*.down_proj"',
    "atom(int4-g128-byte32) + act(int4-g128, clip=0.9)",
    "rptq(int4-g32-order) + act(int4-g32, clip=0.9)",
    "zeroquant(int8-row) + act(int8-token)",
)


def one(sentence: str, data: Path, device: str, samples: int, windows: int) -> None:
    """Quantize by one sentence, measure, keep the row."""
    import torch

    import lowbit
    from lowbit.evaluation import measure
    from lowbit.layers.linear import QuantizedLinear
    from lowbit.layers.loading import load
    from lowbit.pipeline.source import tokenizer_of

    torch.set_num_threads(2 if device == "cuda" else torch.get_num_threads())
    with tempfile.TemporaryDirectory() as temporary:
        out, start = str(Path(temporary) / "out"), time.perf_counter()
        calibration = str(data / "calibration.txt")
        lowbit.quantize(str(MODEL), sentence, out=out, calibration=calibration, samples=samples, device=device)
        seconds = time.perf_counter() - start
        model = load(out, dtype=torch.float32, device=device)
        layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
        for layer in layers if device == "cuda" else ():
            layer.unprepare()
        reference = measure.Reference(load(str(MODEL), dtype=torch.float32, device=device))
        texts = measure.read_texts([str(data / f"{t}.txt") for t in TEXTS], tokenizer_of(MODEL), 2048, windows)
        found = {Path(n).stem: measure.divergence(model, t, reference).summary() for n, t in texts.items()}
    milli = {key: {n: round(1000 * float(text[key]), 2) for n, text in found.items()} for key in ("kl", "kl_se")}
    told = {"recipe": sentence, "kernels": sorted({layer.kernel for layer in layers}), "seconds": round(seconds, 1)}
    told |= {"samples": samples, "windows": windows}
    keep("act_formats", **told, **milli)


def run(data: Path, device: str, jobs: int, limit: float, sentences: list[str]) -> None:
    """Every sentence in its own process, `jobs` at a time; what has not ended after `limit` seconds is stopped."""
    start, waiting, running = time.monotonic(), list(sentences), list[tuple[str, subprocess.Popen[bytes]]]()
    while waiting or running:
        for sentence, process in [*running]:
            if process.poll() is not None:
                running.remove((sentence, process))
                ended = "done" if process.returncode == 0 else f"ended with {process.returncode}"
                print(f"{time.monotonic() - start:.0f} s: {sentence}: {ended}", flush=True)
        if time.monotonic() - start > limit:
            for sentence, process in running:
                process.kill()
                print(f"{sentence}: stopped after {limit:.0f} s")
            break
        while waiting and len(running) < jobs:
            sentence = waiting.pop(0)
            command = [sys.executable, __file__, "one", str(data), "--device", device, sentence]
            running.append((sentence, subprocess.Popen(command, stderr=subprocess.DEVNULL)))
        time.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("action", choices=["run", "one"])
    parser.add_argument("data", type=Path)
    parser.add_argument("sentences", nargs="*", default=[])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=3600)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--windows", type=int, default=32)
    asked = parser.parse_intermixed_args()
    if asked.action == "one":
        one(asked.sentences[0], asked.data, asked.device, asked.samples, asked.windows)
    else:
        run(asked.data, asked.device, asked.jobs, asked.limit, asked.sentences or list(SENTENCES))


if __name__ == "__main__":
    main()
