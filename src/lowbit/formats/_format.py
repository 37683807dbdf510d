"""_format - what a format is; its name, its words and its files are lowbit.formats."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from lowbit import dtypes, layouts, sides
from lowbit.core.errors import FormatError, ShapeError
from lowbit.dtypes import Element
from lowbit.formats._grid import Grid, shelf
from lowbit.formats._words import SCALES

PLAIN = "plain"
"""The word that takes away the sides that an element has by default."""


def default_sides(element: str) -> tuple[str, ...]:
    """Codes of several weights are made for Gaussian sources: they are stored turned, unless a format says "plain"."""
    return () if dtypes.get(element).step == (1, 1, 1) else ("had",)


@dataclass(frozen=True)
class Format:
    """How a matrix [out, in] is stored.

    element: name of a dtype. group: (rows, columns) that share one scale, 0 = all of them. scale: how scales are stored.
    zero: "" (none), "int" (an integer code) or "float" (16 bits). rule: the file of lowbit.formats that fits scales.
    text: its name. extra_bits: bits per matrix beside codes, scales and zeros (a tensor-wide scale). sides: names of files
    of lowbit.sides, from the grid outwards.
    """

    element: str
    group: tuple[int, int] = (1, 0)
    scale: str = "half"
    zero: str = ""
    rule: str = "symmetric"
    text: str = field(default="", compare=False)
    extra_bits: int = 0
    sides: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text

    @cached_property
    def dtype(self) -> Element:
        """The element's object."""
        return dtypes.get(self.element)

    @cached_property
    def layout(self) -> str:
        """The file of lowbit.layouts that its codes are packed with: dense where it takes codes of this width."""
        bits = self.dtype.bits
        return next(n for n in ["dense", *layouts.shelf.names()] if bits in layouts.shelf.get(n).BITS)

    @cached_property
    def core(self) -> "Format":
        """The format without its sides: what codes, scales and kernels are about."""
        return self._without(self.sides) if self.sides else self

    @cached_property
    def ahead(self) -> tuple[str, ...]:
        """The sides that change inputs before they are rounded."""
        return sides.ahead(self.sides)

    @cached_property
    def inner(self) -> "Format":
        """The format without the sides `ahead`: of the matrix that rounded inputs meet, and that solvers round."""
        return self._without(self.ahead) if self.ahead else self

    def _without(self, dropped: tuple[str, ...]) -> "Format":
        kept = tuple(word for word in self.sides if word not in dropped)
        words = [word for word in self.text.split("-") if word not in dropped]
        return replace(self, sides=kept, text="-".join(words + [PLAIN] * bool(default_sides(self.element) and not kept)))

    def behind(self, word: str) -> "Format":
        """The format with one more side, the outermost."""
        unsaid = [side for side in self.sides if side not in self.text.split("-")]
        return replace(self, sides=(*self.sides, word), text="-".join([self.text, *unsaid, word]))

    @cached_property
    def step(self) -> tuple[int, int, int]:
        """(height, width, codes): `height` rows of `width` columns are told by so many codes. Numbers: (1, 1, 1)."""
        rule = shelf.get(self.rule)
        found: tuple[int, int, int] = rule.step(self) if hasattr(rule, "step") else self.dtype.step
        return found

    def codes_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Shape of the codes of a matrix of `shape`."""
        height, width, codes = self.step
        return shape[0] // height, shape[1] // width * codes

    def groups(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Rows and columns [R, G] of the scale tensor for a matrix of `shape`. Raises ShapeError where it does not fit."""
        out, inputs = shape
        rows, columns = self.group[0] or out, self.group[1] or inputs
        if inputs % columns and self.group[0] == 1:
            fits = [f"g{g}" for g in (128, 64, 32, 16) if inputs % g == 0] if f"g{columns}" in self.text.split("-") else []
            advice = f"Use {', '.join(fits)} or row." if fits else "Use a format with one scale a row, as int4-row."
            raise ShapeError(f"{self}: group {columns} does not divide {inputs} inputs. {advice}")
        height, width, _ = self.step
        if out % height or inputs % width:
            step = f"a code holds {height} x {width} weights" if height > 1 else f"a code holds {width} weights of a row"
            raise ShapeError(f"{self}: {step}, the matrix is [{out}, {inputs}]. Use a format of single weights, as int4-row.")
        for side in self.sides:
            reason = sides.get(side).fits((out, inputs))
            if reason:
                raise ShapeError(f"{self}: {side} cannot take [{out}, {inputs}]: {reason}. Leave it out or use another.")
        return math.ceil(out / rows), math.ceil(inputs / columns)

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """All stored bits of a matrix of `shape` (packed codes, scales, zeros, sides), per weight."""
        out, inputs = shape
        count = math.prod(self.groups(shape))
        layout, rule = layouts.shelf.get(self.layout), shelf.get(self.rule)
        bits: int = math.prod(layout.packed_shape(*self.codes_shape(shape), self.dtype.bits)) * layout.WORD.itemsize * 8
        if hasattr(rule, "part_bits"):
            bits += rule.part_bits(self, (out, inputs))
        else:
            bits += count * (SCALES[self.scale] + {"": 0, "int": int(self.dtype.bits), "float": 16}[self.zero])
        bits += sum(sides.get(side).bits((out, inputs)) for side in self.sides)
        return (bits + self.extra_bits) / (out * inputs)

    def fit(self, weight: Tensor, importance: Tensor | None = None, search: bool = True) -> Grid:
        """Choose scales and zeros for `weight` [out, in], and what its sides need.

        importance [in] or [out, in]: weight of each squared error (None: all equal; it stands outside a turned basis and is
        not used there). search: minimise the error over a grid of scales; otherwise the plain range rule.
        Raises ShapeError; FormatError when `weight` is not finite.
        """
        if weight.dim() != 2:
            raise ShapeError(f"{self}: the weight has shape {tuple(weight.shape)}. Give a matrix [out, in].")
        if not torch.isfinite(weight).all():
            raise FormatError(f"{self}: the weight holds NaN or Inf. Mend the checkpoint.")
        self.groups(tuple(weight.shape))
        parts, inner = self.begin(weight)
        fitted = shelf.get(self.rule).fit(self, inner.float().contiguous(), None if self.sides else importance, search)
        return Grid(self, fitted | parts, (weight.shape[0], weight.shape[1]))

    def begin(self, weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The parts of its sides that need no data, and what they leave of `weight` for the grid."""
        parts: dict[str, Tensor] = {}
        for name in reversed(self.sides):
            side = sides.get(name)
            found = side.fit(weight)
            weight = side.into(weight, found)
            parts |= found
        return parts, weight
