"""closing - the guards at the end of a run: the written folder, read back block by block, against the original.

Idea      Both models run over a few held-out windows, one block of each in memory at a time; the quantized one is made of what
          config.json and the files say, by the same reader that any later load uses. What comes out is measured (KL divergence,
          perplexity, agreement), so the model card carries figures of the file itself.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import checkpoints, kvcache
from lowbit.checkpoints.folder import Folder
from lowbit.core import ranks
from lowbit.core.device import tensor_cores
from lowbit.core.errors import CheckpointError
from lowbit.layers.loading import skeleton
from lowbit.pipeline import blocks, held, text, written
from lowbit.pipeline.beside import Beside, Pending
from lowbit.pipeline.outer import Get, Outer
from lowbit.pipeline.progress import Progress
from lowbit.pipeline.source import Source
from lowbit.statistics._divergence import Divergence

WINDOWS, LENGTH = 4, 1024
"""Of held-out text: windows, since their spread tells the error, and tokens in each."""


def decoded(stored: checkpoints.Stored, device: torch.device) -> Get:
    """The tensors of a written folder, its packed matrices decoded on `device`."""

    def get(name: str) -> Tensor:
        module = name.removesuffix(".weight")
        packed = module in stored.formats and name.endswith(".weight")
        return stored.quantized(module, device).decode() if packed else stored.tensor(name, device)

    return get


def block(source: Source, get: Get, index: int, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Block `index` with the weights that `get` gives."""
    return blocks.load(source.blocks[index], source.prefix(index), get, device, dtype)


def _part(source: Source, index: int, device: torch.device) -> nn.Module:
    """Block `index` of the original as far as this process reads it, in a dtype that holds it; what the others read is zero."""
    shapes = {f"{source.prefix(index)}.{name}": p.shape for name, p in source.blocks[index].named_parameters()}
    loads, own = [0] * ranks.count(), set()
    for name in sorted(shapes, key=lambda name: -shapes[name].numel()):
        rank = loads.index(min(loads))
        loads[rank] += shapes[name].numel()
        own |= {name} if rank == ranks.mine() else set()

    stored = (source.folder.entry(source.stored.originals[name]).dtype for name in shapes)
    dtype = functools.reduce(torch.promote_types, stored)

    def get(name: str) -> Tensor:
        return source.stored.tensor(name, device) if name in own else torch.zeros(shapes[name], dtype=dtype, device=device)

    return block(source, get, index, device, dtype)


def _whole(module: nn.Module) -> nn.Module:
    """A block of which every process has read its part, in float32. Bytes are added to zeros: half of what floats would be."""
    for parameter in module.parameters():
        ranks.add(parameter.data.view(-1).view(torch.uint8))
        parameter.data = parameter.data.float()
    return module


def outside(source: Source, stored: checkpoints.Stored, outer: Outer, device: torch.device) -> Outer:
    """What of the written folder lies outside its blocks: that of the original, unless an end is quantized or turned."""
    if not source.turning and not {source.embed, source.head} & set(stored.formats):
        return outer
    model = skeleton(source.config, torch.float32)
    held = {*stored.names, *(f"{name}.weight" for name in stored.formats)}
    inner: nn.ModuleList = model.get_submodule(source.architecture.blocks)
    return Outer(model, inner, decoded(stored, device), held, torch.float32, device)


def _modules(source: Source, stored: checkpoints.Stored, device: torch.device) -> Iterator[tuple[int, int, nn.Module]]:
    """Block by block of both models, the written one (0) first; the next one is read meanwhile, on a CPU afterwards.

    Several processes share the reading of the original out.
    """
    sides, read, pinned = (Beside(device), Beside(device)), written.reader(stored, device), stored.prefix_outputs

    def load(index: int, which: int) -> nn.Module:
        if which:
            return _part(source, index, device)
        told = (source.blocks[index], source.prefix(index), read, stored.activations, device, torch.float32, pinned)
        return written.block(*told)

    def start(index: int, which: int) -> Pending[nn.Module]:
        return sides[which].start(functools.partial(load, index, which), nn.Module.parameters)

    waiting = [start(0, which) for which in (0, 1)]
    for index in range(len(source.blocks)):
        for which in (0, 1):
            module = waiting[which].result()
            if index + 1 < len(source.blocks):
                waiting[which] = start(index + 1, which)
            yield index, which, _whole(module) if which else module
            del module  # before the next is loaded: one block in memory
    for side in sides:
        side.close()


def check(source: Source, work: Path, device: torch.device, progress: Progress) -> dict[str, Any]:
    """Measure the folder of a run on held-out text; `text` says on which."""
    held_out = text.read("bundled", "evaluation")
    length = min(source.context, LENGTH)
    tokens = text.windows("bundled", held_out, source.tokenizer, length, WINDOWS).tokens
    return {"text": "bundled", **measure(source, Folder(work), tokens, device, progress)}


def measure(source: Source, folder: Folder, tokens: Tensor, device: torch.device, progress: Progress) -> dict[str, Any]:
    """Divergence of the written folder from the original over windows [windows, length], in figures."""
    summary = compare(source, folder, tokens, device, progress).summary()
    if not all(map(torch.isfinite, map(torch.tensor, summary.values()))):
        raise CheckpointError(
            f"{folder.path}: the written model gives NaN or Inf on held-out text. Try another recipe; the folder is kept."
        )
    return summary


def compare(source: Source, folder: Folder, tokens: Tensor, device: torch.device, progress: Progress) -> Divergence:
    """Divergence of the written folder from the original, window by window [windows, length]."""
    stored, tokens = checkpoints.Stored(folder, source.stored.renames), tokens[ranks.share(len(tokens))]
    original = source.outer(torch.float32, device, original=True)
    ours = outside(source, stored, original, device)
    prefix = kvcache.Prefix(tuple(folder.settings.get(kvcache.PREFIX, ())))
    kwargs, begun, before = original.kwargs(tokens.shape[1]), tokens, 0
    if prefix.ids:  # as long a window, so that its last tokens are not compared
        front = prefix.before(tokens[0]).expand(len(tokens), -1)
        before = front.shape[1]
        begun = torch.cat([front, tokens[:, : tokens.shape[1] - before]], 1)
    streams = [[outer.enter(row[None]) for row in rows] for outer, rows in ((ours, begun), (original, tokens))]
    scales = stored.cache_scales
    policies = kvcache.by_layer(folder.settings.get(kvcache.KEY, ""), len(source.blocks))
    progress.start("check", len(source.blocks))
    found = Divergence()
    with tensor_cores(device):
        for index, which, module in _modules(source, stored, device):
            run = held.plain if which else held.through(source.config, index, policies, scales)
            for i, hidden in enumerate(streams[which]):
                streams[which][i] = run(module, hidden, kwargs[index])
            del module
            if which:
                progress.block(index, None, 0.0)
        progress.end()
        for row, longer, candidate, reference in zip(tokens, begun, *streams, strict=True):
            last = len(row) - before
            found.add(row[:last], ours.leave(longer, candidate[0])[before:], original.leave(row, reference[0])[:last])
    original.drop()
    for part in ("kl", "agree", "nll", "nll_original"):  # of every process, in the order of windows
        setattr(found, part, [value for told in ranks.everyone(getattr(found, part)) for value in told])
    return found
