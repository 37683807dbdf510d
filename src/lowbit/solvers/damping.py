"""damping - the second moment made safe to invert, and its factor in the order of rounding.

In / Out  H [in, in], damp -> Factor: H with damping in reversed rounding order = L D LT, L lower with ones on its diagonal.
Idea      H + damp * mean(diag H) * I. When that has no Cholesky factor: 2, 5 and 10 times the damping, then the same four in
          float64, then none at all: the solver rounds without feedback on a grid weighted by diag(H). What was used is said
          in the Factor and goes into the report.
Source    GPTQ (2210.17323) section 3.3, step 3; escalation: GPTQModel, exllamav3.
Defaults  damp 0.01 (GPTQ).
Traps     One Cholesky and no inverse: rounding from the last column to the first needs L alone, so columns are held in reverse.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

FALLBACK = "weighted rtn on diag(H)"
STEPS = (1.0, 2.0, 5.0, 10.0)


@dataclass
class Factor:
    """lower: C / diag(C) with H[columns][:, columns] + damping = C CT, or None (no factor was found). columns [in]: the input
    at each place; the last place is rounded first. damp: used, relative to mean(diag H). fallback: "" or what was done.
    pivots [in]: D of H = L D LT, what a squared error of the step costs (at the places; of its own inputs where width > 1)."""

    columns: Tensor
    lower: Tensor | None
    damp: float
    fallback: str = ""
    pivots: Tensor | None = None


def rounding_order(moment: Tensor, order: str, width: int = 1) -> Tensor:
    """Columns [in], the last is rounded first. order: "activation" (largest diag(H) first) or "natural" (first column first).

    Columns stay together in `width`s.
    """
    steps = torch.arange(moment.shape[0] // width, device=moment.device).flip(0)
    if order == "activation":
        steps = moment.diagonal().view(-1, width).sum(1).argsort(stable=True)
    return (steps[:, None] * width + torch.arange(width, device=moment.device)).reshape(-1)


def revived(moment: Tensor) -> Tensor:
    """H whose dead inputs (H_jj = 0) have the mean of the diagonal: they take no part in feedback, and nothing divides by 0."""
    diagonal = moment.diagonal()
    if bool((diagonal > 0).all()):
        return moment
    mean = diagonal.mean()
    return moment.diagonal_scatter(torch.where(diagonal > 0, diagonal, mean if mean > 0 else 1.0))


def shrunk(moment: Tensor, tokens: int) -> tuple[Tensor, float]:
    """H of fewer tokens than inputs, all but its diagonal shrunk by the share inputs / (inputs + 4 tokens); and that share."""
    share = moment.shape[0] / (moment.shape[0] + 4 * tokens)
    return (moment * (1 - share)).diagonal_scatter(moment.diagonal()), share


def cholesky(moment: Tensor, damp: float, columns: Tensor | None = None) -> tuple[Tensor | None, float, str]:
    """C with H + damping = C CT (None: there is none), the damping used, and what had to be done ("" for nothing).

    columns [in]: the order in which H is taken. Cost in^3 / 3; two copies of H beside H itself (four in float64).
    """
    mean = float(moment.diagonal().double().mean())
    for dtype in (torch.float32, torch.float64):
        for step in STEPS:
            damped = moment.to(dtype, copy=True) if columns is None else moment[columns[:, None], columns].to(dtype)
            damped.diagonal().add_(damp * step * mean)
            lower, info = torch.linalg.cholesky_ex(damped)
            del damped
            if int(info) == 0 and bool(torch.isfinite(lower.diagonal()).all()):
                plain = step == 1.0 and dtype == torch.float32
                return lower.float(), damp * step, "" if plain else f"damp {damp * step:g} in {str(dtype)[6:]}"
    return None, damp, FALLBACK


def factorise(moment: Tensor, columns: Tensor, damp: float, width: int = 1) -> Factor:
    """Factor H [in, in] in the order `columns`. Cost and memory as `cholesky`; one copy of H stays."""
    lower, used, fallback = cholesky(moment, damp, columns)
    if lower is None:
        return Factor(columns, None, used, fallback)
    pivots = lower.diagonal().square()
    return Factor(columns, _unit(lower, width), used, fallback, pivots)


_factors: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By second moment, for as long as that lives: matrices that share their inputs share the factor."""


def factor_of(moment: Tensor, order: str, damp: float, width: int = 1) -> Factor:
    """The factor of H [in, in] in a rounding order, made once for each H. Nobody may change H afterwards."""
    made: dict[tuple[str, float, int], Factor] = _factors.setdefault(moment, {})
    if (order, damp, width) not in made:
        made[order, damp, width] = factorise(moment, rounding_order(moment, order, width), damp, width)
    return made[order, damp, width]


def _unit(lower: Tensor, width: int) -> Tensor:
    """The factor with identity blocks of `width` on its diagonal, in place."""
    if width == 1:
        return lower.div_(lower.diagonal().clone())
    for a in range(0, lower.shape[0], width):
        block = lower[a : a + width, a : a + width].clone()
        lower[a:, a : a + width] = torch.linalg.solve_triangular(block, lower[a:, a : a + width], upper=False, left=False)
    return lower


def salience(moment: Tensor, damp: float) -> Tensor:
    """1 / [H^-1]_jj^2 [in]: what an error of each input costs, squared, when all others make up for it; else diag(H)^2."""
    lower, _, _ = cholesky(revived(moment), damp)
    if lower is None:
        return moment.diagonal().square()
    return torch.cholesky_inverse(lower).diagonal().reciprocal().square()
