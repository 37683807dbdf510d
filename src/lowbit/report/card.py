"""card - what a run did and measured -> the README.md of the written folder: front matter for the Hub, figures, how to load it.

In        {"model", "sentence", "bits_per_weight", "layers", "check", "calibration", "version"}; and, where they are known,
          "license", "quant_method", "seed", "original_bits".
Traps     No dates and no times: two runs of one command give the same bytes. Only what was measured is claimed.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from lowbit.core.words import counted
from lowbit.report import table

MEASURED = "The written files against the original in float32, on text that was not used to make them:"
MEANING = (
    "KL: divergence of the predictions from the original's, in thousandths of a nat per token. "
    "top-1: share of positions where both find the same token most likely."
)
ENDS = {"embed": "embeddings", "head": "output head"}
MISSING = (
    "Accuracy on tasks, long contexts, languages other than the text's, safety, speed. A small divergence makes large "
    "changes unlikely; it does not say in which direction they go."
)


def render(told: Mapping[str, Any]) -> str:
    """The model card."""
    name = str(told["model"]).rpartition("/")[2]
    original = f"[{told['model']}]({_link(told)})" if _link(told) else name
    parts = [
        _front(told),
        f"# {name}, {table.bits(told)} bits per weight\n",
        f"{original} with its weights packed by lowbit, by this recipe:\n",
        f"    {told['sentence']}\n",
        _measured(told),
        _loading(told),
        _stored(told),
        _making(told),
        f"## Not measured\n\n{MISSING}\n",
    ]
    return "\n".join(part for part in parts if part)


def _link(told: Mapping[str, Any]) -> str:
    """The page of the original, when it has one."""
    model = str(told["model"])
    return f"https://huggingface.co/{model}" if model.count("/") == 1 and not model.startswith((".", "/", "~")) else ""


def _formats(told: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The layers of each format."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for layer in told["layers"]:
        found.setdefault(layer["format"], []).append(layer)
    return found


def _front(told: Mapping[str, Any]) -> str:
    lines = ["---"]
    if _link(told):
        lines += [f"base_model: {told['model']}", "base_model_relation: quantized"]
    if told.get("license"):
        lines.append(f"license: {told['license']}")
    tags = ["lowbit", *dict.fromkeys(name.partition("-")[0] for name in _formats(told)), _method(told)]
    lines += ["library_name: transformers", "pipeline_tag: text-generation", "quantized_by: lowbit", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---\n"])


def _method(told: Mapping[str, Any]) -> str:
    """The quant_method of the folder's config.json."""
    return str(told.get("quant_method", "compressed-tensors"))


def _measured(told: Mapping[str, Any]) -> str:
    check = told["check"]
    if not check:
        return ""
    perplexity, kl, top1 = table.quality(check)
    original = f"{check['original_perplexity']:.2f}" if "original_perplexity" in check else "–"
    figures = table.grid(
        ["text", "windows", "original perplexity", *table.QUALITY],
        [[str(check["text"]), str(check["windows"]), original, perplexity, kl, top1]],
    )
    return f"## Measured\n\n{MEASURED}\n\n{figures}\n{MEANING} {table.NOTE}\n"


def _loading(told: Mapping[str, Any]) -> str:
    plain = _method(told) != "lowbit"
    code = [
        "```python",
        *([] if plain else ["import lowbit"]),
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("PATH")',
        'tokenizer = AutoTokenizer.from_pretrained("PATH")',
        "```",
    ]
    needs = "With transformers and the package compressed-tensors:" if plain else "With transformers and lowbit:"
    engine = "With vLLM:" if plain else "With vLLM, where lowbit is installed too:"
    return "\n".join(
        [
            "## Use",
            "",
            f"PATH is this folder, or its name on the Hub. {needs}",
            "",
            *code,
            "",
            *_cache(told),
            engine,
            "",
            "    vllm serve PATH",
            "",
            "On the command line:",
            "",
            '    lowbit generate PATH "Once upon a time"',
            "",
        ]
    )


def _cache(told: Mapping[str, Any]) -> list[str]:
    """What becomes of keys and values."""
    if not told.get("kv"):
        return []
    each = told["kv"] if isinstance(told["kv"], str) else ", ".join(name or "floats" for name in told["kv"])
    fact = f"Keys and values of past tokens are held packed ({each}), as the figures above count, where lowbit is imported"
    return [f"{fact} first; other loaders hold them as floats.", ""]


def _stored(told: Mapping[str, Any]) -> str:
    lines = [
        [f"`{name}`", str(len(layers)), f"{sum(layer['bits'] for layer in layers) / len(layers):.3f}"]
        for name, layers in _formats(told).items()
    ]
    done = {layer.get("role") for layer in told["layers"]}
    kept = [*(word for role, word in ENDS.items() if role not in done), "norms", "biases", "routers"]
    rest = f"Everything else ({', '.join(kept)}) is as in the original."
    parts = ["## Stored", table.grid(["format", "layers", "bits per weight"], lines).rstrip(), rest]
    largest = ", ".join(f"`{name}` {error:.4f}" for name, error in table.worst(told["layers"]))
    if largest:
        parts.append(f"Largest relative squared errors: {largest}.")
    failed = [f"- `{name}`: {reason}" for name, reason in table.fallbacks(told["layers"])]
    if failed:
        parts += ["These layers could not be done as asked:", "\n".join(failed)]
    return "\n\n".join(parts) + "\n"


def _making(told: Mapping[str, Any]) -> str:
    used = told["calibration"]
    command = ["lowbit", "quantize", str(told["model"]), str(told["sentence"])]
    text = "no calibration text was needed"
    if used:
        command += ["--calibration", str(used["text"]), "--samples", str(used["windows"]), "--length", str(used["length"])]
        text = (
            f"calibration on {counted(used['windows'], 'window')} of {used['length']} tokens of `{used['text']}` "
            f"(digest of the tokens: `{used['digest']}`)"
        )
    command += ["--seed", str(told["seed"])] if told.get("seed") else []
    made = f"lowbit {told['version']}; {text}. `lowbit.json` tells the same, layer by layer."
    return f"## Made by\n\n    {shlex.join(command)}\n\n{made}\n"
