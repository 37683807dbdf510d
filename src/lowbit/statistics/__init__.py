"""statistics - activations -> summaries that methods ask for by name (`needs`). One file is one summary.

Contract of a file: a function `collector(inputs: int, device) -> Collector`. Pipelines feed a collector with the inputs of one
linear (or of several that share them) batch by batch; any split of the stream gives the same result up to the sum's order.
`JOINS` says how summaries of two parts of a text become one ("mean" or "greatest"); without it a run takes one process.
A file that needs the full-precision inputs too (the stream of the unquantized model, token by token beside the quantized
one) says so with `NEEDS_REFERENCE = True`.
A file that looks at the original as a whole says `NEEDS_GRADIENTS = True`. Its collector is `collector(shape, device)` for a
matrix [out, in]; it is fed window by window, before any block is rounded, with inputs and with the gradients of LOSS at the
outputs: "likelihood" (of the tokens that follow) or "sampled" (of tokens drawn from the model's own predictions).
A file that weighs tokens says by which gradient statistic: `WEIGHTED = "saliency"`; its `add` takes the weights too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from lowbit.core import ranks
from lowbit.core.shelf import Shelf

shelf = Shelf(__name__, "statistic")


class Collector(Protocol):
    """A summary in the making."""

    def add(self, x: Tensor, reference: Tensor | None) -> None:
        """Take x [tokens, in] and, where the file needs it, the full-precision inputs [tokens, in] of the same tokens."""

    def result(self) -> Tensor:
        """The summary of all tokens so far."""


class Weighing(Protocol):
    """A summary in the making of tokens that count unlike."""

    def add(self, x: Tensor, weights: Tensor) -> None:
        """Take x [tokens, in] and the weights [tokens, any] of the same tokens."""

    def result(self) -> Tensor:
        """The summary of all tokens so far."""


class Watcher(Protocol):
    """A summary in the making, of gradients in the original model."""

    def add(self, x: Tensor, gradient: Tensor) -> None:
        """Take the inputs [tokens, in] and the gradients at the outputs [tokens, out] of one window."""

    def result(self) -> Tensor:
        """The summary of all windows so far."""


def gradients(needs: Iterable[str]) -> tuple[str, ...]:
    """The gradient statistics among `needs`, and those that others of them weigh tokens by."""
    found = {name if getattr(shelf.get(name), "NEEDS_GRADIENTS", False) else weighted(name) for name in needs}
    return tuple(sorted(found - {""}))


def needs_reference(needs: Iterable[str]) -> bool:
    """Whether one of `needs` wants the full-precision stream beside the quantized one."""
    return any(getattr(shelf.get(name), "NEEDS_REFERENCE", False) for name in needs)


def weighted(name: str) -> str:
    """The statistic that a statistic weighs tokens by, or ""."""
    return str(getattr(shelf.get(name), "WEIGHTED", ""))


def joins(name: str) -> str:
    """How summaries of two parts of a text become one: "mean" (by tokens), "greatest", or "" where they cannot."""
    return str(getattr(shelf.get(name), "JOINS", ""))


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
    """The collectors of one shared input; `stats` ends the collection. What comes from gradients is not collected here."""

    def __init__(self, names: tuple[str, ...], inputs: int, device: torch.device) -> None:
        self.tokens = 0
        modules = {name: shelf.get(name) for name in names if name not in gradients(names) and not weighted(name)}
        self.reference = needs_reference(modules)
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
        """What all tokens gave, those of all processes."""
        found = Stats(self.tokens, {n: c.result() for n, c in self._collectors.items()})
        if ranks.count() == 1 or not found.values:
            return found
        device = next(iter(found.values.values())).device
        found.tokens = int(ranks.total([self.tokens], device)[0])
        for name, value in found.values.items():
            if joins(name) == "mean":
                ranks.add(value.mul_(self.tokens)).div_(max(1, found.tokens))
            else:
                ranks.add(value, greatest=True)
        return found


class Weighed:
    """The collectors of one linear that weigh its tokens. given: its gradient statistics; a row for each token, in order."""

    def __init__(self, names: tuple[str, ...], given: Mapping[str, Tensor], inputs: int, device: torch.device) -> None:
        self._taken = 0
        ways = {name: weighted(name) for name in names if weighted(name)}
        self._collectors: dict[str, tuple[Weighing, Tensor]] = {
            name: (shelf.get(name).collector(inputs, device), given[by].to(device)) for name, by in ways.items() if by in given
        }

    def add(self, x: Tensor) -> None:
        """Take x [..., in], the tokens that follow; rows that are not finite are left out."""
        x = x.reshape(-1, x.shape[-1])
        rows = slice(self._taken, self._taken + len(x))
        self._taken = rows.stop
        keep = slice(None) if torch.isfinite(x.sum()) else torch.isfinite(x).all(1)
        for collector, weights in self._collectors.values():
            collector.add(x[keep], weights[rows][keep])

    def values(self) -> dict[str, Tensor]:
        return {name: collector.result() for name, (collector, _) in self._collectors.items()}
