"""cpu_model - a whole model decoded on the CPU: lowbit's packed layers and llama.cpp on the same int4 weights, turn by turn.

    python bench/cpu_model.py FILE --llama PYTHON [--threads 2] [--turns 5] [--tokens 24] [--layers 16]

A random model in the shapes of Llama-3.2-1B, every matrix in int4-g32 with scales of 16 bits, embedding and head too. FILE
becomes (or is, from a run before) the same weights as GGUF: Q4_0 is the same grid. Before anything is timed, the logits of
both must agree (llama.cpp rounds inputs to 8 bits: a correlation above 0.99). lowbit decodes by the loop that `generate` and
`chat` use, beside it in transformers' forward with the same linears, llama.cpp through its C interface. Medians of all turns; a
row is kept.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _rows import keep
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from lowbit import formats
from lowbit.formats import Quantized
from lowbit.layers import joined
from lowbit.layers.linear import QuantizedLinear
from lowbit.serving.loop import Loop

FORMAT = "int4-g32"
SHAPE = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "vocab_size": 128256, "max_position_embeddings": 4096, "tie_word_embeddings": False, "rope_theta": 500000.0,
}  # fmt: skip
CONTEXT = 64
PROMPT = torch.arange(1, CONTEXT + 1)[None]
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def build(layers: int) -> tuple[Any, dict[str, Quantized]]:
    """The model with packed linears, and its matrices by their names in GGUF."""
    torch.manual_seed(0)
    config, found = LlamaConfig(**SHAPE, num_hidden_layers=layers), {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            found[gguf_name(name)] = quantized = matrix(module.out_features, module.in_features)
            model.set_submodule(name, QuantizedLinear.from_quantized(quantized, None, torch.bfloat16))
        elif isinstance(module, LlamaRMSNorm):
            module.weight = nn.Parameter(torch.ones(config.hidden_size, dtype=torch.bfloat16))
    found["token_embd"] = matrix(config.vocab_size, config.hidden_size)
    model.model.embed_tokens.weight = nn.Parameter(found["token_embd"].decode().bfloat16())
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    model.generation_config.eos_token_id = None
    joined.join(model, config)
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.prepare()
    return model, found


def matrix(rows: int, columns: int) -> Quantized:
    """Random codes, and scales that make values of a size of about 0.02."""
    format = formats.parse(FORMAT)
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    scale = (0.003 + 0.003 * torch.rand(format.groups((rows, columns)))).bfloat16()
    return Quantized(format, codes, {"scale": scale}, (rows, columns))


def gguf_name(name: str) -> str:
    if name == "lm_head":
        return "output"
    _, _, number, part = name.split(".", 3)
    return f"blk.{number}.{NAMES[part]}"


def q4_0(quantized: Quantized, heads: int) -> Any:
    """Bytes of Q4_0 blocks [out, in / 32 * 18]: a float16 scale, 16 bytes with codes i and i + 16. heads: rows of a head are
    turned from halves to pairs, as llama.cpp rotates them; 0: they stay."""
    codes, scale = quantized.codes, quantized.parts["scale"].half()
    if heads:
        order = torch.arange(len(codes)).view(heads, 2, -1).transpose(1, 2).flatten()
        codes, scale = codes[order], scale[order]
    half = codes.view(len(codes), -1, 2, 16)
    both = half[:, :, 0] | half[:, :, 1] << 4
    return torch.cat([scale[:, :, None].contiguous().view(torch.uint8), both], 2).flatten(1).numpy()


def write(file: Path, matrices: dict[str, Quantized], layers: int, python: str) -> None:
    """The matrices as GGUF, written by the `gguf` package of the rival's environment."""
    heads = {"attn_q": SHAPE["num_attention_heads"], "attn_k": SHAPE["num_key_value_heads"]}
    tensors = {name: q4_0(q, int(heads.get(name.split(".")[-1], 0))) for name, q in matrices.items()}
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".npz") as given:
        np.savez(given, **tensors)
        given.flush()
        writer, shape = Path(__file__).parent / "_gguf_writer.py", json.dumps({**SHAPE, "num_hidden_layers": layers})
        subprocess.run([python, str(writer), given.name, str(file), shape], check=True)


def loop_seconds(loop: Loop, tokens: int) -> float:
    """Writing so many tokens after the prompt."""
    written = loop.tokens(PROMPT, tokens + 1)
    next(written)
    start = time.perf_counter()
    for _ in written:
        pass
    return time.perf_counter() - start


def forward_seconds(model: Any, cache: Any, tokens: int) -> float:
    """The same in transformers' forward. cache: with the prompt; as it was afterwards."""
    token, start = torch.ones(1, 1, dtype=torch.int64), time.perf_counter()
    for _ in range(tokens):
        token = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1:].argmax(-1)
    taken = time.perf_counter() - start
    cache.crop(-tokens)
    return taken


@torch.no_grad()
def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("file", type=Path)
    ask.add_argument("--llama", required=True)
    ask.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    ask.add_argument("--turns", type=int, default=5)
    ask.add_argument("--tokens", type=int, default=24)
    ask.add_argument("--layers", type=int, default=16)
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    model, matrices = build(asked.layers)
    if not asked.file.exists():
        write(asked.file, matrices, asked.layers, asked.llama)
    numbers = map(str, (asked.file, asked.threads, CONTEXT, asked.tokens))
    command = [asked.llama, str(Path(__file__).parent / "_llama_cpp.py"), *numbers]
    rival = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    out, loop = model(PROMPT, use_cache=True, logits_to_keep=1), Loop(model)
    theirs = torch.tensor([float(v) for v in rival.stdout.readline().split()])  # type: ignore[union-attr]
    agreement = agree(out.logits[0, -1].float(), theirs)
    found: dict[str, list[float]] = {"lowbit": [], "llama.cpp": [], "forward": []}
    for _ in range(asked.turns):
        found["lowbit"].append(asked.tokens / loop_seconds(loop, asked.tokens))
        found["forward"].append(asked.tokens / forward_seconds(model, out.past_key_values, asked.tokens))
        rival.stdin.write("\n")  # type: ignore[union-attr]
        rival.stdin.flush()  # type: ignore[union-attr]
        found["llama.cpp"].append(asked.tokens / float(rival.stdout.readline()))  # type: ignore[union-attr]
    rival.stdin.close()  # type: ignore[union-attr]
    rival.wait()
    speed = {name: round(statistics.median(values), 2) for name, values in found.items()}
    setting = {
        "threads": asked.threads,
        "layers": asked.layers,
        "context": CONTEXT,
        "tokens": asked.tokens,
        "turns": asked.turns,
    }
    ratio = round(speed["lowbit"] / speed["llama.cpp"], 2)
    load = round(os.getloadavg()[0], 1)
    keep("cpu_model", format=FORMAT, **setting, tokens_per_second=speed, ratio=ratio, agreement=agreement, load=load)


def agree(ours: Tensor, theirs: Tensor) -> float:
    """The correlation of both logits, or the end."""
    found = round(float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]), 4) if len(ours) == len(theirs) else 0.0
    if found < 0.99:
        sys.exit(f"The logits of both correlate by {found}: the weights are not the same; nothing is timed.")
    return found


if __name__ == "__main__":
    main()
