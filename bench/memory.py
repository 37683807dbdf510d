"""memory - peak resident memory of quantizing a checkpoint larger than what is allowed.

A random Llama of 24 blocks and at least 3 GB is written to a folder, then quantized with gptq in a fresh process. What counts
is the peak beyond what importing torch and transformers takes, as a share of the checkpoint's size; it must stay below
a quarter.

    python bench/memory.py [--dtype=float32|bfloat16]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from _rows import keep

COMMON = {
    "num_hidden_layers": 24, "num_key_value_heads": 16, "num_attention_heads": 16, "vocab_size": 8192,
    "tie_word_embeddings": True, "max_position_embeddings": 2048, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SHAPES = {
    "float32": {"hidden_size": 2048, "intermediate_size": 2432},
    "bfloat16": {"hidden_size": 2560, "intermediate_size": 4736},
}
"""By the checkpoint's dtype: at least 3 GB each."""
BASELINE = """
import torch, transformers
from transformers.models.llama import modeling_llama
from lowbit.core.device import peak_memory
print(peak_memory())
"""


def write(folder: Path, tokenizer: Path, dtype: str) -> int:
    """A random checkpoint, one file a block, never more than one block in memory; its size in bytes."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**COMMON, **SHAPES[dtype], dtype=dtype, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    for path in tokenizer.glob("tokenizer*"):
        (folder / path.name).write_bytes(path.read_bytes())
    with torch.device("meta"):
        shapes = {n: tuple(p.shape) for n, p in LlamaForCausalLM(config).named_parameters()}
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(name.split(".")[2] if ".layers." in name else "outside", []).append(name)
    index: dict[str, str] = {}
    stored = getattr(torch, dtype)
    total = 0
    for number, names in enumerate(groups.values(), 1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        tensors = {
            n: torch.randn(shapes[n]).mul_(0.02).to(stored) if len(shapes[n]) > 1 else torch.ones(shapes[n], dtype=stored)
            for n in names
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(names, file)
        total += sum(t.numel() * t.element_size() for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    return total


def main() -> None:
    options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
    dtype = options.get("dtype", "float32")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "synthetic"
        size = write(folder, Path(__file__).parent.parent / "models" / "lowbit-tiny", dtype)
        base = int(subprocess.run([sys.executable, "-c", BASELINE], capture_output=True, text=True, check=True).stdout)
        out = Path(temporary) / "out"
        command = [
            sys.executable,
            "-m",
            "lowbit",
            "quantize",
            str(folder),
            "gptq(int4-g128)",
            f"--out={out}",
            "--samples=8",
            "--length=512",
            "--json",
        ]
        result = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        beyond = result["peak_memory"] - base
        keep(
            "memory",
            checkpoint_bytes=size,
            peak_bytes=result["peak_memory"],
            baseline_bytes=base,
            beyond_bytes=beyond,
            share=round(beyond / size, 4),
            bar=0.25,
            seconds=result["seconds"],
            dtype=dtype,
        )


if __name__ == "__main__":
    main()
