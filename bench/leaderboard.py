"""leaderboard - every method at every size on lowbit-tiny: measures the sentences, then writes the page and its picture.

    python bench/leaderboard.py run DATA [--device cuda] [--jobs 6] [--limit SECONDS] [--calibration TEXT] [--samples 64]
                                [SENTENCE ...]
    python bench/leaderboard.py page

DATA: a folder with calibration.txt, evaluation-books.txt, evaluation-docs.txt and wikitext2-test.txt. 64 windows calibrate, 32
of each text evaluate; another TEXT (as of lowbit quantize) or more windows are said in a row's name. Each sentence runs in a
process of its own, so seconds on a GPU are those beside the other jobs.
Sentences that differ only in their finishers ("gptaq(int4-g128) + kl_tuning", "gptaq(int4-g128) + kl_rounding") share a
process: the second run takes up the first one's blocks, as a run that was killed would.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _rows import RESULTS, keep

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models" / "lowbit-tiny"
TEXTS = ("evaluation-books", "evaluation-docs", "wikitext2-test")
SENTENCES = (
    "rtn(int4-g128-asym)", "hqq(int4-g128-asym)", "awq(int4-g128-asym)", "gptq(int4-g128)", "gptaq(int4-g128)",
    "autoround(int4-g128)", "autoround(int4-g128-asym)", "gptq(int3-g128)", "gptaq(int3-g128)", "autoround(int3-g128)",
    "gptq(int2-g128)", "gptaq(int2-g128)", "autoround(int2-g128)", "gptaq(trellis2) + block_tuning", "gptaq(trellis3)",
    "gptaq(trellis4)", "guidedquant(int4-g128-asym)", "guidedquant(int3-g128)", "guidedquant(lut3-row)",
    "guidedquant(trellis2)", "squeezellm(lut3-row)", "lnq(lut3-row)", "lnq(lut3-row) + pv_tuning", "aqlm(aqlm2x8)",
    "aqlm(aqlm2x8) + pv_tuning",
    "autoround(int4-g128-asym) + kl_tuning", "autoround(int4-g128-asym) + kl_rounding", "autoround(int3-g128) + kl_rounding",
    "autoround(int3-g128) + kl_rounding + kl_tuning", "autoround(int2-g128) + kl_rounding",
    "autoround(int2-g128) + kl_rounding + kl_tuning", "efficientqat(int2-g128-asym) + e2e_qp", "gptaq(trellis2) + kl_tuning",
    "gptaq(trellis2) + block_tuning + kl_tuning", "gptaq(trellis3) + kl_tuning", "yaqa(trellis2)", "nested(2-8)",
)  # fmt: skip
WINDOWS, SAMPLES, LENGTH = 32, 64, 2048
FAMILIES = {r"\(trellis": "trellis codes", r"\(int\d-g128(-asym)?[,)]": "integers that engines load"}
"""What a sentence must hold to lie on a line of the picture: sides and other groups are files for lowbit alone."""
OTHER = " windows of "
"""In the name of a row with another calibration than the rivals had."""
READ = (4, None, 6, 3)
"""Rates at which the file of `nested` is read; None: all that is stored."""
Row = dict[str, Any]
HEAD = """# Leaderboard

Quality, size and time by sentence on lowbit-tiny, by the protocol of [Measuring](guide/measuring.md): 64 calibration windows of
2048 tokens, 32 evaluation windows of each text; KL divergence from the original in milli-nats a token. Made by
`python bench/leaderboard.py page` from bench/results/leaderboard.jsonl (machine and commit by row) and rivals.jsonl there
(other toolkits, same windows).

![Divergence against stored bits](pictures/leaderboard.png)
"""
TABLE = ["| sentence | bits | books | docs | wikitext2 | seconds |", "|---|--:|--:|--:|--:|--:|"]


def one(sentences: list[str], data: Path, device: str, calibration: str, samples: int) -> None:
    """Quantize by sentences that differ at most in their finishers, measure, keep the rows."""
    import torch

    import lowbit
    from lowbit.evaluation import measure
    from lowbit.layers.loading import load
    from lowbit.pipeline.source import tokenizer_of

    torch.set_num_threads(3 if device == "cuda" else torch.get_num_threads())
    reference = measure.Reference(load(str(MODEL), dtype=torch.float32, device=device))
    texts = measure.read_texts([str(data / f"{t}.txt") for t in TEXTS], tokenizer_of(MODEL), LENGTH, WINDOWS)
    with tempfile.TemporaryDirectory() as temporary:
        blocks, taken = Path(temporary) / "blocks", 0.0
        for number, sentence in enumerate(sentences):
            out, start = Path(temporary) / str(number), time.perf_counter()
            if number:
                _take_up(blocks, out.with_name(f"{number}.partial"), sentence)
            with _kept(blocks) as moment:
                asked = {"calibration": calibration, "samples": samples, "device": device}
                lowbit.quantize(str(MODEL), sentence, out=str(out), **asked)  # type: ignore[arg-type]
            seconds = taken + time.perf_counter() - start
            taken = taken or moment[0] - start if moment else 0.0
            for rate in READ if sentence.startswith("nested(") else (None,):
                model = dense(load(str(out), device=device, bits=rate), device)
                size = measure.bits_per_weight(load(str(out), bits=rate))
                found = {Path(n).stem: measure.divergence(model.float(), t, reference).summary() for n, t in texts.items()}
                other = calibration != str(data / "calibration.txt") or samples != SAMPLES
                text = "+".join(Path(name).stem for name in calibration.split("+"))
                told = f"{sentence}, {samples}{OTHER}{text}" if other else sentence
                _keep(told + (f", read at {rate} bits" if rate else ""), size, seconds, samples, found)


@contextmanager
def _kept(folder: Path) -> Iterator[list[float]]:
    """Keep the work folder as it is when the blocks are done and finishers begin; gives the time of that."""
    from lowbit.pipeline.finishing import Finishing

    real, moment = Finishing.run, list[float]()

    def copied(self: Finishing, *arguments: Any) -> Any:
        if not folder.exists():
            shutil.copytree(self.writer.work, folder)
            moment.append(time.perf_counter())
        return real(self, *arguments)

    Finishing.run = copied  # type: ignore[method-assign,assignment]
    try:
        yield moment
    finally:
        Finishing.run = real  # type: ignore[method-assign]


def _take_up(blocks: Path, work: Path, sentence: str) -> None:
    """Make the kept blocks an unfinished run of another sentence."""
    import lowbit

    shutil.copytree(blocks, work)
    journal = work / "journal.jsonl"
    first, *rest = journal.read_text(encoding="utf-8").splitlines()
    task = {**json.loads(first), "sentence": str(lowbit.Recipe.parse(sentence))}
    journal.write_text("\n".join([json.dumps(task), *rest]) + "\n", encoding="utf-8")


def dense(model: Any, device: str) -> Any:
    """The model with the values of its packed layers, decoded once instead of in every window."""
    import torch

    from lowbit.layers.linear import QuantizedLinear

    for name, layer in [*model.named_modules()]:
        if isinstance(layer, QuantizedLinear):
            plain = torch.nn.Linear(layer.in_features, layer.out_features, bias=False, device=device)
            plain.weight.data = layer.quantized().decode()
            plain.register_parameter("bias", layer.bias)
            model.set_submodule(name, plain)
    return model


def _keep(sentence: str, bits: float, seconds: float, samples: int, found: dict[str, Any]) -> None:
    """Keep the row of a measured sentence."""
    figures = {key: {name: text[key] for name, text in found.items()} for key in ("kl", "kl_se", "perplexity")}
    milli = {key: {n: round(1000 * v, 2) for n, v in figures[key].items()} for key in ("kl", "kl_se")}
    perplexity = {n: round(v, 3) for n, v in figures["perplexity"].items()}
    told = {"recipe": sentence, "bits_per_weight": round(bits, 4), "seconds": round(seconds, 1), "samples": samples}
    keep("leaderboard", **told, **milli, perplexity=perplexity)


def started(sentences: list[str]) -> list[list[str]]:
    """Sentences by what stands before their finishers."""
    from lowbit.methods import verb
    from lowbit.recipe.grammar import Recipe, step_text

    groups: dict[str, list[str]] = {}
    for sentence in sentences:
        steps = [(m, s) for m, s in Recipe.of(sentence).steps if verb(m) != "finish"]
        finished = len(steps) < len(Recipe.of(sentence).steps)
        start = " + ".join(step_text(*step) for step in steps) if finished else f"{sentence} alone"
        groups.setdefault(start, []).append(sentence)
    return list(groups.values())


def run(data: Path, options: list[str], jobs: int, limit: float, sentences: list[str]) -> None:
    """Every start in its own process, `jobs` at a time; what has not ended after `limit` seconds is stopped."""
    start, waiting, running = time.monotonic(), started(sentences), list[tuple[str, subprocess.Popen[bytes]]]()
    while waiting or running:
        for sentence, process in [*running]:
            if process.poll() is not None:
                running.remove((sentence, process))
                print(f"{sentence}: {'done' if process.returncode == 0 else f'ended with {process.returncode}'}", flush=True)
        late = time.monotonic() - start > limit
        if late:
            for sentence, process in running:
                process.kill()
                print(f"{sentence}: stopped after {limit:.0f} s")
            break
        while waiting and len(running) < jobs:
            group = waiting.pop(0)
            command = [sys.executable, __file__, "one", str(data), *options, *group]
            running.append((group[0], subprocess.Popen(command, stderr=subprocess.DEVNULL)))
        time.sleep(0.2)


def rows(name: str) -> list[Row]:
    """The rows of a file of results, the last of each recipe."""
    lines = (RESULTS / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    found = {(row.get("tool"), row["recipe"]): row for row in map(json.loads, lines)}
    return sorted(found.values(), key=lambda row: (-row["bits_per_weight"], row["kl"][TEXTS[0]]))


def page() -> None:
    """Write docs/LEADERBOARD.md and docs/pictures/leaderboard.png."""
    ours, rivals = rows("leaderboard"), [r for r in rows("rivals") if r["bits_per_weight"] <= 4.7]
    best: dict[tuple[str, float], Row] = {}
    for row in rivals:
        size = min(s for s in (2.2, 3.2, 4.2, 4.7) if row["bits_per_weight"] <= s)
        kept = best.setdefault((row["tool"], size), row)
        best[row["tool"], size] = min(kept, row, key=lambda r: r["kl"][TEXTS[0]])
    lines = [HEAD, *TABLE]
    lines += [_line(f"`{row['recipe']}`", row) for row in ours]
    lines += ["", "The best row of each rival up to 2.2, 3.2, 4.2 and 4.7 bits (2 cores of a CPU):", "", *TABLE]
    lines += [
        _line(f"{r['tool']}: {r['recipe']}", r) for _, r in sorted(best.items(), key=lambda item: -item[1]["bits_per_weight"])
    ]
    (ROOT / "docs" / "LEADERBOARD.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    picture(ours, rivals)


def _line(name: str, row: Row) -> str:
    error = row.get("kl_se", {})
    cells = [f"{row['kl'][t]:.1f}" + (f" ± {error[t]:.1f}" if t in error else "") for t in TEXTS]
    return f"| {name} | {row['bits_per_weight']:.3f} | {' | '.join(cells)} | {row['seconds']:.0f} |"


def picture(ours: list[Row], rivals: list[Row]) -> None:
    """KL on books against stored bits: every rival a mark, the best of ours a line."""
    import matplotlib.pyplot as plt

    from lowbit.report import pictures

    with plt.rc_context(pictures.STYLE):
        figure, axes = plt.subplots(figsize=(8.6, 5.0), layout="constrained")
        for number, tool in enumerate(sorted({r["tool"] for r in rivals})):
            points = [
                (r["bits_per_weight"], r["kl"][TEXTS[0]]) for r in rivals if r["tool"] == tool and r["kl"][TEXTS[0]] < 4000
            ]
            colour = pictures.COLOURS[(number + 1) % len(pictures.COLOURS)]
            axes.scatter(
                [p[0] for p in points], [p[1] for p in points], s=18, alpha=0.55, label=tool, color=colour, linewidths=0
            )
        for (family, told), style in zip(FAMILIES.items(), ("-o", "--s"), strict=True):
            front = _front([row for row in ours if re.search(family, row["recipe"]) and OTHER not in row["recipe"]])
            axes.plot(*zip(*front, strict=True), style, color=pictures.COLOURS[0], label=f"lowbit, {told}", markersize=5)
        axes.set(yscale="log", xlabel="stored bits per weight", ylabel="KL divergence on books, milli-nats a token")
        axes.grid(True, axis="y")
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
        figure.savefig(ROOT / "docs" / "pictures" / "leaderboard.png", dpi=150)


def _front(found: list[Row]) -> list[tuple[float, float]]:
    """Bits and KL of the rows that nothing smaller beats, by bits."""
    front: list[tuple[float, float]] = []
    for row in sorted(found, key=lambda r: (r["bits_per_weight"], r["kl"][TEXTS[0]])):
        if not front or row["kl"][TEXTS[0]] < front[-1][1]:
            front.append((row["bits_per_weight"], row["kl"][TEXTS[0]]))
    return front


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("action", choices=["run", "one", "page"])
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("sentences", nargs="*", default=[])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--limit", type=float, default=3600)
    parser.add_argument("--calibration")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    asked = parser.parse_intermixed_args()
    calibration = asked.calibration or str((asked.data or Path()) / "calibration.txt")
    if asked.action == "page":
        page()
    elif asked.action == "one":
        one(asked.sentences, asked.data, asked.device, calibration, asked.samples)
    else:
        options = ["--device", asked.device, "--calibration", calibration, "--samples", str(asked.samples)]
        run(asked.data, options, asked.jobs, asked.limit, asked.sentences or list(SENTENCES))


if __name__ == "__main__":
    main()
