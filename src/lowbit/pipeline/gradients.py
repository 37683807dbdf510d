"""gradients - one pass of the calibration windows through the original model and back, for statistics that need gradients.

Idea      Forward, block after block, keeping what enters each; then from the loss back, block after block, each run once more
          with its gradients: one block's weights in memory, and the hidden states between all blocks. Statistics are collected
          window by window and written block by block into `gradients` in the work folder; what is there is not made again, so
          that a resumed run solves with the same bytes. The folder goes when the run is done.
          Losses: likelihood of the tokens that follow; likelihood of tokens drawn from the model's own predictions ("sampled").
Traps     Experts are left out: a token may reach another expert once blocks are rounded. Solvers say what they do instead.
"""

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import checkpoints, statistics
from lowbit.pipeline import blocks, online, tuned
from lowbit.pipeline.outer import Outer
from lowbit.pipeline.progress import Progress
from lowbit.pipeline.source import Source
from lowbit.pipeline.stream import first
from lowbit.pipeline.writer import Writer
from lowbit.recipe.plan import Plan
from lowbit.statistics import Watcher

BETWEEN = "|"
"""Stands between a linear and a statistic in the name of a tensor."""
SEED = 0x5EED
Found = dict[str, dict[str, Tensor]]
"""Statistics by linear's name inside its block, and by their own."""
Kept = list[list[Tensor]]
"""What enters each block, and what leaves the last, by window [1, length, hidden]."""


class Gradients:
    """The gradient statistics of one run."""

    def __init__(self, source: Source, plan: Plan, writer: Writer, progress: Progress) -> None:
        self.source = source
        self.progress = progress
        self.folder = writer.work / "gradients"
        self._formats = plan.formats
        self._needs = {t.name: t.gradients for t in plan.rows if t.gradients and t.role != "experts"}

    def collect(self, tokens: Tensor, kwargs: Sequence[Mapping[str, Any]], device: torch.device, dtype: torch.dtype) -> None:
        """Make what is not there yet. tokens [windows, length]."""
        wanted = [index for index in range(len(self.source.blocks)) if self._inside(index)]
        if all(self._path(index).exists() for index in wanted):
            return
        self.folder.mkdir(exist_ok=True)
        self.progress.start("gradients", 2 * len(self.source.blocks))
        try:
            with tuned.repeatable(device):
                outer = self.source.outer(dtype, device)
                kept = self._forward(tokens, kwargs, outer, dtype)
                leaving = kept.pop()
                slopes = {loss: _slopes(tokens, leaving, outer, loss) for loss in self._losses()}
                outer.drop()
                for index in reversed(range(len(self.source.blocks))):
                    self._backward(index, kept.pop(), slopes, kwargs[index], device, dtype)
        finally:
            self.progress.end()

    def of(self, index: int, device: torch.device) -> Found:
        """The statistics of one block."""
        found: Found = {}
        if not self._inside(index):
            return found
        with checkpoints.Shard(self._path(index)) as shard:
            for key in shard.entries:
                name, _, need = key.partition(BETWEEN)
                found.setdefault(name, {})[need] = shard.tensor(key).to(device)
        return found

    def clear(self) -> None:
        """Take the files away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Any:
        return self.folder / f"{index:05d}.safetensors"

    def _inside(self, index: int) -> dict[str, tuple[str, ...]]:
        """The statistics wanted in one block, by linear's name inside it."""
        prefix = f"{self.source.prefix(index)}."
        return {n.removeprefix(prefix): needs for n, needs in self._needs.items() if n.startswith(prefix)}

    def _losses(self) -> list[str]:
        return sorted({statistics.shelf.get(need).LOSS for needs in self._needs.values() for need in needs})

    def _load(self, index: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
        source = self.source
        prefix = f"{source.prefix(index)}."
        module = blocks.load(source.blocks[index], source.prefix(index), source.tensor, device, dtype)
        inside = {n.removeprefix(prefix): format for n, format in self._formats.items() if n.startswith(prefix)}
        online.prepare(module, inside, {}, ())
        return module

    def _forward(self, tokens: Tensor, kwargs: Sequence[Mapping[str, Any]], outer: Outer, dtype: torch.dtype) -> Kept:
        kept = [[outer.enter(row[None]) for row in tokens]]
        for index in range(len(self.source.blocks)):
            module = self._load(index, outer.device, dtype)
            kept.append([first(module(hidden, **kwargs[index])) for hidden in kept[-1]])
            self.progress.block(index, None, 0.0)
        return kept

    def _backward(
        self, index: int, entering: list[Tensor], slopes: dict[str, list[Tensor]], kwargs: Mapping[str, Any],
        device: torch.device, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        """Collect and write one block's statistics; `slopes` become those at its inputs."""
        module, needs = self._load(index, device, dtype), self._inside(index)
        watching = {name: _watchers(module, name, of, device) for name, of in needs.items()}
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def watch(name: str) -> None:
            module.get_submodule(name).register_forward_hook(lambda _, args, out: seen.update({name: (args[0], out)}))

        for name in needs:
            watch(name)
        for window, hidden in enumerate(entering):
            with torch.enable_grad():
                x = hidden.detach().requires_grad_()
                out = first(module(x, **kwargs))
                for loss, slope in slopes.items():
                    found = torch.autograd.grad(out, [x, *(y for _, y in seen.values())], slope[window], retain_graph=True)
                    slope[window] = found[0]
                    for (name, (given, _)), gradient in zip(seen.items(), found[1:], strict=True):
                        for need, watcher in watching[name].items():
                            if loss == statistics.shelf.get(need).LOSS:
                                watcher.add(given.detach().flatten(0, -2), gradient.flatten(0, -2))
        tensors = {f"{n}{BETWEEN}{need}": w.result() for n, of in watching.items() for need, w in of.items()}
        if tensors and not self._path(index).exists():
            checkpoints.write_shard(self._path(index), tensors)
        self.progress.block(2 * len(self.source.blocks) - 1 - index, None, 0.0)


def _watchers(module: nn.Module, name: str, needs: Sequence[str], device: torch.device) -> dict[str, Watcher]:
    """A collector for each gradient statistic of one linear."""
    shape = tuple(module.get_parameter(f"{name}.weight").shape)
    return {need: statistics.shelf.get(need).collector(shape, device) for need in needs}


def _slopes(tokens: Tensor, leaving: Sequence[Tensor], outer: Outer, loss: str) -> list[Tensor]:
    """Gradients of a loss, summed over its positions, at what leaves the last block, by window."""
    found = []
    for number, (row, hidden) in enumerate(zip(tokens, leaving, strict=True)):
        with torch.enable_grad():
            x = hidden.detach().requires_grad_()
            logits = outer.leave(row, x[0]).float()
            following = row.to(x.device)[1:] if loss == "likelihood" else _drawn(logits.detach(), SEED + number)[:-1]
            lost = nn.functional.cross_entropy(logits[:-1], following, reduction="sum")
        found.append(torch.autograd.grad(lost, x)[0])
    return found


def _drawn(logits: Tensor, seed: int) -> Tensor:
    """A token drawn from each row's distribution; the same in every run."""
    generator = torch.Generator(logits.device).manual_seed(seed)
    return (logits.softmax(-1) / torch.empty_like(logits).exponential_(generator=generator)).argmax(-1)
