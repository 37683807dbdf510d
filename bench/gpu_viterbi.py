"""gpu_viterbi - weights a second that the search of trellis codes encodes on this GPU.

    python bench/gpu_viterbi.py [--rows 1024] [--inputs 2048] [--names trellis2,...]

Codes whose distortion is above 1.5 times the bound of their rate R, 4 ** -R, are wrong and get no row.
"""

import argparse
import time

import torch
from _gpu_timing import right
from _rows import keep

from lowbit import dtypes
from lowbit.kernels.encoding import encode

NAMES = (
    "trellis2", "trellis3", "trellis4", "trellis1.5", "trellis2.5", "trellis3.5", "trellis_pair2", "trellis_short2",
    "trellis_short3", "trellis_short4", "mcg2", "three_inst2", "one_mad2", "trellis_int2", "hyb2",
)  # fmt: skip


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
        encode(element, x[:16, :256])
        torch.cuda.synchronize()
        start = time.perf_counter()
        codes = encode(element, x)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        distortion = float((element.decode(codes) - x).square().mean() / x.square().mean())
        if right(name, distortion * 4 ** (element.bits / getattr(element, "width", 1)), 1.5):
            keep("gpu_viterbi", element=name, weights_per_second=round(x.numel() / seconds), distortion=round(distortion, 5))


if __name__ == "__main__":
    main()
