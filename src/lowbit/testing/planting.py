"""planting - outliers planted into a model that computes the same: what methods made for outliers are measured on.

In / Out  a model of a known architecture, in place -> the same logits, other activations. Sources of folds get a few outputs
          scaled up, their readers' columns down: channels after norms by 64, inputs of down by 32, of o by 16, rotary pairs of
          keys by 16 (queries down).
Idea      Trained models of billions of weights have such channels, small ones have not. A power of two moves exponents alone,
          so that not a bit of the function is lost in 16 bits either.
Source    Channels after norms: SmoothQuant (2211.10438), figure 4, 50 to 100 times the rest. Keys: KIVI (2402.02750), figure 2.
Traps     Keys behind a norm, or in one matrix with queries and values, are left as they are. Tokens
          with massive activations cannot be planted: they would change what norms divide by.
"""

from dataclasses import dataclass

import torch
from torch import nn

from lowbit import architectures
from lowbit.architectures import Fold
from lowbit.transforms import fold as folding


@dataclass(frozen=True)
class Outliers:
    """How often and how far: of each kind (channels, factor). channels: of each source, of heads each of one head."""

    norms: tuple[int, float] = (4, 64.0)
    down: tuple[int, float] = (4, 32.0)
    values: tuple[int, float] = (1, 16.0)
    keys: tuple[int, float] = (1, 16.0)

    def of(self, fold: Fold, norm: bool) -> tuple[int, float]:
        """Channels and factor for one fold."""
        return self.norms if norm else self.values if fold.heads else self.down


@torch.no_grad()
def plant(model: nn.Module, outliers: Outliers | None = None, seed: int = 0) -> nn.Module:
    """Plant outliers along every fold of every block, and into keys."""
    config = model.config.get_text_config()  # type: ignore[operator,union-attr]
    known, outliers = architectures.find(model.config), outliers or Outliers()
    heads = (int(config.num_attention_heads), int(config.num_key_value_heads))
    generator = torch.Generator().manual_seed(seed)
    for block in model.get_submodule(known.blocks).children():
        for fold in folding.resolve(known.folds, [name for name, _ in block.named_modules()]):
            norm = block.get_parameter(f"{fold.source}.weight").dim() == 1
            count, factor = outliers.of(fold, norm)
            channels = folding.rows_of(block, fold, heads)[1]
            groups = heads[1] if fold.heads else 1
            chosen = [torch.randperm(channels // groups, generator=generator)[:count] for _ in range(groups)]
            scales = torch.ones(groups, channels // groups)
            for row, places in zip(scales, chosen, strict=True):
                row[places] = 1 / factor
            folding.apply(block, fold, scales.flatten(), heads)
        _plant_keys(block, heads, outliers.keys)
    return model


def _plant_keys(block: nn.Module, heads: tuple[int, int], told: tuple[int, float]) -> None:
    """Scale rotary pairs of every key head up and those of its queries down."""
    modules = dict(block.named_modules())
    if "self_attn.k_proj" not in modules or "self_attn.k_norm" in modules:
        return
    count, factor = told
    for name, number, power in (("k_proj", heads[1], 1), ("q_proj", heads[0], -1)):
        for tensor in modules[f"self_attn.{name}"].parameters():
            rows = tensor.data.view(number, 2, len(tensor) // number // 2, -1)
            rows[:, :, :count] *= factor**power
