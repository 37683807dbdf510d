"""flatquant - an invertible Kronecker basis for the inputs of every linear, learned block by block: flat inputs, flat weights.

In / Out  a block, hidden states that enter it, how its linears are rounded -> two small matrices for each group of linears that
          share inputs, applied while running (the side `affine`); the block's function stays. Follow it by a solver and `act`.
Idea      x (L x R)t and W (L x R)^-1: no orthogonality is asked for, so that the basis may also shrink what does not matter.
          Adam follows the gradients of the squared error of the block's output to L and R, with inputs and weights rounded,
          straight through. The channels' own scales are smoothquant's: smoothquant(alpha=0.3, edges=all) + flatquant is the
          paper's start.
Source    FlatQuant (2410.09426), section 3; here L and R are trained as they are, without the singular value form.
Defaults  steps 200, batch 4, rate 0.005 (the paper: 480 of 4 windows, 0.005). It trains on at most 8 windows.
Traps     Clipping is left to the solver's search and to act(clip=...). Every linear pays n (a + b) products a token.
"""

import itertools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowbit.architectures import shares
from lowbit.core.errors import CalibrationError
from lowbit.formats import Format
from lowbit.kernels.activation import fake
from lowbit.methods import Block, Count, Linear, Method
from lowbit.methods._taken import AT_ONCE, Formats
from lowbit.sides import Parts, _kronecker
from lowbit.solvers import tuning
from lowbit.solvers.trained import Trained, through
from lowbit.statistics import Stats

SIDE = "affine"
LIMIT = 4.0
"""Greatest entry: 16 bits hold it and its neighbours exactly enough."""


class Basis:
    """L and R of one group of linears."""

    def __init__(self, inputs: int, rate: float, device: torch.device) -> None:
        start = _kronecker.factors(inputs, 0)
        self.trained = [Trained(factor.to(device), rate, -LIMIT, LIMIT) for factor in start]

    def apply(self, x: Tensor) -> Tensor:
        left, right = (t.value.to(x.dtype) for t in self.trained)
        return _kronecker.turn(x, left, right)

    def inner(self, weight: Tensor) -> Tensor:
        """W (L x R)^-1."""
        left, right = (torch.linalg.inv(t.value.double()).to(weight.dtype) for t in self.trained)
        return _kronecker.turn(weight, left.T, right.T)

    def parts(self) -> Parts:
        """As they are stored."""
        left, right = (t.value.detach().to(torch.float16).contiguous() for t in self.trained)
        return {"affine_left": left, "affine_right": right}


class Rounded:
    """One matrix in a basis, rounded to nearest. trained: of one matrix of each group alone."""

    def __init__(self, weight: Tensor, basis: Basis, format: Format, first: bool) -> None:
        self.weight, self.basis, self.format = weight, basis, format
        self.trained = basis.trained if first else []

    def value(self) -> Tensor:
        inner = self.basis.inner(self.weight.float())
        values = inner.detach()
        return through(inner, self.format.fit(values, search=False).quantize(values).decode())


@dataclass(frozen=True)
class FlatQuant(Method):
    """steps: of descent in each block. batch: windows in each. rate: of the entries of L and R."""

    steps: Count = 200
    batch: Count = 4
    rate: float = 0.005

    needs: ClassVar[tuple[str, ...]] = ("max_magnitude",)
    takes: ClassVar[Formats] = AT_ONCE

    def around(self, linear: Linear) -> str:
        """The side of one linear."""
        return SIDE

    def rewrite(self, block: Block, stats: dict[str, Stats]) -> None:
        """Learn the bases of the linears that are rounded, and leave them in block.parts."""
        if block.samples is None:
            raise CalibrationError(f"flatquant: {block.name} has no hidden states to learn from. Give a calibration text.")
        groups = [shares([n for n in stage if n in block.linears]) for stage in block.stages]
        members = list(itertools.chain.from_iterable(group.values() for group in groups))
        targets = block.run(block.samples)
        pieces, bases, hooks = dict[str, Any](), dict[str, Basis](), list[Any]()
        for names in members:
            linear = block.linears[names[0]]
            basis = Basis(linear.in_features, self.rate, linear.weight.device)
            for name in names:
                bases[name] = basis
                pieces[f"{name}.weight"] = Rounded(
                    block.linears[name].weight.data, basis, block.formats[name], name == names[0]
                )
                hooks.append(block.linears[name].register_forward_pre_hook(self._hook(block, name, basis)))
        try:
            for name in bases:  # the start that descent has to beat
                block.linears[name].weight.data = pieces[f"{name}.weight"].value().detach().to(targets.dtype)
            settings = tuning.Settings(self.steps, self.batch, "adam", "cosine")
            tuning.run(block.module, block.kwargs, pieces, [block.samples], [targets], settings, block.index)
        finally:
            for hook in hooks:
                hook.remove()
            for name in bases:
                block.linears[name].weight = nn.Parameter(pieces[f"{name}.weight"].weight, requires_grad=False)
        block.parts |= {name: basis.parts() for name, basis in bases.items()}

    def _hook(self, block: Block, name: str, basis: Basis) -> Any:
        activation = block.activations.get(name)

        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
            x = basis.apply(args[0])
            return (x if activation is None else fake(x, activation), *args[1:])

        return hook
