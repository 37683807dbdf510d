"""diagnosis - a model before it is quantized: where its ranges are wide, what quantizing each part alone costs, what to do.

In        a model folder or Hub id that is not quantized, a text.
Out       {"model", "text", "windows", "length", "perplexity", "layers", "keys", "losses", "advice"}: rows of ranges and of
          perturbation, and the recipe of lowbit.recipe.advice.
Defaults  4 windows of 512 tokens: differences of kinds are large, those of windows small.
Traps     The model is in memory as a whole, in float32.
"""

from typing import Any

import torch

from lowbit.evaluation import measure, perturbation, ranges
from lowbit.layers.loading import load
from lowbit.pipeline.progress import Progress
from lowbit.pipeline.source import Source
from lowbit.recipe import advice
from lowbit.recipe.selection import OUTSIDE
from lowbit.statistics._divergence import Divergence

WINDOWS, LENGTH = 4, 512


def diagnose(
    model: str, text: str, windows: int | None, length: int | None, device: str | None, progress: Progress
) -> dict[str, Any]:
    """Look a model over. Raises CheckpointError when it is quantized already."""
    source = Source(model)
    tokenizer = source.tokenizer
    whole = load(source.folder.path, dtype=torch.float32, device=device)
    length = length or min(LENGTH, source.context)
    (name, cut), *_ = measure.read_texts([text], tokenizer, length, windows or WINDOWS).items()
    rows = list(cut.to(next(whole.parameters()).device))
    progress.say("diagnose: ranges")
    layers, keys = ranges.survey(whole, rows, tokenizer)
    originals = [measure.logits_of(whole, row) for row in rows]
    found = Divergence()
    for row, logits in zip(rows, originals, strict=True):
        found.add(row, logits, None)
    losses = perturbation.probe(whole, rows, originals, lambda what: progress.say(f"diagnose: {what}"))
    inside = [linear for linear in source.linears() if linear.role not in OUTSIDE]
    return {
        "model": model,
        "text": name,
        "windows": len(rows),
        "length": length,
        "perplexity": found.summary()["perplexity"],
        "layers": layers,
        "keys": keys,
        "losses": losses,
        "advice": advice.recommend(layers, losses, inside),
    }
