"""ldl - one pass of rounding with feedback: each step makes up for the errors of the steps before it.

In / Out  W [out, in], Factor of H, codec -> codes, values [out, in] in the matrix' own order.
Idea      With H = L D LT, tr(E H ET) = sum of D_k |E L_k|^2. Going from the last column to the first, x_k = W_k + sum over the
          columns j done of (W_j - Q_j) L_jk is what step k has to round: each term of the sum is then the rounding error
          of one step alone. Panels of 128 columns turn the feedback to the far columns into one matrix product.
Source    LDLQ: QuIP (2307.13304) section 3. GPTQ (2210.17323) is the same rounding with the order reversed; codes are equal
          bit by bit (QuIP, theorem 6; tests).
Figures   H = [[4,1,.5,.25],[1,3,1,.5],[.5,1,2,1],[.25,.5,1,1.5]], unit grid, no damping, natural order:
          (1.45,.35,-.6,.3) -> (1,0,0,0), (-.6,.45,.45,1.4) -> (-1,1,0,2), (.4,.4,.45,.4) -> (0,1,0,1).
Traps     The codec sees columns by their place in the matrix, whatever the order: its groups are static.
"""

import torch
from torch import Tensor

from lowbit.solvers import panels
from lowbit.solvers.codec import Codec, round_all
from lowbit.solvers.damping import Factor

PANEL = 128


def solve(weight: Tensor, factor: Factor, codec: Codec) -> tuple[Tensor, Tensor]:
    """Codes [out, any] and values [out, in] of `weight` [out, in], rounded with feedback (without, if there is no factor).

    Cost out * in^2; memory: three copies of the weight.
    """
    if factor.lower is None:
        return round_all(weight, codec)
    x = weight.T[factor.columns].contiguous()
    kernel = panels.kernel(weight, codec, factor.columns)
    if kernel is None:
        codes, values = _by_step(x, factor.lower, factor.columns, codec)
    else:
        codes, values = _by_panel(x, factor.lower, kernel)
    result = torch.empty_like(weight)
    result[:, factor.columns] = values.T
    return codes, result


def _by_step(x: Tensor, lower: Tensor, columns: Tensor, codec: Codec) -> tuple[Tensor, Tensor]:
    """Codes, and values in the factor's order, of the transposed matrix x in that order."""
    width = codec.width
    errors = torch.empty_like(x)
    values = torch.empty_like(x)
    codes: dict[int, Tensor] = {}
    places = columns[::width].tolist()
    panel = max(PANEL // width, 1) * width
    for b in range(x.shape[0], 0, -panel):
        a = max(b - panel, 0)
        moved = torch.addmm(x[a:b], lower[b:, a:b].T, errors[b:])
        for k in range(b - width, a - 1, -width):
            end = k + width
            step = torch.addmm(moved[k - a : end - a], lower[end:b, k:end].T, errors[end:b])
            start = places[k // width]
            codes[start], value = codec.round(step.T, start)
            values[k:end] = value.T
            torch.sub(x[k:end], values[k:end], out=errors[k:end])
    return torch.cat([codes[start] for start in sorted(codes)], 1), values


def _by_panel(x: Tensor, lower: Tensor, kernel: panels.Kernel) -> tuple[Tensor, Tensor]:
    """As `_by_step`, a panel of columns in one launch."""
    found = panels.Found(torch.empty_like(x), torch.empty_like(x), torch.empty_like(x))
    for start, stop in reversed([*panels.parts(x.shape[0], panels.FAR)]):
        far = torch.addmm(x[start:stop], lower[stop:, start:stop].T, found.errors[stop:])
        for a, b in reversed([*panels.parts(stop, panels.PANEL, start)]):
            moved = far[a - start : b - start]
            if b < stop:
                moved = torch.addmm(moved, lower[b:stop, a:b].T, found.errors[b:stop])
            kernel.round(x, moved, lower, (a, b), found)
    return kernel.codes(found.codes), found.values


def loss(error: Tensor, moment: Tensor) -> float:
    """tr(E H ET) of E [out, in], summed in float64."""
    return float(losses(error, moment).sum())


def losses(error: Tensor, moment: Tensor) -> Tensor:
    """What each row adds to `loss`: float64 [out]."""
    return ((error @ moment) * error).sum(1, dtype=torch.float64)
