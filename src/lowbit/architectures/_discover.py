"""_discover - the map of a model without a file on the shelf, from its module tree.

Idea   The decoder blocks are the ModuleList that holds most of the weights in linears and fused experts.
Traps  Folds cannot be seen from a tree: methods that need them must end with an error. A linear that looks like a router is
       kept.
"""

from typing import Any

import torch
from torch import nn

from lowbit.architectures._fused import experts
from lowbit.architectures._map import Architecture
from lowbit.core.errors import ArchitectureError

ROUTERS = ("gate", "router", "shared_expert_gate")


def of_config(config: Any) -> Architecture:
    """The map of the causal-LM class of a config. Raises ArchitectureError."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ArchitectureError(
            f"model_type '{config.model_type}': transformers has no causal language model for it. "
            "`lowbit list architectures` names those that are known."
        ) from error
    return discover(model, config.model_type)


def discover(model: Any, model_type: str = "") -> Architecture:
    """The map of `model` (parameters may be on meta): blocks, embedding, head, final norm, routers. No stages, no folds."""
    blocks = _blocks(model)
    if not blocks:
        raise ArchitectureError(
            f"model_type '{model_type}': {type(model).__name__} has no list of layers that hold "
            "nn.Linear. Add a file to lowbit/architectures."
        )
    names = {id(module): name for name, module in model.named_modules()}
    outside = blocks.rpartition(".")[0]
    norms = [n for n, _ in model.get_submodule(outside).named_children() if "norm" in n.lower() or n.lower().startswith("ln")]
    layers = list(model.get_submodule(blocks))
    linears = [n for layer in layers for n, m in layer.named_modules() if isinstance(m, nn.Linear)]
    kept = [n for n in linears if n.rpartition(".")[2] in ROUTERS]
    return Architecture(
        blocks=blocks,
        embed=names.get(id(model.get_input_embeddings()), ""),
        norm=f"{outside}.{norms[-1]}".lstrip(".") if norms else "",
        head=names.get(id(model.get_output_embeddings()), ""),
        keep=tuple((name, "by its name a router") for name in dict.fromkeys(kept)),
        experts=experts(layers, f"model_type '{model_type}'"),
        notes=f"Found from the module tree of {type(model).__name__}; no folds are known.",
    )


def _blocks(model: nn.Module) -> str:
    """Name of the ModuleList with most weights in linears and fused experts; "" when none holds linears."""
    best, name = 0, ""
    for candidate, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(isinstance(m, nn.Linear) for m in module):
            linears = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
            if linears and (weights := linears + sum(p.numel() for p in module.parameters() if p.dim() == 3)) > best:
                best, name = weights, candidate
    return name
