"""gpu_linear - packed linear layers on an NVIDIA GPU beside the rivals: microseconds, and times the floor of reading the bytes.

    python bench/gpu_linear.py [--formats int4-g128,...] [--tokens 1,16,64] [--only ours,cublas,...] [--shapes 4096x4096,...]

Every product is checked first: its relative error against float64 stands in its row; above 2 % there is no row.
Rivals (_gpu_rivals.py) whose package is not installed are left out with a word.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import _matrices
import torch
from _gpu_rivals import FAILURES, RIVALS, Subject
from _gpu_timing import copies, floor, microseconds, right
from _rows import keep
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
from lowbit.formats import Quantized
from lowbit.kernels import dispatch, packing

SHAPES = "4096x4096,14336x4096,4096x14336"
FEW = 12
"""Calls in a graph when a call is long (many tokens)."""


def lowbit_kernel(name: str, q: Quantized, count: int) -> Subject:
    """One of our kernels, called as layers call it."""
    packed, parts = packing.split(q.format, packing.pack(q), q.shape)
    kernel = dispatch.get(name)
    reason = kernel.supports(q.format, q.shape, q.codes.device, torch.bfloat16, 1)
    if reason:
        raise ValueError(reason)
    first = kernel.prepare(q.format, packed, parts, q.shape)
    weights = [first] + [{k: t.clone() for k, t in first.items()} for _ in range(count - 1)]

    def call(x: Tensor, held: dict[str, Tensor]) -> Tensor:
        y: Tensor = kernel.linear(x, held, q.format, q.shape)
        return y

    return Subject([partial(call, held=w) for w in weights])


def ours(q: Quantized, count: int) -> Subject:
    return lowbit_kernel(dispatch.pick(q.format, q.shape, q.codes.device, torch.bfloat16), q, count)


def triton(q: Quantized, count: int) -> Subject:
    return lowbit_kernel("triton.linear", q, count)


CONTENDERS: dict[str, Callable[[Quantized, int], Subject]] = {"ours": ours, "triton": triton, **RIVALS}


def measure(text: str, shape: tuple[int, int], tokens: list[int], names: list[str]) -> Iterator[dict[str, object]]:
    """One row per contender and number of tokens."""
    q = _matrices.quantized(text, torch.randn(shape, device="cuda"))
    exact, size = q.decode().double(), shape[0] * shape[1] * q.format.bits_per_weight(shape) / 8
    for name in names:
        try:
            subject = CONTENDERS[name](q, copies(size))
        except FAILURES as reason:
            print(f"{name} {text}: left out, {reason}", file=sys.stderr)
            continue
        matrix = exact if subject.weight is None else subject.weight.double()
        for m in tokens:
            x = torch.randn(m, shape[1], device="cuda", dtype=subject.dtype)
            try:
                y, wanted = subject.calls[0](x), x.double() @ matrix.T
                error = float((y.double() - wanted).norm() / wanted.norm())
                if not right(f"{name} {text} {shape} {m}", error, 0.02):
                    continue
                time = microseconds([partial(c, x) for c in subject.calls], least=100 if m <= 64 else FEW)
            except FAILURES as failure:
                print(f"{name} {text} {shape} {m}: {failure}"[:300], file=sys.stderr)
                continue
            bound = floor(size)
            yield {"kernel": name, "format": text, "rows": shape[0], "inputs": shape[1], "tokens": m, "us": round(time, 2),
                   "floor_us": round(bound, 2), "ratio": round(time / bound, 2), "error": float(f"{error:.2e}")}  # fmt: skip
        del subject
        torch.cuda.empty_cache()


def table(rows: list[dict[str, object]]) -> None:
    """Microseconds and, in brackets, times the floor: a line per format, shape and tokens, a column per contender."""
    names = list(dict.fromkeys(row["kernel"] for row in rows))
    print(f"{'format':16}{'rows x inputs':15}{'tokens':>7}{'floor':>8}" + "".join(f"{name:>16}" for name in names))
    cells = {(row["format"], row["rows"], row["inputs"], row["tokens"], row["kernel"]): row for row in rows}
    for text, out, inputs, m in dict.fromkeys((r["format"], r["rows"], r["inputs"], r["tokens"]) for r in rows):
        found = [cells.get((text, out, inputs, m, name)) for name in names]
        bound = next(row["floor_us"] for row in found if row)
        line = "".join(f"{row['us']:>9} ({row['ratio']})".rjust(16) if row else " " * 16 for row in found)
        print(f"{text!s:16}{f'{out}x{inputs}':15}{m!s:>7}{bound!s:>8}{line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--formats", default="int4-g128")
    parser.add_argument("--tokens", default="1,16,64,512")
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--only", default=",".join(CONTENDERS))
    wanted = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_linear needs an NVIDIA GPU: nothing measured.")
        return
    tokens, rows = [int(m) for m in wanted.tokens.split(",")], []
    for text in wanted.formats.split(","):
        for shape in wanted.shapes.split(","):
            out, inputs = shape.split("x")
            rows += [
                keep("gpu_linear", **row) for row in measure(text, (int(out), int(inputs)), tokens, wanted.only.split(","))
            ]
    table(rows)


if __name__ == "__main__":
    main()
