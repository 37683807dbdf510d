"""verbs - what the command line does, as Python calls with the same words; each composes the rooms below.

quantize   model folder + sentence + text -> packed checkpoint with its model card
evaluate   model -> perplexity, KL divergence from the original, top-1 agreement
diagnose   model -> outliers, what quantizing each part costs, a recipe; table, pictures, page
compare    original + sentences -> table, pictures, page
generate   model + prompt -> text        chat    the same, turn by turn
inspect    folder -> what is stored, layer by layer, and which kernel will run it
listing    what the shelves hold
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lowbit.core.chain import Chain, Link
from lowbit.core.device import chosen
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

    calibration: a text or jsonl file, a datasets name, "generated" or "bundled", or several of them as A+B.
    samples: windows of `length` tokens.
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

    return measure.evaluate(model, against, text, windows, length, str(chosen(device)), bits)


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
        device=str(chosen(device)),
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
    from lowbit.pipeline import admission
    from lowbit.report import diagnosis as page
    from lowbit.report import portrait

    folder = Path(out or f"{Path(model).name}-diagnosis")
    admission.writable(folder)
    result = diagnosis.diagnose(model, text, windows, length, str(chosen(device)), progress or Silent())
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
    return "".join(chat(model, seed=seed, kv=kv, device=device, bits=bits).stream(prompt, tokens, temperature))


def chat(model: str, *, seed: int = 0, kv: str | None = None, device: str | None = None, bits: int | None = None) -> "Any":
    """A conversation partner: `.reply(messages, tokens, temperature)` gives the answer piece by piece."""
    from lowbit.serving.local import Local

    return Local(model, str(chosen(device)), seed, kv, bits)


def inspect(model: str, *, device: str | None = None) -> dict[str, Any]:
    """What a folder stores, layer by layer, and which kernel will run each matrix on `device`, with the others' reasons."""
    from lowbit import checkpoints, kvcache
    from lowbit.checkpoints.folder import Folder
    from lowbit.kernels import dispatch
    from lowbit.layers import replacing
    from lowbit.pipeline.source import resolve

    folder = Folder(resolve(model))
    stored = checkpoints.Stored(folder, replacing.renames_of(folder.config(), folder.names))
    place, dtype = chosen(device), folder.dtype()
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


def listing(kind: str = "kinds") -> list[dict[str, Any]]:
    """The entries of a shelf by name with one line each; kind: one of those that listing() lists. Raises RequestError."""
    from lowbit import architectures, dtypes, formats, kvcache, methods, sides
    from lowbit.core.errors import RequestError, nearest
    from lowbit.kernels import dispatch
    from lowbit.recipe import presets

    def told(names: Iterable[str], summary: Callable[[str], str]) -> list[dict[str, Any]]:
        return [{"name": name, "about": summary(name).partition(" - ")[2]} for name in names]

    def sized(found: Any, bits: Callable[[str], float]) -> list[dict[str, Any]]:
        rows = [(name, file) for file in found.shelf.names() for name in found.examples(file)]
        about = {file: found.shelf.summary(file).partition(" - ")[2] for _, file in rows}
        return [{"name": name, "bits": round(bits(name), 3), "about": about[file]} for name, file in rows]

    kernels = (*dispatch.names(), *dispatch.names(dispatch.ATTENTION))
    kinds: dict[str, tuple[str, Callable[[], list[dict[str, Any]]]]] = {
        "methods": ("the steps of a sentence", lambda: told(methods.shelf.names(), methods.shelf.summary)),
        "presets": (
            "sentences with a name",
            lambda: [{"name": n, "sentence": p["sentence"], "about": p["note"]} for n, p in presets.load().items()],
        ),
        "formats": (
            "what weights and inputs are rounded to; sizes, groups and bits may be others than the examples'",
            lambda: sized(formats, lambda name: formats.parse(name).bits_per_weight((4096, 4096))),
        ),
        "dtypes": (
            "the elements of formats: e2m1 gives e2m1-g32, int gives int4-g128",
            lambda: told(dtypes.shelf.names(), dtypes.shelf.summary),
        ),
        "sides": (
            "words at the end of a format, as in int4-g128-rank16: what lies beside the codes, and bases",
            lambda: told(sides.shelf.names(), sides.shelf.summary),
        ),
        "policies": (
            "how keys and values of past tokens are held: kv(int4), --kv int4",
            lambda: sized(kvcache, lambda name: kvcache.parse(name).bits_per_number(128)),
        ),
        "architectures": ("model families", lambda: told(architectures.shelf.names(), architectures.shelf.summary)),
        "kernels": (
            "what multiplies packed matrices and reads packed caches, and why not here",
            lambda: [row | {"missing here": dispatch.missing(row["name"])} for row in told(kernels, dispatch.summary)],
        ),
    }
    if kind == "kinds":
        return [{"name": name, "about": about} for name, (about, _) in kinds.items()]
    if kind not in kinds:
        raise RequestError(f"list {kind}: there is no such list. {nearest(kind, kinds)}")
    return kinds[kind][1]()
