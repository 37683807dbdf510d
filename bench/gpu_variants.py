"""gpu_variants - ways to cut attention.cu for this GPU beside each other: where `_attention.CUT` is from.

    python bench/gpu_variants.py attention [--kinds int8,fp8,int4] [--tokens 32768] [--workers 16]

Each variant is checked first (first and last sequence against float64); then all are timed once, and once more in the other order: both
medians stand in its line, best first. All programs are compiled before, in processes beside each other.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import gpu_attention
import torch
from _gpu_timing import copies, floor, microseconds, right
from _rows import keep
from gpu_cuts import compile_all

from lowbit.kernels.cuda import _attention
from lowbit.kernels.cuda._attention import FLOAT8, Cut, Side

SEQUENCES = 8
MOST_ERROR = 0.01


def attention_cuts(kind: str) -> Iterator[Cut]:
    """One to eight blocks a multiprocessor, with tickets and without; stages of 4 KB and of 8."""
    tiles = {"int8": 1, "fp8": 1, "int4": 2, "int2": 4}[kind]
    plain = Cut(tiles)
    yield plain
    yield replace(plain, streamed=True)
    yield replace(plain, tickets=True)
    for warps, blocks in ((8, 2), (4, 4), (4, 5), (2, 8)):
        yield replace(plain, warps=warps, blocks=blocks)
        yield replace(plain, warps=warps, blocks=blocks, tickets=True)
    yield replace(plain, warps=4, blocks=4, waves=3)
    yield replace(plain, warps=4, blocks=3, stages=3, tickets=True)
    yield replace(plain, warps=4, blocks=4, tickets=True, streamed=True)
    if kind != "int2":
        for warps, blocks in ((8, 1), (4, 2), (2, 4)):
            yield replace(plain, tiles=2 * tiles, warps=warps, blocks=blocks, tickets=True)


def sides(kind: str) -> Side:
    """What decides the macros of a kind."""
    bits, scale = gpu_attention.KINDS[kind], torch.empty(0, 0, 0)
    return Side(torch.empty(0), scale, bits, None if bits == FLOAT8 else scale)


Call = Callable[[Cut, int], torch.Tensor]


def attention(kind: str, tokens: int) -> tuple[list[Call], float, Callable[[torch.Tensor], float]]:
    """Calls to stores that go past the cache, bytes of one, and the error of what a call to the first one gives."""
    bits = gpu_attention.KINDS[kind]
    size = 2 * SEQUENCES * gpu_attention.SHARED * tokens * (gpu_attention.WIDTH * (bits or 8) / 8 + (2 if bits == FLOAT8 else 4))
    stores = [[gpu_attention.side(SEQUENCES, tokens, bits) for _ in "kv"] for _ in range(copies(size))]
    q = torch.randn(SEQUENCES, gpu_attention.HEADS, gpu_attention.WIDTH, device="cuda").bfloat16() * 2
    wanted = {n: [gpu_attention.decoded(side, n) for side in stores[0]] for n in (0, SEQUENCES - 1)}

    def error(found: torch.Tensor) -> float:
        return max(gpu_attention.error(q[n:], k, v, found[n:]) for n, (k, v) in wanted.items())

    def call(how: Cut, store: int) -> torch.Tensor:
        return _attention.attend(q, *stores[store], gpu_attention.SCALE, how=how)

    return [call] * len(stores), size, error


def measure(kind: str, tokens: int) -> None:
    calls, size, error = attention(kind, tokens)
    sound = []
    for how in attention_cuts(kind):
        off = max(error(calls[0](how, 0)) for _ in range(3))
        if right(f"{kind} {how}", off, MOST_ERROR):
            sound.append((how, off))
    times: dict[Cut, list[float]] = {how: [] for how, _ in sound}
    for order in (sound, sound[::-1]):
        for how, _ in order:
            times[how].append(microseconds([partial(call, how, n) for n, call in enumerate(calls)], rounds=7, least=20))
    for how, off in sorted(sound, key=lambda one: sum(times[one[0]])):
        print(f"{kind:5} {times[how][0]:7.1f} {times[how][1]:7.1f} us, floor {floor(size):.1f}, error {off:.1e}, {how}", flush=True)
    best, off = min(sound, key=lambda one: sum(times[one[0]]))
    keep("gpu_cuts", part="attention", kind=kind, sequences=SEQUENCES, tokens=tokens, us=round(max(times[best]), 1),
         floor_us=round(floor(size), 1), error=float(f"{off:.1e}"), cut=vars(best))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("part", choices=("attention",))
    parser.add_argument("--kinds", default="int8,fp8,int4")
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--workers", type=int, default=16)
    asked = parser.parse_args()
    kinds = asked.kinds.split(",")
    programs = {
        ("attention.cu", _attention.macros(torch.bfloat16, gpu_attention.WIDTH, sides(kind), sides(kind), how))
        for kind in kinds
        for how in attention_cuts(kind)
    }
    compile_all(programs, asked.workers)
    print(f"{len(programs)} programs compiled", flush=True)
    for kind in kinds:
        measure(kind, asked.tokens)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
