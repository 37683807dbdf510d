"""forecast - what a run will take, told before it begins: bytes, peak memory, seconds; a row per layer."""

from collections.abc import Sequence
from typing import Any

import torch

from lowbit.core.device import throughput
from lowbit.pipeline import text
from lowbit.pipeline.source import Source
from lowbit.recipe.plan import Plan


def outlook(source: Source, plan: Plan, ends: Sequence[str], samples: int, length: int, device: torch.device) -> dict[str, Any]:
    """See lowbit.recipe.plan. ends: of embedding and head those that are quantized. samples: windows of `length` tokens."""
    config, sizes = source.text_config, [sum(p.numel() for p in b.parameters()) for b in source.blocks]
    tokens = samples * length if plan.needs_data else 0
    window = min(length, text.LENGTH)
    tables = 1 if source.tied else 2
    # embedding and head in float32 while windows enter and leave; two windows' logits in the closing check, and both ends
    # of the written model beside the original's when one is quantized
    outside = config.vocab_size * 4 * (config.hidden_size * (tables + (2 if ends else 0)) + 2 * window)
    # an end larger than a block is solved alone, as floats, its copy and codes
    largest = max((plan.targets[name].weights for name in ends), default=0)
    outside += 10 * max(0, largest - max(sizes, default=0))
    return plan.outlook(
        tokens=tokens, window=length, hidden=config.hidden_size, block_weights=max(sizes, default=0), blocks=len(sizes),
        outside_bytes=outside, flops=throughput(device), vocabulary=config.vocab_size, tables=tables,
    )  # fmt: skip
