"""_grid - a format fitted to one matrix, and one matrix in codes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from lowbit import layouts, sides
from lowbit.core.shelf import Shelf
from lowbit.dtypes import Element

if TYPE_CHECKING:
    from lowbit.formats._format import Format

shelf = Shelf("lowbit.formats", "format")
Parts = dict[str, Tensor]
"""What is stored beside the codes, by standard name: "scale", "zero", "global_scale", ..."""
Near = Callable[[Element, Tensor], Tensor]
"""An element and numbers [out, in] in its units -> codes, as `Element.encode` gives them."""


class Grid:
    """The values that one matrix may take: a format with its fitted parts. value = (element - zero) * scale, then the sides.

    scale [R, G] and zero [R, G] or None are float32 and mean exactly what is stored.
    """

    def __init__(self, format: "Format", parts: Parts, shape: tuple[int, int]) -> None:
        self.format = format
        self.parts = parts
        self.shape = shape
        self.scale: Tensor
        self.zero: Tensor | None
        self.scale, self.zero = shelf.get(format.rule).expand(format, parts)

    def _full(self, stored: Tensor, rows: slice) -> Tensor:
        """[R, G] repeated to the given rows of [out, in]."""
        out, inputs = self.shape
        height, columns = self.format.group[0] or out, self.format.group[1] or inputs
        if height > 1:
            stored = stored.repeat_interleave(height, 0)[:out]
        return stored[rows].repeat_interleave(columns, 1)[:, :inputs]

    def spread(self, stored: Tensor) -> Tensor:
        """[R, G] repeated to [out, in]."""
        return self._full(stored, slice(None))

    @cached_property
    def full_scale(self) -> Tensor:
        """The scale of every weight [out, in]."""
        return self._full(self.scale, slice(None))

    @cached_property
    def full_zero(self) -> Tensor | None:
        """The zero of every weight [out, in], or None."""
        return None if self.zero is None else self._full(self.zero, slice(None))

    def encode(self, weight: Tensor, near: Near | None = None) -> Tensor:
        """Nearest codes, uint8. near: a faster search for an element's codes than its own."""
        weight = weight.float()
        for name in reversed(self.format.sides):
            weight = sides.get(name).into(weight, self.parts)
        rule = shelf.get(self.format.rule)
        if hasattr(rule, "encode"):
            codes: Tensor = rule.encode(self.format, self.parts, weight)
            return codes
        x, element = weight / self.full_scale, self.format.dtype
        x = x if self.full_zero is None else x + self.full_zero
        return near(element, x) if near else element.encode(x)

    def inner(self, codes: Tensor, rows: slice = slice(None)) -> Tensor:
        """The values of the codes of some rows inside the sides, float32. rows: whole steps."""
        rule = shelf.get(self.format.rule)
        if hasattr(rule, "decode"):
            values: Tensor = rule.decode(self.format, self.parts, codes, rows)
            return values
        x = self.format.dtype.decode(codes)
        if self.zero is not None:
            x -= self._full(self.zero, rows)
        return x.mul_(self._full(self.scale, rows))

    def decode(self, codes: Tensor) -> Tensor:
        """The values of codes, float32 [out, in]."""
        values = self.inner(codes)
        for name in self.format.sides:
            values = sides.get(name).decode(values, self.parts)
        return values

    def quantize(self, weight: Tensor, near: Near | None = None) -> "Quantized":
        """Round every weight to its nearest value. near: as of `encode`."""
        return Quantized(self.format, self.encode(weight, near), self.parts, self.shape)


@dataclass
class Quantized:
    """One matrix in a format: codes uint8 (`Format.codes_shape`) and the stored parts; what layers run and checkpoints write.

    report: what the solver wants said of this matrix (relative error, a fallback's name). losses [out, 2] float64: tr(E H ET)
    and tr(W H WT) of each row, where the solver tells them.
    """

    format: "Format"
    codes: Tensor
    parts: Parts
    shape: tuple[int, int]
    report: dict[str, float | str] = field(default_factory=dict)
    losses: Tensor | None = None

    @classmethod
    def unpack(cls, format: "Format", packed: Tensor, parts: Parts, shape: tuple[int, int]) -> "Quantized":
        """The way back from `packed()`."""
        codes = layouts.shelf.get(format.layout).unpack(packed, format.dtype.bits, format.codes_shape(shape)[1])
        return cls(format, codes, parts, shape)

    @property
    def grid(self) -> Grid:
        return Grid(self.format, self.parts, self.shape)

    def decode(self) -> Tensor:
        """The matrix as float32 [out, in]."""
        return self.grid.decode(self.codes)

    def packed(self) -> Tensor:
        """The codes in the format's layout, as they are stored."""
        packed: Tensor = layouts.shelf.get(self.format.layout).pack(self.codes, self.format.dtype.bits)
        return packed
