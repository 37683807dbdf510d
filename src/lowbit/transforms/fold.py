"""fold - move a scale per channel along an edge of a block: what the source gives is divided by it, its readers multiplied.

In / Out  a Fold of the architecture and scales [channels] > 0 of the source's outputs -> the block's weights, changed in place;
          the block computes the same.
Idea      (x / s) (W diag(s))^T = x W^T. A norm gives x = (offset + w) * n, a linear x = W n + b, so w, W and b take the
          division. With grouped queries a value channel reaches `o` once per query head: its one scale is repeated there.
Source    SmoothQuant (2211.10438), AWQ (2306.00978).
Traps     Everything is computed in float64 and cast once. What follows between source and readers must be linear in each
          channel: attention weights times values is, act(gate) * up is in up. Every reader of the source must be named, routers
          too. A norm with (1 + w) is divided as a whole.
"""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lowbit.architectures import Fold
from lowbit.core.errors import ArchitectureError


def known(folds: Sequence[Fold], module: nn.Module, asked: str, place: str) -> tuple[Fold, ...]:
    """The folds of a block, names resolved. asked: by which step; place: the block's name. Raises ArchitectureError."""
    found = resolve(folds, [name for name, _ in module.named_modules()])
    if not found:
        raise ArchitectureError(
            f"{asked}: no folds are known for {type(module).__name__} ({place}), so scales have nowhere to go. "
            "Leave this step out, or add a file to lowbit/architectures."
        )
    return tuple(found)


def scale_inputs(weight: Tensor, scales: Tensor) -> Tensor:
    """Columns of `weight` [out, in] times scales [in], in float64, in the weight's dtype."""
    return (weight.double() * scales.double()).to(weight.dtype)


def scale_outputs(tensor: Tensor, scales: Tensor, first: int = 0) -> Tensor:
    """Rows first .. first + len(scales) of a weight [out, in] or bias [out] divided by scales, in float64, in its own dtype."""
    exact = tensor.double()
    divisor = scales.double().view(-1, *[1] * (tensor.dim() - 1))
    exact[first : first + len(scales)] /= divisor
    return exact.to(tensor.dtype)


def scale_norm(weight: Tensor, scales: Tensor, offset: float = 0.0) -> Tensor:
    """The norm weight w' with offset + w' = (offset + weight) / scales, in float64, in its own dtype."""
    return ((weight.double() + offset) / scales.double() - offset).to(weight.dtype)


def storable(weight: Tensor, scales: Tensor, offset: float = 0.0) -> Tensor:
    """The scales nearest to `scales` [channels] that make scale_norm(weight, ...) exact in 8 significant bits.

    A norm is stored in bfloat16: with other scales its rounding, up to 0.4 % a channel, would be an error of every reader.
    """
    exact = weight.double() + offset
    stored = (exact / scales.double() - offset).bfloat16().double() + offset
    usable = (exact != 0) & (stored / exact > 0)
    return torch.where(usable, exact / stored, scales.double()).float()


def resolve(folds: Iterable[Fold], names: Sequence[str]) -> list[Fold]:
    """The folds that exist among the modules `names` of a block, their "*" replaced by what is there."""
    found = []
    for fold in folds:
        before, star, after = fold.source.partition("*")
        for source in fnmatch.filter(names, fold.source):
            expert = source.removeprefix(before).removesuffix(after) if star else "*"
            readers = [fnmatch.filter(names, t.replace("*", expert)) for t in fold.targets]
            if all(readers):
                targets = tuple(name for group in readers for name in group)
                found.append(replace(fold, source=source, targets=targets, inspect=fold.inspect.replace("*", expert)))
    return found


def rows_of(block: nn.Module, fold: Fold, heads: tuple[int, int]) -> tuple[int, int]:
    """First row and number of the source's outputs that the fold scales. heads: (query heads, key-value heads).

    Raises ArchitectureError when source and target do not fit together.
    """
    outputs = _weight(block, fold.source).shape[0]
    first, channels = round(fold.rows[0] * outputs), round(fold.rows[1] * outputs) - round(fold.rows[0] * outputs)
    inputs = _weight(block, fold.targets[0]).shape[1]
    if fold.heads:
        channels = inputs // heads[0] * heads[1]
        first = outputs - channels
    if first < 0 or (inputs != channels * (heads[0] // heads[1] if fold.heads else 1)):
        raise ArchitectureError(
            f"fold {fold.source} -> {fold.targets[0]}: {outputs} outputs and {inputs} inputs do not fit "
            f"{heads[0]} query and {heads[1]} key-value heads. Correct the architecture's file."
        )
    return first, channels


def spread(scales: Tensor, fold: Fold, heads: tuple[int, int]) -> Tensor:
    """Scales of the source's channels -> of the targets' inputs: those of a key-value head repeated for its query heads."""
    return scales.view(heads[1], 1, -1).expand(-1, heads[0] // heads[1], -1).reshape(-1) if fold.heads else scales


def gather(values: Tensor, fold: Fold, heads: tuple[int, int]) -> Tensor:
    """Values of the targets' inputs -> of the source's channels: the greatest of the query heads that share one."""
    return values.view(heads[1], heads[0] // heads[1], -1).amax(1).reshape(-1) if fold.heads else values


@torch.no_grad()
def apply(block: nn.Module, fold: Fold, scales: Tensor, heads: tuple[int, int] = (1, 1)) -> None:
    """Move `scales` (one for each of the source's channels) along a resolved fold; the block keeps its function."""
    first, channels = rows_of(block, fold, heads)
    if scales.shape != (channels,):
        raise ArchitectureError(
            f"fold {fold.source} -> {fold.targets[0]}: {tuple(scales.shape)} scales for {channels} channels. Give one for each."
        )
    source = block.get_submodule(fold.source)
    weight = _weight(block, fold.source)
    norm = weight.dim() == 1
    weight.data = scale_norm(weight.data, scales, fold.offset) if norm else scale_outputs(weight.data, scales, first)
    bias = getattr(source, "bias", None)
    if isinstance(bias, Tensor):
        bias.data = scale_outputs(bias.data, scales, first)
    for name in fold.targets:
        target = _weight(block, name)
        target.data = scale_inputs(target.data, spread(scales, fold, heads))


def _weight(block: nn.Module, name: str) -> nn.Parameter:
    """The weight of a norm, a linear or a router."""
    weight = block.get_submodule(name).weight
    if not isinstance(weight, nn.Parameter):
        raise ArchitectureError(
            f"{name}: {type(block.get_submodule(name)).__name__} has no weight to fold into. Correct the architecture's file."
        )
    return weight
