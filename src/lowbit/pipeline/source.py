"""source - MODEL, a Hub id or a folder, -> everything a run must know of it before it reads a weight.

Traps     Tied embeddings are one tensor in the files and two matrices here: the embedding and the head may be named apart.
"""

import fnmatch
import functools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import architectures, checkpoints
from lowbit.checkpoints.folder import Folder
from lowbit.core.errors import CheckpointError
from lowbit.layers import replacing
from lowbit.layers.embedding import scale_of
from lowbit.layers.loading import skeleton
from lowbit.pipeline.outer import Outer
from lowbit.transforms.turning import Turning

FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "LICENSE*")


def resolve(model: str) -> Path:
    """The folder of a model: itself, or the Hub's snapshot. Raises CheckpointError when there is neither."""
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.exists():
        fact = "the folder holds no config.json" if folder.is_dir() else "this is a file"
        raise CheckpointError(f"{model}: {fact}. Give a model folder or a Hub id.")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise CheckpointError(f"{model}: there is no such folder. Give a model folder or a Hub id such as owner/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0] if str(error) else type(error).__name__
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
    """One linear of the model, or its embedding. name: full ("model.layers.0.mlp.up_proj"). role: attn, mlp, experts, head or
    embed. layer: the block's number; -1 for the embedding, the number of blocks for the head. writes: into the stream."""

    name: str
    shape: tuple[int, int]
    role: str
    layer: int
    writes: bool = False


class Source:
    """A model folder, read as far as its headers. turning: the basis that `tensor` gives it in; None: as it is stored."""

    def __init__(self, model: str) -> None:
        self.model = model
        self.folder = Folder(resolve(model))
        self.config = self.folder.config()
        if "quantization_config" in self.folder.settings:
            method = self.folder.settings["quantization_config"].get("quant_method", "?")
            raise CheckpointError(f"{model}: the model is already quantized ({method}). Give the original.")
        self.architecture = architectures.find(self.config)
        self.turning: Turning | None = None
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

    @cached_property
    def tokenizer(self) -> Any:
        """The model's tokenizer. Raises CheckpointError when there is none."""
        return tokenizer_of(self.folder.path)

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

    @cached_property
    def embed(self) -> str:
        """Full name of the input embedding; "" when the model has none that packed rows can stand for."""
        found = self.skeleton.get_input_embeddings()  # type: ignore[operator]
        return self._name(found) if isinstance(found, nn.Embedding) and scale_of(found) is not None else ""

    @cached_property
    def head(self) -> str:
        """Full name of the output head; "" when the model has none that is a linear."""
        found = self.skeleton.get_output_embeddings()  # type: ignore[operator]
        return self._name(found) if isinstance(found, nn.Linear) else ""

    def _name(self, wanted: nn.Module) -> str:
        names: dict[int, str] = {id(module): name for name, module in self.skeleton.named_modules()}
        return names[id(wanted)]

    @cached_property
    def ties(self) -> dict[str, str]:
        """Parameters that share another one's weight, as config.json says: name -> the other's name."""
        return dict(self.skeleton.all_tied_weights_keys)  # type: ignore[arg-type]

    @property
    def tied(self) -> bool:
        """Whether the head's weight is the embedding's."""
        return f"{self.head}.weight" in self.ties

    def weight(self, module: str) -> Tensor:
        """The weight of a module as it is stored, its own or the one that it shares."""
        return self.tensor(f"{module}.weight")

    def tensor(self, name: str, device: torch.device | None = None) -> Tensor:
        """A tensor in the basis of this run, on `device` (default: the CPU). name: the model's, or that of one it shares."""
        if self.turning:
            return self.turning.tensor(name, self._original).to(device or "cpu")
        return self._original(name, device)

    def _original(self, name: str, device: torch.device | None = None) -> Tensor:
        return self.stored.tensor(name if name in self.stored.originals else self.ties.get(name, name), device)

    def outer(self, dtype: torch.dtype, device: torch.device, original: bool = False) -> Outer:
        """What lies outside the blocks, with its weights; `drop` it afterwards. original: in the basis of the files."""
        if original or not self.turning:
            get = functools.partial(self.stored.tensor, device=device)
            return Outer(self.skeleton, self.blocks, get, self.stored.originals, dtype, device)
        held = {*self.stored.originals, f"{self.head}.weight"}  # no longer that of the embedding
        return Outer(self.skeleton, self.blocks, self.tensor, held, dtype, device)

    def check_shapes(self) -> None:
        """See by the headers that the tensors have the shapes that config.json says. Raises CheckpointError."""
        for name, parameter in self.skeleton.named_parameters():
            if name in self.stored.originals:
                shape = self.folder.entry(self.stored.originals[name]).shape
                if shape != tuple(parameter.shape):
                    sizes = f"{list(shape)} in the files, {list(parameter.shape)} by config.json"
                    raise CheckpointError(f"{name}: {sizes}. The weights do not fit config.json.")

    def linears(self) -> list[Linear]:
        """Every linear that a recipe may name, in the order of the model; the embedding first, the head last."""
        return [*self._end(self.embed, "embed", -1), *self._inside(), *self._end(self.head, "head", len(self.blocks))]

    def _end(self, name: str, role: str, layer: int) -> list[Linear]:
        if not name:
            return []
        out, inputs = self.skeleton.get_parameter(f"{name}.weight").shape
        return [Linear(name, (out, inputs), role, layer)]

    def _inside(self) -> list[Linear]:
        """The linears of the blocks."""
        keep = {name for name, _ in self.architecture.keep}
        found = []
        for index, block in enumerate(self.blocks):
            for name, module in block.named_modules():
                if isinstance(module, nn.Linear) and not any(fnmatch.fnmatch(name, k) for k in keep):
                    full = f"{self.architecture.blocks}.{index}.{name}"
                    writes = any(fnmatch.fnmatch(name, pattern) for pattern in self.architecture.writers)
                    found.append(Linear(full, (module.out_features, module.in_features), _role(name), index, writes))
        return found


def _role(name: str) -> str:
    """What a linear of a block is part of, by the usual names."""
    if "expert" in name:
        return "experts"
    return "attn" if "attn" in name or "attention" in name else "mlp"
