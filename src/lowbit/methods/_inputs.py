"""_inputs - some inputs of linears of a block as it stands, for methods that try candidates on them."""

from typing import Any

import torch
from torch import Tensor, nn

from lowbit.methods import Block

TOKENS = 1024


def sample(block: Block, names: list[str]) -> dict[str, Tensor]:
    """Some inputs [tokens, in] of linears of a block, in float32; without those that saw none."""
    found: dict[str, Tensor] = {}

    def keeper(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0].reshape(-1, args[0].shape[-1]).float()
            if len(x):
                found[name] = x[torch.linspace(0, len(x) - 1, min(TOKENS, len(x)), device=x.device).long()]

        return hook

    hooks = [block.linears[name].register_forward_pre_hook(keeper(name)) for name in names]
    try:
        if block.samples is not None:
            block.run(block.samples)
    finally:
        for hook in hooks:
            hook.remove()
    return found
