"""comparison - one original, several sentences: quantize by each, measure all on the same windows.

Out       {"original": ..., "rows": [row, ...]}; the first row is the original. A row is plain data: recipe, bits_per_weight,
          bytes, seconds, peak_memory, texts {name: summary}, layers.
Idea      Every quantization runs in a process of its own, so that its peak memory is its own and nothing of one run reaches the
          next; the measured model is the written folder, loaded packed.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lowbit.core import errors
from lowbit.evaluation import measure
from lowbit.evaluation.fresh import Fresh
from lowbit.layers.loading import load
from lowbit.pipeline import admission
from lowbit.pipeline.progress import Progress
from lowbit.pipeline.source import Source, resolve, tokenizer_of
from lowbit.recipe import Recipe, allotment
from lowbit.recipe.plan import Plan


def compare(
    original: str,
    recipes: Sequence[str],
    out: Path,
    *,
    text: Sequence[str],
    windows: int | None,
    calibration: str,
    samples: int | None,
    length: int | None,
    seed: int,
    device: str | None,
    progress: Progress,
) -> dict[str, Any]:
    """Quantize and measure; checkpoints stay in `out`, a folder a sentence. A finished one is measured, not made again."""
    _check(original, recipes)
    admission.writable(out)
    folder = resolve(original)
    base = load(str(folder), dtype=torch.float32, device=device)
    span = length or measure.window_length(base)
    texts = measure.read_texts(text, tokenizer_of(folder), span, windows or measure.WINDOWS)
    reference = measure.Reference(base)
    out.mkdir(parents=True, exist_ok=True)
    size = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    rows = [
        {
            "recipe": "original",
            "bits_per_weight": measure.bits_per_weight(load(str(folder), device=device)),
            "bytes": size,
            "seconds": 0.0,
            "peak_memory": 0,
            "layers": [],
            "texts": {n: measure.divergence(reference, t, reference).summary() for n, t in texts.items()},
        }
    ]
    options = {"calibration": calibration, "samples": samples, "length": length, "seed": seed, "device": device}
    arguments = [f"--{k}={v}" for k, v in options.items() if v is not None]
    progress.start("compare", len(recipes))
    with Fresh() as fresh:
        for index, sentence in enumerate(recipes):
            start = time.perf_counter()
            target = out / folder_name(sentence)
            made = _made(fresh, original, sentence, target, arguments)
            model = load(str(target), device=device)
            row = {"recipe": sentence, **made, "bits_per_weight": measure.bits_per_weight(model), "path": str(target)}
            model = model.float()
            row["texts"] = {n: measure.divergence(model, t, reference).summary() for n, t in texts.items()}
            rows.append(row)
            progress.block(index, None, time.perf_counter() - start)
    progress.end()
    return {"original": original, "length": span, "calibration": calibration, "samples": samples, "seed": seed, "rows": rows}


def _check(original: str, recipes: Sequence[str]) -> None:
    """Refuse what cannot be carried out before anything is measured. Raises RecipeError, FormatError, ShapeError."""
    linears = Source(original).linears()
    for recipe in map(Recipe.of, recipes):
        if not allotment.declared(recipe):
            Plan.make(recipe, linears)


def folder_name(sentence: str) -> str:
    """The folder that a sentence's checkpoint goes to: "awq + gptq(int4-g128)" -> "awq+gptq_int4-g128"."""
    return "".join(c if c.isalnum() or c in "-_.=+" else "" if c in " )" else "_" for c in sentence)


def _made(fresh: Fresh, original: str, sentence: str, target: Path, options: list[str]) -> dict[str, Any]:
    """What `lowbit quantize` says of the folder `target`, making it when it is not there."""
    kept = target / "comparison.json"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    live = sys.stderr.isatty()  # then its own bar over blocks is seen
    done = fresh.run(["quantize", original, sentence, f"--out={target}", *options, "--json"], live=live)
    if done.code:
        told = done.stderr.strip().splitlines()
        kind = {2: errors.RequestError, 3: errors.CheckpointError, 4: errors.CapacityError}.get(done.code, errors.LowbitError)
        raise kind(f"{sentence}: {told[-1].removeprefix('error: ') if told else f'ended with code {done.code}'}")
    result = json.loads(done.stdout)
    row = {k: result[k] for k in ("bytes", "seconds", "peak_memory", "layers", "sentence")}
    kept.write_text(json.dumps(row))
    return row
