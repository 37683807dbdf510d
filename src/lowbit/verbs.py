"""verbs - what the command line does, as Python calls with the same words; each composes the rooms below.

    quantize   model folder + sentence + text -> packed checkpoint with its model card
    evaluate   model -> perplexity, KL divergence from the original, top-1 agreement
    compare    original + sentences -> table, pictures, page
    generate   model + prompt -> text        chat    the same, turn by turn
    inspect    folder -> what is stored, layer by layer, and which kernel will run it
    listing    what the shelves hold
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowbit.core.chain import Chain, Link
from lowbit.pipeline.progress import Progress, Silent
from lowbit.pipeline.quantize import Request, Result, run


def quantize(model: str, recipe: "str | Link | Chain" = "balanced", out: str | None = None, *, calibration: str = "bundled",
             samples: int | None = None, length: int | None = None, seed: int = 0, device: str | None = None,
             dry_run: bool = False, progress: Progress | None = None) -> Result:
    """Quantize a model into the folder `out` (default: the model's name with the format's).

    calibration: a text or jsonl file, a datasets name, "generated" or "bundled". samples: windows of `length` tokens.
    dry_run: plan only; nothing is read but headers, nothing written. The same call resumes a run that was killed.
    """
    from lowbit.report import card

    request = Request(model, recipe, out, calibration, samples, length, seed, device, dry_run)
    return run(request, progress or Silent(), card.render)


def evaluate(model: str, against: str | None = None, text: Sequence[str] = (), windows: int | None = None, *,
             length: int | None = None, device: str | None = None) -> dict[str, Any]:
    """Measure a model; see lowbit.evaluation.measure."""
    from lowbit.evaluation import measure

    return measure.evaluate(model, against, text, windows, length, device)


def compare(original: str, recipes: Sequence[str], *, out: str | None = None, text: Sequence[str] = (), windows: int | None = None,
            calibration: str = "bundled", samples: int | None = None, length: int | None = None, seed: int = 0,
            device: str | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Quantize `original` by every recipe and measure each beside it; table, pictures and page go to the folder `out`."""
    from lowbit.evaluation import comparison
    from lowbit.report import page, pictures, table

    folder = Path(out or f"{Path(original).name}-comparison")
    result = comparison.compare(original, recipes, folder, text=text, windows=windows, calibration=calibration, samples=samples,
                                length=length, seed=seed, device=device, progress=progress or Silent())
    drawn = pictures.write(result, folder)
    (folder / "report.html").write_text(page.render(result, drawn), encoding="utf-8")
    (folder / "table.md").write_text(table.markdown(result), encoding="utf-8")
    return result


def generate(model: str, prompt: str, *, tokens: int = 128, temperature: float = 0.0, seed: int = 0, device: str | None = None) -> str:
    """The continuation of `prompt`, at most `tokens` tokens; temperature 0 takes the likeliest token each time."""
    from lowbit.serving import local

    return local.generate(model, prompt, tokens=tokens, temperature=temperature, seed=seed, device=device)


def chat(model: str, *, seed: int = 0, device: str | None = None) -> "Any":
    """A conversation partner: `.reply(messages, tokens, temperature)` gives the answer piece by piece."""
    from lowbit.serving.local import Local

    return Local(model, device, seed)
