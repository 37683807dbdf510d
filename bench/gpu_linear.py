"""gpu_linear - packed linear layers on an NVIDIA GPU beside the rivals: microseconds, and times the floor of reading the bytes.

    python bench/gpu_linear.py [--formats int4-g128,...] [--tokens 1,16,64] [--only ours,cublas,...] [--shapes 4096x4096,...]

Every figure is checked first: the relative error of each product against float64 stands in its row.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from _gpu_timing import copies, floor, microseconds
from _rows import keep
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
from lowbit import formats
from lowbit.formats import Quantized
from lowbit.kernels import dispatch, packing

Calls = list[Callable[[Tensor], Tensor]]
SHAPES = "4096x4096,14336x4096,4096x14336"
FEW = 12
"""Calls in a graph when a call is long (many tokens)."""


def lowbit_kernel(name: str, q: Quantized, count: int) -> Calls:
    """One of our kernels, called as layers call it."""
    packed, parts = packing.split(q.format, packing.pack(q), q.shape)
    kernel = dispatch.get(name)
    first = kernel.prepare(q.format, packed, parts, q.shape)
    weights = [first] + [{k: t.clone() for k, t in first.items()} for _ in range(count - 1)]

    def call(x: Tensor, held: dict[str, Tensor]) -> Tensor:
        y: Tensor = kernel.linear(x, held, q.format, q.shape)
        return y

    return [partial(call, held=w) for w in weights]


def ours(q: Quantized, count: int) -> Calls:
    return lowbit_kernel("cuda.linear", q, count)


def triton(q: Quantized, count: int) -> Calls:
    return lowbit_kernel("triton.linear", q, count)


def cublas(q: Quantized, count: int) -> Calls:
    """bfloat16 weights and the vendor's product."""
    dense = q.decode().bfloat16()
    weights = [dense.clone() for _ in range(copies(2 * dense.numel()))]
    return [partial(torch.nn.functional.linear, weight=w) for w in weights]


def tinygemm(q: Quantized, count: int) -> Calls:
    """torch._weight_int4pack_mm: 4 bits, groups of 32 to 256, bfloat16."""
    if q.format.dtype.bits != 4 or q.format.group[1] not in {32, 64, 128, 256} or q.format.zero:
        return []
    scale = q.grid.scale.bfloat16()
    pairs = torch.stack([scale, torch.zeros_like(scale)], -1).transpose(0, 1).contiguous()
    codes = (q.codes[:, ::2] << 4) | q.codes[:, 1::2]
    weights = [torch._convert_weight_to_int4pack(codes, 8) for _ in range(count)]

    def call(x: Tensor, held: Tensor) -> Tensor:
        return torch._weight_int4pack_mm(x, held, q.format.group[1], pairs)

    return [partial(call, held=w) for w in weights]


def gemlite(q: Quantized, count: int) -> Calls:
    """GemLite's Triton kernels with its tuned configurations for the H100, float16."""
    try:
        import gemlite as rival
    except ImportError:
        return []
    if q.format.dtype.bits not in {2, 4, 8} or not q.format.group[1]:
        return []
    rival.load_config(str(Path(rival.__file__).parent / "configs" / "h100.json"))
    rows, inputs = q.shape
    bits, half = int(q.format.dtype.bits), rival.DType.FP16
    zeros = torch.full_like(q.grid.scale, float(1 << (bits - 1))) if q.grid.zero is None else q.parts["zero"].float()
    layers = []
    for _ in range(count):
        layer = rival.GemLiteLinear(bits, q.format.group[1], inputs, rows, input_dtype=half, output_dtype=half)
        layer.pack(q.codes, q.grid.scale.half(), zeros.half(), None)
        layers.append(layer)
    return [partial(_gemlite, layer) for layer in layers]


def _gemlite(layer, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    """The path that GemLite takes by itself, but for 64 tokens, where it has no tuned configuration."""
    kind = "GEMV_REVSPLITK" if x.shape[0] == 1 else "GEMM_SPLITK" if x.shape[0] <= 64 else "GEMM"
    y: Tensor = layer.forward_manual(x, kind)
    return y


CONTENDERS: dict[str, Callable[[Quantized, int], Calls]] = {
    "ours": ours, "triton": triton, "cublas": cublas, "tinygemm": tinygemm, "gemlite": gemlite,
}  # fmt: skip


def measure(text: str, shape: tuple[int, int], tokens: list[int], names: list[str]) -> Iterator[dict[str, object]]:
    """One row per contender and number of tokens."""
    format = formats.parse(text)
    weight = torch.randn(shape, device="cuda")
    q = format.fit(weight, search=False).quantize(weight)
    exact, size = q.decode().double(), weight.numel() * format.bits_per_weight(shape) / 8
    del weight
    for name in names:
        calls = CONTENDERS[name](q, copies(size))
        for m in tokens if calls else []:
            x = torch.randn(m, shape[1], device="cuda", dtype=torch.float16 if name == "gemlite" else torch.bfloat16)
            try:
                y, wanted = calls[0](x), x.double() @ exact.T
                error = float((y.double() - wanted).norm() / wanted.norm())
                least = 100 if m <= 64 else FEW
                time = microseconds([partial(c, x) for c in calls], least=least) if error < 0.02 else float("nan")
            except (RuntimeError, ValueError) as failure:
                print(f"{name} {text} {shape} {m}: {failure}"[:300], file=sys.stderr)
                continue
            bound = floor(size)
            yield {"kernel": name, "format": text, "rows": shape[0], "inputs": shape[1], "tokens": m, "us": round(time, 2),
                   "floor_us": round(bound, 2), "ratio": round(time / bound, 2), "error": float(f"{error:.2e}")}  # fmt: skip
        del calls
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
