"""online - a float block whose linears get their inputs in another basis, as the quantized layers will.

Idea      What a format has `ahead` (lowbit.sides) happens before inputs are rounded. Here it is a hook before the linear, whose
          weight becomes what is left for it: solvers, statistics and tuners meet the inner linear and need not know. Hooks that
          are registered later see the changed inputs; experts announce theirs before they run, and those are changed too.
Traps     Linears that share an input share its statistics, so they must change it in the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lowbit import sides
from lowbit.architectures import shares
from lowbit.core.errors import RecipeError
from lowbit.formats import Format, Parts, Quantized

Ahead = dict[str, tuple[Format, Parts]]
"""By the name of a linear: its format and the parts of what that has ahead."""


def prepare(
    module: nn.Module, formats: Mapping[str, Format], found: Mapping[str, Parts], stages: Sequence[Sequence[str]]
) -> Ahead:
    """Turn the linears of a block whose formats ask for it. found: parts that transforms chose. Raises RecipeError."""
    _check(formats, stages)
    ahead: Ahead = {}
    for name, format in formats.items():
        if not format.ahead:
            continue
        weight: Tensor = module.get_submodule(name).weight.data  # type: ignore[assignment]
        parts, inner = dict(found.get(name, {})), weight
        for word in reversed(format.ahead):
            side = sides.get(word)
            parts |= {} if set(side.parts) <= set(parts) else side.fit(inner)
            inner = side.into(inner, parts)
        module.get_submodule(name).weight = nn.Parameter(inner.to(weight.dtype), requires_grad=False)
        ahead[name] = format, parts
    hook(module, ahead)
    return ahead


def _check(formats: Mapping[str, Format], stages: Sequence[Sequence[str]]) -> None:
    """Linears that share an input have the same sides ahead."""
    for names in stages:
        for members in shares(names).values():
            words = {formats[name].ahead: name for name in members}
            if len(words) > 1:
                told = " and ".join(f"{name} {formats[name]}" for name in words.values())
                raise RecipeError(f"{told} share their inputs, but not what is done to them before rounding. Use the same.")


def whole(quantized: Quantized, ahead: tuple[Format, Parts]) -> Quantized:
    """The matrix with what its format has ahead."""
    format, parts = ahead
    own = {part: parts[part] for word in format.ahead for part in sides.get(word).parts}
    return Quantized(format, quantized.codes, quantized.parts | own, quantized.shape, quantized.report)


def inner(quantized: Quantized) -> Quantized:
    """The matrix behind what its format has ahead."""
    outside = {part for word in quantized.format.ahead for part in sides.get(word).parts}
    kept = {name: part for name, part in quantized.parts.items() if name not in outside}
    return Quantized(quantized.format.inner, quantized.codes, kept, quantized.shape, quantized.report)


def hook(module: nn.Module, ahead: Ahead) -> None:
    """Change the inputs of the linears named in `ahead` for as long as the module lives; outputs where a side asks for it."""
    for name, (format, parts) in ahead.items():
        module.get_submodule(name).register_forward_pre_hook(_changing(format, parts))
        if any(getattr(sides.get(word), "adds", False) for word in format.ahead):
            module.get_submodule(name).register_forward_hook(_adding(format, parts))
    for path, child in module.named_modules():
        if path.endswith(".announce") and ahead:
            child.register_forward_pre_hook(_announced(path.removesuffix("announce"), ahead))


def _before(x: Tensor, format: Format, parts: Parts) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    for word in reversed(format.ahead):
        flat = sides.get(word).before(flat, parts)
    return flat.reshape(x.shape)


def _changing(format: Format, parts: Parts) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    return lambda _, args: (_before(args[0], format, parts), *args[1:])


def _adding(format: Format, parts: Parts) -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
    """Sides that `adds` add to outputs what does not depend on the inputs."""

    def hook(_: nn.Module, args: tuple[Any, ...], y: Tensor) -> Tensor:
        flat = y.reshape(-1, y.shape[-1])
        for word in format.ahead:
            flat = sides.get(word).after(flat, flat, parts)
        return flat.reshape(y.shape)

    return hook


def _announced(prefix: str, ahead: Ahead) -> Callable[[nn.Module, tuple[Any, ...]], tuple[dict[str, Tensor], Any]]:
    """What all experts get at once, changed as the first that shares an input changes it."""

    def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[dict[str, Tensor], Any]:
        inputs, sharing = args
        found = {}
        for name, x in inputs.items():
            takers = (f"{prefix}{name.rpartition('.')[0]}.{leaf}" for leaf in sharing)
            taker = next((taker for taker in takers if taker in ahead), None)
            found[name] = x if taker is None else _before(x, *ahead[taker])
        return found, sharing

    return hook
