"""bilevel - scales and zeros of 3 bits, each on a scale and an offset that 16 of them share.

In / Out  W [out, in] -> parts {"scale", "zero": codes 0 .. 7 in uint8 [out, G], stored as 3 bits along the outputs;
          "scale_range", "zero_range": offset and step of 16 rows, float16 [ceil(out / 16), G, 2]}; statistic = offset + step *
          code, value = (u - zero) * scale with u the unsigned code of the weight: zeros are real numbers here.
Idea      Small groups need many scales; those of 16 rows in the same columns are alike. 1. A float scale and zero for each
          group (float_zero.py). 2. Range of the 16 scales of neighbouring rows. 3. For each group all eight stored scales are
          tried, each with its best zero; then the eight zeros of their range, under the chosen scale.
Source    SpQR (2306.03078), section 4.2 ("bilevel quantization"); its code: `qq_scale_bits`, `qq_zero_bits` 3, groups of 16.
Figures   b + 6 / n + 64 / (16 n) bits in groups of n. Mean squared error on N(0,1): int3-g16-bilevel 0.0167 at 3.625 bits
          (int3-g16-asym-e4m3: 0.0197 at 3.688; int3-g16-floatzero: 0.0147 at 5.0), int4-g16-bilevel 0.0046 at 4.625.
Traps     Scales are above 0; a group whose weights are all 0 keeps a zero inside the codes.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from lowbit.formats import Format, Parts, shelf
from lowbit.formats import _search as searching

EXAMPLES = ("int3-g16-bilevel", "int4-g16-bilevel")
PACKED = {"scale": 3, "zero": 3}
"""Bits of the parts that are codes themselves."""
TOGETHER = 16
CODES = 8
LEAST, LARGEST = 2.0**-14, 65000.0


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the scales and zeros of `weight`; see lowbit.formats."""
    single = shelf.get("float_zero")
    scale, zero = single.expand(format, single.fit(replace(format, scale="fp32"), weight, importance, search))
    zero = zero - format.dtype.minimum
    x = searching.grouped(format, weight)
    h = searching.weights_of(format, importance, weight.shape[0]) if search else None
    ranges = _ranges(scale, LEAST)
    codes = _nearest(scale, ranges)
    if search:
        tried = [_level(ranges, k, len(scale)) for k in range(CODES)]
        zeros = [_zero(x, h, s, zero, format) for s in tried]
        codes = torch.stack([_loss(x, h, s, z, format) for s, z in zip(tried, zeros, strict=True)]).argmin(0)
        zero = torch.stack(zeros).gather(0, codes[None])[0]
    stored, spans = _level(ranges, codes, len(scale)), _ranges(zero, -LARGEST)
    places = _nearest(zero, spans)
    if search:
        places = torch.stack([_loss(x, h, stored, _level(spans, k, len(zero)), format) for k in range(CODES)]).argmin(0)
    return {
        "scale": codes.to(torch.uint8), "zero": places.to(torch.uint8), "scale_range": ranges, "zero_range": spans
    }  # fmt: skip


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale and zero [R, G], the zero in the element's units."""
    scale, zero = (_level(parts[f"{name}_range"], parts[name], len(parts[name])) for name in ("scale", "zero"))
    return scale, zero + format.dtype.minimum


def part_bits(format: Format, shape: tuple[int, int]) -> int:
    rows, groups = format.groups(shape)
    packed = sum(32 * math.ceil(rows * bits / 32) for bits in PACKED.values())
    return groups * (packed + 64 * math.ceil(rows / TOGETHER))


def _ranges(statistic: Tensor, least: float) -> Tensor:
    """Offset and step, float16 [ceil(R / 16), G, 2], of a statistic [R, G]."""
    filled = torch.cat([statistic, statistic[-1:].expand(-len(statistic) % TOGETHER, -1)]).clamp(least, LARGEST)
    parts = filled.view(-1, TOGETHER, statistic.shape[1])
    low, high = parts.amin(1), parts.amax(1)
    return torch.stack([low, (high - low) / (CODES - 1)], 2).half()


def _stored(ranges: Tensor) -> Tensor:
    """Offsets and steps as they are stored."""
    return ranges.half()


TRAINED = {"scale_range": _stored, "zero_range": _stored}


def _level(ranges: Tensor, codes: Tensor | int, rows: int) -> Tensor:
    """The statistic [R, G] of codes [R, G], or of one code for all."""
    offset, step = ranges.float().repeat_interleave(TOGETHER, 0)[:rows].unbind(2)
    return offset + step * codes


def _nearest(statistic: Tensor, ranges: Tensor) -> Tensor:
    """The nearest codes."""
    offset, step = ranges.float().repeat_interleave(TOGETHER, 0)[: len(statistic)].unbind(2)
    return ((statistic - offset) / step.clamp_min(1e-30)).round().clamp(0, CODES - 1).long()


def _zero(x: Tensor, h: Tensor | None, scale: Tensor, zero: Tensor, format: Format) -> Tensor:
    """The best real zero [R, G] for groups x [R, G, n] and the codes that `scale` and `zero` give."""
    steps = x / scale[..., None]
    rest = (steps + zero[..., None]).round().clamp(0, format.dtype.codes - 1) - steps
    return rest.mean(-1) if h is None else (rest * h).sum(-1) / h.expand_as(rest).sum(-1)


def _loss(x: Tensor, h: Tensor | None, scale: Tensor, zero: Tensor, format: Format) -> Tensor:
    """The weighted squared error of every group [R, G]."""
    codes = (x / scale[..., None] + zero[..., None]).round().clamp(0, format.dtype.codes - 1)
    rest = ((codes - zero[..., None]) * scale[..., None] - x).square()
    return (rest if h is None else rest * h).sum(-1)
