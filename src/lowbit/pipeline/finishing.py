"""finishing - what runs after all blocks are done: finishers train the whole quantized model, as it is on the disk.

Idea      The finished blocks are read back, their packed matrices as codes; each finisher of the plan gets all of them at once,
          with the hidden states that enter the first block and those that leave the original's last. What it made is written
          into a folder beside the shards; when that is whole, the journal notes the step and the new shards take the places of
          the old ones. So a killed run either starts the finisher again, from the same bytes, or only moves files.
Traps     The whole model is in memory, as codes: the one step that does not follow one block. The plan's outlook counts it.
"""

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.methods import Finisher, Model, name_of
from lowbit.pipeline import online, tuned
from lowbit.pipeline.blocks import fill
from lowbit.pipeline.journal import Journal
from lowbit.pipeline.outer import Outer
from lowbit.pipeline.progress import Progress
from lowbit.pipeline.source import Source
from lowbit.pipeline.stream import first
from lowbit.pipeline.writer import Writer
from lowbit.recipe.plan import Plan

Streams = tuple[list[Tensor], list[Tensor] | None]
"""Hidden states by batch, of the quantized model and of the original."""


class Finishing:
    """The finishers of one run, in order. A step is named after its place and its method."""

    def __init__(self, source: Source, plan: Plan, writer: Writer, progress: Progress) -> None:
        self.source = source
        self.plan = plan
        self.writer = writer
        self.progress = progress
        self.steps = {f"{n}-{name_of(method)}": method for n, method in enumerate(plan.finishers, 1)}  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return bool(self.steps)

    def resume(self, book: Journal) -> None:
        """Bring the shards to what the journal says: finish moves that were cut short, drop what was never noted."""
        for step in self.steps:
            folder = self.writer.work / step
            if folder.exists() and step in book:
                self._adopt(folder)
            elif folder.exists():
                shutil.rmtree(folder)

    def run(
        self,
        book: Journal,
        tokens: Sequence[Tensor],
        entering: list[Tensor],
        leaving: Streams,
        kwargs: list[dict[str, Any]],
        device: torch.device,
        dtype: torch.dtype,
    ) -> Streams:
        """Carry out every step that the journal does not hold. Windows by batch; leaving: the streams after the last block.

        Returns the streams that leave the trained model; where no head waits for its own, `leaving`.
        """
        outer = self.source.outer(dtype, device)
        windows = {"tokens": list(tokens), "entering": entering, "wanted": leaving[1], "kwargs": kwargs}
        for step, method in self.steps.items():
            if step not in book:
                self._step(step, method, book, windows, outer, dtype)
        outer.drop()
        if self.source.head not in self.writer.steps:
            return leaving
        hidden = entering
        for index, kwargs_ in enumerate(kwargs):
            module = self.writer.block(index, device, dtype)
            hidden = [first(module(b, **kwargs_)) for b in hidden]
        return hidden, leaving[1]

    def _step(
        self, step: str, method: Finisher, book: Journal, windows: dict[str, Any], outer: Outer, dtype: torch.dtype
    ) -> None:
        """Carry out one step."""
        start, model = time.perf_counter(), self._model(method, windows, outer, dtype)
        with tuned.repeatable(outer.device):
            method.finish(model)
        told = {"finisher": name_of(method), **model.report}  # type: ignore[arg-type]
        if model.report["after"] < model.report["before"]:
            self._write(step, model)
        else:
            loss = f"{model.report['before']:.3g} on held-out windows"
            self.progress.say(f"{told['finisher']} found nothing better than {loss}; the model stays as it was")
        book.add(step, [], told)
        self.resume(book)
        self.progress.block(len(self.writer.steps), None, time.perf_counter() - start)

    def _model(self, method: Finisher, windows: dict[str, Any], outer: Outer, dtype: torch.dtype) -> Model:
        """The quantized model as it is on the disk."""
        blocks, matrices = list[nn.Module](), {}
        for index in range(len(self.source.blocks)):
            block, prefix = self.writer.block(index, outer.device, dtype), self.source.prefix(index)
            for name, quantized in self.writer.matrices(index, outer.device).items():
                matrices[name] = online.inner(quantized)
                weight = f"{name.removeprefix(f'{prefix}.')}.weight"
                fill(block, weight, torch.empty_like(block.get_parameter(weight), device="meta"))
            blocks.append(block)
        mine = {name for name in matrices if method in self.plan.targets[name].finishers}
        return Model(
            blocks=blocks,
            names=[self.source.prefix(index) for index in range(len(blocks))],
            quantized={n: q for n, q in matrices.items() if n in mine},
            fixed={n: q for n, q in matrices.items() if n not in mine},
            original=lambda name: self._original(name, outer.device),
            logits=outer.leave,
            stored=self.source.dtype,
            **windows,
        )

    def _original(self, name: str, device: torch.device) -> Tensor | None:
        """The weight that a matrix was made of; None where a transform rewrote it."""
        target = self.plan.targets[name]
        rewritten = target.format.ahead or any(t.layer == target.layer and t.transforms for t in self.plan.rows)
        return None if rewritten else self.source.weight(name).to(device)

    def _write(self, step: str, model: Model) -> None:
        """Write all blocks into the folder of a step."""
        folder = self.writer.work / step
        folder.mkdir()
        for index, (prefix, block) in enumerate(zip(model.names, model.blocks, strict=True)):
            inside = {n: q for n, q in (model.fixed | model.quantized).items() if n.startswith(f"{prefix}.")}
            for name, old in self.writer.matrices(index, torch.device("cpu")).items():
                inside[name] = online.whole(inside[name], (old.format, old.parts)) if old.format.ahead else inside[name]
            self.writer.write(index, block, {n.removeprefix(f"{prefix}."): q for n, q in inside.items()}, folder)

    def _adopt(self, folder: Path) -> None:
        """Put the shards of a noted step in the places of the old ones."""
        for path in sorted(folder.iterdir()):
            os.replace(path, self.writer.work / path.name)
        folder.rmdir()
