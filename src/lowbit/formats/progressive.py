"""progressive - 4 bits inside 8: groups of unsigned codes on integer scales, under one real scale a row.

In / Out  W [out, in] -> parts {"scale" [out, 1], "step" uint8 [out, G], "zero" uint8 [out, G]}; value =
          (u - zero) * step * scale.
Idea      scale = max|w| / 119 of a row, step = (hi - lo) / 15 of a group in units of it, rounded to 1, 2, 3 ...: (u - zero) *
          step is an integer of 8 bits, so that a kernel widens codes to bytes, multiplies integers with integers (act
          int8-token) and scales once at the end.
Source    QServe / QoQ (2405.04532), section 4.1: progressive group quantization, and why 119.
Figures   progressive4-g128: 4.094 bits and 16 a row. By enumeration |u - zero| * step never passes 127 from a range of 119.
Traps     Steps are whole: where a group's range is a few of the row's units (step 1 or 2) the grid is coarse.
"""

import math

import torch
from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.formats import Format, Parts, _words, shelf
from lowbit.formats._scales import load, store

EXAMPLES = ("progressive4-g128", "progressive4-g32")
PROTECTED, LARGEST = 119, 127
STEPS = 15


def parse(number: str, words: list[str]) -> Format:
    """progressive4 with a group, 128 when none is named."""
    text = "-".join([f"progressive{number}", *words])
    if number != "4":
        raise FormatError(f"{text}: codes have 4 bits here. Use progressive4-g128.")
    group = _words.read(text, words, only=("group",)).get("group", (1, 128))
    if group[0] != 1 or not group[1]:
        raise FormatError(f"{text}: steps are those of groups of a row. Use progressive4-g128.")
    return Format(element="int4", group=group, scale="int8", zero="int", rule="progressive")


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose steps and zeros of `weight` under a scale for each row; see lowbit.formats."""
    kind = Format(element="int4", group=format.group, scale="fp32", zero="int", rule="asymmetric", text="int4-asym-fp32")
    plain = shelf.get("asymmetric").fit(kind, weight, importance, search)
    scale = store(weight.abs().amax(1, keepdim=True).float() / PROTECTED, "half")
    parts = {"scale": scale, "zero": plain["zero"]}
    return rescale(format, {**parts, "step": plain["zero"]}, plain["scale"].float())


def rescale(format: Format, parts: Parts, scale: Tensor) -> Parts:
    """The parts with other scales [out, G], as near as whole steps come, none of which passes 8 bits."""
    zero = parts["zero"].float()
    most = (LARGEST / torch.maximum(zero, STEPS - zero)).floor()
    step = torch.minimum((scale / load(parts["scale"], "half")).round().clamp_min(1), most)
    return {**parts, "step": step.to(torch.uint8)}


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale and zero [out, G], the zero in the element's units."""
    return load(parts["scale"], "half") * parts["step"].float(), parts["zero"].float() + format.dtype.minimum


def part_bits(format: Format, shape: tuple[int, int]) -> int:
    groups = math.prod(format.groups(shape))
    return 16 * shape[0] + (8 + 4) * groups
