"""w8a8_cpu - a layer of int8 weights and int8 inputs against nn.Linear in float32 and bfloat16, on a CPU.

    python bench/w8a8_cpu.py [--threads=1] [--turns=15]

The whole layer is timed, rounding of x and both scales included; the three take turns, the least time of each counts: that of
the processor for one thread, which other work on the machine hardly touches, else that of the clock. A ratio above 1 means
that the integers are faster than that rival.
"""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from _rows import keep
from torch import Tensor, nn

from lowbit import formats
from lowbit.kernels import activation
from lowbit.layers.linear import QuantizedLinear

SHAPES = ((4096, 4096), (1024, 4096))
TOKENS = (1, 16, 128, 512)


def layers(shape: tuple[int, int]) -> dict[str, tuple[nn.Module, torch.dtype]]:
    """The rivals and, for float32 and bfloat16 inputs, the integer layer."""
    out, inputs = shape
    weight = torch.randn(out, inputs)
    quantized = formats.parse("int8-row").fit(weight, search=False).quantize(weight)
    found: dict[str, tuple[nn.Module, torch.dtype]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        found[name] = nn.Linear(inputs, out, bias=False, dtype=dtype), dtype
        layer = QuantizedLinear.from_quantized(quantized, dtype=dtype)
        layer.activation = activation.parse("int8-token")
        found[f"w8a8 of {name}"] = layer.prepare(), dtype
    return found


def least(calls: Mapping[str, Callable[[], Tensor]], turns: int) -> dict[str, float]:
    """Milliseconds of each call, the least of all turns."""
    taken: dict[str, float] = {}
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    for turn in range(turns + 2):
        for name, call in calls.items():
            start = clock()
            call()
            if turn >= 2:
                taken[name] = min(taken.get(name, float("inf")), (clock() - start) * 1e3)
    return taken


@torch.no_grad()
def main() -> None:
    options = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
    threads = int(options.get("threads", 1))
    torch.set_num_threads(threads)
    for shape in SHAPES:
        found = layers(shape)
        for tokens in TOKENS:
            x = torch.randn(tokens, shape[1])
            calls = {n: partial(m, x.to(d)) for n, (m, d) in found.items()}
            taken = least(calls, int(options.get("turns", 15)))
            ratios = {f"{n}_ratio": round(taken[n] / taken[f"w8a8 of {n}"], 2) for n in ("fp32", "bf16")}
            told: dict[str, object] = {name.replace(" ", "_"): round(ms, 3) for name, ms in taken.items()}
            told["kernel"] = found["w8a8 of fp32"][0].kernel
            keep("w8a8_cpu", shape=list(shape), tokens=tokens, threads=threads, **told, **ratios)


if __name__ == "__main__":
    main()
