"""gpu_viterbi - weights a second that the search of trellis codes encodes on this GPU.

    python bench/gpu_viterbi.py [--rows 1024] [--inputs 2048] [--names trellis2,...]

Median of ROUNDS calls after one of the same size, which takes the memory; beside it the rate of the kernels alone, by torch's
profiler. Codes whose distortion is above 1.5 times the bound of their rate R, 4 ** -R, are wrong and get no row.
"""

import argparse
import statistics
import time

import torch
from _gpu_timing import right
from _rows import keep
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from lowbit import dtypes
from lowbit.dtypes import Element
from lowbit.kernels.encoding import encode

NAMES = (
    "trellis2", "trellis3", "trellis4", "trellis1.5", "trellis2.5", "trellis3.5", "trellis_pair2", "trellis_short2",
    "trellis_short3", "trellis_short4", "mcg2", "three_inst2", "one_mad2", "trellis_int2", "hyb2",
)  # fmt: skip
ROUNDS = 3


def seconds(element: Element, x: Tensor) -> float:
    """The median of ROUNDS calls."""
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        encode(element, x)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def alone(element: Element, x: Tensor) -> float:
    """Seconds of the two kernels of viterbi.cu in a call; 0 where another search is taken."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        encode(element, x)
        torch.cuda.synchronize()
    own = [event for event in found.events() if event.name in {"forward", "backward"}]
    return float(sum(event.device_time for event in own)) * 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--inputs", type=int, default=2048)
    parser.add_argument("--names", default=",".join(NAMES))
    asked = parser.parse_args()
    plain = torch.randn(asked.rows, asked.inputs, device="cuda")
    for name in asked.names.split(","):
        element = dtypes.get(name)
        x = plain * getattr(element, "rms", 1.0)  # codes of whole numbers are not of size 1
        codes = encode(element, x)
        taken, kernels = seconds(element, x), alone(element, x)
        distortion = float((element.decode(codes) - x).square().mean() / x.square().mean())
        if right(name, distortion * 4 ** (element.bits / getattr(element, "width", 1)), 1.5):
            keep("gpu_viterbi", element=name, weights_per_second=round(x.numel() / taken),
                 of_kernels_alone=round(x.numel() / kernels) if kernels else None, distortion=round(distortion, 5))  # fmt: skip


if __name__ == "__main__":
    main()
