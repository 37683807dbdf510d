"""billm - a sign and one of two sizes for each weight; some columns, the salient ones, have two sizes of their own.

In / Out  W [out, in] -> parts {"levels" [out, G, 2, 2] 16-bit floats, "salient" int32 [1, ceil(in / 32)], a bit a column};
          value = +-levels[row, group, salient?, large?]; code = 2 * large + (1 for plus).
Idea      Columns that are not salient: weights are split by size, each part has its mean as its one magnitude ("bell-shaped
          split"). Salient ones are made binary twice: w = +-a +- b, b of what a leaves, so two magnitudes a + b and a - b.
          So both kinds are two sizes in a row of a group, and the best two are found exactly: of all splits of the sorted
          sizes the one that loses least. search: how many columns of a group are salient is tried (COUNTS), those of greatest
          weighted square first. Plain: no salient columns, split at the mean size.
Source    BiLLM (2402.04291), sections 3.2 (salient, twice binary) and 3.3 (split); there the two are means, the split is one
          share of the largest weight for all rows of a block.
Figures   2 bits, and 64 a group: 2.5 in groups of 128, columns 1 / out more. The paper's 1.08 leaves out which half a weight is
          in and the magnitudes. Mean squared error on N(0,1), groups of 128: 0.109 (int2-g32, also 2.5 bits: 0.110).
Traps     Two salient columns cost nothing and are exact: two sizes for two weights of a row.
"""

import math

import torch
from torch import Tensor

from lowbit import layouts
from lowbit.core.errors import FormatError
from lowbit.formats import Format, Grid, Parts, _kmeans, _words
from lowbit.formats._scales import load, store

EXAMPLES = ("billm-g128", "billm-g64")
COUNTS = (0, 2, 4, 8, 16, 32)
"""Salient columns of a group that are tried."""


def parse(number: str, words: list[str]) -> Format:
    """The format billm with its words."""
    text = "-".join([f"billm{number}", *words])
    found = _words.read(text, words, only=("group",))
    if number or found.get("group", (1, 128))[0] != 1:
        raise FormatError(f"{text}: magnitudes belong to a group of one row. Use billm-g128.")
    return Format(element="uint2", group=found.get("group", (1, 128)), rule="billm", text=text)


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the salient columns and the levels of `weight`; see lowbit.formats."""
    out, inputs = weight.shape
    h = torch.ones_like(weight) if importance is None or not importance.any() else importance.float().expand(out, inputs)
    h = (h / h.mean()).clamp_min(1e-6)
    found = [_group(w.abs(), c, search) for w, c in zip(_groups(format, weight), _groups(format, h), strict=True)]
    bits = torch.cat([salient for _, salient in found])
    salient = layouts.shelf.get("dense").pack(bits[None].to(torch.uint8), 1)
    return {"levels": stored(torch.stack([levels for levels, _ in found], 1)), "salient": salient}


def stored(levels: Tensor) -> Tensor:
    """The magnitudes as they are stored."""
    return store(levels.clamp_min(0), "half")


TRAINED = {"levels": stored}


def _groups(format: Format, tensor: Tensor) -> list[Tensor]:
    """The columns of each group."""
    return list(tensor.split(format.group[1] or tensor.shape[1], 1))


def _group(size: Tensor, h: Tensor, search: bool) -> tuple[Tensor, Tensor]:
    """Levels [out, 2, 2] and the salient columns [n] of one group's sizes [out, n]."""
    n = size.shape[1]
    order = (size.square() * h).sum(0).argsort(descending=True, stable=True)
    if not search:
        large = size > size.mean(1, keepdim=True)
        levels = torch.stack([_mean(size, h * ~large), _mean(size, h * large)], 1)
        return torch.stack([levels, levels], 1), torch.zeros(n, dtype=torch.bool, device=size.device)
    least, best = torch.inf, (size.new_zeros(0), order)
    for count in [c for c in COUNTS if c <= n // 2]:
        usual, lost = _kmeans.two(size[:, order[count:]], h[:, order[count:]])
        salient, more = _kmeans.two(size[:, order[:count]], h[:, order[:count]]) if count else (usual, 0.0)
        if lost + more < least:
            least, best = lost + more, (torch.stack([usual, salient], 1), order[:count])
    chosen = torch.zeros(n, dtype=torch.bool, device=size.device)
    chosen[best[1]] = True
    return best[0], chosen


def _mean(size: Tensor, h: Tensor) -> Tensor:
    """The weighted mean [out] of sizes; of no weight, the mean of all."""
    mass = h.sum(1)
    return torch.where(mass > 0, (size * h).sum(1) / mass.clamp_min(1e-30), size.mean(1))


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """Scales of 1 [out, G]: values are those of the levels."""
    return torch.ones(parts["levels"].shape[:2], device=parts["levels"].device), None


def part_bits(format: Format, shape: tuple[int, int]) -> int:
    return 64 * math.prod(format.groups(shape)) + 32 * math.ceil(shape[1] / 32)


def encode(format: Format, parts: Parts, weight: Tensor) -> Tensor:
    """Codes of the nearest values, uint8."""
    rounding, n = Levels(format, parts, weight.shape[1]), format.group[1] or weight.shape[1]
    codes = [rounding.codes(part, n * g) for g, part in enumerate(_groups(format, weight))]
    return torch.cat(codes, 1).to(torch.uint8)


def decode(format: Format, parts: Parts, codes: Tensor, rows: slice) -> Tensor:
    """The values of the codes of some rows."""
    rounding = Levels(format, {**parts, "levels": parts["levels"][rows]}, codes.shape[1])
    n = format.group[1] or codes.shape[1]
    return torch.cat([rounding.values(part.long(), n * g) for g, part in enumerate(_groups(format, codes))], 1)


def codec(grid: Grid) -> "Levels":
    return Levels(grid.format, grid.parts, grid.shape[1])


class Levels:
    """Rounds columns of one group to the magnitudes of their rows."""

    width = 1
    height = 1

    def __init__(self, format: Format, parts: Parts, inputs: int) -> None:
        self._levels = load(parts["levels"], "half")
        self._salient = layouts.shelf.get("dense").unpack(parts["salient"], 1, inputs)[0].long()
        self._columns = format.group[1] or inputs

    def _pair(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Low and high magnitudes [out, count] of the columns from `start`."""
        pair = self._levels[:, start // self._columns, self._salient[start : start + count]]
        return pair[..., 0], pair[..., 1]

    def codes(self, x: Tensor, start: int) -> Tensor:
        """The nearest codes, int64."""
        low, high = self._pair(start, x.shape[1])
        return 2 * (x.abs() > (low + high) / 2).long() + (x >= 0)

    def values(self, codes: Tensor, start: int) -> Tensor:
        low, high = self._pair(start, codes.shape[1])
        return torch.where(codes > 1, high, low) * (codes % 2 * 2 - 1)

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        codes = self.codes(x, start)
        return codes, self.values(codes, start)

    def stored(self, codes: Tensor) -> Tensor:
        return codes.to(torch.uint8)
