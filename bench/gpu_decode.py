"""gpu_decode - tokens a second of one sequence: random models of Llama-3-8B's shapes, packed and in bfloat16, in the same loop.

    python bench/gpu_decode.py [--formats int4-g128,...] [--head int8-row] [--context 128] [--tokens 256] [--turns 3]

The models are made on the GPU, never written. Floor: 2.5 us a linear and its bytes at 4.66 TB/s, head included.
"""

import argparse
import statistics
import time
from typing import Any

import torch
from _gpu_timing import floor
from _rows import keep
from torch import nn

from lowbit import formats
from lowbit.formats import Quantized
from lowbit.layers import joined, step
from lowbit.layers.linear import QuantizedLinear
from lowbit.layers.loading import skeleton
from lowbit.serving.loop import Loop

SHAPE = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "rope_theta": 500000.0,
    "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": None,
}  # fmt: skip


def random_model(text: str, head: str, device: str) -> Any:
    """A model whose linears are random, in a format ("bfloat16": floats)."""
    from transformers import LlamaConfig

    model = skeleton(LlamaConfig(**SHAPE), torch.bfloat16)
    for name, module in list(model.named_modules()):
        for leaf, parameter in list(module._parameters.items()):
            if parameter is None or (isinstance(module, nn.Linear) and text != "bfloat16"):
                continue
            norm = parameter.dim() == 1
            drawn = torch.ones(parameter.shape, device=device) if norm else 0.02 * torch.randn(parameter.shape, device=device)
            module._parameters[leaf] = nn.Parameter(drawn.bfloat16(), requires_grad=False)
        if isinstance(module, nn.Linear) and text != "bfloat16":
            shape = (module.out_features, module.in_features)
            model.set_submodule(name, packed(head if name == "lm_head" else text, shape, device))
    for module in model.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = buffer.to(device)
    return model


def packed(text: str, shape: tuple[int, int], device: str) -> QuantizedLinear:
    """A layer of random codes; its scales are those of weights with deviation 0.02."""
    format = formats.parse(text)
    sample = format.fit(0.02 * torch.randn(64, shape[1], device=device), search=False)
    codes = torch.randint(0, format.dtype.codes, format.codes_shape(shape), dtype=torch.uint8, device=device)
    parts = {name: part.repeat(-(-shape[0] // 64), 1)[: shape[0]] for name, part in sample.parts.items()}
    return QuantizedLinear.from_quantized(Quantized(format, codes, parts, shape), None, torch.bfloat16).prepare()


def least(model: Any) -> float:
    """Microseconds that reading the linears takes, each in a launch of its own."""
    found = 0.0
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            found += floor(module.resident_bytes())
        elif type(module) is nn.Linear:
            found += floor(2 * module.weight.numel())
    return found


def check(model: Any, context: int) -> float:
    """Relative difference of a step's logits from the model's own forward. Ends the run when it is not rounding."""
    loop, ids = Loop(model), torch.randint(0, 1000, (1, context + 1), device=model.device)
    whole = model(ids, logits_to_keep=1).logits[0, -1].float()
    loop._make_room(context + 1)
    loop._prompt(ids[:, :-1])
    if loop._step is None:
        print(f"no step: {step.refusal(model)}")
        return float("nan")
    found = loop._step(ids[:, -1:], torch.full((1, 1), context, device=model.device))[0].float()
    error = float((found - whole).norm() / whole.norm())
    if not error < 0.15:
        raise SystemExit(f"the step's logits are off by {error:.3f}: nothing measured.")
    return error


def measure(model: Any, wanted: argparse.Namespace) -> dict[str, float]:
    """Median tokens a second, the prompt not counted: two lengths of text, and their difference in time."""
    loop, ids = Loop(model), torch.randint(0, 1000, (1, wanted.context), device=model.device)
    speeds = []
    for turn in range(wanted.turns + 1):
        times = []
        for count in (wanted.tokens // 4, wanted.tokens):
            torch.cuda.synchronize()
            start = time.perf_counter()
            made = sum(1 for _ in loop.tokens(ids, count))
            times.append(time.perf_counter() - start)
            if made != count:
                raise SystemExit(f"{made} tokens of {count}")
        if turn:
            speeds.append((wanted.tokens - wanted.tokens // 4) / (times[1] - times[0]))
    return {
        "tokens_per_second": round(statistics.median(speeds), 1),
        "least": round(min(speeds), 1),
        "most": round(max(speeds), 1),
    }


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", default="int4-g128")
    parser.add_argument("--head", default="int8-row")
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--kernels", action="store_true", help="tell what the GPU does in one token")
    wanted = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_decode needs an NVIDIA GPU: nothing measured.")
        return
    base = 0.0
    for text in ["bfloat16", *wanted.formats.split(",")]:
        start = time.perf_counter()
        model = random_model(text, wanted.head, "cuda")
        joined.join(model, model.config)
        made, bound, error = time.perf_counter() - start, least(model), check(model, wanted.context)
        found = measure(model, wanted)
        base = base or found["tokens_per_second"]
        told = {
            "format": text,
            "head": text if text == "bfloat16" else wanted.head,
            "context": wanted.context,
            "made_s": round(made, 1),
        }
        keep("gpu_decode", **told, error=float(f"{error:.2e}"), floor=round(1e6 / bound, 1), **found,
             times_bfloat16=round(found["tokens_per_second"] / base, 2))  # fmt: skip
        if wanted.kernels:
            kernels(model, wanted)
        del model
        torch.cuda.empty_cache()


def kernels(model: Any, wanted: argparse.Namespace) -> None:
    """Microseconds a token by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    loop, ids = Loop(model), torch.randint(0, 1000, (1, wanted.context), device=model.device)
    sum(loop.tokens(ids, 16))
    with watch(activities=[ProfilerActivity.CUDA]) as watched:
        sum(loop.tokens(ids, 65))
    for row in sorted(watched.key_averages(), key=lambda row: -row.self_device_time_total)[:20]:
        print(f"{row.self_device_time_total / 64:10.1f} us {row.count / 64:8.1f} {row.key[:120]}")


if __name__ == "__main__":
    main()
