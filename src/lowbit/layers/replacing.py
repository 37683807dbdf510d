"""replacing - packed matrices in the places of a model's linears, fused experts among them, and of its embedding."""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lowbit import architectures
from lowbit.core.errors import CheckpointError
from lowbit.formats import Format
from lowbit.kernels.activation import Activation
from lowbit.kernels.packing import Stored
from lowbit.layers.embedding import QuantizedEmbedding, scale_of
from lowbit.layers.experts import Experts, take_apart
from lowbit.layers.linear import QuantizedLinear

EXPERT = re.compile(r"\.experts\.\d+\.")
OWN = re.compile(r"(?P<module>.+)\.(weight(_[a-z_]+)?|input_(global_)?scale)")


def module_of(tensor: str) -> str:
    """The module whose weight, part of it or scale of inputs a tensor is; "" for others."""
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


def linear_of(model: nn.Module, name: str, shape: tuple[int, int] | None = None) -> nn.Linear | nn.Embedding:
    """The linear called `name`, or the embedding (a linear of one-hot rows).

    Raises CheckpointError when there is none, or none of this shape.
    """
    try:
        found: nn.Module | None = model.get_submodule(name)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Linear | nn.Embedding):
        what = "no module of this name" if found is None else f"a {type(found).__name__}"
        raise CheckpointError(f"{name}: the files hold it quantized, the model has {what}. The weights do not fit config.json.")
    if shape is not None and shape != tuple(found.weight.shape):
        raise CheckpointError(
            f"{name}: {list(shape)} in the files, {list(found.weight.shape)} by config.json. "
            "The weights do not fit config.json."
        )
    return found


def replace(model: nn.Module, name: str, format: Format, stored: Stored, shape: tuple[int, int] | None = None) -> None:
    """Put a packed matrix (stored: the tensors of lowbit.kernels.packing) in the place of a linear or an embedding.

    Raises CheckpointError as `linear_of`, and for an embedding of a class that lowbit does not know.
    """
    found = linear_of(model, name, shape)
    size, dtype = (found.weight.shape[0], found.weight.shape[1]), found.weight.dtype
    if isinstance(found, nn.Linear):
        model.set_submodule(name, QuantizedLinear(format, size, stored, found.bias, dtype))
        return
    scale = scale_of(found)
    if scale is None:
        raise CheckpointError(f"{name}: a {type(found).__name__} cannot be run from packed rows. Use the model unquantized.")
    model.set_submodule(name, QuantizedEmbedding(format, size, stored, dtype, scale))


def declare(model: nn.Module, activations: Mapping[str, Activation]) -> None:
    """Tell the quantized layers of a model how they round their inputs, by name."""
    for name, activation in activations.items():
        layer = model.get_submodule(name)
        if isinstance(layer, QuantizedLinear):
            layer.activation = activation
