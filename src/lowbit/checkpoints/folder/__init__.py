"""folder - a model folder: what tensors it has, read one by one; completing a folder whose weights are written.

Traps     Pickle files (.bin, .pt, .pth) can run code when they are opened: they never are. A shard that the index names but the
          folder lacks, a shard cut short or a tensor at another place than the index says is an error before any work.
"""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.checkpoints.folder import fused
from lowbit.checkpoints.folder.shard import Entry, Shard, write_shard, write_text
from lowbit.core.errors import ArchitectureError, CheckpointError

__all__ = ["Folder", "Shard", "write_shard", "write_text"]
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SAMPLE = 1 << 16


class Folder:
    """A model folder, read as far as its headers. Raises CheckpointError when it is not whole."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.shards = {name: Shard(self.path / name) for name in self._files()}
        home = self._indexed() or {name: shard for shard in self.shards.values() for name in shard.entries}
        places = fused.apart({name: shard.entries[name] for name, shard in home.items()}, lambda: self.settings)
        self._home = {name: (home[old], entry) for name, (old, entry) in places.items()}

    def _files(self) -> list[str]:
        """The safetensors files that make up the model."""
        if not self.path.is_dir():
            raise CheckpointError(f"{self.path}: there is no such folder. Give the folder of a model.")
        files = sorted(f.name for f in self.path.glob("*.safetensors"))
        if (self.path / INDEX).is_file():
            named = sorted(set(self._index.values()))
            missing = [name for name in named if name not in files]
            if missing:
                first = next(t for t, f in self._index.items() if f == missing[0])
                count = sum(f == missing[0] for f in self._index.values())
                raise CheckpointError(
                    f"{self.path / missing[0]}: {INDEX} puts {count} tensors into this file ({first}, ...), but it is "
                    f"not there ({len(missing)} of {len(named)} files are missing). Download the model again."
                )
            return named
        if "model.safetensors" in files:
            return ["model.safetensors"]
        pickles = sorted(f.name for pattern in PICKLES for f in self.path.glob(pattern))
        if not files and pickles:
            raise CheckpointError(
                f"{self.path}: the weights are pickle files ({pickles[0]}), which can run code when they are opened. "
                "Get the model as safetensors or convert it."
            )
        if not files:
            raise CheckpointError(f"{self.path}: no safetensors file. Give the folder of a model.")
        return files

    @cached_property
    def _index(self) -> dict[str, str]:
        """Tensor name -> file name, as the index says."""
        try:
            found: dict[str, str] = _json(self.path / INDEX)["weight_map"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path / INDEX}: no weight_map. Download the model again.") from error
        return found

    def _indexed(self) -> dict[str, Shard]:
        """The tensors that the index names, {} where there is none. Raises CheckpointError when one is not in its file."""
        if not (self.path / INDEX).is_file():
            return {}
        for name, file in self._index.items():
            if name not in self.shards[file].entries:
                raise CheckpointError(f"{self.path / file}: no {name}, though {INDEX} says so. Download the model again.")
        return {name: self.shards[file] for name, file in self._index.items()}

    @property
    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted(self._home)

    def __contains__(self, name: str) -> bool:
        return name in self._home

    def entry(self, name: str) -> Entry:
        """dtype and shape of a tensor, and where it lies. Raises CheckpointError when there is none of this name."""
        if name not in self._home:
            files = f"{len(self.shards)} safetensors file" + "s" * (len(self.shards) > 1)
            raise CheckpointError(f"{self.path}: no tensor {name} in {files}. The weights do not fit config.json.")
        return self._home[name][1]

    def bytes_of(self, name: str) -> int:
        """Bytes that a tensor takes in its file."""
        entry = self.entry(name)
        return entry.stop - entry.start

    def tensor(self, name: str, device: torch.device | None = None) -> Tensor:
        """One tensor, read now, in memory of its own, on `device` (default: the CPU)."""
        entry = self.entry(name)
        return self._home[name][0].read(name, entry, device)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """config.json as it is."""
        return _json(self.path / "config.json")

    def config(self) -> Any:
        """config.json as the object of transformers."""
        from transformers import AutoConfig

        if "model_type" not in self.settings:
            raise CheckpointError(f"{self.path / 'config.json'}: no model_type. Download the model again.")
        try:
            return AutoConfig.from_pretrained(self.path)
        except (ValueError, KeyError) as error:
            kind = self.settings["model_type"]
            raise ArchitectureError(
                f"{self.path}: transformers does not know model_type '{kind}' ({_first_line(error)}). "
                "Update transformers; models that bring their own code are not run."
            ) from error

    def digest(self) -> str:
        """What tells this model from others: config.json, all headers, and both ends of every file's data."""
        found = hashlib.sha256((self.path / "config.json").read_bytes())
        for name, shard in self.shards.items():
            found.update(name.encode() + shard.header)
            for position in (8 + len(shard.header), max(0, shard.size - SAMPLE)):
                found.update(shard._bytes(position, min(shard.size, position + SAMPLE)))
        return found.hexdigest()[:16]

    def dtype(self) -> torch.dtype:
        """The dtype of the model as config.json says, float32 when it does not."""
        name = str(self.settings.get("dtype") or self.settings.get("torch_dtype") or "float32")
        found = getattr(torch, name.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise CheckpointError(f"{self.path / 'config.json'}: unknown dtype '{name}'. Use bfloat16, float16 or float32.")
        return found

    def close(self) -> None:
        for shard in self.shards.values():
            shard.close()


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: the file is missing. Download the model again.") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: no JSON ({_first_line(error)}). Download the model again.") from error
    return found
