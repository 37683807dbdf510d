"""trellis_codes - every trellis code at every rate: distortion on N(0, 1), time to encode, time to decode.

The data are shuffled quantiles of the normal distribution, the same for all codes: the figures scatter by about 0.3 percent
with 64 tiles. Each code is tried at three sizes of the data and the best is kept. `gap_db` is the distance to the bound
4**-bits. Times are those of this process alone (processor time, one thread), so that busy neighbours count little.

    python bench/trellis_codes.py [--tiles 32] [--only trellis mcg] [--rates 2 3 4] [--warm 96]

With --table nothing is measured: the kept rows, those of bench/gpu_viterbi.py beside them, are printed as one table.
With --lengths the code of trellis2 .. trellis4 is run with states of other lengths, instead: distortion against time.
"""

import argparse
import json
import math
import time

import torch
from _rows import RESULTS, keep
from torch import Tensor

from lowbit import dtypes
from lowbit.dtypes import _viterbi
from lowbit.dtypes._mul1 import mul1
from lowbit.dtypes._trellis import Trellis
from lowbit.kernels.encoding import encode

FAMILIES = {
    "trellis": 8,
    "trellis_pair": 4,
    "mcg": 4,
    "three_inst": 4,
    "one_mad": 4,
    "trellis_int": 4,
    "hyb": 4,
    "trellis_short": 4,
}
HALVES = (1.5, 2.5, 3.5)
SIZES = {1: 1.1, 1.5: 1.05, 2: 1.0, 2.5: 0.97, 3: 0.95, 3.5: 0.92, 4: 0.9, 5: 0.85, 6: 0.8, 7: 0.75, 8: 0.72}


def quantiles(tiles: int) -> Tensor:
    """A matrix [16, 16 tiles] of shuffled quantiles of N(0, 1)."""
    number = 256 * tiles
    order = torch.randperm(number, generator=torch.Generator().manual_seed(0)).double()
    found: Tensor = torch.special.ndtri((order + 0.5) / number)
    return found.float().view(16, -1)


def distortion(element: Trellis, x: Tensor, size: float) -> float:
    """Mean squared error over the variance, for data of `size` times the size of the code."""
    scale = size * element.rms
    values = element.decode(encode(element, x * scale))
    return ((values / scale - x).square().mean() / x.square().mean()).item()


def encode_time(element: Trellis, x: Tensor) -> float:
    """Microseconds a weight, by what solvers call."""
    start = time.process_time()
    encode(element, x * element.rms)
    return (time.process_time() - start) / x.numel() * 1e6


def decode_time(element: Trellis) -> float:
    """Nanoseconds a weight of a matrix 1024 x 1024: the best of five."""
    codes = torch.randint(element.codes, (64, 1024 * 16 // element.width)).to(torch.uint8)
    times = []
    for _ in range(5):
        start = time.process_time()
        element.decode(codes)
        times.append(time.process_time() - start)
    return min(times) / 2**20 * 1e9


def measure(element: Trellis, bits: float, x: Tensor) -> None:
    """One row."""
    encode(element, x[:, :16])
    errors = {size: distortion(element, x, size) for size in (SIZES[bits] * 0.95, SIZES[bits], SIZES[bits] * 1.05)}
    size, error = min(errors.items(), key=lambda pair: pair[1])
    keep(
        "trellis_codes",
        code=element.name,
        bits=bits,
        length=element.length,
        tiles=x.shape[1] // 16,
        warm=_viterbi.WARM,
        distortion=float(f"{error:.4g}"),
        gap_db=round(10 * math.log10(error * 4**bits), 3),
        size=round(size, 3),
        encode_us=round(encode_time(element, x), 2),
        decode_ns=round(decode_time(element), 2),
    )


def table() -> None:
    """All codes: distortion, gap to the bound, time on the CPU to find and to decode, weights a second found on the GPU."""
    rows = [json.loads(line) for line in (RESULTS / "trellis_codes.jsonl").read_text(encoding="utf-8").splitlines()]
    gpu = {}
    for line in (RESULTS / "gpu_viterbi.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        gpu[row["element"]] = (row["weights_per_second"], row["machine"].partition(" +")[0].removeprefix("NVIDIA "))
    name = next(iter(gpu.values()))[1]
    print(f"| code | bits | distortion | dB above 4^-bits | CPU, find: us | CPU, decode: ns | {name}, find: million a second |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    found = {(row["code"], row["bits"], row["length"]): row for row in rows}
    for (code, bits, _), row in sorted(found.items(), key=lambda item: (item[0][1], item[1]["distortion"])):
        fast = f"{gpu[code][0] / 1e6:.0f}" if code in gpu else ""
        told = f"{row['distortion']:.4g} | {row['gap_db']:.2f} | {row['encode_us']:.1f} | {row['decode_ns']:.1f} | {fast}"
        print(f"| {code} | {bits:g} | {told} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tiles", type=int, default=32)
    parser.add_argument("--only", nargs="*", default=list(FAMILIES))
    parser.add_argument("--rates", nargs="*", type=float, default=list(SIZES))
    parser.add_argument("--warm", type=int, default=_viterbi.WARM)
    parser.add_argument("--lengths", nargs="*", type=int, default=[])
    parser.add_argument("--table", action="store_true")
    asked = parser.parse_args()
    if asked.table:
        return table()
    torch.set_num_threads(1)
    _viterbi.WARM = asked.warm
    x = quantiles(asked.tiles)
    for length in asked.lengths:
        for bits in (2, 3, 4):
            measure(Trellis(f"mul1-L{length}", bits, mul1, length=length), bits, x)
    for family in [] if asked.lengths else asked.only:
        rates = [*range(1, FAMILIES[family] + 1), *(HALVES if family == "trellis" else ())]
        for bits in sorted(set(rates) & set(asked.rates)):
            element = dtypes.get(f"{family}{bits:g}")
            if isinstance(element, Trellis):
                measure(element, bits, x)


if __name__ == "__main__":
    main()
