"""af - 4-bit AbnormalFloat (af4): the values of least expected absolute error for blocks divided by their largest magnitude.

In / Out  values in -1 .. 1 -> code i in uint8 -> the i-th value. af4 is for blocks of 64, af4.128 for blocks of 128.
Idea      A block of g normal numbers divided by its largest magnitude m holds one -1 or 1; the others follow the normal
          distribution cut at m. Mixed over m's density this gives a distribution F that depends on g. With -1, 0 and 1 kept,
          each other value is the median of F between the midpoints to its neighbours; iterated until nothing moves. The cells
          of the two values next to 0 reach up to 0 itself, as those of the published values do.
Source    NF4 Isn't Information Theoretically Optimal (2306.06965), section 4; bitsandbytes has the values for 64.
Figures   Blocks of 64: -0.69441, -0.51244, ..., 0.72425 (test: all 16 to 1e-4 of the paper's).
"""

import torch

from lowbit.core.errors import FormatError
from lowbit.dtypes._table import Table

EXAMPLES = ("af4", "af4.128")
POINTS = 4001


def element(number: str) -> Table:
    bits, _, block = number.partition(".")
    if bits != "4" or not (block or "64").isdigit() or int(block or 64) < 2:
        raise FormatError(f"af{number}: AbnormalFloat is af4 (blocks of 64) or af4.N (blocks of N). Use af4.")
    size = int(block or 64)
    return Table("af4" if size == 64 else f"af4.{size}", tuple(_medians(size)))


def _medians(block: int) -> list[float]:
    """The 16 values for blocks of `block` numbers."""
    x, share = _distribution(block)
    values = torch.linspace(-1, 1, 16, dtype=torch.float64)
    values[7] = 0
    for _ in range(2000):
        edges = torch.cat([x[:1], (values[1:] + values[:-1]) / 2, x[-1:]])
        edges[7:9] = 0
        at_edges = _interpolate(edges, x, share)
        medians = _interpolate((at_edges[1:] + at_edges[:-1]) / 2, share, x)
        medians[[0, 7, 15]] = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
        moved = float((medians - values).abs().max())
        values = medians
        if moved < 1e-12:
            break
    return [round(value, 8) for value in values.tolist()]


def _distribution(block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points in -1 .. 1 and F there (without the one entry that is -1 or 1: its values are kept anyway)."""
    x = torch.linspace(-1, 1, POINTS, dtype=torch.float64)
    m = torch.linspace(1e-3, 8, POINTS, dtype=torch.float64)
    inside = torch.special.erf(m / 2**0.5)
    density = torch.exp(-(m**2) / 2) * inside ** (block - 1)
    cut = (1 + torch.special.erf(x[:, None] * m / 2**0.5) / inside) / 2
    return x, cut @ (density / density.sum())


def _interpolate(at: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The line through the points (x, y), x ascending, at other places."""
    i = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    return y[i - 1] + (at - x[i - 1]) / (x[i] - x[i - 1]) * (y[i] - y[i - 1])
