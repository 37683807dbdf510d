"""writer - the work folder: a shard a step while the run goes on, a complete model folder at its end.

Idea      A step is a block, or one of the ends when it is quantized (the embedding first, the head last). Its shard is written
          under a temporary name, synced, renamed, read back and compared bit by bit before the journal counts it. Number 1 of
          the shards is what lies outside, in floats. A small model becomes one file at last.
Traps     Files keep the names of the original (Mixtral's w1, w2, w3), since engines know no others.
          Tied embeddings part when one of them is quantized: config.json must say so, or loaders tie them again.
"""

import functools
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import checkpoints, kvcache
from lowbit.core.errors import CheckpointError
from lowbit.formats import Format, Quantized
from lowbit.formats._narrow import followed
from lowbit.kernels.activation import Activation
from lowbit.pipeline import activations as acting
from lowbit.pipeline import written
from lowbit.pipeline.source import Source

SMALL = 200 << 20
"""Bytes of weights up to which a model is one file."""


class Writer:
    """The files of one run in `work`. formats: of every quantized matrix by full name. activations: of rounded inputs.

    turned: whether the model is put into another basis, in which embedding and head are never the same. prefixed: whether
    tokens begin every sequence whose keys and values are constants, which only lowbit's own file format says.
    """

    def __init__(
        self,
        work: Path,
        source: Source,
        formats: Mapping[str, Format],
        activations: Mapping[str, Activation] = types.MappingProxyType({}),
        turned: bool = False,
        prefixed: bool = False,
    ) -> None:
        self.work = work
        self.source = source
        self.formats = formats
        self.activations = activations
        self.turned = turned
        self.ends = [name for name in (source.embed, source.head) if name in formats]
        acts = [(activation, formats[name]) for name, activation in activations.items()]
        own = prefixed or source.embed in formats
        self.form = checkpoints.choose(formats.values(), embedding=own, activations=acts)
        self.joined = work / "model.safetensors"

    @property
    def steps(self) -> list[str]:
        """Full names of what is written one after the other."""
        inside = [self.source.prefix(index) for index in range(len(self.source.blocks))]
        first = [name for name in self.ends if name == self.source.embed]
        return [*first, *inside, *(name for name in self.ends if name not in first)]

    def shard(self, step: str) -> Path:
        """The file of one step; "" is what lies outside."""
        places = ["", *self.steps]
        return self.work / f"model-{places.index(step) + 1:05d}-of-{len(places):05d}.safetensors"

    def bytes(self) -> int:
        """Bytes of the tensors that will be written: packed matrices and everything else as it is."""
        stored, total = self.source.stored, 0
        for name in stored.names:
            format = self.formats.get(name.removesuffix(".weight"))
            entry = self.source.folder.entry(stored.originals[name])
            total += self._packed(format, entry.shape) if format else entry.stop - entry.start
            activation = self.activations.get(name.removesuffix(".weight"))
            total += 4 * activation.scales(entry.shape[1]) if activation and format else 0
        if not self._parted:
            return total
        embedding = self.source.folder.entry(stored.originals[f"{self.source.embed}.weight"])
        format = self.formats.get(self.source.head)
        return total + (self._packed(format, embedding.shape) if format else embedding.stop - embedding.start)

    @staticmethod
    def _packed(format: Format, shape: tuple[int, ...]) -> int:
        return round(format.bits_per_weight(shape) * shape[0] * shape[1] / 8)

    @property
    def _untied(self) -> bool:
        """Whether embedding and head were one matrix and are two now."""
        return self.source.tied and (self.turned or bool(self.ends))

    @property
    def _parted(self) -> bool:
        """Whether the head gets a matrix in the files that it had not."""
        return self._untied and f"{self.source.head}.weight" not in self.source.stored.originals

    def write(
        self,
        index: int,
        module: nn.Module,
        matrices: Mapping[str, Quantized],
        folder: Path | None = None,
        activations: Mapping[str, Activation] | None = None,
        pinned: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write one block, matrices by their name in it, into another folder if one is given.

        activations: with scales that are stored; pinned: constants of linears of keys and values (default: those that the
        block on the disk has). Raises CheckpointError when a bit differs.
        """
        prefix, names = self.source.prefix(index), self.source.stored
        floats = {
            names.originals[f"{prefix}.{n}"]: p.data.to(self.source.dtype)
            for n, p in module.named_parameters()
            if n.removesuffix(".weight") not in matrices
        }
        for name, tensor in (self.pinned(index) if pinned is None else pinned).items():
            floats[f"{names.original(f'{prefix}.{name}')}.{kvcache.PART}"] = tensor
        path = (folder or self.work) / self.shard(prefix).name
        told = self.inputs(index) if activations is None else activations
        scaled = {f"{prefix}.{name}": activation for name, activation in told.items()}
        self._write(path, floats, {f"{prefix}.{name}": quantized for name, quantized in matrices.items()}, scaled)

    def write_end(self, name: str, quantized: Quantized) -> None:
        """Write the embedding or the head. Raises CheckpointError when a bit differs."""
        self._write(self.shard(name), {}, {name: quantized}, {})

    def _write(
        self, path: Path, floats: dict[str, Tensor], matrices: Mapping[str, Quantized], scaled: Mapping[str, Activation]
    ) -> None:
        """Write a shard, read its matrices (by full name) back and compare them."""
        tensors = dict(floats)
        for name, quantized in matrices.items():
            told, activation = self.source.stored.original(name), scaled.get(name)
            tensors |= self.form.tensors(told, quantized, self.source.dtype, activation=activation)
            tensors |= checkpoints.input_tensors(told, activation)
        checkpoints.write_shard(path, tensors)
        with checkpoints.Shard(path) as shard:
            for name, quantized in matrices.items():
                self._same(name, self._read(shard, name, quantized.codes.device), quantized)

    def _same(self, module: str, found: Quantized, expected: Quantized) -> None:
        wrong = int((found.codes != expected.codes).sum())
        told = f"{wrong} of {found.codes.numel()} codes" if wrong else ""
        for name, part in expected.parts.items():
            if not torch.equal(found.parts[name].float(), part.float().view_as(found.parts[name])):
                told = told or f"its {name}s"
        if told:
            raise CheckpointError(f"{module}: {told} read back differ from memory. The disk or lowbit is at fault; run again.")

    def _read(self, shard: checkpoints.Shard, module: str, device: torch.device | None = None) -> Quantized:
        """A matrix in a shard, unpacked on `device`."""
        get = functools.partial(shard.tensor, device=device)
        found: Quantized = self.form.quantized(self.source.stored.original(module), self.formats[module], get)
        return found

    def block(self, index: int, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """A finished block as it is on the disk, decoded; for the stream of hidden states."""
        prefix = self.source.prefix(index)
        with checkpoints.Shard(self.shard(prefix)) as shard:

            def read(name: str) -> Quantized | Tensor:
                module = name.removesuffix(".weight")
                if module in self.formats and name.endswith(".weight"):
                    return self._read(shard, module, device)
                return shard.tensor(self.source.stored.originals[name], device)

            told = {f"{prefix}.{name}": activation for name, activation in self.inputs(index).items()}
            pinned = {f"{prefix}.{name}": tensor for name, tensor in self.pinned(index).items()}
            return written.block(self.source.blocks[index], prefix, read, told, device, dtype, pinned, followed)

    def inputs(self, index: int) -> dict[str, Activation]:
        """How a finished block rounds inputs, by name inside it, with the scales on the disk."""
        prefix = self.source.prefix(index)
        found: dict[str, Activation] = acting.inside(self.activations, prefix)
        if not any(activation.stored for activation in found.values()):
            return found
        with checkpoints.Shard(self.shard(prefix)) as shard:
            originals = {name: self.source.stored.original(f"{prefix}.{name}") for name in found}
            return {name: checkpoints.with_scale(a, originals[name], shard.tensor) for name, a in found.items()}

    def pinned(self, index: int) -> dict[str, Tensor]:
        """The constants of a finished block's linears of keys and values, by name inside it; none without a prefix."""
        prefix = self.source.prefix(index)
        names = kvcache.prefix_linears(name for name, _ in self.source.blocks[index].named_modules())
        with checkpoints.Shard(self.shard(prefix)) as shard:
            stored = {name: f"{self.source.stored.original(f'{prefix}.{name}')}.{kvcache.PART}" for name in names}
            return {name: shard.tensor(place) for name, place in stored.items() if place in shard.entries}

    def matrices(self, index: int, device: torch.device) -> dict[str, Quantized]:
        """The packed matrices of a finished block by full name, as they are on the disk."""
        prefix = self.source.prefix(index)
        names = [name for name in self.formats if name.startswith(f"{prefix}.")]
        with checkpoints.Shard(self.shard(prefix)) as shard:
            return {name: self._read(shard, name, device) for name in names}

    def end(self, name: str) -> Quantized:
        """A finished embedding or head as it is on the disk."""
        with checkpoints.Shard(self.shard(name)) as shard:
            return self._read(shard, name)

    def _outside(self) -> dict[str, Tensor]:
        """The tensors that are in no step."""
        stored, inside = self.source.stored, f"{self.source.architecture.blocks}."
        packed = {f"{name}.weight" for name in self.ends}
        names = [n for n in stored.names if not n.startswith(inside) and n not in packed]
        if self._parted and self.source.head not in self.formats:
            names.append(f"{self.source.head}.weight")
        turning = self.source.turning
        tensors = ((n, self.source.tensor(n)) for n in names)
        return {stored.originals.get(n, n): t.to(self.source.dtype) if turning and n in turning else t for n, t in tensors}

    def write_outside(self) -> None:
        """Write the tensors that are in no step, unless they are written."""
        if not self.joined.exists() and not self.shard("").exists():
            checkpoints.write_shard(self.shard(""), self._outside())

    def complete(
        self, more: Mapping[str, Any] = types.MappingProxyType({}), tensors: Mapping[str, Tensor] = types.MappingProxyType({})
    ) -> None:
        """Make the folder a model: the tensors outside the blocks, index, configuration, tokenizer. May be done again.

        more: what config.json says beside; "quantization_config" in it: what that says where the file format has the word.
        tensors: what the files hold beside.
        """
        stored = self.source.stored
        self.write_outside()
        if tensors and not self.joined.exists():
            checkpoints.write_shard(self.work / "model-cache.safetensors", dict(tensors))
        if sum(f.stat().st_size for f in self.work.glob("*.safetensors")) < SMALL:
            self.join()
        formats = {stored.original(name): format for name, format in self.formats.items()}
        linears = [name for name, module in self.source.skeleton.named_modules() if isinstance(module, nn.Linear)]
        ignore = [stored.original(name) for name in linears if name not in self.formats]
        activations = {stored.original(name): activation for name, activation in self.activations.items()}
        told = self.form.config(formats, ignore, activations)
        told |= {word: value for word, value in more.get("quantization_config", {}).items() if word in told}
        checkpoints.complete(self.work, self.source.folder, told)
        beside = {word: value for word, value in more.items() if word != "quantization_config"}
        if beside or self._untied:
            self._tell(beside)

    def _tell(self, more: Mapping[str, Any]) -> None:
        """Say in config.json what is in `more`, and that embedding and head are two matrices where they are."""
        path = self.work / "config.json"
        config = json.loads(path.read_text(encoding="utf-8")) | dict(more)
        for told in (config, config.get("text_config")) if self._untied else ():
            if told is not None:
                told["tie_word_embeddings"] = False
        checkpoints.write_text(path, json.dumps(config, indent=2) + "\n")

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
