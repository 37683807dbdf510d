"""gpu_roofline - the picture of the kernels against the time of reading their bytes, from the rows of the other GPU benchmarks.

    python bench/gpu_roofline.py      writes docs/pictures/gpu_roofline.png from bench/results/gpu_{linear,cuts,attention}.jsonl

Left: products with one matrix at 1, 16 and 64 tokens beside the rivals of the same run. Right: attention of one new token.
The line is 2.5 us + bytes / 4.66 TB/s, what a kernel that only reads takes on an H200.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
from _gpu_timing import floor

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

ROOT = Path(__file__).parent.parent
NAMES = {"cublas": "cuBLAS bfloat16", "tinygemm": "torch int4pack", "gemlite": "GemLite int4"}
BITS = {"int2-g128": 2.125, "int3-g128": 3.125, "int4-g128": 4.125, "bytes-int8": 8, "bytes-e4m3": 8}
MARKS = {1: "o", 16: "s", 64: "^"}
SUBJECT = ("kernel", "format", "rows", "inputs", "tokens", "kind", "sequences")
Point = tuple[str, int, float, float]


def rows(name: str) -> Iterator[dict[str, Any]]:
    """Of each subject the newest row."""
    found = map(json.loads, (ROOT / "bench" / "results" / f"{name}.jsonl").read_text().splitlines())
    yield from {tuple(row.get(key) for key in SUBJECT): row for row in found}.values()


def products() -> list[Point]:
    """Name, tokens, megabytes, microseconds."""
    found = []
    for row in rows("gpu_cuts"):
        told = row["format"].removeprefix("bytes-").replace("-g128", "")
        name = f"ours {told} x {told}" if row["format"].startswith("bytes-") else f"ours {told}"
        found.append((name, row["tokens"], row["rows"] * row["inputs"] * BITS[row["format"]] / 8e6, row["us"]))
    for row in rows("gpu_linear"):
        if row["kernel"] in NAMES and row["format"] == "int4-g128" and row["tokens"] in MARKS:
            bits = 16 if row["kernel"] == "cublas" else 4.125
            found.append((NAMES[row["kernel"]], row["tokens"], row["rows"] * row["inputs"] * bits / 8e6, row["us"]))
    return found


def line(axes: Axes, low: float, high: float) -> None:
    sizes = [low * (high / low) ** (i / 50) for i in range(51)]
    axes.plot(sizes, [floor(size * 1e6) for size in sizes], color="black", linewidth=1, label="reading the bytes")
    axes.set(xscale="log", yscale="log", xlabel="MB of weights, or of keys and values", ylabel="microseconds")
    axes.grid(True, which="both", linewidth=0.3)


def draw() -> None:
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    line(left, 4, 130)
    points = products()
    for index, name in enumerate(dict.fromkeys(point[0] for point in points)):
        for tokens, mark in MARKS.items():
            own = [(size, time) for n, m, size, time in points if n == name and m == tokens]
            told = name if tokens == 1 else None
            left.scatter(*zip(*own, strict=True), s=22, marker=mark, color=f"C{index}", label=told) if own else None
    left.set_title("One matrix on an H200 (circle 1, square 16, triangle 64 tokens)")
    left.legend(fontsize=8)
    line(right, 100, 1200)
    for row in rows("gpu_attention"):
        size = (row["floor_us"] - floor(0)) * 4.66
        right.scatter([size], [row["us"]], s=30)
        below = row["kind"] == "fp8"  # beside int8
        right.annotate(
            row["kind"], (size, row["us"]), textcoords="offset points", xytext=(-6, -10 if below else 4), ha="right", fontsize=8
        )
    right.set_title("One new token, 8 sequences of 32768, 32 heads on 8")
    right.legend(fontsize=8)
    figure.savefig(ROOT / "docs" / "pictures" / "gpu_roofline.png", dpi=130)


if __name__ == "__main__":
    draw()
