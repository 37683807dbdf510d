"""Planted outliers: not a bit of the function changes, activations do."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lowbit.architectures import shelf
from lowbit.testing import architectures as suite
from lowbit.testing.planting import plant


@torch.no_grad()
@pytest.mark.parametrize("name", shelf.names())
def test_the_model_computes_the_same(name: str) -> None:
    model = suite.model_of(name)
    before = model(suite.tokens()).logits
    peaks: list[list[Tensor]] = []
    for _ in range(2):
        found: list[Tensor] = []
        block = suite.blocks_of(model, suite.architecture(name).blocks)[0]
        targets = [fold.targets[0] for fold in suite.architecture(name).folds if "*" not in fold.targets[0]]
        present = [t for t in targets if t in dict(block.named_modules())]

        def keep(_: Any, args: tuple[Tensor, ...], found: list[Tensor] = found) -> None:
            x = args[0].flatten(0, -2).abs().amax(0)
            found.append(x.max() / x.median())

        hooks = [block.get_submodule(t).register_forward_pre_hook(keep) for t in present]
        after = model(suite.tokens()).logits
        for hook in hooks:
            hook.remove()
        peaks.append(found)
        plant(model)
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4 * float(before.std()))
    assert all(planted > 4 * plain for plain, planted in zip(*peaks, strict=True))


@torch.no_grad()
def test_sixteen_bits_lose_nothing(lowbit_tiny: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokens, found = torch.arange(100, 140)[None], []
    for planted in (False, True):
        model: Any = AutoModelForCausalLM.from_pretrained(lowbit_tiny, dtype=torch.bfloat16)
        if planted:
            plant(model)
        for parameter in model.parameters():  # `float` alone would round the rotary table as well
            parameter.data = parameter.data.float()
        found.append(model(tokens).logits)
    assert torch.equal(*found)
