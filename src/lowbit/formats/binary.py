"""binary - the values -s and s, one s a group.

In / Out  W [out, in] -> parts {"scale" [R, G]}; value = scale * sign.
Idea      The best s for squared error is the mean magnitude, weighted by importance.
Source    XNOR-Net (1603.05279).
Figures   Mean squared error on N(0,1): 1 - 2/pi = 0.363; 1.125 bits in groups of 128.
Traps     There is no 0: a group of zeros gets the least scale that can be stored.
"""

from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.formats import Format, Parts, with_words
from lowbit.formats import _search as searching
from lowbit.formats._scales import load, store

EXAMPLES = ("binary-g128", "binary-row")


def parse(number: str, words: list[str]) -> Format:
    """The format binary with its words."""
    found = with_words("-".join(["binary", *words]), "binary", words)
    if found.rule != "table":
        raise FormatError(f"{found}: a binary scale is stored by itself. Use half, fp16, bf16, fp32 or e8m0.")
    return Format(element="binary", group=found.group, scale=found.scale, rule="binary")


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the scales of `weight`; the plain rule is the searched one with equal importance."""
    size = searching.grouped(format, weight).abs()
    h = searching.weights_of(format, importance, weight.shape[0]) if search else None
    scale = size.mean(-1) if h is None else (size * h).sum(-1) / h.expand_as(size).sum(-1)
    return {"scale": store(scale, format.scale)}


def rescale(format: Format, parts: Parts, scale: Tensor) -> Parts:
    """The parts with other scales [R, G], as near as they can be stored."""
    return {**parts, "scale": store(scale, format.scale)}


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale [R, G]; there is no zero."""
    return load(parts["scale"], format.scale), None
