"""kv_long - long use of a packed cache: the memory that 32768 tokens take, and a thousand tokens written greedily.

    python bench/kv_long.py memory [POLICY ...] [--tokens=32768] [--layers=16] [--heads=8] [--width=64]
    python bench/kv_long.py writing [POLICY ...] [--tokens=1000]
    python bench/kv_long.py speed [POLICY ...] [--tokens=4096]
    python bench/kv_long.py token [POLICY ...] [--tokens=8192] [--threads=2] [--layers=4] [--heads=8] [--width=64]

memory: a process of its own for each policy, and one for bfloat16 in transformers' own cache. All layers take random keys and
values, 512 tokens at a time, then attend from four tokens, one after the other, with 4 query heads for each of keys. The peak
is that of the process above what it had with everything imported; freed tensors above 128 kB go back to the system. ratio:
to bfloat16.
writing: four prompts of the held-out text in one batch on lowbit-tiny in float32. distinct: share of different sequences of 4
tokens among all of a text; stuck: the longest run at the end of a text that only repeats what stands one period before it.
speed: attention of one token, 32 query heads over 8 of keys, tile by tile, and after decoding all that is packed; processor
time, medians of turns that alternate.
token: the attention of one new token, 4 query heads for each of keys, in layers one after the other, so that no cache but the
last has them: milliseconds a layer, medians of turns that alternate. bfloat16: torch's own attention as transformers calls it,
and the step's of serving/loop.py; policies: by the kernel that dispatch picks, and by the reference.
"""

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _rows import keep
from torch import Tensor
from transformers import DynamicCache, LlamaConfig

from lowbit import kvcache
from lowbit.core.device import M_MMAP_THRESHOLD, peak_memory
from lowbit.kernels import dispatch, step
from lowbit.kernels.attention import Held, attend
from lowbit.kvcache._attention import attention
from lowbit.kvcache._store import Store
from lowbit.layers.loading import load
from lowbit.pipeline import text
from lowbit.pipeline.source import tokenizer_of

MODEL = Path(__file__).parent.parent / "models" / "lowbit-tiny"
POLICIES = {
    "memory": ("bfloat16", "int4", "int4-centred-rot", "int8"),
    "writing": ("floats", "int4", "int4-centred-rot"),
    "speed": ("int8", "int4", "int4-centred-rot", "kivi2"),
    "token": ("int8", "int4", "int2", "int4-centred-rot"),
}
PIECE, QUERIES, NEW = 512, 4, 4
PERIODS = 200
SMALL = 1 << 17
"""Bytes from which freed tensors go back to the system, in every process: holes between growing tensors are not counted."""


class Layer:
    """What transformers' attention asks of its module."""

    num_key_value_groups, is_causal, training = QUERIES, True, False


def fill(policy: str, tokens: int, layers: int, heads: int, width: int) -> dict[str, int]:
    """Peak bytes above the start, and bytes held, of one cache."""
    queries = QUERIES * heads
    config = LlamaConfig(num_hidden_layers=layers, num_attention_heads=queries, num_key_value_heads=heads, head_dim=width)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, SMALL)
    own = policy == "bfloat16"

    def step(cache: Any, new: int) -> None:
        for layer in range(layers):
            x = torch.randn(1, heads, new, width).bfloat16()
            keys, values = cache.update(x, x, layer)
            if new == 1:
                attention(Layer(), torch.randn(1, queries, 1, width).bfloat16(), keys, values, None)
            del keys, values, x

    small = DynamicCache(config=config) if own else kvcache.build(policy, config)
    step(small, PIECE)
    step(small, 1)  # imports, tables and buffers of libraries
    del small
    start = peak_memory()
    cache = DynamicCache(config=config) if own else kvcache.build(policy, config)
    for new in [PIECE] * (tokens // PIECE) + [1] * NEW:
        step(cache, new)
    held = sum(2 * layer.keys.nbytes for layer in cache.layers) if own else cache.bytes
    return {"peak": peak_memory() - start, "held": held}


def memory(policies: list[str], options: dict[str, str]) -> None:
    sizes = {name: int(options.get(name, default)) for name, default in _SIZES.items()}
    floats = 0
    for policy in policies:
        command = [sys.executable, __file__, "fill", policy, json.dumps(sizes)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        floats = found["peak"] if policy == "bfloat16" else floats
        ratio = round(found["peak"] / floats, 4) if floats else None
        keep("kv_memory", policy=policy, **sizes, peak_bytes=found["peak"], held_bytes=found["held"], ratio=ratio)


_SIZES = {"tokens": 32768, "layers": 16, "heads": 8, "width": 64}


def distinct(ids: list[int]) -> float:
    """Share of different sequences of 4 tokens."""
    found = list(zip(*(ids[i:] for i in range(4)), strict=False))
    return len(set(found)) / len(found)


def stuck(ids: list[int]) -> int:
    """Tokens at the end that repeat those one period before, for the period that gives the most."""

    def run(period: int) -> int:
        pairs = zip(reversed(ids), reversed(ids[:-period]), strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), len(ids) - period)

    return max(run(period) for period in range(1, PERIODS))


def writing(policies: list[str], options: dict[str, str]) -> None:
    count = int(options.get("tokens", 1000))
    prompts = text.windows("bundled", text.read("bundled", "evaluation"), tokenizer_of(MODEL), 64, 4).tokens
    model = load(MODEL, dtype=torch.float32)
    first: Tensor | None = None
    for policy in policies:
        given = {} if policy == "floats" else kvcache.arguments(policy, model)
        with torch.no_grad():
            ids = model.generate(prompts, max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=1, **given)
        written = ids[:, prompts.shape[1] :]
        first = written if first is None else first
        same = [int((a != b).nonzero()[0]) if bool((a != b).any()) else count for a, b in zip(written, first, strict=True)]
        rows = written.tolist()
        keep(
            "kv_writing", policy=policy, tokens=count, distinct=[round(distinct(row), 3) for row in rows],
            stuck=[stuck(row) for row in rows], same_as_first_policy=same,
        )  # fmt: skip


def speed(policies: list[str], options: dict[str, str]) -> None:
    tokens, heads, width, turns = int(options.get("tokens", 4096)), 8, 64, 9
    q, x = torch.randn(1, QUERIES * heads, 1, width), torch.randn(1, heads, tokens, width)
    for name in policies:
        policy = kvcache.parse(name)
        keys, values = (Store(half, policy.sinks, policy.recent, policy.page, x) for half in (policy.keys, policy.values))
        keys.append(x)
        values.append(x)

        def tiled(keys: Store = keys, values: Store = values) -> Tensor:
            return attend(q, keys.held(), values.held(), width**-0.5)

        def whole(keys: Store = keys, values: Store = values) -> Tensor:
            return torch.nn.functional.scaled_dot_product_attention(q, keys.read(), values.read(), enable_gqa=True)

        took: dict[str, list[float]] = {"tiled": [], "whole": []}
        for _ in range(turns):
            for run in (tiled, whole):
                start = time.process_time()
                run()
                took[run.__name__].append(time.process_time() - start)
        ms = {way: round(1000 * sorted(seconds)[turns // 2], 2) for way, seconds in took.items()}
        keep("kv_speed", policy=name, tokens=tokens, **ms, ratio=round(ms["tiled"] / ms["whole"], 2))


def token(policies: list[str], options: dict[str, str]) -> None:
    sizes = {"tokens": 8192, "threads": 2, "layers": 4, "heads": 8, "width": 64}
    sizes |= {name: int(options[name]) for name in sizes if name in options}
    tokens, threads, layers, heads, width = sizes.values()
    torch.set_num_threads(threads)
    queries, scale = QUERIES * heads, width**-0.5
    floats = torch.randn(layers, 2, 1, heads, tokens, width).bfloat16()
    q, last = torch.randn(1, queries, 1, width).bfloat16(), torch.full((1, 1), tokens - 1)
    turns = torch.zeros(tokens, width, dtype=torch.bfloat16)
    qkv = torch.randn(1, (queries + 2 * heads) * width).bfloat16()
    own = step.find(q.device).Attention((queries, heads), width, scale, q.device)
    ways: dict[str, Callable[[int], Any]] = {
        "torch": lambda i: attention(Layer(), q, floats[i, 0], floats[i, 1], None),
        "step": lambda i: own(qkv, turns, turns, last, floats[i, 0, 0], floats[i, 1, 0]),
    }

    def over(held: list[tuple[Held, Held]], run: Callable[..., Tensor]) -> Callable[[int], Any]:
        return lambda i: run(q, held[i][0], held[i][1], scale, None, None)

    for name in policies:
        policy, held = kvcache.parse(name), []
        for layer in floats:
            keys, values = (
                Store(half, policy.sinks, policy.recent, policy.page, layer[0]) for half in (policy.keys, policy.values)
            )
            keys.append(layer[0])
            values.append(layer[1])
            held.append((keys.held(), values.held()))
        ways[name], ways[f"{name}, reference"] = over(held, attend), over(held, dispatch.get("reference.attention").attend)
    took: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(int(options.get("turns", 5))):
        for way, run in ways.items():
            start = time.perf_counter()
            for i in range(layers):
                run(i)
            took[way].append(1000 * (time.perf_counter() - start) / layers)
    keep("kv_token", **sizes, ms={way: round(sorted(ms)[len(ms) // 2], 2) for way, ms in took.items()})


def main() -> None:
    kind, *rest = sys.argv[1:]
    if kind == "fill":
        print(json.dumps(fill(rest[0], **json.loads(rest[1]))))
        return
    options = dict(a.removeprefix("--").split("=", 1) for a in rest if a.startswith("--"))
    policies = [a for a in rest if not a.startswith("--")] or list(POLICIES[kind])
    {"memory": memory, "writing": writing, "speed": speed, "token": token}[kind](policies, options)


if __name__ == "__main__":
    main()
