"""activations - a float block whose linears round what they are given, as the quantized layers will.

Idea      A hook before each linear; whatever is registered later (the pauses of the stream, summaries, comparisons) sees the
          rounded inputs, and outputs are made of them. Experts announce their inputs before they run: those are rounded too.
          A layer rounds inside the sides of its format. A turned basis is known beforehand: the hook turns x, rounds it and
          turns it back. What other sides do is known when the matrix is solved: solvers meet the inputs as floats, and from
          then on a hook behind the linear computes y = x' WT + what the sides make of x - x', x' rounded inside.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import sides
from lowbit.formats import Format, Quantized
from lowbit.kernels.activation import Activation, fake
from lowbit.solvers import observers
from lowbit.statistics import Stats

Solved = Callable[[str], Quantized | None]
"""A matrix by the name of its linear; None while it is not solved."""


def attach(
    module: nn.Module, activations: Mapping[str, Activation], formats: Mapping[str, Format], solved: Solved
) -> nn.Module:
    """Round the inputs of the linears named in `activations` for as long as the module lives. formats: of their weights."""
    early: dict[str, Callable[[Tensor], Tensor]] = {}
    for name, activation in activations.items():
        linear: Any = module.get_submodule(name)
        around = formats[name].sides
        if all(getattr(sides.get(side), "known", False) for side in around):
            early[name] = functools.partial(_turned, formats[name], _parts(linear, name, formats[name], solved), activation)
            linear.register_forward_pre_hook(_rounding(early[name]))
        else:
            linear.register_forward_hook(_law(functools.partial(solved, name), activation))
    for path, inner in module.named_modules():
        if path.endswith(".announce") and early:
            inner.register_forward_pre_hook(_announced(path.removesuffix("announce"), early))
    return module


def inside(found: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What is told of the linears of one block, by name inside it. found: by full name."""
    return {n.removeprefix(f"{prefix}."): a for n, a in found.items() if n.startswith(f"{prefix}.")}


def observed(
    activations: Mapping[str, Activation], collect: Callable[[tuple[str, ...]], Mapping[str, Stats]]
) -> dict[str, Activation]:
    """The activations with the scales that are stored. An expert that no token chose takes that of the one that saw most.

    collect: statistics of the inputs that the float block meets, by the names of those.
    """
    needs = tuple(sorted({need for activation in activations.values() for need in observers.needs(activation)}))
    if not needs:
        return dict(activations)
    found, stats = {}, collect(needs)
    for name, activation in activations.items():
        alike = [s for other, s in stats.items() if other.rpartition(".")[2] == name.rpartition(".")[2]]
        seen = stats[name] if stats[name].tokens else max(alike, key=lambda s: s.tokens)
        found[name] = observers.scaled(activation, seen)
    return found


def behind(module: nn.Module, name: str, format: Format, x: Tensor) -> Tensor:
    """What the grid of a matrix that is not solved gets for x [..., in]: behind the sides that are known beforehand."""
    if not format.sides:
        return x
    parts, x = _parts(module.get_submodule(name), name, format, lambda _: None)(), x.reshape(-1, x.shape[-1])
    for side in reversed(format.sides):
        x = sides.get(side).before(x, parts)
    return x


def _parts(linear: Any, name: str, format: Format, solved: Solved) -> Callable[[], sides.Parts]:
    """The parts of the sides of a matrix, those that it begins with while it is not solved."""
    first: dict[str, Tensor] = {}
    for side in format.sides:
        first |= sides.get(side).fit(torch.zeros_like(linear.weight))

    def parts() -> sides.Parts:
        matrix = solved(name) if format.sides else None
        return first if matrix is None else matrix.parts

    return parts


def _turned(format: Format, parts: Callable[[], sides.Parts], activation: Activation, x: Tensor) -> Tensor:
    """x [..., in] rounded inside the basis of its matrix."""
    if not format.sides or not x.numel():
        return fake(x, activation)
    flat = x.reshape(-1, x.shape[-1])
    return sides.within(format.sides, flat, parts(), lambda t: fake(t, activation)).view(x.shape)


def _rounding(change: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return change(args[0]), *args[1:]

    return hook


def _law(solved: Callable[[], Quantized | None], activation: Activation) -> Callable[[Any, tuple[Any, ...], Tensor], Tensor]:
    """The output of a linear as its layer gives it, once the matrix is solved."""

    def hook(linear: Any, args: tuple[Any, ...], out: Tensor) -> Tensor:
        matrix, x = solved(), args[0]
        if matrix is None or not x.numel():
            return out
        around, flat = matrix.format.sides, x.reshape(-1, x.shape[-1])
        changed = sides.within(around, flat, matrix.parts, lambda t: fake(t, activation))
        y = nn.functional.linear(changed, linear.weight, linear.bias)
        return (y + sides.beside(around, flat - changed, matrix.parts, y.shape[1])).view(out.shape)

    return hook


def _announced(
    prefix: str, early: Mapping[str, Callable[[Tensor], Tensor]]
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[dict[str, Tensor], Any]]:
    """What all experts get at once, rounded by the first that shares an input."""

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[dict[str, Tensor], Any]:
        inputs, sharing = args
        found = {}
        for name, x in inputs.items():
            takers = (f"{prefix}{name.rpartition('.')[0]}.{leaf}" for leaf in sharing)
            change = next((early[taker] for taker in takers if taker in early), None)
            found[name] = x if change is None else change(x)
        return found, sharing

    return hook
