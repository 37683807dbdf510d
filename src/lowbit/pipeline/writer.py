"""writer - the work folder: a shard a block while the run goes on, a complete model folder at its end.

Idea      A block's shard is written under a temporary name, synced, renamed, read back and compared bit by bit before the
          journal counts it. Number 1 of the shards is what lies outside the blocks. A small model becomes one file at last.
Traps     Files keep the names of the original (Mixtral's w1, w2, w3), since engines know no others.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import checkpoints
from lowbit.core.errors import CheckpointError
from lowbit.formats import Format, Quantized
from lowbit.pipeline import blocks
from lowbit.pipeline.source import Source

SMALL = 200 << 20
"""Bytes of weights up to which a model is one file."""


class Writer:
    """The files of one run in `work`. formats: of every quantized matrix by full name."""

    def __init__(self, work: Path, source: Source, formats: Mapping[str, Format]) -> None:
        self.work = work
        self.source = source
        self.formats = formats
        self.form = checkpoints.choose(formats.values())
        self.joined = work / "model.safetensors"

    def shard(self, index: int) -> Path:
        """The file of one block; -1 is what lies outside."""
        return self.work / f"model-{index + 2:05d}-of-{len(self.source.blocks) + 1:05d}.safetensors"

    def bytes(self) -> int:
        """Bytes of the tensors that will be written: packed matrices and everything else as it is."""
        stored, total = self.source.stored, 0
        for name in stored.names:
            format = self.formats.get(name.removesuffix(".weight"))
            entry = self.source.folder.entry(stored.originals[name])
            weights = entry.shape[0] * entry.shape[1] if format else 0
            total += round(format.bits_per_weight(entry.shape) * weights / 8) if format else entry.stop - entry.start
        return total

    def write(self, index: int, module: nn.Module, matrices: Mapping[str, Quantized]) -> None:
        """Write one block, matrices by their name in it, and read it back. Raises CheckpointError when a bit differs."""
        prefix, names = self.source.prefix(index), self.source.stored
        tensors = {
            names.originals[f"{prefix}.{n}"]: p.data.to(self.source.dtype)
            for n, p in module.named_parameters()
            if n.removesuffix(".weight") not in matrices
        }
        for name, quantized in matrices.items():
            tensors |= self.form.tensors(names.original(f"{prefix}.{name}"), quantized, self.source.dtype)
        checkpoints.write_shard(self.shard(index), tensors)
        with checkpoints.Shard(self.shard(index)) as shard:
            for name, quantized in matrices.items():
                self._same(f"{prefix}.{name}", self._read(shard, f"{prefix}.{name}").decode(), quantized.decode())

    def _same(self, module: str, found: Tensor, expected: Tensor) -> None:
        if not torch.equal(found, expected.to(found.device)):
            wrong = int((found != expected.to(found.device)).sum())
            told = f"{wrong} of {found.numel()} weights read back differ from memory"
            raise CheckpointError(f"{module}: {told}. The disk or lowbit is at fault; run again.")

    def _read(self, shard: checkpoints.Shard, module: str) -> Quantized:
        found: Quantized = self.form.quantized(self.source.stored.original(module), self.formats[module], shard.tensor)
        return found

    def block(self, index: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """A finished block as it is on the disk, decoded."""
        with checkpoints.Shard(self.shard(index)) as shard:

            def get(name: str) -> Tensor:
                module = name.removesuffix(".weight")
                if module in self.formats and name.endswith(".weight"):
                    return self._read(shard, module).decode()
                return shard.tensor(self.source.stored.originals[name])

            return blocks.load(self.source.blocks[index], self.source.prefix(index), get, device, dtype)

    def complete(self) -> None:
        """Make the folder a model: the tensors outside the blocks, index, configuration, tokenizer. May be done again."""
        stored = self.source.stored
        if not self.joined.exists():
            inside = f"{self.source.architecture.blocks}."
            outside = {stored.originals[n]: stored.tensor(n) for n in stored.names if not n.startswith(inside)}
            checkpoints.write_shard(self.shard(-1), outside)
        if sum(f.stat().st_size for f in self.work.glob("*.safetensors")) < SMALL:
            self.join()
        formats = {stored.original(name): format for name, format in self.formats.items()}
        linears = [name for name, module in self.source.skeleton.named_modules() if isinstance(module, nn.Linear)]
        ignore = [stored.original(name) for name in linears if name not in self.formats]
        checkpoints.complete(self.work, self.source.folder, self.form.config(formats, ignore))

    def join(self) -> None:
        """Put the shards into one file; once that is whole, they go."""
        shards = sorted(self.work.glob("model-*.safetensors"))
        if not self.joined.exists():
            tensors: dict[str, Tensor] = {}
            for path in shards:
                with checkpoints.Shard(path) as shard:
                    tensors |= {name: shard.tensor(name) for name in shard.entries}
            checkpoints.write_shard(self.joined, tensors)
        for path in shards:
            path.unlink()

    def describe(self, told: dict[str, Any], card: str) -> None:
        """Write lowbit.json (what was done) and the model card."""
        checkpoints.write_text(self.work / "lowbit.json", json.dumps(told, indent=1) + "\n")
        checkpoints.write_text(self.work / "README.md", card)
