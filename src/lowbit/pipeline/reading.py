"""reading - the blocks of the original, one after the other; on a GPU the next one is read while this one is worked on."""

import functools

import torch
from torch import nn

from lowbit.pipeline import blocks
from lowbit.pipeline.beside import Beside, Pending
from lowbit.pipeline.source import Source


class Reading:
    """Float blocks in `dtype` on `device`."""

    def __init__(self, source: Source, device: torch.device, dtype: torch.dtype) -> None:
        self.source, self.device, self.dtype = source, device, dtype
        self._beside = Beside(device)
        self._ahead: dict[int, Pending[nn.Module]] = {}

    def begin(self, index: int) -> None:
        """Read block `index` while something else is done, on a GPU."""
        if self._beside.real:
            self._ahead[index] = self._start(index)

    def block(self, index: int) -> nn.Module:
        """Block `index`. Raises CheckpointError when one of its weights is not finite."""
        module = (self._ahead.pop(index, None) or self._start(index)).result()
        if index + 1 < len(self.source.blocks):
            self.begin(index + 1)
        return module

    def _start(self, index: int) -> Pending[nn.Module]:
        source, get = self.source, functools.partial(self.source.tensor, device=self.device)
        told = (source.blocks[index], source.prefix(index), get, self.device, self.dtype)
        return self._beside.start(lambda: blocks.load(*told), nn.Module.parameters)

    def close(self) -> None:
        """Wait for what is being read."""
        self._beside.close()
