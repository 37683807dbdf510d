"""statistics - activations -> summaries that methods ask for by name (`needs`). One file is one summary.

Contract of a file: a function `collector(inputs: int, device) -> Collector`. Pipelines feed a collector with the inputs of one
linear (or of several that share them) batch by batch; any split of the stream gives the same result up to the sum's order.
A file that needs the full-precision inputs too (the stream of the unquantized model, token by token beside the quantized
one) says so with `NEEDS_REFERENCE = True`.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lowbit.core.shelf import Shelf

shelf = Shelf(__name__, "statistic")


class Collector(Protocol):
    """A summary in the making."""

    def add(self, x: Tensor, reference: Tensor | None) -> None:
        """Take x [tokens, in] and, where the file needs it, the full-precision inputs [tokens, in] of the same tokens."""

    def result(self) -> Tensor:
        """The summary of all tokens so far."""


@dataclass
class Stats:
    """What is known of one linear's inputs. tokens: how many it saw. values: summary by file name ("second_moment" ...)."""

    tokens: int = 0
    values: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def get(self, name: str) -> Tensor | None:
        return self.values.get(name)


class Collecting:
    """The collectors of one shared input; `stats` ends the collection."""

    def __init__(self, names: tuple[str, ...], inputs: int, device: torch.device) -> None:
        self.tokens = 0
        modules = {name: shelf.get(name) for name in names}
        self.reference = any(getattr(m, "NEEDS_REFERENCE", False) for m in modules.values())
        self._collectors: dict[str, Collector] = {n: m.collector(inputs, device) for n, m in modules.items()}

    def add(self, x: Tensor, reference: Tensor | None = None) -> None:
        """Take x [..., in]; token rows that are not finite are left out (one would make every sum unusable)."""
        x = x.reshape(-1, x.shape[-1])
        other = None if reference is None else reference.reshape(-1, x.shape[-1])
        if not torch.isfinite(x.sum()):
            keep = torch.isfinite(x).all(1)
            x, other = x[keep], None if other is None else other[keep]
        self.tokens += x.shape[0]
        for collector in self._collectors.values():
            collector.add(x, other)

    def stats(self) -> Stats:
        return Stats(self.tokens, {n: c.result() for n, c in self._collectors.items()})
