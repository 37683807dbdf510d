"""observers - what was seen of a linear's inputs -> the scale that is stored for rounding them.

In / Out  Activation, Stats of the inputs -> the activation with its scale: [1] for all of x, [groups], or nvfp4's divisor.
Idea      minmax: the greatest |x|. average: the moving maximum. percentile: 99.99 of 100 values lie within. mse: of 80 shares
          of the greatest |x| the one of least error |x - rounded|^2.4 over the histogram. Times clip, on the end of the range.
          nvfp4: 448 * 6 over the greatest |x|; 256 * 6 where each group chooses among scales, so that they have room.
Source    GPTQ's search (grid 100, shrink to 0.2, norm 2.4) for mse; compressed-tensors for nvfp4.
Traps     The first token of a text is an outlier in many models: minmax then spends the grid on it.
"""

from dataclasses import replace

import torch
from torch import Tensor

from lowbit.kernels.activation import Activation
from lowbit.statistics import Stats, magnitudes

PERCENTILE = 0.9999
SHARES = 80
NORM = 2.4


def needs(activation: Activation | None) -> tuple[str, ...]:
    """The statistic that tells its stored scale; none for scales that are found."""
    if activation is None or not activation.stored:
        return ()
    return ("max_magnitude",) if activation.scales(1 << 20) > 1 else ("magnitudes",)


def scaled(activation: Activation, stats: Stats) -> Activation:
    """The activation with the scale to be stored."""
    if not activation.stored:
        return activation
    element = activation.format.dtype
    half = (element.maximum - element.minimum) / 2
    if activation.format.rule == "nvfp4":
        room = 256.0 if activation.observer == "mse" else 448.0
        found = room * half / (_peak(stats, "minmax", activation) * activation.clip)
        found = torch.where(torch.isfinite(found), found, 1.0)
    else:
        found = _peaks(activation, stats) * activation.clip / half
        found = torch.where(found == 0, 1.0, found)
    return replace(activation, scale=tuple(found.float().tolist()))


def _peaks(activation: Activation, stats: Stats) -> Tensor:
    """The ranges [1] or [groups]."""
    if activation.format.group[1]:
        return stats["max_magnitude"].view(-1, activation.format.group[1]).amax(1)
    return _peak(stats, activation.observer, activation)


def _peak(stats: Stats, observer: str, activation: Activation) -> Tensor:
    """The range [1] of all of x."""
    seen = stats["magnitudes"]
    counts, greatest, moving = seen[:-2].double(), seen[-2:-1], seen[-1:]
    if observer in {"minmax", "average"} or not greatest > 0:
        return moving if observer == "average" else greatest
    values = magnitudes.values(seen.device)
    if observer == "percentile":
        return torch.minimum(values[int((counts.cumsum(0) < PERCENTILE * counts.sum()).sum())], greatest)
    used = counts > 0
    counts, values = counts[used], values[used]
    element = activation.format.dtype
    half = (element.maximum - element.minimum) / 2
    losses = []
    for i in range(SHARES):
        scale = greatest * (1 - i / 100) / half
        losses.append((counts * (element.round(values / scale) * scale - values).abs().double().pow(NORM)).sum())
    return greatest * (1 - int(torch.stack(losses).argmin()) / 100)
