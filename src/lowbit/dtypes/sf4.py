"""sf4 - 4-bit StudentFloat: NF4's recipe for Student's t distribution with 5 degrees of freedom.

In / Out  values in -1 .. 1 -> code i in uint8 -> the i-th value.
Idea      8 quantiles from 1 - d to 1/2 and 7 from d to 1/2, without 1/2 itself, d = (1/32 + 1/30) / 2, and 0; divided by the
          greatest. Weights of language models have heavier tails than the normal distribution; this table is denser near 0.
Source    Learning from Students (2405.03103), section 3.
Figures   -0.627781, -0.454736, ..., 0.656781 (test: all 16 to 1e-6).
"""

import math

from lowbit.dtypes._table import Table


def _quantile(p: float) -> float:
    """Student's t with 5 degrees of freedom at probability p >= 1/2, by bisection of its distribution in closed form."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        sine, cosine = math.sin(angle), math.cos(angle)
        share = 0.5 + (angle + sine * cosine * (1 + 2 / 3 * cosine**2)) / math.pi
        low, high = (angle, high) if share < p else (low, angle)
    return math.sqrt(5) * math.tan(low)


def element(number: str) -> Table:
    top = 1 - (1 / 32 + 1 / 30) / 2
    above = [_quantile(top + (0.5 - top) * i / 8) for i in range(8)]
    below = [-_quantile(top + (0.5 - top) * i / 7) for i in range(7)]
    return Table("sf4", tuple(value / above[0] for value in [*below, 0.0, *reversed(above)]))
