"""activations - a float block whose linears round what they are given, as the quantized layers will.

Idea      A hook before each linear; whatever is registered later (the pauses of the stream, summaries, comparisons) sees the
          rounded inputs, and outputs are made of them. Experts announce their inputs before they run: those are rounded too.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from lowbit.kernels.activation import Activation, fake


def attach(module: nn.Module, activations: Mapping[str, Activation]) -> nn.Module:
    """Round the inputs of the linears named in `activations` for as long as the module lives."""
    for name, activation in activations.items():
        module.get_submodule(name).register_forward_pre_hook(_rounding(activation))
    for path, inner in module.named_modules():
        if path.endswith(".announce") and activations:
            inner.register_forward_pre_hook(_announced(path.removesuffix("announce"), activations))
    return module


def inside(activations: Mapping[str, Activation], prefix: str) -> dict[str, Activation]:
    """Those of one block, by name inside it. activations: by full name."""
    return {n.removeprefix(f"{prefix}."): a for n, a in activations.items() if n.startswith(f"{prefix}.")}


def _rounding(activation: Activation) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return fake(args[0], activation), *args[1:]

    return hook


def _announced(
    prefix: str, activations: Mapping[str, Activation]
) -> Callable[[nn.Module, tuple[Any, ...]], tuple[dict[str, Tensor], Any]]:
    """What all experts get at once, rounded by the first that shares an input."""

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[dict[str, Tensor], Any]:
        inputs, sharing = args
        found = {}
        for name, x in inputs.items():
            takers = (f"{prefix}{name.rpartition('.')[0]}.{leaf}" for leaf in sharing)
            activation = next((activations[taker] for taker in takers if taker in activations), None)
            found[name] = x if activation is None else fake(x, activation)
        return found, sharing

    return hook
