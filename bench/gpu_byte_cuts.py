"""gpu_byte_cuts - ways to cut bytes.cu beside each other and beside CUTLASS: what `WAYS` in _bytes.py is from.

    python bench/gpu_byte_cuts.py [--elements int8,e4m3] [--tokens 64,1024,4096] [--shapes 4096x4096,...] [--workers 16]

Each cut is checked three times first, against float64; then all are timed once, and once more in the other order: both medians
stand in its line, best first. All programs are compiled before, in processes beside each other.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import _gpu_rivals
import _matrices
import gpu_bytes
import torch
from _gpu_timing import copies, floor, microseconds, right
from _rows import keep
from gpu_cuts import compile_all
from torch import Tensor

from lowbit.core.errors import KernelUnavailable
from lowbit.kernels import packing
from lowbit.kernels.cuda import _activations, _bytes, _product, byte_act
from lowbit.kernels.cuda._activations import E4M3

MOST_ERROR = 0.01


@dataclass
class Subject:
    """Calls with a variant, one for each copy of what is read; bytes of a copy; the error of what the first call gives."""

    name: str
    calls: Sequence[Callable[[Any], Tensor]]
    size: float
    error: Callable[[Tensor], float]


def byte_cuts(kind: int, few: bool) -> Iterator[_bytes.Cut]:
    """Those that are chosen from, and for float8 the same with sums that stay in the tensor cores."""
    for cuts in (_bytes.CUTS[kind], _bytes.WAYS if kind == E4M3 else ()):
        yield from (how for how in cuts if (how.high == 1) == few)


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


def measure(subject: Subject, tried: Iterable[Any]) -> None:
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
    keep("gpu_byte_cuts", subject=subject.name, us=round(max(times[ours]), 1), floor_us=round(floor(subject.size), 1),
         error=float(f"{sound[ours]:.1e}"), cut=vars(ours))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--elements", default="int8,e4m3")
    parser.add_argument("--tokens", default="64,1024,4096")
    parser.add_argument("--shapes", default="4096x4096,14336x4096")
    parser.add_argument("--workers", type=int, default=16)
    asked = parser.parse_args()
    elements = asked.elements.split(",")
    compile_all({
        ("bytes.cu", _bytes.macros(kind, torch.bfloat16, cut))
        for kind, few in product((byte_act.ELEMENTS[element] for element in elements), (False, True))
        for cut in byte_cuts(kind, few)
    }, asked.workers)  # fmt: skip
    for element, shape, tokens in product(elements, asked.shapes.split(","), map(int, asked.tokens.split(","))):
        rows, inputs = map(int, shape.split("x"))
        tried = byte_cuts(byte_act.ELEMENTS[element], tokens <= _product.DECODE_TOKENS)
        measure(byte_products(element, (rows, inputs), tokens), [None, *tried])
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
