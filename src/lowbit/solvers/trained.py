"""trained - tensors that gradient descent moves, and what of a block they stand for.

Idea      Descent (solvers/tuning.py) knows tensors with a rate and bounds, and pieces: parameters of the block as functions of
          such tensors. A piece gives exactly what would be stored; rounding is passed straight through by gradients.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass
class Trained:
    """A tensor that is trained. rate: its step at the start, in its own units; it stays within low .. high."""

    value: Tensor
    rate: float
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        self.value = self.value.detach().float().clone().requires_grad_()


class Piece(Protocol):
    """A parameter of the block as a function of trained tensors."""

    @property
    def trained(self) -> list[Trained]: ...

    def value(self) -> Tensor:
        """The parameter as it would be stored, float32, with gradients to what is trained."""


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0], None


def through(x: Tensor, value: Tensor) -> Tensor:
    """Exactly `value`, with the gradient of `x`."""
    found: Tensor = _Through.apply(x, value)  # type: ignore[no-untyped-call]
    return found


class Float:
    """A norm weight or a bias, rounded to the type that it is stored in. rate: as a share of its root mean square."""

    def __init__(self, start: Tensor, rate: float, stored: torch.dtype) -> None:
        size = float(start.float().square().mean().sqrt())
        self.moved = Trained(start, rate * (size or 1.0))
        self.trained = [self.moved]
        self._stored = stored

    def value(self) -> Tensor:
        x = self.moved.value
        return through(x, x.detach().to(self._stored).float())


def floats(module: nn.Module, rate: float, stored: torch.dtype) -> dict[str, Float]:
    """All norm weights and biases of a block, by name: its parameters of one dimension."""
    return {name: Float(p.data, rate, stored) for name, p in module.named_parameters() if p.dim() == 1}
