"""nvfp4 - 4-bit floats (e2m1) in blocks of 16 inputs under e4m3 scales, and one fp32 scale for the matrix.

In / Out  W [out, in] -> parts {"scale" float8_e4m3fn [out, in / 16], "global_scale" float32 [1], a divisor};
          value = element * scale / global_scale.
Idea      Plain: global_scale = 448 * 6 / max|W|, scale = e4m3(global_scale * max|block| / 6).
          search: every e4m3 value from 6 below that scale to 5 above it (0.6 to 1.5 times it), the best by weighted error;
          "four over six" (max|block| on 4 instead of 6) is among them. global_scale = 256 * 6 / max|W| then leaves them room.
Source    compressed-tensors `nvfp4-pack-quantized`; Four Over Six (2512.02010).
Figures   4.5 bits. Mean squared error on N(0,1): 0.00905 plain, 0.0067 searched (four over six alone: 0.00757).
Traps     compressed-tensors stores the reciprocal that is used here; ModelOpt stores max|W| / (448 * 6). Engines that fuse
          layers (q, k, v; gate, up) want one global_scale for all parts.
"""

import torch
from torch import Tensor

from lowbit.dtypes import Element
from lowbit.formats import Format, Parts, _words
from lowbit.formats import _search as searching
from lowbit.formats import _table_search as tables
from lowbit.formats._scales import load, store

EXAMPLES = ("nvfp4",)
STEPS = (0, 1, -1, 2, -2, 3, -3, 4, -4, 5, -5, -6)


def parse(number: str, words: list[str]) -> Format:
    """The format nvfp4; takes no words."""
    _words.read("-".join(["nvfp4", *words]), words, only=())
    return Format(element="e2m1", group=(1, 16), scale="e4m3", rule="nvfp4", extra_bits=32)


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the scales of `weight`; see lowbit.formats."""
    largest = float(weight.abs().amax()) if weight.numel() else 0.0
    factor = torch.tensor([(256.0 if search else 448.0) * 6 / largest if largest else 1.0], device=weight.device)
    factor = factor.clamp(2.0**-126, 2.0**126)
    x = searching.grouped(format, weight) * factor
    codes = store(x.abs().amax(-1) / 6, "e4m3").view(torch.uint8)
    if search:
        h = searching.weights_of(format, importance, weight.shape[0])
        codes = torch.cat([_best(part, h_part, codes[rows], format.dtype) for rows, part, h_part in searching.pieces(x, h)])
    return {"scale": codes.view(torch.float8_e4m3fn), "global_scale": factor}


def rescale(format: Format, parts: Parts, scale: Tensor) -> Parts:
    """The parts with other scales [R, G], as near as they can be stored under the same global_scale."""
    return {**parts, "scale": store(scale * parts["global_scale"], "e4m3")}


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale [R, G]; there is no zero."""
    return load(parts["scale"], "e4m3") / parts["global_scale"], None


def _best(x: Tensor, h: Tensor | None, codes: Tensor, element: Element) -> Tensor:
    """The best of the scales with these codes and their neighbours. Codes of positive e4m3 values are in the values' order."""
    tried = torch.stack([(codes.int() + step).clamp(1, 126) for step in STEPS]).to(torch.uint8)
    index = tables.pick(x, h, (load(candidate.view(torch.float8_e4m3fn), "e4m3") for candidate in tried), element)
    return tried.gather(0, index[None].long())[0]
