"""byte - whole columns beside the grid in 8 bits: outlier inputs that are not rounded, weights as int8 with a scale a row.

In / Out  W = C + K on the columns O; parts "byte_columns" int32 [n], "byte_codes" int8 [out, n], "byte_scale" float16 [out].
          `byte64` keeps 64.
Idea      See _columns.py; K = codes * scale, scale = max|K| of a row / 127.
Source    Atom (2310.19102), which rounds the inputs of these columns to int8 too.
Figures   8 out + 32 bits a column and 16 a row, beside the codes of zeros in the grid.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.sides import Parts, _columns

EXAMPLES = ("byte16",)


@dataclass(frozen=True)
class Byte(_columns.Columns):
    """count: of columns."""

    word: ClassVar[str] = "byte"
    parts: ClassVar[tuple[str, ...]] = ("byte_columns", "byte_codes", "byte_scale")
    rounding: ClassVar[float] = 0.5 / 126
    """Share of the greatest weight that its own rounding may be off."""

    def bits(self, shape: tuple[int, int]) -> int:
        return self.count * (8 * shape[0] + 32) + 16 * shape[0]

    def hold(self, columns: Tensor, values: Tensor) -> Parts:
        scale = (values.float().abs().amax(1) / 127).clamp(2.0**-14, 65504).to(torch.float16)
        codes = (values.float() / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        return {"byte_columns": columns.to(torch.int32), "byte_codes": codes, "byte_scale": scale}

    def values(self, parts: Parts) -> Tensor:
        return parts["byte_codes"].float() * parts["byte_scale"].float()[:, None]


def side(number: str) -> Byte:
    return Byte(_columns.count("byte", number))
