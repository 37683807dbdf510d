"""gpu_cuts - times every way to cut a product of linear.cu for this GPU and prints the best: where `_product.tiles` is from.

    python bench/gpu_cuts.py OUT.jsonl [--formats int4-g128] [--tokens 1,16,64] [--shapes 4096x4096,...] [--workers 16]

Among the formats, bytes-int8 and bytes-e4m3 stand for 8-bit weights times 8-bit inputs (cuda.byte_act).
All programs are compiled first, in processes beside each other; they would take most of the time one after the other.
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from _gpu_timing import copies, floor, microseconds
from torch import Tensor

from lowbit import formats
from lowbit.kernels import packing
from lowbit.kernels.cuda import _activations, _build, _product, byte_act, linear
from lowbit.kernels.cuda._product import Kind, Tiles

CAPABILITY = (9, 0)
FULL = 2 * _product.PROCESSORS // 3


def kind_of(text: str) -> Kind:
    if text.startswith("bytes-"):
        return byte_act.KINDS[byte_act.ELEMENTS[text.removeprefix("bytes-")]]
    return linear.kind(formats.parse(text))


def cuts(kind: Kind, tokens: int, rows: int, chunks: int) -> Iterator[Tiles]:
    """What is worth a try: fits into a block, and fills most of the multiprocessors but not many times over."""
    warps = [(beside, along) for beside in range(1, 9) for along in sorted({1, 2, 4, 8, 16, min(16, 32 // beside)})]
    narrow = ((high, *few, *more) for high, few, more in product(
        (1, 2), warps, product((1, 2, 4, 8), (2, 3, 5), (0, 2, 3), (False,), (False,))))  # fmt: skip
    wide = product((1,), (4, 8, 16), (1, 2, 4), (1, 2, 4, 8, 16), (2, 3, 4), (0, 1, 2, 4), (True,), (False, True))
    for how in (Tiles(*cut) for cut in (*(narrow if tokens <= 16 else ()), *(wide if tokens > 8 else ()))):
        blocks, threads = -(-rows // (16 * how.high * how.beside)) * how.slices, 32 * how.beside * how.along
        span, _ = _product.spans(chunks, how)
        if not (FULL <= blocks <= 8 * _product.PROCESSORS and 128 <= threads <= 1024 // (how.high if tokens > 8 else 1)):
            continue
        if how.slices * how.along > chunks or (how.span and (how.stages - 1 > how.span or tokens <= 8 or span >= chunks)):
            continue
        if (how.scaled and not kind.groups) or (how.wide and blocks > 2 * _product.PROCESSORS):
            continue
        if tokens <= 8 and (how.slices > 2 or (how.beside > 2 and threads < 896)):
            continue
        if tokens > 8 and (blocks > 3 * _product.PROCESSORS or threads < 256 or how.slices * how.along > chunks // 2):
            continue
        if _product.shared_bytes(kind, tokens, chunks, how) <= _product.SHARED:
            yield how


def compiled(file_and_macros: tuple[str, _build.Macros]) -> tuple[tuple[str, _build.Macros], bytes]:
    return file_and_macros, _build._compiled(*file_and_macros, CAPABILITY)


def compile_all(wanted: set[tuple[str, _build.Macros]], workers: int) -> None:
    """Fill the place of the compiler with what is compiled now."""
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        found = dict(pool.map(compiled, sorted(wanted), chunksize=1))
    original = _build._compiled

    def look_up(file: str, macros: _build.Macros, capability: tuple[int, int]) -> bytes:
        return found.get((file, macros)) or original(file, macros, capability)

    _build._compiled = look_up


Prepared = dict[str, Tensor]


def subject(
    text: str, shape: tuple[int, int], x: Tensor
) -> tuple[Prepared, Tensor, Tensor | None, tuple[int, int], float, Tensor]:
    """Prepared weights, x and its scales as the launch takes them, the shape in its columns, bytes, and the exact product."""
    act = text.startswith("bytes-")
    element = text.removeprefix("bytes-")
    format = formats.parse({"int8": "int8-row", "e4m3": "fp8-row"}[element] if act else text)
    q = format.fit(torch.randn(shape, device="cuda"), search=False).quantize(torch.randn(shape, device="cuda"))
    packed, parts = packing.split(format, packing.pack(q), shape)
    size = q.codes.numel() * format.bits_per_weight(shape) / 8
    if not act:
        return linear.prepare(format, packed, parts, shape), x, None, shape, size, x.double() @ q.decode().double().T
    plain, scale = _activations.quantize(x, byte_act.ELEMENTS[element])
    exact = (plain.double() * scale.double()[:, None]) @ q.decode().double().T
    codes, _ = _activations.quantize(x, byte_act.ELEMENTS[element], ordered=1)
    return byte_act.prepare(format, packed, parts, shape), codes, scale, (shape[0], shape[1] // 2), size, exact


def measure(text: str, shape: tuple[int, int], tokens: int, tried: list[Tiles]) -> Iterator[dict[str, Any]]:
    """A row for each cut that computes the right thing."""
    x = torch.randn(tokens, shape[1], device="cuda").bfloat16()
    first, given, scale, columns, size, exact = subject(text, shape, x)
    weights = [first] + [{k: t.clone() for k, t in first.items()} for _ in range(copies(size) - 1)]

    def call(prepared: Prepared, how: Tiles) -> Tensor:
        y = torch.empty(tokens, shape[0], dtype=x.dtype, device=x.device)
        _product.launch(given, prepared, y, kind_of(text), columns, scale, how)
        return y

    for how in tried:
        error = float((call(first, how).double() - exact).norm() / exact.norm())
        time = microseconds([partial(call, w, how) for w in weights], rounds=5, least=50)
        yield {"format": text, "rows": shape[0], "inputs": shape[1], "tokens": tokens, "us": round(time, 2),
               "ratio": round(time / floor(size), 2), "error": float(f"{error:.1e}"), "cut": vars(how)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--formats", default="int4-g128")
    parser.add_argument("--tokens", default="1,16,64")
    parser.add_argument("--shapes", default="4096x4096,14336x4096,4096x14336")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--dry-run", action="store_true", help="count only")
    asked = parser.parse_args()
    cases = []
    for text, shape, tokens in product(asked.formats.split(","), asked.shapes.split(","), map(int, asked.tokens.split(","))):
        rows, inputs = map(int, shape.split("x"))
        kind = kind_of(text)
        cases.append(
            (text, (rows, inputs), tokens, list(cuts(kind, tokens, rows, -(-inputs // (256 if kind.inputs else 128)))))
        )
    wanted = {
        ("linear.cu", _product.macros(kind_of(text), torch.bfloat16, how, tokens))
        for text, _, tokens, tried in cases
        for how in tried
    }
    print(f"{len(wanted)} programs, {sum(len(case[3]) for case in cases)} cuts", flush=True)
    if asked.dry_run:
        return
    compile_all(wanted, asked.workers)
    print("compiled", flush=True)
    with asked.out.open("a") as file:
        for case in cases:
            rows_ = sorted(measure(*case), key=lambda row: row["us"])
            file.writelines(json.dumps(row) + "\n" for row in rows_)
            file.flush()
            right = [row for row in rows_ if row["error"] < 0.02]
            for row in right[:3]:
                print(json.dumps(row), flush=True)
            if len(right) < len(rows_):
                print(f"{len(rows_) - len(right)} wrong", flush=True)


if __name__ == "__main__":
    main()
