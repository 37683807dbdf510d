"""continuous - a solved matrix as a function of its real numbers: scales, zeros, tables, factors of its basis; codes stay.

In / Out  Quantized -> a piece for solvers/tuning.py: what is trained, the matrix that it stands for, and that to be stored.
Idea      Where a format's scales can be set one by one (`rescale` in its file) a factor of each is trained; what a file names
          in TRAINED is trained as it is, and so are the parts that a side names. The value is decoded from what would be
          stored, and passes its gradients on as if nothing had been rounded.
"""

import torch
from torch import Tensor

from lowbit import sides
from lowbit.formats import Format, Grid, Parts, Quantized, shelf
from lowbit.solvers.trained import Trained, through


def refusal(format: Format) -> str:
    """Why a format has no real numbers that can be trained; "" where it has some."""
    rule = shelf.get(format.rule)
    if hasattr(rule, "rescale") or getattr(rule, "TRAINED", {}):
        return ""
    return f"the scales of {format.rule} cannot be set one by one. Use norm_tuning"


class Continuous:
    """One matrix: factors of its scales [R, G], its rule's parts that are real numbers, its sides' factors.

    rate: of a factor, and of everything else as a share of its spread. scales: whether these factors are all that is trained.
    """

    def __init__(self, start: Quantized, rate: float, scales: bool = False) -> None:
        self.start = start
        self.codes = start.codes
        self._rule = shelf.get(start.format.rule)
        self._scale = start.grid.scale
        around = [part for side in start.format.sides for part in getattr(sides.get(side), "trained", ())]
        parts = [] if scales else [*getattr(self._rule, "TRAINED", {}), *around]
        self._moved = {name: Trained(start.parts[name], rate * _spread(start.parts[name])) for name in parts}
        self._scales = [Trained(torch.ones_like(self._scale), rate, 0.5, 2.0)] if hasattr(self._rule, "rescale") else []
        self.trained = [*self._scales, *self._moved.values()]

    def _parts(self) -> Parts:
        """The parts as they are now, as they can be stored."""
        start, ways = self.start, getattr(self._rule, "TRAINED", {})
        parts = dict(start.parts)
        for name, t in self._moved.items():
            value = t.value.detach()
            parts[name] = ways[name](value) if name in ways else value.to(start.parts[name].dtype)
        if self._scales:
            parts = dict(self._rule.rescale(start.format, parts, self._scale * self._scales[0].value.detach()))
        return parts

    def value(self) -> Tensor:
        start, stored = self.start, self._parts()
        moved = {name: through(t.value, stored[name].float()) for name, t in self._moved.items()}
        soft = Grid(start.format, {**start.parts, **moved}, start.shape)
        values = soft.inner(self.codes)
        for t in self._scales:
            values = values * soft.spread(t.value)
        values = through(self._shifted(values), Grid(start.format, stored, start.shape).inner(self.codes))
        for name in start.format.sides:
            values = sides.get(name).decode(values, {**stored, **moved})
        return values

    def _shifted(self, values: Tensor) -> Tensor:
        """The values inside the sides; what is added here gets their gradients."""
        return values

    def quantized(self) -> Quantized:
        """The matrix as it is stored."""
        start = self.start
        return Quantized(start.format, self.codes, self._parts(), start.shape, dict(start.report))


def _spread(part: Tensor) -> float:
    """The standard deviation of a part, 1 where it has none."""
    found = float(part.float().std()) if part.numel() > 1 else 0.0
    return found if found > 0 else 1.0
