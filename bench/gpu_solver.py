"""gpu_solver - seconds to round one matrix with feedback on an NVIDIA GPU: the loop in torch, and the fused panel.

python bench/gpu_solver.py [--format int4-g128] [--shapes 4096x4096,...] [--loop]
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _rows import keep
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))
from lowbit import formats
from lowbit.formats import Grid
from lowbit.kernels import triton
from lowbit.solvers import codec, damping, ldl

SHAPES = "4096x4096,6144x4096,28672x4096,4096x14336"
"""The matrices of a block of Llama-3-8B: o; q, k, v stacked; gate, up stacked; down. Times 32 blocks."""


def fused(weight: Tensor, factor: damping.Factor, grid: Grid) -> Tensor:
    """What ldl.solve does, panel by panel through the fused kernel: the values [out, in]."""
    lower, element = factor.lower, grid.format.dtype
    if lower is None:
        return codec.round_all(weight, codec.GridCodec(grid))[1]
    x = weight.T[factor.columns].contiguous()
    errors, values = torch.empty_like(x), torch.empty_like(x)
    group = (factor.columns // (grid.format.group[1] or weight.shape[1])).int()
    scale = grid.scale.T.contiguous()
    zero = None if grid.zero is None else grid.zero.T.contiguous()
    for b in range(x.shape[0], 0, -triton.PANEL):
        a = max(b - triton.PANEL, 0)
        moved = torch.addmm(x[a:b], lower[b:, a:b].T, errors[b:])
        _, values[a:b] = triton.panel(x[a:b], moved, lower[a:b, a:b], group[a:b], scale, zero, element.minimum, element.maximum)
        torch.sub(x[a:b], values[a:b], out=errors[a:b])
    result = torch.empty_like(weight)
    result[:, factor.columns] = values.T
    return result


def seconds(call: Callable[[], object], repeats: int = 3) -> float:
    """The least of `repeats` after one to warm up."""
    call()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times)


def measure(text: str, shape: tuple[int, int], loop: bool) -> dict[str, float]:
    """Seconds of each part for one matrix."""
    out, inputs = shape
    seen = torch.randn(2 * inputs, inputs, device="cuda") * (0.1 + torch.rand(inputs, device="cuda"))
    moment = seen.T @ seen / len(seen)
    del seen
    weight = torch.randn(out, inputs, device="cuda")
    format = formats.parse(text)
    grid = format.fit(weight, search=False)
    order = damping.rounding_order(moment, "activation")
    factor = damping.factorise(moment, order, 0.01)
    found: dict[str, float] = {
        "fit_s": seconds(lambda: format.fit(weight, moment.diagonal(), search=True), 1),
        "factor_s": seconds(lambda: damping.factorise(moment, order, 0.01)),
        "fused_s": seconds(lambda: fused(weight, factor, grid)),
    }
    columns, lower = weight.T[:128].contiguous(), factor.lower[:128, :128].contiguous()  # type: ignore[index]
    group, scale = torch.zeros(128, dtype=torch.int32, device="cuda"), grid.scale.T.contiguous()
    found["panel_s"] = seconds(lambda: triton.panel(columns, columns, lower, group, scale, None, -8.0, 7.0), 5)
    found["loss"] = ldl.loss(weight - fused(weight, factor, grid), moment)
    if loop:
        found["loop_s"] = seconds(lambda: ldl.solve(weight, factor, codec.GridCodec(grid)), 1)
        found["loop_loss"] = ldl.loss(weight - ldl.solve(weight, factor, codec.GridCodec(grid))[1], moment)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--format", default="int4-g128")
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--loop", action="store_true", help="measure the loop in torch too")
    wanted = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu_solver needs an NVIDIA GPU: nothing measured.")
        return
    for name in wanted.shapes.split(","):
        out, inputs = (int(n) for n in name.split("x"))
        keep("gpu_solver", format=wanted.format, rows=out, inputs=inputs, **measure(wanted.format, (out, inputs), wanted.loop))


if __name__ == "__main__":
    main()
