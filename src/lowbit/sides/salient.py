"""salient - a share of single weights beside the grid with 8 bits each, found by a map of one bit for every weight.

In / Out  W = C + S; parts "salient_map" int32 [out, ceil(in / 32)] (bit j of word k: column 32 k + j), "salient_values"
          int8 [n], "salient_scale" float16 [out]; S = scale of the row * value, row after row. `salient10` keeps 10 in 100.
Idea      S holds what is missing, weight - grid value, as sides/sparse.py does; a map costs less than indices from 1 in 24 on.
Source    PB-LLM (2310.00034), section 3.2: salient weights in 8 bits beside binary ones.
Figures   1 + 8 p / 100 bits a weight and 16 a row: binary-g128-salient10 takes 1.125 + 1.8 = 2.93.
          The paper: 1.7 without the map, 2.7 with it (salient places have no sign bit there).
Traps     Without data the largest magnitudes are kept; pb_llm chooses by what they cost.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.sides import Parts
from lowbit.sides._map import WORD, packed, unpacked

EXAMPLES = ("salient10",)


@dataclass(frozen=True)
class Salient:
    """percent: of the weights."""

    percent: float

    parts = ("salient_map", "salient_values", "salient_scale")

    def count(self, shape: tuple[int, ...]) -> int:
        """Entries of a matrix of `shape`."""
        return round(shape[0] * shape[1] * self.percent / 100)

    def bits(self, shape: tuple[int, int]) -> int:
        return shape[0] * (WORD * math.ceil(shape[1] / WORD) + 16) + 8 * self.count(shape)

    def fits(self, shape: tuple[int, int]) -> str:
        return ""

    def fit(self, weight: Tensor) -> Parts:
        return self.hold(weight, self.choose(weight.abs()))

    def choose(self, score: Tensor) -> Tensor:
        """The mask [out, in] of the entries of greatest score."""
        mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        mask[score.flatten().topk(self.count(score.shape)).indices] = True
        return mask.view_as(score)

    def hold(self, missing: Tensor, mask: Tensor) -> Parts:
        """The parts that keep `missing` [out, in] where the mask is."""
        kept = torch.where(mask, missing.float(), 0.0)
        scale = (kept.abs().amax(1) / 127).clamp(2.0**-24, 65504.0).half()
        values = (kept / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)
        return {"salient_map": packed(mask), "salient_values": values[mask], "salient_scale": scale}

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        return weight.float() - self._dense(weight.shape, parts)

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        return values + self._dense(values.shape, parts)

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return x

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return y + x @ self._dense((y.shape[1], x.shape[1]), parts).to(x.dtype).t()

    def _dense(self, shape: tuple[int, ...], parts: Parts) -> Tensor:
        """S [out, in]."""
        mask = unpacked(parts["salient_map"], shape[1])
        dense = torch.zeros(mask.shape, device=mask.device)
        dense[mask] = parts["salient_values"].float()
        return dense * parts["salient_scale"].float()[:, None]


def side(number: str) -> Salient:
    percent = float(number or 0)
    if not 0 < percent <= 50:
        raise FormatError(f"salient{number}: the number is the share of weights in percent, above 0. Use salient10.")
    return Salient(percent)
