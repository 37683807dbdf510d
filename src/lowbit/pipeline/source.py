"""source - MODEL, a Hub id or a folder, -> everything a run must know of it before it reads a weight."""

import fnmatch
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowbit import architectures, checkpoints
from lowbit.checkpoints.folder import Folder
from lowbit.core.errors import CheckpointError
from lowbit.layers import replacing
from lowbit.layers.loading import skeleton

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "LICENSE*")


def resolve(model: str) -> Path:
    """The folder of a model: itself, or the Hub's snapshot. Raises CheckpointError when there is neither."""
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        raise CheckpointError(f"{model}: the folder holds no config.json. Give a model folder or a Hub id.")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise CheckpointError(f"{model}: there is no such folder. Give a model folder or a Hub id such as owner/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{model}: no such folder, and the Hub gave no model of this name ({reason}). Check the name and the network."
        ) from error


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer in a model folder. Raises CheckpointError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: no tokenizer can be read ({str(error).splitlines()[0]}). Copy tokenizer.json into the folder."
        ) from error


@dataclass(frozen=True)
class Linear:
    """One linear of the model. name: full ("model.layers.0.mlp.up_proj"). role: attn, mlp, experts, head or embed."""

    name: str
    shape: tuple[int, int]
    role: str
    layer: int


class Source:
    """A model folder, read as far as its headers."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.folder = Folder(resolve(model))
        self.config = self.folder.config()
        if "quantization_config" in self.folder.settings:
            method = self.folder.settings["quantization_config"].get("quant_method", "?")
            raise CheckpointError(f"{model}: the model is already quantized ({method}). Give the original.")
        self.architecture = architectures.find(self.config)
        self.stored = checkpoints.Stored(self.folder, replacing.renames_of(self.config, self.folder.names))

    @cached_property
    def skeleton(self) -> nn.Module:
        """The causal-LM class without weights (parameters on meta), its fused experts taken apart."""
        model: nn.Module = skeleton(self.config, torch.float32)
        replacing.open_experts(model)
        return model

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder layers of the skeleton."""
        found: nn.ModuleList = self.skeleton.get_submodule(self.architecture.blocks)  # type: ignore[assignment]
        return found

    @property
    def text_config(self) -> Any:
        """The configuration of the language model (of wrappers with an eye, the part that is one)."""
        return self.config.get_text_config()

    @property
    def context(self) -> int:
        """Tokens that the model's context holds."""
        return int(getattr(self.text_config, "max_position_embeddings", None) or 1 << 30)

    def prefix(self, index: int) -> str:
        """Full name of block `index`."""
        return f"{self.architecture.blocks}.{index}"

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype in which the model is stored."""
        return self.folder.dtype()

    def linears(self) -> list[Linear]:
        """Every linear that a recipe may name, in the order of the model."""
        keep = {name for name, _ in self.architecture.keep}
        found = []
        for index, block in enumerate(self.blocks):
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear) and not any(fnmatch.fnmatch(name, k) for k in keep):
                    full = f"{self.architecture.blocks}.{index}.{name}"
                    found.append(Linear(full, (module.out_features, module.in_features), _role(name), index))
        return found


def _role(name: str) -> str:
    """What a linear of a block is part of, by the usual names."""
    if "expert" in name:
        return "experts"
    return "attn" if "attn" in name or "attention" in name else "mlp"
