"""gpu_roofline - the picture of the kernels against the time of reading their bytes, from the rows of the other GPU benchmarks.

    python bench/gpu_roofline.py      writes docs/pictures/gpu_roofline.png from the rows in bench/results

Products with one matrix at 1, 16 and 64 tokens, ours filled and rivals open (gpu_linear, gpu_bytes, gpu_cuts' best); of each
the newest row. Below on the right attention of one new token (gpu_attention).
The line is 2.5 us + bytes / 4.66 TB/s, what a kernel that only reads takes on an H200.
"""

from pathlib import Path
from typing import Any

import matplotlib
from _bars import Row, kept, newest
from _gpu_timing import floor

from lowbit import formats
from lowbit.report import pictures

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

ROOT = Path(__file__).parent.parent
NAMES = {
    "cublas": "cuBLAS bfloat16", "tinygemm": "torch int4pack", "gemlite": "GemLite int4", "marlin": "Marlin int4",
    "machete": "Machete int4", "exllamav3": "exllamav3 trellis2", "bitsandbytes": "bitsandbytes nf4",
}  # fmt: skip
OURS = ("int2-g128", "int3-g128", "int4-g128", "nf4-g64", "trellis2-plain")
TOKENS = (1, 16, 64)
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
    for row in sorted((row for row in rows if row["tokens"] in TOKENS), key=lambda row: row["date"]):
        told, shape = subject(row), (row["rows"], row["inputs"])
        if told:
            name, bits = told
            found[name, row["tokens"], *shape] = (name, row["tokens"], shape[0] * shape[1] * bits / 8e6, row["us"])
    return list(found.values())


def line(axes: Axes, low: float, high: float, title: str) -> None:
    sizes = [low * (high / low) ** (i / 50) for i in range(51)]
    axes.plot(sizes, [floor(size * 1e6) for size in sizes], color="black", linewidth=1, label="reading the bytes")
    axes.set(xscale="log", yscale="log", xlabel="MB of weights, or of keys and values", ylabel="microseconds", title=title)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", linewidth=0.5)


def matrices(axes: Axes, tokens: int, colours: dict[str, Any]) -> None:
    """Products of so many tokens: ours filled, rivals open."""
    line(axes, 4, 130, f"One matrix, {tokens} token{'s' * (tokens > 1)}")
    for name, colour in colours.items():
        own = [(size, time) for n, m, size, time in products() if n == name and m == tokens]
        inside = colour if name.startswith("ours") else "none"
        mark = "o" if name.startswith("ours") else "D"
        axes.scatter(
            [x for x, _ in own], [y for _, y in own], s=34, marker=mark, facecolors=inside, edgecolors=colour, label=name
        )


def attention(axes: Axes) -> None:
    line(axes, 100, 1200, "Attention of a new token, 8 sequences of 32768, 32 heads on 8")
    rows = [row for row in newest(kept("gpu_attention")) if row["tokens"] == 32768]
    for row in rows:
        read, ours = (row["floor_us"] - floor(0)) * 4.66, " " not in row["kind"]
        axes.scatter(
            [read], [row["us"]], s=34, marker="o" if ours else "D", facecolors="C0" if ours else "none", edgecolors="C0"
        )
    plain = [row for row in rows if row["kind"].endswith("bf16")]
    told = [(row["kind"], row) for row in rows if row not in plain]
    told += [(", ".join(row["kind"].removesuffix(" bf16") for row in plain) + ": bf16", plain[0])] if plain else []
    for name, row in told:
        right = name == "int8"  # beside fp8
        place, away = ((row["floor_us"] - floor(0)) * 4.66, row["us"]), (8, -4) if right else (-8, -4)
        axes.annotate(name, place, textcoords="offset points", xytext=away, ha="left" if right else "right", fontsize=9)


def draw() -> None:
    with pyplot.rc_context(pictures.STYLE):
        figure, places = pyplot.subplots(2, 2, figsize=(12, 9), layout="constrained")
        names = sorted({point[0] for point in products()}, key=lambda name: (not name.startswith("ours"), name))
        colours = {name: pyplot.get_cmap("tab20")(2 * i % 20 + 2 * i // 20) for i, name in enumerate(names)}
        for axes, tokens in zip(places.flat, TOKENS, strict=False):
            matrices(axes, tokens, colours)
        attention(places[1, 1])
        figure.legend(*places[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
        figure.savefig(ROOT / "docs" / "pictures" / "gpu_roofline.png", dpi=110)


if __name__ == "__main__":
    draw()
