"""replacing - finding the linears of a model that a folder holds quantized, fused experts among them."""

import fnmatch
import re
from collections.abc import Iterable
from typing import Any

from torch import nn

from lowbit import architectures
from lowbit.core.errors import CheckpointError
from lowbit.layers.experts import Experts, take_apart

EXPERT = re.compile(r"\.experts\.\d+\.")
OWN = re.compile(r"(?P<module>.+)\.weight(_[a-z_]+)?")


def module_of(tensor: str) -> str:
    """The module whose weight, or part of it, a tensor is; "" for others."""
    match = OWN.fullmatch(tensor)
    return match["module"] if match else ""


def has_experts(names: Iterable[str]) -> bool:
    """Whether single experts are among the names."""
    return any(EXPERT.search(name) for name in names)


def renames_of(config: Any, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """How names in the files become the model's; a model without a file in lowbit.architectures and without experts: as is."""
    known = config.model_type in architectures.shelf or has_experts(names)
    return architectures.find(config).renames if known else ()


def open_experts(model: Any) -> None:
    """Take the fused experts of all blocks apart, so that each projection is a linear."""
    architecture = architectures.find(model.config)
    pattern = f"{architecture.blocks}.*.{architecture.experts}"
    for name, module in list(model.named_modules()):
        if architecture.experts and fnmatch.fnmatch(name, pattern) and not isinstance(module, Experts):
            model.set_submodule(name, take_apart(module))


def linear_of(model: nn.Module, name: str, shape: tuple[int, int] | None = None) -> nn.Linear:
    """The nn.Linear called `name`. Raises CheckpointError when there is none, or none of this shape."""
    try:
        found: nn.Module | None = model.get_submodule(name)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Linear):
        what = "no module of this name" if found is None else f"a {type(found).__name__}"
        raise CheckpointError(f"{name}: the files hold it quantized, the model has {what}. The weights do not fit config.json.")
    if shape is not None and shape != (found.out_features, found.in_features):
        raise CheckpointError(
            f"{name}: {list(shape)} in the files, {[found.out_features, found.in_features]} by config.json. "
            "The weights do not fit config.json."
        )
    return found
