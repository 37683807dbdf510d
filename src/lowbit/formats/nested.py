"""nested - codes whose top bits are codes of their own: one file that is read at 2 bits, at 8, and at all between.

In / Out  W [out, in] -> parts {"scale" [out, G] 16-bit, a step of the 4-bit grid; "shares" float32 [7, 2], for rates 2 .. 8};
          code u of r bits: p its top 4 bits as a signed number, l the f = r - 4 bits below,
              value = scale * ((p + 1/2) a + ((l + 1/2) / 2^f - 1/2) REACH b),   a, b = shares[r - 2];
          below 5 bits p has r bits, a step is 2^(4 - r) scales, and there is no l.
          A file of `nested8` read at r bits has the codes u >> (8 - r). Above 4 it is `nested<r>`, the parts as they are; up to
          4 plain integers with a zero between two codes, int<r>-g128-floatzero of scale 2^(4 - r) a scales; their kernels run.
Idea      Rounding with feedback moves weights out of the cell that they lie in, and finer bits could not bring them back if
          they filled that cell alone: they reach REACH cells wide. That costs log2 REACH = 0.5 bits of the finest rate and lets
          the 4-bit codes be nearly those of a 4-bit file (methods/nested.py). Nothing clips; a and b are best factors of a
          rate.
Source    Prefix codes: Any-Precision LLM (2402.10517), MatQuant (2502.06786). Overlapping cells: lowbit's own.
Figures   r + 16 / n bits a weight in groups of n; read at 2 to 4 bits r + 32 / n in memory.
Traps     Nearest values at 8 bits take either of two prefixes where cells overlap: rtn(nested8-g128) is poor at 4 bits.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.formats import Format, Grid, Parts, Quantized, _words
from lowbit.formats import _search as searching
from lowbit.formats import parse as parse_format
from lowbit.formats._scales import load, store

EXAMPLES = ("nested8-g128", "nested4-g128", "nested6-g64")
LEAST, MOST, BASE = 2, 8, 4
REACH = 1.4
"""Width of the finer bits, in cells of the 4-bit grid."""


def parse(number: str, words: list[str]) -> Format:
    """The format nested{number} with its words."""
    text = "-".join([f"nested{number}", *words])
    found = _words.read(text, words, only=("group",))
    if number not in {str(rate) for rate in range(LEAST, MOST + 1)} or found.get("group", (1, 0))[0] != 1:
        raise FormatError(f"{text}: nested codes have 2 to 8 bits and a scale for a group of one row. Use nested8-g128.")
    return Format(element=f"uint{number}", group=found.get("group", (1, 128)), rule="nested", zero="float", text=text)


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the scales of `weight`, factors of 1; see lowbit.formats. There is nothing to search."""
    size = searching.grouped(format, weight).abs().amax(-1) / (1 << BASE - 1)
    shares = torch.ones(MOST - LEAST + 1, 2, device=weight.device)
    return {"scale": store(size, "half"), "shares": shares}


def pieces(codes: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """Of codes of `rate` bits: the middle of the cell, and how far from there the finer bits reach; in scales, float32."""
    fine = max(rate - BASE, 0)
    whole = (codes >> fine).float() - (1 << rate - fine - 1) + 0.5
    rest = ((codes & (1 << fine) - 1).float() + 0.5) / (1 << fine) - 0.5
    return whole * (1 << BASE - rate + fine), rest * REACH


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale [out, G] of the 4-bit grid; what codes mean is `decode`'s."""
    return load(parts["scale"], "half"), None


def part_bits(format: Format, shape: tuple[int, int]) -> int:
    return 16 * math.prod(format.groups(shape)) + 64 * (MOST - LEAST + 1)


def narrow(quantized: Quantized, bits: int) -> Quantized:
    """The same matrix read at `bits`: of a nested format above 4 bits, of plain integers to 4, their scales in 16 bits."""
    format, rate = quantized.format, int(quantized.format.dtype.bits)
    if not LEAST <= bits <= rate:
        raise FormatError(f"bits={bits}: {format} is read at {LEAST} to {rate} bits. Use one of these.")
    words, codes, parts = format.text.split("-")[1:] or ["g128"], quantized.codes >> rate - bits, quantized.parts
    if bits > BASE:
        found = replace(format, element=f"uint{bits}", text="-".join([f"nested{bits}", *words]))
        return Quantized(found, codes, parts, quantized.shape)
    scale = load(parts["scale"], "half") * 2 ** (BASE - bits) * parts["shares"][bits - LEAST, 0]
    zero = torch.full_like(scale, (1 << bits - 1) - 0.5, dtype=torch.bfloat16)
    plain = parse_format("-".join([f"int{bits}", *words, "floatzero"]))
    return Quantized(plain, codes, {"scale": store(scale, "half"), "zero": zero}, quantized.shape)


def _scale(format: Format, parts: Parts, inputs: int) -> Tensor:
    return load(parts["scale"], "half").repeat_interleave(format.group[1] or inputs, 1)[:, :inputs]


def encode(format: Format, parts: Parts, weight: Tensor) -> Tensor:
    """Codes of the nearest values, uint8."""
    return nearest(weight / _scale(format, parts, weight.shape[1]), format, parts)


def nearest(x: Tensor, format: Format, parts: Parts) -> Tensor:
    """The nearest codes of numbers in scales, uint8."""
    rate, (a, b) = int(format.dtype.bits), parts["shares"][int(format.dtype.bits) - LEAST].tolist()
    fine = max(rate - BASE, 0)
    cells, step = 1 << rate - fine, float(1 << BASE - rate + fine)
    middle = (x / (a * step)).floor()
    best: Tensor | None = None
    least: Tensor | None = None
    for near in (0, -1, 1) if fine else (0,):
        place = (middle + near).clamp(-cells / 2, cells / 2 - 1)
        rest = (x - (place + 0.5) * a * step) / (b * REACH)
        finer = ((rest + 0.5) * (1 << fine) - 0.5).round().clamp(0, (1 << fine) - 1)
        codes = ((place + cells / 2) * (1 << fine) + finer).to(torch.uint8)
        places, rests = pieces(codes, rate)
        error = (places * a + rests * b - x).abs()
        best = codes if best is None or least is None else torch.where(error < least, codes, best)
        least = error if least is None else torch.minimum(error, least)
    return codes if best is None else best


def decode(format: Format, parts: Parts, codes: Tensor, rows: slice) -> Tensor:
    """The values of the codes of some rows."""
    rate = int(format.dtype.bits)
    places, rests = pieces(codes, rate)
    a, b = parts["shares"][rate - LEAST].unbind()
    return (places * a + rests * b) * _scale(format, {"scale": parts["scale"][rows]}, codes.shape[1])


def codec(grid: Grid) -> "Nearest":
    return Nearest(grid)


class Nearest:
    """Rounds columns to the nearest values."""

    width = 1
    height = 1

    def __init__(self, grid: Grid) -> None:
        self._format, self._parts, self._columns = grid.format, grid.parts, grid.format.group[1] or grid.shape[1]

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        group = start // self._columns
        scale = load(self._parts["scale"][:, group : group + 1], "half")
        codes = nearest(x / scale, self._format, self._parts)
        places, rests = pieces(codes, int(self._format.dtype.bits))
        a, b = self._parts["shares"][int(self._format.dtype.bits) - LEAST].unbind()
        return codes, (places * a + rests * b) * scale

    def stored(self, codes: Tensor) -> Tensor:
        return codes
