"""quantize - the whole run: plan, stream the blocks, write, check, rename.

Idea      Each block's weights are read, its inputs captured, its methods applied, its packed tensors written and noted in the
          journal; then its float weights are dropped. Peak memory follows one block and the windows' hidden states.
          A killed run recomputes the streams by running the finished blocks as they are on the disk, which gives the very same
          numbers, and goes on to byte-identical files. On a GPU the next block is read and the last one written meanwhile.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lowbit
from lowbit import checkpoints, kvcache
from lowbit.core import ranks
from lowbit.core.device import available_memory, chosen, peak_memory, return_freed_memory
from lowbit.core.errors import CapacityError, RequestError
from lowbit.core.words import size
from lowbit.layers.loading import load
from lowbit.pipeline import admission, blocks, budgeted, closing, ends, forecast, journal, prefixed, text, turned
from lowbit.pipeline.beside import Beside
from lowbit.pipeline.caching import Caching
from lowbit.pipeline.finishing import Finishing
from lowbit.pipeline.gradients import Gradients
from lowbit.pipeline.job import Job
from lowbit.pipeline.progress import Progress, Silent
from lowbit.pipeline.reading import Reading
from lowbit.pipeline.request import Request, Result
from lowbit.pipeline.source import Source
from lowbit.pipeline.stream import first
from lowbit.pipeline.writer import Writer
from lowbit.recipe import Recipe, allotment
from lowbit.recipe.plan import Plan
from lowbit.solvers import replayed
from lowbit.statistics import Stats

BATCH_TOKENS = {"cpu": 2048, "cuda": 8192}
"""Tokens that one forward takes at once; a batch is one coroutine of the stream. On a CPU the caches gain by small ones."""
Streams = tuple[list[Tensor], list[Tensor] | None]
"""Hidden states by batch: of the quantized model, and of the original where a method asks for them."""
Card = Callable[[dict[str, Any]], str]


@torch.no_grad()
def run(request: Request, progress: Progress, card: Card) -> Result:
    """Carry out a request. card: makes the model card of the result (plain data)."""

    def plain(request: Request) -> Result:
        return Run(request, progress, card).run()

    recipe = Recipe.of(request.recipe)
    allocator = allotment.declared(recipe)
    if allocator and ranks.started() > 1:
        raise RequestError(f"{recipe}: budget measures in one process, here are {ranks.started()}. Run it without torchrun.")
    return budgeted.run(request, recipe, allocator, plain, progress) if allocator else plain(request)


class Run:
    """One run, step by step; `run` is its order."""

    def __init__(self, request: Request, progress: Progress, card: Card) -> None:
        self.request = request
        self.device = ranks.begin(chosen(request.device))
        self.progress = progress = progress if ranks.mine() == 0 else Silent()
        self.card = card
        self.source = Source(request.model)
        self.recipe = Recipe.of(request.recipe)
        self.plan = Plan.make(self.recipe, self.source.linears())
        ends.check(self.plan.rows)
        admission.check(self.source, self.plan)
        admission.shareable(self.plan)
        self.caching = Caching(self.source, self.recipe)
        self.length = request.length or min(text.LENGTH, self.source.context)
        self.samples = request.samples or text.SAMPLES
        self.out = Path(request.out or f"{Path(request.model).name}-{self.plan.label()}{self.caching.label}")
        self.work = self.out.with_name(self.out.name + ".partial")
        turned_, begun = bool(self.plan.turners), prefixed.method_of(self.plan) is not None
        self.writer = Writer(self.work, self.source, self.plan.formats, self.plan.activations, turned_, begun)
        self.front = prefixed.Prefixed()
        self.finishing = Finishing(self.source, self.plan, self.writer, progress)
        self.gradients = Gradients(self.source, self.plan, self.writer, progress)
        self.compute = torch.float32 if self.device.type == "cpu" else self.source.dtype
        self.reading, self.writing = Reading(self.source, self.device, self.compute), Beside(self.device)
        if self.length > self.source.context:
            raise RequestError(
                f"length {self.length}: the model's context holds {self.source.context}. Use a shorter --length."
            )

    def run(self) -> Result:
        start = time.perf_counter()
        return_freed_memory()
        outlook = forecast.outlook(self.source, self.plan, self.writer.ends, self.samples, self.length, self.device)
        result = Result(
            self.request.model, str(self.recipe), str(self.out), self.plan.bits_per_weight, self.writer.bytes(),
            self.request.seed, checkpoints.name_of(self.writer.form), self.caching.told, outlook=outlook,
        )  # fmt: skip
        self.admit(result)
        if self.request.dry_run:
            return result
        self.source.tokenizer  # noqa: B018  # the closing check reads text: better no run than none at its end
        self.out.parent.mkdir(parents=True, exist_ok=True)
        tokens = self.calibration() if self.plan.needs_data else None
        if tokens is not None:
            windows = {"windows": len(tokens.tokens), "length": self.length}
            result.calibration = {"text": Path(tokens.name).name, **windows, "digest": tokens.digest}
        book = journal.shared(self.work, self.task(result))
        windows_only = tokens.tokens if tokens else None
        self.source.turning = turned.make(self.source, self.plan, self.work, windows_only, self.device, self.progress)
        self.front = prefixed.make(self.source, self.plan, self.work, windows_only, self.reading)
        self.stream(None if windows_only is None else self.front.windows(windows_only), book)
        result.layers = [row for step in book.steps for row in step["rows"]]
        result.finished = [step["told"] for step in book.steps if "told" in step]
        self.finish(result)
        result.seconds = round(time.perf_counter() - start, 2)
        result.peak_memory = peak_memory()
        result.bytes = sum(f.stat().st_size for f in self.out.iterdir())
        return result

    def finish(self, result: Result) -> None:
        """Make the work folder the result, and measure it. Rank 0 writes, all of them measure."""
        if ranks.mine() == 0:
            self.gradients.clear()
            scales = self.caching.scales(self.writer, self.request.calibration, self.device, self.front)
            told = {kvcache.PREFIX: list(self.front.prefix.ids)} if len(self.front) else {}
            self.writer.complete(self.caching.config | told, scales)
        ranks.meet()
        result.check = closing.check(self.source, self.work, self.device, self.progress)
        if ranks.mine() == 0:
            self.describe(result)
            turned.forget(self.work)
            prefixed.forget(self.work)
            journal.finish(self.work, self.out)
        ranks.meet()

    def admit(self, result: Result) -> None:
        """Refuse what cannot end well before any work. Raises CalibrationError, CheckpointError, CapacityError."""
        text.admit(self.request.calibration)
        admission.place(self.out, result.bytes)
        need, have = result.outlook["peak_memory"], available_memory(self.device)
        if need > have:
            room = f"needs about {size(need)} of memory, {size(have)} are free"
            raise CapacityError(f"{result.sentence}: {room}. Use fewer --samples or a shorter --length.")

    def calibration(self) -> text.Windows:
        """The calibration windows."""
        name, tokenizer = self.request.calibration, self.source.tokenizer

        def write(count: int) -> text.Windows:
            model = load(self.source.folder.path, device=self.device)
            return text.generated(model, tokenizer, self.length, count, self.request.seed)

        found = text.calibration(name, tokenizer, self.length, self.samples, write)
        if self.request.samples and len(found.tokens) < self.samples:
            self.progress.say(f"{name}: {len(found.tokens)} windows of {self.length} tokens, {self.samples} were asked for")
        return found

    def task(self, result: Result) -> dict[str, Any]:
        """What makes two runs the same one."""
        return {
            "sentence": result.sentence, "model": self.source.folder.digest(), "calibration": result.calibration,
            "seed": self.request.seed, "device": self.device.type, "version": lowbit.__version__,
        }  # fmt: skip

    def stream(self, tokens: Tensor | None, book: journal.Journal) -> None:
        """Do all steps that the journal does not hold yet."""
        self.finishing.resume(book)
        steps = [*self.writer.steps, *self.finishing.steps]
        if all(step in book for step in steps):
            return
        if tokens is not None:
            if len(tokens) < ranks.count():
                raise RequestError(f"{len(tokens)} windows for {ranks.count()} processes: each takes one. Give more --samples.")
            tokens = ranks.first(tokens)[ranks.share(len(tokens))]
        batches = () if tokens is None else tokens.split(max(1, BATCH_TOKENS[self.device.type] // tokens.shape[1]))
        self.progress.start("quantize", len(steps))
        outside = Beside(self.device)  # no block waits for what is in no step; `complete` does what fails there
        try:
            if self.source.embed in steps:
                self.end(self.source.embed, book, Stats)
            if self.source.prefix(0) not in book:
                self.reading.begin(0)
            entered, kwargs = streams, kwargs = self.enter(batches)
            if outside.real and ranks.mine() == 0:  # not before: both read what lies outside, by the same few threads
                outside.do(self.writer.write_outside)
            if tokens is not None:
                self.gradients.collect(tokens, kwargs, self.device, self.compute)
            for index in range(len(self.source.blocks)):
                streams = self.block(index, streams, kwargs[index], book)
            self.writing.wait()
            if self.finishing:
                streams = self.finishing.run(book, batches, entered[0], streams, kwargs, self.device, self.compute)
            if self.source.head in steps:
                self.end(self.source.head, book, lambda: self.head_statistics(batches, streams))
        finally:
            for side in (self.reading, self.writing, outside):
                side.close()
            replayed.forget()
            self.progress.end()

    def end(self, name: str, book: journal.Journal, collect: Callable[[], Stats]) -> None:
        """Quantize the embedding or the head, unless it is done. collect: the statistics of its inputs."""
        start, error = time.perf_counter(), None
        if name not in book:
            stats, weight = collect(), self.source.weight(name).to(self.device, self.compute)
            quantized, row = ends.solve(self.plan.targets[name], weight, stats, self.progress)
            if ranks.mine() == 0:
                self.writer.write_end(name, quantized)
            ranks.meet()
            book.add(name, [row])
            error = row.get("error")
        self.finished(name, error if isinstance(error, float) else None, start)

    def finished(self, step: str, error: float | None, start: float) -> None:
        """Tell that a step is done."""
        self.progress.block(self.writer.steps.index(step), error, time.perf_counter() - start)

    def head_statistics(self, tokens: Sequence[Tensor], streams: Streams) -> Stats:
        """What the head's solver asks for; nothing when that is nothing."""
        target = self.plan.targets[self.source.head]
        if not target.solver.needs:
            return Stats()
        outer = self.source.outer(self.compute, self.device)
        stats = ends.head_statistics(target, outer, tokens, *streams)
        outer.drop()
        return stats

    def block(self, index: int, streams: Streams, kwargs: dict[str, Any], book: journal.Journal) -> Streams:
        """Quantize one block, or run it when it is done."""
        if self.source.prefix(index) not in book:
            return self.quantize(index, streams, kwargs, book)
        start = time.perf_counter()
        streams = self.replay(index, streams, kwargs)
        self.finished(self.source.prefix(index), None, start)
        return streams

    def enter(self, tokens: Sequence[Tensor]) -> tuple[Streams, list[dict[str, Any]]]:
        """The hidden states that enter block 0, by batch, and what each block takes beside them."""
        if not tokens:
            return ([], None), [{} for _ in self.source.blocks]
        outer = self.source.outer(self.compute, self.device)
        kwargs = outer.kwargs(tokens[0].shape[1])
        references = [outer.enter(batch) for batch in tokens]
        batches = list(references)
        if self.source.turning:  # what is written of the embedding is rounded
            outer.put(f"{self.source.embed}.weight", self.source.weight(self.source.embed).to(self.source.dtype))
            batches = [outer.enter(batch) for batch in tokens]
        if self.source.embed in self.plan.targets:
            outer.put(f"{self.source.embed}.weight", self.writer.end(self.source.embed).decode())
            batches = [outer.enter(batch) for batch in tokens]
        outer.drop()
        return (batches, references if self.plan.needs_reference else None), kwargs

    def replay(self, index: int, streams: Streams, kwargs: dict[str, Any]) -> Streams:
        """Run a finished block as it is on the disk; the full-precision stream through the original one."""
        batches, references = streams
        if not batches:
            return streams
        module = self.writer.block(index, self.device, self.compute)
        out = [first(module(b, **kwargs)) for b in batches]
        if references is None:
            return out, None
        module = self.reading.block(index)
        return out, [first(module(b, **kwargs)) for b in references]

    def quantize(self, index: int, streams: Streams, kwargs: dict[str, Any], book: journal.Journal) -> Streams:
        """Quantize one block, write its shard, note it."""
        start, prefix, config = time.perf_counter(), self.source.prefix(index), self.source.text_config
        heads = (getattr(config, "num_attention_heads", 1), getattr(config, "num_key_value_heads", None) or 1)
        module = self.reading.block(index)
        targets = {n.removeprefix(prefix + "."): t for n, t in self.plan.targets.items() if n.startswith(prefix + ".")}
        told = (self.source.architecture, targets, kwargs, *streams, self.source.dtype, heads, self.progress)
        front = self.front.front(index, self.source.dtype)
        done = blocks.run(Job(index, prefix, module, *told, self.gradients.of(index, self.device), front))

        def write() -> None:
            if ranks.mine() == 0:
                self.writer.write(index, module, done.quantized, activations=done.activations, pinned=front.outputs)
            book.add(prefix, done.rows)
            errors = [row["error"] for row in done.rows if isinstance(row.get("error"), float)]
            self.finished(prefix, sum(errors) / len(errors) if errors else None, start)

        self.writing.do(write)
        return done.outputs, done.references

    def describe(self, result: Result) -> None:
        """Write lowbit.json and the model card. Neither holds times: two runs give the same bytes."""
        model = self.request.model
        told = result.lasting() | {"version": lowbit.__version__, "model": Path(model).name if Path(model).exists() else model}
        self.writer.describe(told, self.card(told))
