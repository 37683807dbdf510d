"""card - what a run did and measured -> the README.md of the written folder: front matter for the Hub, figures, how to load it.

In        {"model", "sentence", "bits_per_weight", "layers", "check", "calibration", "version"}; and, where they are known,
          "license", "quant_method", "seed", "original_bits".
Traps     No dates and no times: two runs of one command give the same bytes. Only what was measured is claimed.
"""

import shlex
from collections.abc import Mapping
from typing import Any

from lowbit.report import table


def render(told: Mapping[str, Any]) -> str:
    """The model card."""
    name = str(told["model"]).rpartition("/")[2]
    parts = [
        _front(told), f"# {name}, {told['bits_per_weight']:.3g} bits per weight\n",
        f"[{told['model']}]({_link(told)}) with its weights packed by lowbit, by this recipe:\n" if _link(told) else
        f"{told['model']} with its weights packed by lowbit, by this recipe:\n",
        f"    {told['sentence']}\n", _measured(told), _loading(told), _stored(told), _making(told), _missing(told),
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
    lines += ["library_name: transformers", "pipeline_tag: text-generation", "quantized_by: lowbit", "tags:", *(f"- {t}" for t in tags), "---\n"]
    return "\n".join(lines)


def _method(told: Mapping[str, Any]) -> str:
    """The quant_method of the folder's config.json."""
    return str(told.get("quant_method", "compressed-tensors"))


def _measured(told: Mapping[str, Any]) -> str:
    check = told["check"]
    if not check:
        return ""
    perplexity, kl, top1 = table.quality(check)
    head = ["text", "windows", "perplexity, original", "perplexity", "KL, mnat", "top-1, %"]
    original = f"{check['original_perplexity']:.2f}" if "original_perplexity" in check else "–"
    line = [str(check["text"]), str(check["windows"]), original, perplexity, kl, top1]
    return (f"## Measured\n\nThe written files against the original in float32, on text that was not used to make them:\n\n{table.grid(head, [line])}\n"
            "KL: divergence of the predictions from the original's, in thousandths of a nat per token. top-1: share of positions where both "
            f"find the same token most likely. {table.NOTE}\n")


def _loading(told: Mapping[str, Any]) -> str:
    plain = _method(told) != "lowbit"
    needs = "compressed-tensors" if plain else "lowbit"
    say = [
        "## Use\n", "With transformers" + (" (and compressed-tensors installed; lowbit makes it faster, it is not needed):\n" if plain else ":\n"),
        "```python", *([] if plain else ["import lowbit"]), "from transformers import AutoModelForCausalLM, AutoTokenizer\n",
        'model = AutoModelForCausalLM.from_pretrained("PATH")', 'tokenizer = AutoTokenizer.from_pretrained("PATH")', "```\n",
        "With vLLM:\n" if plain else f"With vLLM, where {needs} is installed too:\n", "    vllm serve PATH\n", "With lowbit:\n",
        '    lowbit generate PATH "Once upon a time"\n',
    ]
    return "\n".join(say)


def _stored(told: Mapping[str, Any]) -> str:
    lines = []
    for name, layers in _formats(told).items():
        lines.append([f"`{name}`", str(len(layers)), f"{sum(x['bits'] for x in layers) / len(layers):.3f}"])
    worst = sorted((x for x in told["layers"] if isinstance(x.get("error"), float)), key=lambda x: -x["error"])[:3]
    text = f"## Stored\n\n{table.grid(['format', 'layers', 'bits per weight'], lines)}\n"
    text += "Everything else (embeddings, output head, norms, biases, routers) is kept as in the original unless it is listed above.\n"
    if worst:
        text += f"\nLargest relative error of a layer's output: {', '.join(f'`{x['name']}` {x['error']:.4f}' for x in worst)}.\n"
    fallbacks = [f"- `{x['name']}`: {x['fallback']}" for x in told["layers"] if x.get("fallback")]
    return text + (f"\nThese layers could not be done as asked:\n\n{chr(10).join(fallbacks)}\n" if fallbacks else "")


def _making(told: Mapping[str, Any]) -> str:
    used = told["calibration"]
    command = ["lowbit", "quantize", str(told["model"]), str(told["sentence"])]
    text = "no calibration text was needed"
    if used:
        command += ["--calibration", str(used["text"]), "--samples", str(used["windows"]), "--length", str(used["length"])]
        text = f"calibration on {used['windows']} windows of {used['length']} tokens of `{used['text']}`, digest of the tokens `{used['digest']}`"
    command += ["--seed", str(told["seed"])] if told.get("seed") else []
    return f"## Made by\n\n    {shlex.join(command)}\n\nlowbit {told['version']}; {text}. All of it is in `lowbit.json`, layer by layer.\n"


def _missing(told: Mapping[str, Any]) -> str:
    return ("## Not measured\n\nAccuracy on tasks, long contexts, languages other than the text's, safety, speed. "
            "A small divergence makes large changes unlikely; it does not say in which direction they go.\n")
