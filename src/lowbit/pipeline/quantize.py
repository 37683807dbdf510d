"""quantize - the whole run: plan, stream the blocks, write, check, rename.

Idea      Each block's weights are read, its inputs captured, its methods applied, its packed tensors written and noted in the
          journal; then its float weights are dropped. Peak memory follows one block and the windows' hidden states.
          A killed run recomputes the streams by running the finished blocks as they are on the disk, which gives the very same
          numbers, and goes on to byte-identical files.
"""

import json
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lowbit
from lowbit import checkpoints
from lowbit.checkpoints.folder import Folder
from lowbit.core.chain import Chain, Link
from lowbit.core.device import available_memory, throughput
from lowbit.core.errors import CapacityError, CheckpointError
from lowbit.formats import Quantized
from lowbit.pipeline import blocks, closing, journal, text
from lowbit.pipeline.outer import Outer
from lowbit.pipeline.progress import Progress
from lowbit.pipeline.source import Source, tokenizer_of
from lowbit.pipeline.stream import first
from lowbit.recipe import Recipe
from lowbit.recipe.plan import Plan

BATCH_TOKENS = 8192
"""Tokens that one forward takes at once; a batch is one coroutine of the stream."""
SMALL = 200 << 20
"""Bytes of weights up to which a model is one file."""


@dataclass(frozen=True)
class Request:
    """What the user asked for; see lowbit.verbs.quantize."""

    model: str
    recipe: str | Link | Chain = "balanced"
    out: str | None = None
    calibration: str = "bundled"
    samples: int | None = None
    length: int | None = None
    seed: int = 0
    device: str | None = None
    dry_run: bool = False


@dataclass
class Result:
    """What became of it: plain data. layers: a row per matrix. check: held-out divergence of the written folder."""

    model: str
    sentence: str
    out: str
    bits_per_weight: float
    bytes: int
    seconds: float = 0.0
    peak_memory: int = 0
    layers: list[dict[str, Any]] = field(default_factory=list)
    check: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    outlook: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def run(request: Request, progress: Progress, card: Callable[[dict[str, Any]], str]) -> Result:
    """Carry out a request. card: makes the model card of the result (plain data)."""
    return Run(request, progress, card).run()


class Run:
    """One run, step by step; `run` is its order."""

    def __init__(self, request: Request, progress: Progress, card: Callable[[dict[str, Any]], str]) -> None:
        self.request = request
        self.progress = progress
        self.card = card
        self.device = torch.device(request.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.source = Source(request.model)
        self.recipe = Recipe.of(request.recipe)
        self.plan = Plan.make(self.recipe, self.source.linears())
        self.form = checkpoints.choose(list(self.plan.formats.values()))
        self.length = request.length or min(text.LENGTH, int(getattr(self.source.config, "max_position_embeddings", text.LENGTH)))
        self.samples = request.samples or text.SAMPLES
        self.out = Path(request.out or f"{Path(request.model).name}-{self.plan.label()}")
        self.work = self.out.with_name(self.out.name + ".partial")
        self.joined = self.work / "model.safetensors"
        self.compute = torch.float32 if self.device.type == "cpu" else self.source.dtype

    def run(self) -> Result:
        start = time.perf_counter()
        result = Result(self.request.model, str(self.recipe), str(self.out), self.plan.bits_per_weight, self.bytes_to_write(),
                        outlook=self.outlook())
        if self.request.dry_run:
            return result
        self.admit(result)
        tokens = self.calibration() if self.plan.needs_data else None
        if tokens is not None:
            result.calibration = {"text": tokens.name, "windows": len(tokens.tokens), "length": self.length, "digest": tokens.digest}
        book = journal.Journal(self.work, self.task(result))
        self.stream(tokens.tokens if tokens else None, book)
        result.layers = [row for block in book.blocks for row in block["rows"]]
        self.assemble(result)
        result.check = self.check()
        self.describe(result)
        journal.finish(self.work, self.out)
        result.seconds = round(time.perf_counter() - start, 2)
        result.peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        result.bytes = sum(f.stat().st_size for f in self.out.iterdir())
        return result

    def calibration(self) -> text.Windows:
        """The calibration windows."""
        name, request = self.request.calibration, self.request
        tokenizer = tokenizer_of(self.source.folder.path)
        if name == "generated":
            from lowbit.layers.loading import load

            return text.generated(load(str(self.source.folder.path)).to(self.device), tokenizer, self.length, self.samples, request.seed)
        return text.windows(name, text.read(name), tokenizer, self.length, self.samples)

    def task(self, result: Result) -> dict[str, Any]:
        """What makes two runs the same one."""
        return {"sentence": result.sentence, "model": self.source.folder.digest(), "calibration": result.calibration,
                "seed": self.request.seed, "device": self.device.type, "version": lowbit.__version__}

    def stream(self, tokens: Tensor | None, book: journal.Journal) -> None:
        """Quantize all blocks that the journal does not hold yet."""
        count = len(self.source.blocks)
        if len(book.blocks) == count:
            return
        batches, kwargs = self.enter(tokens)
        references = [b.clone() for b in batches] if self.plan.needs_reference else None
        self.progress.start("quantize", count)
        try:
            for index in range(count):
                start = time.perf_counter()
                if index < len(book.blocks):
                    batches, references = self.replay(index, batches, references, kwargs)
                    self.progress.block(index, None, time.perf_counter() - start)
                else:
                    batches, references = self.quantize(index, batches, references, kwargs, book)
        finally:
            self.progress.end()

    def enter(self, tokens: Tensor | None) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """The hidden states that enter block 0, by batch, and what each block takes beside them."""
        if tokens is None:
            return [], [{} for _ in self.source.blocks]
        outer = Outer(self.source.skeleton, self.source.blocks, self.source.stored.tensor, self.compute, self.device)
        size = max(1, BATCH_TOKENS // tokens.shape[1])
        batches = [outer.enter(tokens[i : i + size]) for i in range(0, len(tokens), size)]
        kwargs = outer.kwargs(tokens.shape[1])
        outer.drop()
        return batches, kwargs

    def replay(self, index: int, batches: list[Tensor], references: list[Tensor] | None, kwargs: list[dict[str, Any]],
               ) -> tuple[list[Tensor], list[Tensor] | None]:
        """Run a finished block as it is on the disk; the full-precision stream through the original one."""
        if not batches:
            return batches, references
        with checkpoints.Shard(self.shard(index)) as shard:
            def get(name: str) -> Tensor:
                module = name.removesuffix(".weight")
                if module in self.plan.formats and name.endswith(".weight"):
                    found: Tensor = self.read(shard, module).decode()
                    return found
                return shard.tensor(self.source.stored.originals[name])
            module = blocks.load(self.source.blocks[index], self.prefix(index), get, self.device, self.compute)
        out = [first(module(b, **kwargs[index])) for b in batches]
        if references is None:
            return out, None
        module = self.load(index)
        return out, [first(module(b, **kwargs[index])) for b in references]

    def quantize(self, index: int, batches: list[Tensor], references: list[Tensor] | None, kwargs: list[dict[str, Any]],
                 book: journal.Journal) -> tuple[list[Tensor], list[Tensor] | None]:
        """Quantize one block, write its shard, note it."""
        start = time.perf_counter()
        prefix = self.prefix(index)
        config = self.source.config
        heads = (getattr(config, "num_attention_heads", 1), getattr(config, "num_key_value_heads", 1))
        module = self.load(index)
        targets = {name.removeprefix(prefix + "."): t for name, t in self.plan.targets.items() if name.startswith(prefix + ".")}
        job = blocks.Job(index, prefix, module, self.source.architecture, targets, kwargs[index], batches, references,
                         self.source.dtype, heads, self.progress)
        done = blocks.run(job)
        names = self.source.stored
        tensors = {names.originals[f"{prefix}.{n}"]: p.data.to(self.source.dtype)
                   for n, p in module.named_parameters() if n.removesuffix(".weight") not in targets}
        for name, quantized in done.quantized.items():
            tensors |= self.form.tensors(names.original(f"{prefix}.{name}"), quantized, self.source.dtype)
        checkpoints.write_shard(self.shard(index), tensors)
        self.verify(index, done)
        book.add({"block": index, "rows": [{k: v for k, v in row.items() if k != "seconds"} for row in done.rows]})
        errors = [row["error"] for row in done.rows if isinstance(row.get("error"), float)]
        self.progress.block(index, sum(errors) / len(errors) if errors else None, time.perf_counter() - start)
        return done.outputs, done.references

    def verify(self, index: int, done: blocks.Done) -> None:
        """Every matrix read back from the disk must decode to what the solver left in memory, bit for bit."""
        with checkpoints.Shard(self.shard(index)) as shard:
            for name, quantized in done.quantized.items():
                found = self.read(shard, f"{self.prefix(index)}.{name}").decode()
                expected = quantized.decode().to(found.device)
                if not torch.equal(found, expected):
                    wrong = int((found != expected).sum())
                    raise CheckpointError(f"{self.prefix(index)}.{name}: {wrong} of {found.numel()} weights read back differ from memory. "
                                          "The disk or lowbit is at fault; run again.")

    def read(self, shard: checkpoints.Shard, module: str) -> Quantized:
        """One matrix of a written shard."""
        found: Quantized = self.form.quantized(self.source.stored.original(module), self.plan.formats[module], shard.tensor)
        return found

    def prefix(self, index: int) -> str:
        return f"{self.source.architecture.blocks}.{index}"

    def load(self, index: int) -> torch.nn.Module:
        """Block `index` of the original."""
        return blocks.load(self.source.blocks[index], self.prefix(index), self.source.stored.tensor, self.device, self.compute)

    def shard(self, index: int) -> Path:
        """The file of one block; number 1 is what lies outside the blocks."""
        return self.work / f"model-{index + 2:05d}-of-{len(self.source.blocks) + 1:05d}.safetensors"

    def assemble(self, result: Result) -> None:
        """Complete the folder: the tensors outside the blocks, index, configuration, tokenizer."""
        stored = self.source.stored
        if not self.joined.exists():
            inside = f"{self.source.architecture.blocks}."
            outside = {stored.originals[n]: stored.tensor(n) for n in stored.names if not n.startswith(inside)}
            checkpoints.write_shard(self.shard(-1), outside)
        if sum(f.stat().st_size for f in self.work.glob("*.safetensors")) < SMALL:
            self.join()
        formats = {stored.original(name): format for name, format in self.plan.formats.items()}
        ignore = [stored.original(n.name) for n in self.source.linears() if n.name not in self.plan.formats]
        quantization = self.form.config(formats, ignore)
        checkpoints.complete(self.work, self.source.folder, quantization)

    def join(self) -> None:
        """Put the shards of a small model into one file; once that is whole, they go."""
        shards = sorted(self.work.glob("model-*.safetensors"))
        if not self.joined.exists():
            tensors: dict[str, Tensor] = {}
            for path in shards:
                with checkpoints.Shard(path) as shard:
                    tensors |= {name: shard.tensor(name) for name in shard.entries}
            checkpoints.write_shard(self.joined, tensors)
        for path in shards:
            path.unlink()

    def check(self) -> dict[str, Any]:
        """Measure the written folder on held-out text."""
        tokenizer = tokenizer_of(self.source.folder.path)
        held_out = text.windows("bundled", text.read("bundled", "evaluation"), tokenizer, min(self.length, text.LENGTH), closing.WINDOWS)
        return {"text": "bundled", **closing.measure(self.source, Folder(self.work), held_out.tokens, self.device, self.progress)}

    def admit(self, result: Result) -> None:
        """Refuse what cannot end well before any work. Raises CheckpointError, CapacityError."""
        if self.out.exists():
            raise CheckpointError(f"{self.out}: the folder exists already. Remove it or choose another --out.")
        self.out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.out.parent).free
        if free < result.bytes * 1.1:
            raise CapacityError(f"{self.out}: {result.bytes / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free. Free some or choose another --out.")
        need, have = result.outlook["peak_memory"], available_memory(self.device)
        if need > have:
            raise CapacityError(f"{result.sentence}: needs about {need / 1e9:.1f} GB of memory, {have / 1e9:.1f} GB are free. "
                                "Use fewer --samples or a shorter --length.")

    def bytes_to_write(self) -> int:
        """Bytes of the folder's tensors: packed matrices and everything else as it is."""
        packed = sum(t.bytes for t in self.plan.rows)
        quantized = {f"{name}.weight" for name in self.plan.formats}
        return packed + sum(self.source.folder.bytes_of(self.source.stored.originals[n]) for n in self.source.stored.names if n not in quantized)

    def outlook(self) -> dict[str, Any]:
        """What the run will take, before it begins: bytes, peak memory, seconds; a row per layer."""
        widest = max((sum(p.numel() for p in b.parameters()) for b in self.source.blocks), default=0)
        return self.plan.outlook(
            tokens=self.samples * self.length if self.plan.needs_data else 0, hidden=self.source.config.hidden_size,
            block_weights=widest, blocks=len(self.source.blocks), outside_bytes=0, flops=throughput(self.device),
        )

    def describe(self, result: Result) -> None:
        """Write lowbit.json (what was done) and the model card. Neither holds times: two runs give the same bytes."""
        told = {k: v for k, v in result.to_json().items() if k not in {"seconds", "peak_memory", "outlook", "out", "bytes"}}
        told |= {"version": lowbit.__version__, "model": Path(self.request.model).name if Path(self.request.model).exists() else self.request.model}
        checkpoints.write_text(self.work / "lowbit.json", json.dumps(told, indent=1))
        checkpoints.write_text(self.work / "README.md", self.card(told))
