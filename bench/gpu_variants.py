"""gpu_variants - ways to cut attention.cu, prefill.cu and bytes.cu beside each other: what `Cut` in their .py files is from.

    python bench/gpu_variants.py [attention prefill bytes] [--kinds int8,...] [--tokens 512] [--shapes 4096x4096,...]
                                 [--elements int8,e4m3] [--workers 16]

Each variant is checked three times first, against float64; then all are timed once, and once more in the other order: both
medians stand in its line, best first. All programs are compiled before, in processes beside each other.
"""

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import _gpu_rivals
import _matrices
import gpu_attention
import gpu_bytes
import torch
from _gpu_timing import copies, floor, microseconds, right
from _rows import keep
from gpu_cuts import compile_all
from torch import Tensor

from lowbit import formats
from lowbit.core.errors import KernelUnavailable
from lowbit.kernels import packing
from lowbit.kernels.cuda import _activations, _attention, _build, _bytes, _fragments, _prefill, _product, byte_act, linear
from lowbit.kernels.cuda._activations import E4M3
from lowbit.kernels.cuda._attention import FLOAT8, Cut, Side

SEQUENCES = 8
MOST_ERROR = 0.01
PREFILLED = "int4-g128"


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


@dataclass
class Subject:
    """Calls with a variant, one for each copy of what is read; bytes of a copy; the error of what the first call gives."""

    name: str
    calls: Sequence[Callable[[Any], Tensor]]
    size: float
    error: Callable[[Tensor], float]


def attention(kind: str, tokens: int = 32768) -> Subject:
    bits = gpu_attention.KINDS[kind]
    size = (
        2 * SEQUENCES * gpu_attention.SHARED * tokens * (gpu_attention.WIDTH * (bits or 8) / 8 + (2 if bits == FLOAT8 else 4))
    )
    stores = [
        (gpu_attention.side(SEQUENCES, tokens, bits), gpu_attention.side(SEQUENCES, tokens, bits)) for _ in range(copies(size))
    ]
    q = torch.randn(SEQUENCES, gpu_attention.HEADS, gpu_attention.WIDTH, device="cuda").bfloat16() * 2
    wanted = {n: [gpu_attention.decoded(side, n) for side in stores[0]] for n in (0, SEQUENCES - 1)}

    def error(found: Tensor) -> float:
        return max(gpu_attention.error(q[n:], k, v, found[n:]) for n, (k, v) in wanted.items())

    def call(how: Cut, store: tuple[Side, Side]) -> Tensor:
        return _attention.attend(q, *store, gpu_attention.SCALE, how=how)

    return Subject(f"{kind} {SEQUENCES}x{tokens}", [partial(call, store=store) for store in stores], size, error)


def prefill_cuts() -> Iterator[_prefill.Cut]:
    """Tiles of 128 rows by 256 or 128 tokens, of 64 rows, two blocks a multiprocessor; x and weights further ahead."""
    for cut in (
        (256, 8, 4, 2, 1), (256, 8, 6, 2, 1), (256, 8, 5, 2, 3), (256, 8, 5, 1, 3), (256, 8, 5, 4, 3),
        (128, 8, 4, 2, 1), (128, 8, 8, 2, 1), (128, 8, 8, 2, 3), (128, 8, 8, 1, 3), (128, 8, 8, 4, 3),
        (256, 4, 5, 2, 3), (128, 4, 5, 2, 3, 2), (128, 4, 5, 4, 3, 2), (64, 8, 6, 2, 3, 2),
    ):  # fmt: skip
        how = _prefill.Cut(*cut)
        yield replace(how, joined=False)
        yield replace(how, joined=True)


def prefill(shape: tuple[int, int], tokens: int) -> Subject:
    """The first call, with None, is the vendor's product of bfloat16 weights."""
    q = _matrices.quantized(PREFILLED, torch.randn(shape, device="cuda"))
    packed, parts = packing.split(q.format, packing.pack(q), shape)
    first, dense = linear.prepare(q.format, packed, parts, shape), q.decode().bfloat16()
    x = torch.randn(tokens, shape[1], device="cuda").bfloat16()
    wanted = x.double() @ q.decode().double().T

    def call(how: _prefill.Cut | None, held: tuple[dict[str, Tensor], Tensor]) -> Tensor:
        if how is None:
            return torch.nn.functional.linear(x, held[1])
        y = torch.empty(tokens, shape[0], dtype=x.dtype, device=x.device)
        _prefill.launch(x, held[0], y, linear.kind(q.format), shape[0], _fragments.beside(held[0], x.dtype), how)
        return y

    size = shape[0] * shape[1] * q.format.bits_per_weight(shape) / 8
    held = [({name: t.clone() for name, t in first.items()}, dense.clone()) for _ in range(copies(size))]
    calls = [partial(call, held=one) for one in held]

    def error(found: Tensor) -> float:
        return float((found.double() - wanted).norm() / wanted.norm())

    return Subject(f"{shape[0]}x{shape[1]} {tokens}", calls, size, error)


def byte_cuts(kind: int, few: bool) -> Iterator[_bytes.Cut]:
    """Those that are chosen from; without clusters, in larger ones, two blocks a multiprocessor, sums folded elsewhere."""
    for how in (how for how in _bytes.CUTS[kind] if (how.high == 1) == few):
        yield how
        stage = how.shared_bytes // how.stages
        if how.eights <= 8:  # more rows would need more registers than half of a multiprocessor has
            yield replace(how, stages=_product.SHARED // 2 // stage, blocks=2)
        if few or not how.along:
            yield replace(how, share=1)
        if few:
            yield replace(how, share=4)
        if how.fold:
            yield replace(how, fold=4)
    if not few:
        yield _bytes.Cut(1, 32, 2, blocks=2)
        if kind == E4M3:
            yield _bytes.Cut()


def byte_products(element: str, shape: tuple[int, int], tokens: int) -> Subject:
    """The first call, with None, is CUTLASS of vLLM where it is, else the cut that is chosen."""
    kind = byte_act.ELEMENTS[element]
    q = _matrices.quantized({"int8": "int8-row", "e4m3": "fp8-row"}[element], torch.randn(shape, device="cuda"))
    packed, parts = packing.split(q.format, packing.pack(q), shape)
    first = byte_act.prepare(q.format, packed, parts, shape)
    codes, scale = _activations.quantize(torch.randn(tokens, shape[1], device="cuda").bfloat16(), kind)
    wanted = (codes.double() * scale.double()[:, None]) @ q.decode().double().T
    held = [{name: t.clone() for name, t in first.items()} for _ in range(copies(shape[0] * shape[1]))]
    try:
        rival = gpu_bytes.cutlass(codes, scale, byte_act._scale(first).float(), held)
    except _gpu_rivals.FAILURES as reason:
        print(f"CUTLASS: left out, {reason}"[:300], flush=True)
        rival = []

    def call(how: _bytes.Cut | None, place: int) -> Tensor:
        if how is None and rival:
            return rival[place]()
        y = torch.empty(tokens, shape[0], dtype=torch.bfloat16, device="cuda")
        _bytes.launch(codes, scale, held[place], y, kind, how)
        return y

    def error(found: Tensor) -> float:
        return float((found.double() - wanted).norm() / wanted.norm())

    calls = [partial(call, place=place) for place in range(len(held))]
    return Subject(f"{element} {shape[0]}x{shape[1]} {tokens}", calls, shape[0] * shape[1], error)


def measure(part: str, subject: Subject, tried: Iterable[Any]) -> None:
    sound = {}
    for how in tried:
        try:
            off = max(subject.error(subject.calls[0](how)) for _ in range(3))
        except KernelUnavailable as reason:
            print(f"{subject.name} {how}: {reason}"[:300], flush=True)
            continue
        if right(f"{subject.name} {how}", off, MOST_ERROR):
            sound[how] = off
    times: dict[Any, list[float]] = {how: [] for how in sound}
    for order in (list(sound), list(sound)[::-1]):
        for how in order:
            times[how].append(microseconds([partial(call, how) for call in subject.calls], rounds=5, least=20))
    best = sorted(sound, key=lambda how: sum(times[how]))
    for how in best:
        print(f"{subject.name} {times[how][0]:7.1f} {times[how][1]:7.1f} us {sound[how]:.1e} {how or 'a library'}", flush=True)
    ours = next(how for how in best if how)
    keep("gpu_cuts", part=part, subject=subject.name, us=round(max(times[ours]), 1), floor_us=round(floor(subject.size), 1),
         error=float(f"{sound[ours]:.1e}"), cut=vars(ours))  # fmt: skip


def programs(parts: list[str], kinds: list[str], elements: list[str]) -> set[tuple[str, _build.Macros]]:
    found = set()
    if "attention" in parts:
        for kind, side in ((kind, sides(kind)) for kind in kinds):
            macros = partial(_attention.macros, torch.bfloat16, gpu_attention.WIDTH, side, side)
            found |= {("attention.cu", macros(how)) for how in attention_cuts(kind)}
    if "bytes" in parts:
        for code, few in product((byte_act.ELEMENTS[element] for element in elements), (False, True)):
            found |= {("bytes.cu", _bytes.macros(code, torch.bfloat16, cut)) for cut in byte_cuts(code, few)}
    if "prefill" in parts:
        kind_ = linear.kind(formats.parse(PREFILLED))
        found |= {("prefill.cu", _prefill.macros(kind_, torch.bfloat16, how)) for how in prefill_cuts()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("parts", nargs="*", default=["attention", "prefill"])
    parser.add_argument("--kinds", default="int8,fp8,int4,int2")
    parser.add_argument("--elements", default="int8,e4m3")
    parser.add_argument("--tokens", default="512")
    parser.add_argument("--shapes", default="4096x4096,14336x4096,4096x14336")
    parser.add_argument("--workers", type=int, default=16)
    asked = parser.parse_args()
    kinds, elements, start = asked.kinds.split(","), asked.elements.split(","), time.perf_counter()
    wanted = programs(asked.parts, kinds, elements)
    compile_all(wanted, asked.workers)
    print(f"{len(wanted)} programs in {time.perf_counter() - start:.0f} s", flush=True)
    if "attention" in asked.parts:
        for kind in kinds:
            measure("attention", attention(kind), attention_cuts(kind))
            torch.cuda.empty_cache()
    if "prefill" in asked.parts:
        for shape, tokens in product(asked.shapes.split(","), map(int, asked.tokens.split(","))):
            rows, inputs = map(int, shape.split("x"))
            measure("prefill", prefill((rows, inputs), tokens), [None, *prefill_cuts()])
            torch.cuda.empty_cache()
    if "bytes" in asked.parts:
        for element, shape, tokens in product(elements, asked.shapes.split(","), map(int, asked.tokens.split(","))):
            rows, inputs = map(int, shape.split("x"))
            tried = byte_cuts(byte_act.ELEMENTS[element], tokens <= _product.DECODE_TOKENS)
            measure("bytes", byte_products(element, (rows, inputs), tokens), [None, *tried])
            torch.cuda.empty_cache()
    print(f"all in {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
