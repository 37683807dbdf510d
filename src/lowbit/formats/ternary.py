"""ternary - the values -s, 0 and s, one s a group.

In / Out  W [out, in] -> parts {"scale" [R, G]}; value = scale * q, q in -1, 0, 1.
Idea      For a given s the weights above s / 2 are best set to +-s: always the largest of the group. With them chosen the
          best s is their weighted mean magnitude. search: of all such sets, by one sort, that of greatest (sum h |w|)^2 / sum
          h, which is the exact least weighted squared error. Plain: the scale of BitNet b1.58, mean |w|.
Source    Ternary Weight Networks (1605.04711); BitNet b1.58 (2402.17764).
Figures   Mean squared error on N(0,1), searched: rows of 4096 0.190 (the limit), groups of 128 0.187; 1.73 bits.
Traps     The plain scale is for training with it; after training it loses 0.264.
"""

import torch
from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.formats import Format, Parts, with_words
from lowbit.formats import _search as searching
from lowbit.formats._scales import load, store

EXAMPLES = ("ternary-g128", "ternary-row", "ternary-tensor")


def parse(number: str, words: list[str]) -> Format:
    """The format ternary with its words."""
    found = with_words("-".join(["ternary", *words]), "ternary", words)
    if found.rule != "table":
        raise FormatError(f"{found}: a ternary scale is stored by itself. Use half, fp16, bf16, fp32 or e8m0.")
    return Format(element="ternary", group=found.group, scale=found.scale, rule="ternary")


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the scales of `weight`; see lowbit.formats."""
    size = searching.grouped(format, weight).abs()
    scale = size.mean(-1)
    if search:
        h = searching.weights_of(format, importance, weight.shape[0])
        scale = torch.cat([_best(part, h_part) for _, part, h_part in searching.pieces(size, h)])
    return {"scale": store(torch.where(size.amax(-1) > 0, scale, 1.0), format.scale)}


def rescale(format: Format, parts: Parts, scale: Tensor) -> Parts:
    """The parts with other scales [R, G], as near as they can be stored."""
    return {**parts, "scale": store(scale, format.scale)}


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale [R, G]; there is no zero."""
    return load(parts["scale"], format.scale), None


def _best(size: Tensor, h: Tensor | None) -> Tensor:
    """The scale [r, G] of least weighted squared error for magnitudes [r, G, n]."""
    ordered, order = size.sort(-1, descending=True)
    weight = torch.ones_like(ordered) if h is None else h.expand_as(size).gather(-1, order)
    total, mass = (weight * ordered).cumsum(-1), weight.cumsum(-1)
    best = (total.square() / mass).argmax(-1, keepdim=True)
    return (total / mass).gather(-1, best)[..., 0]
