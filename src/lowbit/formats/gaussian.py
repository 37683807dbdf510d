"""gaussian - codes made for a Gaussian source of unit variance (vectors, trellises): one scale a group, no zero.

In / Out  W [out, in] -> parts {"scale" [R, G]}; value = element * scale.
Idea      scale = rms of the group / the rms at which the code loses least. In units of the code's own rms that is a little
          above 1 at one bit, where the code's reach is short, and falls with the bits.
Source    QuIP# (2402.04396), QTIP (2406.11235): `opt_scale`, measured anew for each rate.
Defaults  The best rms: 1.1, 1.0, 0.95, 0.9 at 1, 2, 3, 4 bits a weight, between them by the straight line; an element that
          knows better says `load`.
Traps     Weights must look Gaussian: formats of such elements are stored in a turned basis unless they say "plain".
          Such codes have no zero: a group of zeros gets the least scale that can be stored.
"""

from torch import Tensor

from lowbit.formats import Format, Parts
from lowbit.formats import _search as searching
from lowbit.formats._scales import load, store

EXAMPLES = ("e8p2", "e8p3-row", "higgs2x256-row", "higgs4x256-g128", "trellis2")
LOADS = (1.2, 1.1, 1.0, 0.95, 0.9)
"""Best rms of the source, by whole bits a weight from 0."""


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the scales of `weight`; see lowbit.formats."""
    x = searching.grouped(format, weight)
    scale = x.double().square().mean(-1).sqrt() / best_rms(format)
    return {"scale": store(scale, format.scale)}


def rescale(format: Format, parts: Parts, scale: Tensor) -> Parts:
    """The parts with other scales [R, G], as near as they can be stored."""
    return {**parts, "scale": store(scale, format.scale)}


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale [R, G]; there is no zero."""
    return load(parts["scale"], format.scale), None


def best_rms(format: Format) -> float:
    """The rms of a Gaussian source at which the element loses least."""
    own = getattr(format.dtype, "load", None)
    if own is not None:
        return float(own)
    height, width, codes = format.step
    bits = min(format.dtype.bits * codes / (height * width), len(LOADS) - 1.001)
    low = int(bits)
    return float(getattr(format.dtype, "rms", 1.0)) * (LOADS[low] + (LOADS[low + 1] - LOADS[low]) * (bits - low))
