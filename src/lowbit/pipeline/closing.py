"""closing - the guards at the end of a run: the written folder, read back block by block, against the original.

Idea      Both models run over a few held-out windows, one block of each in memory at a time; the quantized one is made of what
          config.json and the files say, by the same reader that any later load uses. What comes out is measured (KL divergence,
          perplexity, agreement), so the model card carries figures of the file itself.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import checkpoints
from lowbit.checkpoints.folder import Folder
from lowbit.core.errors import CheckpointError
from lowbit.pipeline import blocks
from lowbit.pipeline.outer import Outer
from lowbit.pipeline.progress import Progress
from lowbit.pipeline.source import Source
from lowbit.pipeline.stream import first
from lowbit.statistics._divergence import Divergence

WINDOWS = 4


def written_block(source: Source, stored: checkpoints.Stored, index: int, device: torch.device) -> nn.Module:
    """Block `index` of a written folder with its weights decoded to float32."""

    def get(name: str) -> Tensor:
        module = name.removesuffix(".weight")
        return (
            stored.quantized(module).decode() if module in stored.formats and name.endswith(".weight") else stored.tensor(name)
        )

    return blocks.load(source.blocks[index], source.prefix(index), get, device, torch.float32)


def original_block(source: Source, index: int, device: torch.device) -> nn.Module:
    """Block `index` of the original in float32."""
    return blocks.load(source.blocks[index], source.prefix(index), source.stored.tensor, device, torch.float32)


def measure(source: Source, folder: Folder, tokens: Tensor, device: torch.device, progress: Progress) -> dict[str, Any]:
    """Divergence of the written folder from the original over windows [windows, length]."""
    outer = Outer(source.skeleton, source.blocks, source.stored.tensor, torch.float32, device)
    kwargs = outer.kwargs(tokens.shape[1])
    entered = [outer.enter(row[None]) for row in tokens]
    stored = checkpoints.Stored(folder, source.stored.renames)
    makers: list[Callable[[int], nn.Module]] = [
        lambda i: written_block(source, stored, i, device),
        lambda i: original_block(source, i, device),
    ]
    streams = [list(entered), list(entered)]
    progress.start("check", len(source.blocks))
    for index in range(len(source.blocks)):
        for stream, maker in zip(streams, makers, strict=True):
            module = maker(index)
            for i, hidden in enumerate(stream):
                stream[i] = first(module(hidden, **kwargs[index]))
        progress.block(index, None, 0.0)
    progress.end()
    found = Divergence()
    for row, quantized, original in zip(tokens, *streams, strict=True):
        found.add(row, outer.leave(row, quantized[0]), outer.leave(row, original[0]))
    outer.drop()
    summary = found.summary()
    if not all(map(torch.isfinite, map(torch.tensor, summary.values()))):
        raise CheckpointError(
            f"{folder.path}: the written model gives NaN or Inf on held-out text. Try another recipe; the folder is kept."
        )
    return summary
