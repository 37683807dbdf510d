"""_gpu_timing - what one call costs on the GPU: CUDA graphs, weights rotated past the L2 cache, medians."""

import statistics
import sys
from collections.abc import Callable, Sequence

import torch

PAST_CACHE = 250e6
"""Bytes of weights that the calls of one graph go through: four times the L2 cache of an H200."""
CALLS = 100
"""Launches in a graph at least, so that the start of the graph does not count."""
LAUNCH, RATE = 2.5, 4.66e6
"""Measured on an H200: a kernel that only reads takes 2.5 us + bytes / 4.66 TB/s."""


def copies(size: float) -> int:
    """How many weights of `size` bytes go past the cache."""
    return max(2, int(-(-PAST_CACHE // size)))


def floor(size: float) -> float:
    """Microseconds that reading `size` bytes takes in a kernel of its own."""
    return LAUNCH + size / RATE


def right(what: str, error: float, most: float) -> bool:
    """Whether a relative error is small enough for a figure; says so where it is not."""
    if not error <= most:
        print(f"{what}: wrong by {error:.1e}, nothing timed.", file=sys.stderr, flush=True)
    return error <= most


def microseconds(calls: Sequence[Callable[[], object]], rounds: int = 11, least: int = CALLS) -> float:
    """Median time of a call in a graph of all of them, as often as needed."""
    repeats = max(1, -(-least // len(calls)))
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            for call in calls:
                call()
    times = []
    for _ in range(rounds + 2):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / (repeats * len(calls)))
    return float(statistics.median(times[2:]))
