"""decode_cpu - tokens a second of a packed int4 model on the CPU, beside the same model in bfloat16 and in float32.

A random Llama of 143 million parameters; every linear of its blocks is rounded to the format, embedding and head stay. All
three run in one process, turn by turn (A B C A B C), so that a busy neighbour hits all alike; medians and quartiles over the
turns. Roofline: bytes of weights that one token reads, and the share of the machine's measured read bandwidth that this is.

    python bench/decode_cpu.py [--format int4-g128] [--turns 12] [--tokens 24] [--threads N]
"""

import argparse
import os
import statistics
import time
from typing import Any

import torch
from _rows import keep
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from lowbit import formats
from lowbit.layers.linear import QuantizedLinear

SHAPE = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CONTEXT = 128


def packed(model: Any, text: str) -> Any:
    """The model with every linear of its blocks rounded to the format and packed, in place."""
    format = formats.parse(text)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            quantized = format.fit(module.weight.data.float(), None, False).quantize(module.weight.data.float())
            model.set_submodule(name, QuantizedLinear.from_quantized(quantized, None, model.dtype).prepare())
    return model


def read_bytes(model: Any) -> int:
    """Bytes of weights that one token reads: everything but the embedding, which is the head here."""
    return sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])


def turn(model: Any, prompt: torch.Tensor, tokens: int) -> tuple[float, float]:
    """Tokens a second of reading the prompt and of decoding after it."""
    start = time.perf_counter()
    out = model(prompt, use_cache=True, logits_to_keep=1)
    middle = time.perf_counter()
    for _ in range(tokens):
        out = model(out.logits[:, -1:].argmax(-1), past_key_values=out.past_key_values, use_cache=True)
    return prompt.numel() / (middle - start), tokens / (time.perf_counter() - middle)


def bandwidth() -> float:
    """Bytes a second that this machine reads from memory: the best of some sums over 256 MiB."""
    block = torch.ones(1 << 25, dtype=torch.int64)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        block.sum().item()
        best = min(best, time.perf_counter() - start)
    return block.numel() * 8 / best


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 2), "low": round(low, 2), "high": round(high, 2)}


def models(text: str) -> dict[str, Any]:
    """The three variants of the same weights."""
    torch.manual_seed(0)
    found: dict[str, Any] = {}
    for name, dtype in ((text, torch.bfloat16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=dtype).eval()
        found[name] = packed(model, text) if name == text else model
    return found


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--format", default="int4-g128")
    ask.add_argument("--turns", type=int, default=12)
    ask.add_argument("--tokens", type=int, default=24)
    ask.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    asked = ask.parse_args()
    torch.set_num_threads(asked.threads)
    variants = models(asked.format)
    prompt = torch.randint(2, SHAPE["vocab_size"], (1, CONTEXT))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    with torch.no_grad():
        for number in range(asked.turns + 2):
            for name, model in variants.items():
                speeds = turn(model, prompt, asked.tokens)
                if number >= 2:
                    found[name].append(speeds)
    report(asked, variants, found)


def report(asked: argparse.Namespace, variants: dict[str, Any], found: dict[str, list[tuple[float, float]]]) -> None:
    """Print the table and keep a row."""
    decode = {name: spread([d for _, d in rows]) for name, rows in found.items()}
    prefill = {name: spread([p for p, _ in rows]) for name, rows in found.items()}
    size = {name: read_bytes(model) for name, model in variants.items()}
    reads = bandwidth()
    kernels = {m.kernel for m in variants[asked.format].modules() if isinstance(m, QuantizedLinear)}
    print(f"{'':12} {'decode tok/s':>20} {'prefill tok/s':>14} {'MB read/token':>14} {'GB/s':>6} {'of read bandwidth':>18}")
    for name in variants:
        d, rate = decode[name], size[name] * decode[name]["median"]
        told = f"{d['median']:8.1f} ({d['low']:.1f}-{d['high']:.1f})"
        memory = f"{size[name] / 1e6:14.1f} {rate / 1e9:6.1f} {rate / reads:18.0%}"
        print(f"{name:12} {told:>20} {prefill[name]['median']:14.0f} {memory}")
    others = [name for name in variants if name != asked.format]
    ratios = {name: round(decode[asked.format]["median"] / decode[name]["median"], 2) for name in others}
    print(
        f"{asked.format} decodes", " and ".join(f"{r} times as fast as {name}" for name, r in ratios.items()), sorted(kernels)
    )
    setting = {"threads": asked.threads, "context": CONTEXT, "tokens": asked.tokens, "turns": asked.turns}
    figures = {"decode": decode, "prefill": prefill, "bytes_per_token": size, "read_bandwidth": round(reads), "ratios": ratios}
    load = round(os.getloadavg()[0], 2)
    keep("decode_cpu", format=asked.format, kernels=sorted(kernels), load=load, **setting, **figures)


if __name__ == "__main__":
    main()
