"""joined - linears that share their input, run as one: their rows under each other, one launch instead of two or three.

Idea      The first of them that is called multiplies for all; the others hand out their rows of the same product. So no forward
          of any model has to know, and the weights lie in memory once.
          The rows of packed layers become one matrix when one format holds them all and no row of it depends on others, those
          of floats always do; other layers stay apart, and their products are put side by side.
Traps     They must be called with the same tensor object, one after the other, as attention and MLP do: with any other one
          the product is made anew. A joined model is for running, not for saving: its layers have no weights of their own.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import architectures
from lowbit.architectures import Architecture
from lowbit.formats import Quantized
from lowbit.layers.linear import QuantizedLinear

LINEARS = (nn.Linear, QuantizedLinear)
"""What can be joined."""


class Joined:
    """The product of several linears. whole: the linear of all rows. rows: of each."""

    def __init__(self, whole: nn.Module, rows: Sequence[int]) -> None:
        self.whole = whole
        self._ends = [sum(rows[: i + 1]) for i in range(len(rows))]
        self._x: Tensor | None = None
        self._y: Tensor | None = None

    def part(self, number: int, x: Tensor) -> Tensor:
        """The outputs of linear `number` for x [..., in]."""
        if x is not self._x or self._y is None:
            self._x, self._y = x, self.whole(x)
        start = self._ends[number - 1] if number else 0
        found = self._y[..., start : self._ends[number]]
        if number == len(self._ends) - 1:
            self._x = self._y = None
        return found


class Side(nn.Module):
    """Several linears whose products stand side by side."""

    def __init__(self, linears: Sequence[nn.Module]) -> None:
        super().__init__()
        self.linears = nn.ModuleList(linears)

    @property
    def in_features(self) -> int:
        return self.linears[0].in_features  # type: ignore[return-value]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([linear(x) for linear in self.linears], -1)


class Part(nn.Module):
    """One of the linears. number: its place; the first one holds the weights as its child."""

    def __init__(self, joined: Joined, number: int) -> None:
        super().__init__()
        self.joined, self.number = joined, number
        if number == 0:
            self.whole = joined.whole

    def forward(self, x: Tensor) -> Tensor:
        return self.joined.part(self.number, x)


def join(model: Any, config: Any) -> Any:
    """Join what shares inputs in every block of a model, in place, where that can be."""
    architecture: Architecture = architectures.find(config)
    for block in model.get_submodule(architecture.blocks).children():
        for stage in architecture.stages:
            _join(block, [name for name in stage if "*" not in name])
    return model


def can_join(block: nn.Module, names: Sequence[str]) -> bool:
    """Whether the linears of these names share what `join` makes, or will once it is called."""
    present = dict(block.named_modules())
    linears = [present[name] for name in names if name in present]
    some = {type(linear) for linear in linears}
    return len(linears) == len(names) > 1 and (some == {Part} or all(issubclass(kind, LINEARS) for kind in some))


def _join(block: nn.Module, names: Sequence[str]) -> None:
    if not can_join(block, names) or isinstance(block.get_submodule(names[0]), Part):
        return
    linears: list[Any] = [block.get_submodule(name) for name in names]
    joined = Joined(_whole(linears) or Side(linears), [linear.out_features for linear in linears])
    for number, name in enumerate(names):
        block.set_submodule(name, Part(joined, number))


def _whole(linears: Sequence[nn.Module]) -> nn.Module | None:
    """One linear of the rows of several, or None where there is none."""
    biases = [getattr(linear, "bias", None) for linear in linears]
    if any((bias is None) != (biases[0] is None) for bias in biases):
        return None
    bias = None if biases[0] is None else torch.cat([b.data for b in biases if b is not None])
    if all(type(linear) is nn.Linear for linear in linears):
        weight = torch.cat([linear.weight.data for linear in linears])  # type: ignore[misc]
        return _dense(weight, bias)
    packed = [linear for linear in linears if isinstance(linear, QuantizedLinear)]
    if len(packed) < len(linears) or not _alike(packed):
        return None
    matrices = [linear.quantized() for linear in packed]
    format, shape = packed[0].format, (sum(q.shape[0] for q in matrices), packed[0].in_features)
    parts = {name: torch.cat([q.parts[name] for q in matrices]) for name in matrices[0].parts}
    quantized = Quantized(format, torch.cat([q.codes for q in matrices]), parts, shape)
    return QuantizedLinear.from_quantized(quantized, bias, packed[0].dtype).prepare()


def _alike(packed: Sequence[QuantizedLinear]) -> bool:
    """Whether the layers are in one format whose rows stand alone."""
    first = packed[0]
    same = all(p.format == first.format and p.activation is None and p.dtype == first.dtype for p in packed)
    parts = {name: tensor.shape[0] for name, tensor in first.quantized().parts.items()} if same else {}
    return same and first.format.group[0] == 1 and not first.format.sides and set(parts.values()) == {first.out_features}


def _dense(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear of floats."""
    found = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    found.weight = nn.Parameter(weight, requires_grad=False)
    found.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
    return found
