"""kv - policies of the KV cache on lowbit-tiny: KL from the floats in milli-nats, and bytes a token.

    python bench/kv.py [POLICY ...] [--windows=4] [--length=2048] [--step=64] [--text=bundled]

Windows of the held-out text pass through the cache `step` tokens at a time, so that each position sees its past as it is held
(the recent window as floats, what is older packed); the reference is one pass without a cache. Both run in float32.
Bases that a policy learns are found on 8 windows of 512 tokens of the calibration text, in floats.
bytes_per_token: packed keys and values of all layers; 16-bit floats take 3072 on this model.
"""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from _rows import keep

from lowbit import kvcache
from lowbit.layers.loading import load
from lowbit.pipeline import held, text
from lowbit.pipeline.source import tokenizer_of
from lowbit.statistics._divergence import Divergence

MODEL = Path(__file__).parent.parent / "models" / "lowbit-tiny"
POLICIES = ("int8", "int4", "int4-rot", "int4-centred", "int4-centred-rot", "kivi2", "fp8")


def bytes_per_token(model: Any, policy: str) -> float:
    """Bytes of the packed keys and values of one token in all layers."""
    config = model.config
    numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    found: float = kvcache.parse(policy).bits_per_number(config.head_dim) * numbers / 8
    return found


def bases(model: Any) -> dict[int, dict[str, torch.Tensor]]:
    """Those of every layer, as a recipe with such a policy finds them."""
    tokens = text.windows("bundled", text.read("bundled"), tokenizer_of(MODEL), 512, 8).tokens
    moments = [kvcache.Moments() for _ in model.model.layers]
    kvcache.watch(model.model.layers[0])  # one config for all
    for row in tokens:
        model(row[None], use_cache=False)
        for found, layer in zip(moments, model.model.layers, strict=True):
            found.add(layer.self_attn.seen)
    return {i: dict(zip(("k_basis", "v_basis"), layer.bases(), strict=True)) for i, layer in enumerate(moments)}


def main() -> None:
    options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:] if a.startswith("--"))
    policies = [a for a in sys.argv[1:] if not a.startswith("--")] or list(POLICIES)
    count, length, step = (int(options.get(k, d)) for k, d in (("windows", 4), ("length", 2048), ("step", 64)))
    name = options.get("text", "bundled")
    rows = text.windows(name, text.read(name, "evaluation"), tokenizer_of(MODEL), length, count).tokens
    model = load(MODEL, dtype=torch.float32)
    with torch.no_grad():
        originals = [model(row[None], use_cache=False).logits[0] for row in rows]
        if any(kvcache.parse(policy).learned for policy in policies):
            model.kv_scales = bases(load(MODEL, dtype=torch.float32))
    for policy in policies:
        start, found, bytes_held = time.perf_counter(), Divergence(), 0
        for row, original in zip(rows, originals, strict=True):
            decoded, bytes_held = held.logits(model, row, policy, step)
            found.add(row, decoded, original)
        told = found.summary()
        keep(
            "kv",
            policy=policy,
            text=Path(name).name,
            kl=round(1000 * told["kl"], 3),
            kl_se=round(1000 * told["kl_se"], 3),
            top1=round(told["top1"], 4),
            perplexity=round(told["perplexity"], 3),
            original_perplexity=round(told["original_perplexity"], 3),
            bits_per_number=kvcache.parse(policy).bits_per_number(model.config.head_dim),
            bytes_per_token=bytes_per_token(model, policy),
            bytes_held=bytes_held,
            windows=len(rows),
            length=length,
            step=step,
            seconds=round(time.perf_counter() - start, 1),
        )


if __name__ == "__main__":
    main()
