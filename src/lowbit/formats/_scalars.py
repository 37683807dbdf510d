"""_scalars - the rounding of single columns as data, for kernels that round by themselves."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scalars:
    """value = (level - zero) * scale, the level that is nearest to x / scale + zero.

    columns: that share a scale, 0 = all. scale, zero [G, out] float32. low, high: ends of levels that are all whole numbers
    between them; levels: the sorted ones [K], or [K, out], of another element. codes: places among those, float32 [out, any],
    -> what the codec calls codes; whole levels are their own codes.
    """

    columns: int
    scale: Tensor
    zero: Tensor | None
    low: float
    high: float
    levels: Tensor | None = None
    codes: Callable[[Tensor], Tensor] = lambda places: places
