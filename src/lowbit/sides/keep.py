"""keep - whole columns beside the grid in half precision: outlier inputs that are not rounded.

In / Out  W = C + K on the columns O; parts "keep_columns" int32 [n], "keep_values" float16 [out, n]. `keep64` keeps 64.
Idea      See _columns.py: x_O and its weights multiply in 16 bits, the grid and the rounding of x know the rest alone.
Source    QUIK (2310.09259); LLM.int8() (2208.07339) with columns that are fixed beforehand.
Figures   16 out + 32 bits a column, beside the codes of zeros in the grid.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.sides import Parts, _columns

EXAMPLES = ("keep16",)


@dataclass(frozen=True)
class Keep(_columns.Columns):
    """count: of columns."""

    word: ClassVar[str] = "keep"
    parts: ClassVar[tuple[str, ...]] = ("keep_columns", "keep_values")

    def bits(self, shape: tuple[int, int]) -> int:
        return self.count * (16 * shape[0] + 32)

    def hold(self, columns: Tensor, values: Tensor) -> Parts:
        return {"keep_columns": columns.to(torch.int32), "keep_values": values.to(torch.float16).contiguous()}

    def values(self, parts: Parts) -> Tensor:
        return parts["keep_values"].float()


def side(number: str) -> Keep:
    return Keep(_columns.count("keep", number))
