"""double - double quantization: the scales themselves are 8-bit numbers in blocks of 256.

In / Out  W [out, in] -> parts {"scale" uint8 [out, G], codes of dynamic8; "nested_scale" float32 [ceil(out * G / 256)];
          "nested_offset" float32 [1]}; scale = dynamic8 * nested_scale of its block + nested_offset.
Idea      Scales a of all groups, row after row; offset = mean(a); blocks of 256 of a - offset are divided by their largest
          magnitude and rounded to dynamic8. The scales are table.py's in float32.
Source    QLoRA (2305.14314), section 3; bitsandbytes `quantize_4bit(compress_statistics=True)`: its bytes decode to the same
          floats.
Figures   nf4-g64-dq: 4 + 8/64 + 32/(64 * 256) = 4.127 bits. Mean squared error on N(0,1): 0.0085 plain, 0.0073 searched.
Traps     bitsandbytes' CPU kernel misses the nearest dynamic8 value where two are almost equally near. It rounds
          the weights with the scales before their quantization, lowbit with those that are stored.
          A group of zeros has scale 0 before, about 0 after, as there.
          Its blocks of 64 run over the flattened matrix: the same where 64 divides the inputs.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from lowbit import dtypes
from lowbit.formats import Format, Parts, shelf
from lowbit.formats import _search as searching

EXAMPLES = ("nf4-g64-dq",)
BLOCK = 256
ELEMENT = "dynamic8"


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the scales of `weight`; see lowbit.formats."""
    single = replace(format, scale="fp32", rule="table")
    scale = shelf.get("table").fit(single, weight, importance, search)["scale"]
    scale = torch.where(searching.grouped(format, weight).any(-1), scale, 0.0)
    offset = scale.mean()
    rest = torch.nn.functional.pad((scale - offset).flatten(), (0, -scale.numel() % BLOCK)).view(-1, BLOCK)
    nested = rest.abs().amax(-1)
    codes = dtypes.get(ELEMENT).encode(rest / torch.where(nested > 0, nested, 1.0)[:, None])
    return {"scale": codes.flatten()[: scale.numel()].view_as(scale), "nested_scale": nested, "nested_offset": offset[None]}


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale [R, G]; there is no zero."""
    codes = parts["scale"].flatten()
    nested = parts["nested_scale"].repeat_interleave(BLOCK)[: codes.numel()]
    return (dtypes.get(ELEMENT).decode(codes) * nested + parts["nested_offset"]).view_as(parts["scale"]), None


def part_bits(format: Format, shape: tuple[int, int]) -> int:
    groups = math.prod(format.groups(shape))
    return 8 * groups + 32 * math.ceil(groups / BLOCK) + 32
