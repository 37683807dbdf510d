"""nested - what integers of 5 to 8 bits need beside them to be read as a good matrix of 4: a bit for each weight, and scales.

In / Out  parts "nested_moves" int32 [out, ceil(in / 32)] (bit j of word k: column 32 k + j), "nested_scale" bfloat16
          [out, in / n], the step of the 4-bit grid; `nested128` has one for n = 128 inputs. At full precision it changes
          nothing: W = C, y = C x.
Idea      A weight rounded with feedback lies at one of the two 4-bit values next to it, and the nearest is too often the wrong
          one: the bit says that it is the other. So the fine codes are those of a file of their own, and so nearly are the
          coarse ones. Codes whose top bits are to be both lose a factor at one rate for what they gain at the other.
Source    Lowbit's own. One file for several rates: Any-Precision LLM (2402.10517), MatQuant (2502.06786), by top bits there.
Figures   1 + 16 / n bits a weight: int8-g128-nested128 has 9.25.
Traps     Which value is nearest is computed from what is stored, in float32, with one rounded operation a step: the same
          everywhere. Without data nothing is moved: read at 4 bits it is rounding to nearest.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.sides import Parts
from lowbit.sides._map import WORD, packed, unpacked

EXAMPLES = ("nested128",)
LOW, HIGH = -8, 7
LEAST, LARGEST = 2.0**-14, 65280.0


@dataclass(frozen=True)
class Nested:
    """group: inputs that share a scale of the 4-bit grid."""

    group: int

    parts = ("nested_moves", "nested_scale")
    fixed = True

    def bits(self, shape: tuple[int, int]) -> int:
        return shape[0] * (WORD * math.ceil(shape[1] / WORD) + 16 * shape[1] // self.group)

    def fits(self, shape: tuple[int, int]) -> str:
        return f"{shape[1]} inputs in groups of {self.group}" if shape[1] % self.group else ""

    def fit(self, weight: Tensor) -> Parts:
        x = weight.float().unflatten(1, (-1, self.group))
        largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))[..., 0] / LOW
        scale = torch.copysign(largest.abs().clamp(LEAST, LARGEST), largest).bfloat16()
        return self.hold(torch.zeros_like(weight, dtype=torch.bool), scale)

    def hold(self, moved: Tensor, scale: Tensor) -> Parts:
        """The parts that say which weights lie at the second nearest value: a mask [out, in]."""
        return {"nested_moves": packed(moved), "nested_scale": scale}

    def coarse(self, values: Tensor, parts: Parts) -> Tensor:
        """The 4-bit values [out, in], from -8 to 7 in their scales, of fine `values` [out, in]."""
        scale = parts["nested_scale"].float().repeat_interleave(self.group, 1)
        near, other = neighbours(values, scale)
        return torch.where(unpacked(parts["nested_moves"], values.shape[1]), other, near)

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        return weight.float()

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        return values

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return x

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return y


def neighbours(values: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest 4-bit values of `values` and those on their other sides, in scales [out, in]."""
    x = values / scale
    near = x.round()
    other = torch.where(x < near, near - 1, near + 1)
    return near.clamp(LOW, HIGH), other.clamp(LOW, HIGH)


def side(number: str) -> Nested:
    if not number.isdigit() or not int(number):
        raise FormatError(f"nested{number}: the number is that of inputs which share a 4-bit scale. Use nested128.")
    return Nested(int(number))
