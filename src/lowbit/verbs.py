"""verbs - what the command line does, as Python calls with the same words; each composes the rooms below.

quantize   model folder + sentence + text -> packed checkpoint with its model card
evaluate   model -> perplexity, KL divergence from the original, top-1 agreement
diagnose   model -> outliers, what quantizing each part costs, a recipe; table, pictures, page
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
from lowbit.pipeline.quantize import run
from lowbit.pipeline.request import Request, Result


def quantize(
    model: str,
    recipe: "str | Link | Chain" = "balanced",
    out: str | None = None,
    *,
    calibration: str = "bundled",
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Quantize a model into the folder `out` (default: the model's name with the format's).

    calibration: a text or jsonl file, a datasets name, "generated" or "bundled". samples: windows of `length` tokens.
    dry_run: plan only; nothing is read but headers, nothing written. The same call resumes a run that was killed.
    """
    from lowbit.report import card

    request = Request(model, recipe, out, calibration, samples, length, seed, device, dry_run)
    return run(request, progress or Silent(), card.render)


def evaluate(
    model: str,
    against: str | None = None,
    text: Sequence[str] = (),
    windows: int | None = None,
    *,
    length: int | None = None,
    device: str | None = None,
    bits: int | None = None,
) -> dict[str, Any]:
    """Measure a model; see lowbit.evaluation.measure."""
    from lowbit.evaluation import measure

    return measure.evaluate(model, against, text, windows, length, device, bits)


def compare(
    original: str,
    recipes: Sequence[str],
    *,
    out: str | None = None,
    text: Sequence[str] = (),
    windows: int | None = None,
    calibration: str = "bundled",
    samples: int | None = None,
    length: int | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Quantize `original` by every recipe and measure each beside it; table, pictures and page go to the folder `out`."""
    from lowbit.evaluation import comparison
    from lowbit.report import page, pictures, table

    folder = Path(out or f"{Path(original).name}-comparison")
    result = comparison.compare(
        original,
        recipes,
        folder,
        text=text,
        windows=windows,
        calibration=calibration,
        samples=samples,
        length=length,
        seed=seed,
        device=device,
        progress=progress or Silent(),
    )
    result["folder"] = str(folder)
    drawn = pictures.write(result, folder)
    (folder / "report.html").write_text(page.render(result, drawn), encoding="utf-8")
    (folder / "table.md").write_text(table.markdown(result), encoding="utf-8")
    return result


def diagnose(
    model: str,
    *,
    out: str | None = None,
    text: str = "bundled",
    windows: int | None = None,
    length: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Ranges and outliers of a model, what quantizing each part alone costs, and a recipe with its reasons.

    Pictures and a page go to the folder `out` (default: the model's name with -diagnosis); see lowbit.evaluation.diagnosis.
    """
    from lowbit.evaluation import diagnosis
    from lowbit.report import diagnosis as page
    from lowbit.report import portrait

    result = diagnosis.diagnose(model, text, windows, length, device, progress or Silent())
    folder = Path(out or f"{Path(model).name}-diagnosis")
    folder.mkdir(parents=True, exist_ok=True)
    result["folder"] = str(folder)
    (folder / "report.html").write_text(page.render(result, portrait.write(result, folder)), encoding="utf-8")
    return result


def generate(
    model: str,
    prompt: str,
    *,
    tokens: int = 128,
    temperature: float = 0.0,
    seed: int = 0,
    kv: str | None = None,
    device: str | None = None,
    bits: int | None = None,
) -> str:
    """The continuation of `prompt`, at most `tokens` tokens; temperature 0 takes the likeliest token each time.

    kv: how keys and values are held, a policy of lowbit.kvcache as "int4" (default: as floats).
    bits: at which nested codes are read (default: all that are stored).
    """
    from lowbit.serving import local

    return local.generate(model, prompt, tokens=tokens, temperature=temperature, seed=seed, kv=kv, device=device, bits=bits)


def chat(model: str, *, seed: int = 0, kv: str | None = None, device: str | None = None, bits: int | None = None) -> "Any":
    """A conversation partner: `.reply(messages, tokens, temperature)` gives the answer piece by piece."""
    from lowbit.serving.local import Local

    return Local(model, device, seed, kv, bits)


def inspect(model: str, *, device: str | None = None) -> dict[str, Any]:
    """What a folder stores, layer by layer, and which kernel will run each matrix on `device`, with the others' reasons."""
    import torch

    from lowbit import checkpoints, kvcache
    from lowbit.checkpoints.folder import Folder
    from lowbit.kernels import dispatch
    from lowbit.layers import replacing
    from lowbit.pipeline.source import resolve

    folder = Folder(resolve(model))
    stored = checkpoints.Stored(folder, replacing.renames_of(folder.config(), folder.names))
    place, dtype = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")), folder.dtype()
    layers, bits = [], {}
    for name, format in stored.formats.items():
        shape = stored.quantized(name).shape
        told = dispatch.explain(format, shape, place, dtype)
        acts, integers = stored.activations.get(name), ""
        if acts:
            integers = dispatch.rounding(format, shape, place, acts)
        bits[name] = (format.bits_per_weight(shape) * shape[0] * shape[1], shape[0] * shape[1])
        layers.append(
            {
                "name": name,
                "format": str(format),
                "bits": format.bits_per_weight(shape),
                "bytes": round(bits[name][0] / 8),
                "shape": list(shape),
                "kernel": integers or dispatch.pick(format, shape, place, dtype),
                **({"activation": str(acts), "product": "real" if integers else "emulated"} if acts else {}),
                "reasons": {k: reason for k, reason in told if reason},
            }
        )
    weights = sum(count for _, count in bits.values())
    beside = (("kv", kvcache.KEY), ("prefix", kvcache.PREFIX))
    return {
        "model": model,
        "quant_method": (stored.config or {}).get("quant_method", "none"),
        "dtype": str(dtype).removeprefix("torch."),
        "bits_per_weight": sum(b for b, _ in bits.values()) / weights if weights else float(8 * dtype.itemsize),
        "bytes": sum(folder.bytes_of(name) for name in folder.names),
        **{word: folder.settings[key] for word, key in beside if folder.settings.get(key)},
        "layers": layers,
    }


def listing(kind: str) -> list[dict[str, Any]]:
    """The entries of a shelf by name with one line each. kind: methods, formats, policies (of the KV cache), presets,
    architectures or kernels.
    """
    from lowbit import architectures, formats, kvcache, methods
    from lowbit.core.errors import RequestError, nearest
    from lowbit.kernels import dispatch
    from lowbit.recipe import presets

    def shelf(found: Any) -> list[dict[str, Any]]:
        return [{"name": name, "about": found.summary(name).partition(" - ")[2]} for name in found.names()]

    kinds: dict[str, Any] = {
        "methods": lambda: shelf(methods.shelf),
        "architectures": lambda: shelf(architectures.shelf),
        "formats": lambda: [
            {"name": name, "bits": round(formats.parse(name).bits_per_weight((4096, 4096)), 3)} for name in formats.examples()
        ],
        "policies": lambda: [
            {"name": name, "bits": round(kvcache.parse(name).bits_per_number(128), 3)} for name in kvcache.examples()
        ],
        "presets": lambda: [
            {"name": name, "sentence": p["sentence"], "about": p["note"]} for name, p in presets.load().items()
        ],
        "kernels": lambda: [
            {"name": name, "about": dispatch.summary(name).partition(" - ")[2]}
            for name in (*dispatch.names(), *dispatch.names(dispatch.ATTENTION))
        ],
    }
    if kind not in kinds:
        raise RequestError(f"list {kind}: there is no such list. {nearest(kind, kinds)}")
    found: list[dict[str, Any]] = kinds[kind]()
    return found
