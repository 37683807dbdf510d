"""two_sided - rounding with feedback along inputs and outputs: errors of rows that are done are made up for by the others.

In / Out  W [out, in], H_I [in, in], H_O [out, out], format -> Quantized of small tr(H_O E H_I ET).
Idea      With H_O = L D LT, blocks of rows, the loss is the sum over blocks of D_b |(LT E)_b|^2 in H_I. So going from one block
          to the next, block b rounds T = W_b + sum over the blocks done of L_db (W_d - Q_d) against H_I alone: the whole
          one-sided way (feedback, descent, refits; solvers/grid.py) on another target. Inside a block rows count as unrelated.
          A turned basis of outputs turns H_O along.
Source    YAQA (2505.22988), section 4: LDLQ in both indices; here the rows in blocks.
Defaults  blocks of 16 rows, the height of the paper's tiles. The time is that of one side times out / rows.
Figures   A synthetic H_O with one strong direction (tests), int3-g64: of what one-sided feedback leaves, blocks of 1, 8 and 32
          rows leave 0.11, 0.20 and 0.42; e8p2 0.16, 0.19 and 0.46.
"""

import math

import torch
from torch import Tensor

from lowbit import sides
from lowbit.formats import Format, Parts, Quantized
from lowbit.solvers import damping, grid
from lowbit.solvers import rows as apart
from lowbit.solvers.grid import Problem, Refit


def solve(
    weight: Tensor,
    given: Problem,
    outputs: Tensor,
    format: Format,
    refit: Refit,
    *,
    target: Tensor | None = None,
    damp: float = 0.01,
    rows: int = 16,
    sweeps: int = 3,
) -> Quantized:
    """Round `weight` [out, in], or `target` in its stead. outputs: H_O. rows: of a block, as far as that divides the matrix.

    Report: as of grid.solve, "error" relative to tr(H_O W H_I WT).
    """
    report, outside = dict(given.report), outputs
    around, wanted = format.begin((weight if target is None else target).float())
    moment, outputs = grid.turned(format, around, given.moment), damping.revived(_turned(format, around, outputs))
    fitted = grid.searched(format.core, wanted, moment)
    height, width, _ = fitted.format.step
    order = "activation" if height == width == 1 else "natural"
    factor = damping.factorise(moment, damping.rounding_order(moment, order, width), damp, width)
    step = max(math.gcd(rows, wanted.shape[0]), height)
    places = damping.rounding_order(outputs, "natural", step)
    lower = damping.factorise(outputs, places, damp, step).lower
    plain = factor.lower is None or height > 1
    done, errors = [], torch.zeros_like(wanted)
    for b in range(wanted.shape[0], 0, -step):
        a, mine = b - step, slice(int(places[b - step]), int(places[b - step]) + step)
        moved = wanted[mine] if lower is None else torch.addmm(wanted[mine], lower[b:, a:b].T, errors[b:])
        keep: Refit = refit if apart.alone(fitted) else lambda _, __, kept, codes, values: (kept, values)
        codes, parts, error = grid.rounded(moved, moment, factor, apart.part(fitted, mine), 0 if plain else sweeps, keep)
        errors[a:b] = wanted[mine] - (moved - error)
        done.append((codes, parts))
    fallback = [str(report.get("fallback", "")), factor.fallback, "" if lower is not None else "no feedback along outputs"]
    report |= {"damp": factor.damp} | ({"fallback": "; ".join(filter(None, fallback))} if any(fallback) else {})
    codes, parts = apart.joined(fitted, done)
    quantized = Quantized(format, codes, parts | around, fitted.shape, report)
    goal = weight.float() if target is None else target.float()
    lost, whole = (loss(error, given.moment, outside) for error in (goal - quantized.decode(), weight.float()))
    report["error"] = lost / max(whole, 1e-300)
    return quantized


def loss(error: Tensor, inputs: Tensor, outputs: Tensor) -> float:
    """tr(H_O E H_I ET), summed in float64."""
    return float(((error @ inputs) * (outputs @ error)).sum(dtype=torch.float64))


def _turned(format: Format, parts: Parts, outputs: Tensor) -> Tensor:
    """H_O [out, out] of the errors that the grid of a format makes inside its sides."""
    for name in reversed(format.sides):
        side = sides.get(name)
        if isinstance(side, sides.Basis):
            turn = side.after(torch.eye(len(outputs), device=outputs.device), outputs, parts)
            outputs = turn @ outputs @ turn.T
    return outputs
