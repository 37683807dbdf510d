"""gpu_roofline - the picture of the kernels against the time of reading their bytes, from the rows of the other GPU benchmarks.

    python bench/gpu_roofline.py      writes docs/pictures/gpu_roofline.png from the rows in bench/results

Left: products with one matrix at 1, 16 and 64 tokens beside the rivals (gpu_linear, gpu_bytes, gpu_cuts' best); of each the
newest row. Right: attention of one new token (gpu_attention).
The line is 2.5 us + bytes / 4.66 TB/s, what a kernel that only reads takes on an H200.
"""

from pathlib import Path

import matplotlib
from _bars import Row, kept, newest
from _gpu_timing import floor

from lowbit import formats

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

ROOT = Path(__file__).parent.parent
NAMES = {
    "cublas": "cuBLAS bfloat16", "tinygemm": "torch int4pack", "gemlite": "GemLite int4", "marlin": "Marlin int4",
    "machete": "Machete int4", "exllamav3": "exllamav3 trellis2", "bitsandbytes": "bitsandbytes nf4",
}  # fmt: skip
OURS = ("int2-g128", "int3-g128", "int4-g128", "nf4-g64", "trellis2-plain")
MARKS = {1: "o", 16: "s", 64: "^"}
Point = tuple[str, int, float, float]


def subject(row: Row) -> tuple[str, float] | None:
    """What a row is called in the picture, and the bits of its weights; None: it has no place there."""
    text, kernel = row.get("format", ""), row.get("kernel", "ours")
    if text.startswith("bytes-") or kernel == "ours without rounding":
        element = row.get("element", text.removeprefix("bytes-"))
        return f"ours {element} x 8", 4.125 if element == "int4" else 8.0
    if kernel in NAMES:
        return NAMES[kernel], 16.0 if kernel == "cublas" else formats.parse(text).bits_per_weight((row["rows"], row["inputs"]))
    if kernel == "ours" and text in OURS:
        return f"ours {text.split('-')[0]}", formats.parse(text).bits_per_weight((row["rows"], row["inputs"]))
    return None


def products() -> list[Point]:
    """Name, tokens, megabytes, microseconds."""
    found: dict[tuple[str, int, int, int], Point] = {}
    rows = [*kept("gpu_linear"), *kept("gpu_cuts"), *kept("gpu_bytes")]
    for row in sorted((row for row in rows if row["tokens"] in MARKS), key=lambda row: row["date"]):
        told, shape = subject(row), (row["rows"], row["inputs"])
        if told:
            name, bits = told
            found[name, row["tokens"], *shape] = (name, row["tokens"], shape[0] * shape[1] * bits / 8e6, row["us"])
    return list(found.values())


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
    for row in newest(kept("gpu_attention")):
        if row["tokens"] != 32768:
            continue
        read = (row["floor_us"] - floor(0)) * 4.66
        right.scatter([read], [row["us"]], s=30)
        below = row["kind"] == "fp8"  # beside int8
        right.annotate(
            row["kind"], (read, row["us"]), textcoords="offset points", xytext=(-6, -10 if below else 4), ha="right", fontsize=8
        )
    right.set_title("One new token, 8 sequences of 32768, 32 heads on 8")
    right.legend(fontsize=8)
    figure.savefig(ROOT / "docs" / "pictures" / "gpu_roofline.png", dpi=130)


if __name__ == "__main__":
    draw()
