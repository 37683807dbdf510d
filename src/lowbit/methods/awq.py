"""awq - scale salient input channels up before rounding, and their source down."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowbit.architectures import Fold
from lowbit.core.errors import ArchitectureError
from lowbit.methods import Block, Method
from lowbit.statistics import Stats
from lowbit.transforms import fold as folding


@dataclass(frozen=True)
class AWQ(Method):
    format: str = ""
    grid: int = 20
    duo: bool = True
    windows: int = 2
    search: bool = False
    weighted: bool = True
    snap: bool = True
    gather: str = "max"
    skip: tuple = ()

    needs: ClassVar[tuple[str, ...]] = ("mean_magnitude",)

    @torch.no_grad()
    def rewrite(self, block: Block, stats: dict[str, Stats]) -> None:
        names = [name for name, _ in block.module.named_modules()]
        for fold in folding.resolve(block.folds, names):
            if any(name in block.linears for name in fold.targets) and fold.source.split(".")[-1] not in self.skip:
                s = self._search(block, fold, stats)
                self.log.append((block.index, fold.source, *self.last))
                folding.apply(block.module, fold, s, block.heads)
    log: ClassVar[list] = []
    last: ClassVar[list] = [None]

    def _search(self, block: Block, fold: Fold, stats: dict[str, Stats]) -> Tensor:
        trial = Trial(block, fold, self.windows)
        x, w = magnitude(fold, block, stats), salience(trial, block)
        h = block.heads
        if self.gather == "max":
            x, w = (folding.gather(v, fold, h) for v in (x, w))
        elif fold.heads:
            x, w = (v.view(h[1], h[0] // h[1], -1).square().mean(1).sqrt().reshape(-1) for v in (x, w))
        best, least = None, float("inf")
        weight = block.module.get_submodule(fold.source).weight
        for r, kind, s in self._candidates(x, w):
            if self.snap and weight.dim() == 1:
                s = folding.storable(weight, s, fold.offset)
            loss = trial.loss(folding.spread(s, fold, block.heads), self.search, self.weighted)
            if r == 0 and kind == "": base = loss
            if loss < least:
                best, least, chosen = s, loss, (r, kind)
        self.last[:] = [(*chosen, round(least / base, 3))]
        return best

    def _candidates(self, x, w):
        for i in range(self.grid + 1):
            r = i / self.grid
            yield r, "", balanced(x**r)
            if self.duo:
                yield r, "duo", balanced(x**r / (w ** (1 - r) + 1e-4))


def balanced(s):
    s = s.clamp_min(1e-4)
    s = s / (s.max() * s.min()).sqrt()
    return torch.where(torch.isfinite(s), s, 1.0)


def magnitude(fold, block, stats):
    known = [stats[n] for n in fold.targets if n in stats]
    tokens = sum(s.tokens for s in known)
    x = sum(s["mean_magnitude"] * s.tokens for s in known) / max(tokens, 1)
    return (x / x.mean().clamp_min(1e-30)).clamp_min(1e-4)


def salience(trial, block):
    total = 0
    rows = 0
    for name, linear in trial.readers.items():
        weight = linear.weight
        n = block.formats[name].group[1] or weight.shape[1]
        parts = weight.abs().view(weight.shape[0], -1, n)
        total = total + (parts / parts.amax(-1, keepdim=True).clamp_min(1e-30)).reshape(weight.shape).sum(0)
        rows += weight.shape[0]
    return total / rows


class Trial:
    def __init__(self, block: Block, fold: Fold, windows: int) -> None:
        self.block = block
        self.readers = {n: block.linears[n] for n in fold.targets if n in block.linears}
        self.inspected = block.module.get_submodule(fold.inspect)
        self.energy = {}
        self.second = None
        self.calls = []
        single = isinstance(self.inspected, nn.Linear)
        hooks = [l.register_forward_pre_hook(lambda m, a, n=n: self.energy.__setitem__(n, a[0].reshape(-1, a[0].shape[-1]).square().mean(0))) for n, l in self.readers.items()]
        hooks.append(self.inspected.register_forward_hook(lambda m, a, k, y: self.calls.append((a, k, first(y))), with_kwargs=True))
        block.run(block.samples if single else block.samples[:windows])
        for hook in hooks:
            hook.remove()
        if single:
            x = self.calls[0][0][0].flatten(0, -2)
            self.second = x.T @ x / len(x)

    def loss(self, s, search, weighted):
        kept = {n: l.weight.data for n, l in self.readers.items()}
        total = 0.0
        for n, l in self.readers.items():
            grid = self.block.formats[n].fit(l.weight * s, self.energy[n] / s**2 if weighted else None, search)
            l.weight.data = grid.quantize(l.weight * s).decode() / s
        if self.second is not None:
            e = l.weight - kept[n]
            total = (e @ self.second * e).sum().item()
        else:
            for a, k, y in self.calls:
                total += (first(self.inspected(*a, **k)) - y).square().mean().item()
        for n, l in self.readers.items():
            l.weight.data = kept[n]
        return total


def first(y):
    return y[0] if isinstance(y, tuple) else y
