"""checkpoints - a folder <-> named tensors. One file is one on-disk format of quantized matrices, both directions.

Contract of a file (its name is the `quant_method` it writes, "-" as "_"):
    can_hold(format: Format) -> str                     "" when this file format can say it, else the reason why not
    can_act(activation, format) -> str                  the same of a matrix in `format` whose inputs are rounded
    tensors(module, quantized, dtype, activation=None) -> dict[str, Tensor]   what is stored for one matrix under `module`
    config(formats: dict[module, Format], ignore: list[str], activations={}) -> dict  the `quantization_config` of config.json
    formats(config: dict, modules: list[str]) -> dict[module, Format]     the way back: which modules, in which format
    activations(config: dict, modules: list[str]) -> dict[module, Activation]     and how their inputs are rounded
    quantized(module, format, get) -> Quantized         the way back for one matrix; get(name) gives a stored tensor
`dtype` is the model's dtype. Nothing here rounds: codes and scales are stored as they are. A scale of inputs that an activation
stores (its `scale`) is `<module>.input_scale` or `<module>.input_global_scale` in every format: `input_tensors` writes it.
`modules` are those that have a tensor `weight_<part>` beside their weight. All names here are those in the files.
`folder/` reads and writes what all formats share: safetensors, index, config.json.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lowbit.checkpoints.folder import Folder, Shard, write_shard, write_text
from lowbit.checkpoints.folder.finish import complete
from lowbit.core.errors import CheckpointError, FormatError, nearest
from lowbit.core.shelf import Shelf
from lowbit.formats import Format, Quantized
from lowbit.formats._narrow import narrow, side_of

if TYPE_CHECKING:
    from lowbit.kernels.activation import Activation

__all__ = [
    "Folder", "Shard", "Stored", "choose", "complete", "input_tensors", "name_of", "rename", "shelf", "with_scale",
    "write_shard", "write_text",
]  # fmt: skip
shelf = Shelf(__name__, "checkpoint format")
STANDARD = "compressed_tensors"
OWN = "lowbit"
CACHE_SCALE = re.compile(r".+\.(?P<layer>\d+)\.[\w.]+\.(?P<part>[kv]_(scale|basis))")
PART = re.compile(r"(?P<module>.+)\.weight_[a-z_]+")


def choose(
    formats: Iterable[Format], embedding: bool = False, activations: Iterable[tuple["Activation", Format]] = ()
) -> ModuleType:
    """The file format for a model in these formats: compressed-tensors when it can say them all, else lowbit's own.

    embedding: whether one is among the matrices; engines read compressed-tensors of linears alone. activations: of matrices
    whose inputs are rounded, with the matrix's format.
    """
    standard = shelf.get(STANDARD)
    held = not any(standard.can_hold(format) for format in formats)
    held = held and not any(standard.can_act(activation, format) for activation, format in activations)
    return standard if held and not embedding else shelf.get(OWN)


def name_of(form: ModuleType) -> str:
    """The `quant_method` of a file of this shelf."""
    return form.__name__.rpartition(".")[2].replace("_", "-")


class Stored:
    """A folder's tensors by the names that the model gives them, and its quantized matrices.

    renames: (regular expression, replacement) in turn, from names in files to the model's (Architecture.renames). Files keep
    the names of the original: engines map those, and a name that they do not know is a random weight to some.
    No module is quantized when config.json has no quantization_config. Raises CheckpointError.
    """

    def __init__(self, folder: Folder, renames: Iterable[tuple[str, str]] = ()) -> None:
        self.folder = folder
        self.renames = tuple(renames)
        self.config: dict[str, Any] | None = folder.settings.get("quantization_config")
        self.originals = {rename(name, self.renames): name for name in folder.names}
        self._modules = {_module(new): _module(old) for new, old in self.originals.items() if PART.fullmatch(old)}

    @property
    def names(self) -> list[str]:
        """All tensors, sorted."""
        return sorted(self.originals)

    def tensor(self, name: str, device: torch.device | None = None) -> Tensor:
        """One tensor as it is stored, on `device` (default: the CPU)."""
        return self.folder.tensor(self.originals.get(name, name), device)

    def original(self, module: str) -> str:
        """What the files call a module."""
        return self._modules.get(module) or self.originals.get(f"{module}.weight", f"{module}.weight").removesuffix(".weight")

    @cached_property
    def form(self) -> ModuleType:
        """The file format that config.json names."""
        method = str((self.config or {}).get("quant_method", ""))
        if method.replace("-", "_") not in shelf:
            known = [name.replace("_", "-") for name in shelf.names()]
            raise CheckpointError(f"{self.folder.path}: quant_method '{method}' cannot be read. {nearest(method, known)}")
        return shelf.get(method.replace("-", "_"))

    @cached_property
    def formats(self) -> dict[str, Format]:
        """Format of each quantized module."""
        if self.config is None:
            return {}
        found: dict[str, Format] = self.form.formats(self.config, sorted(self._modules.values()))
        return {new: found[old] for new, old in sorted(self._modules.items()) if old in found}

    @cached_property
    def activations(self) -> "dict[str, Activation]":
        """How inputs are rounded, of each quantized module whose are."""
        if self.config is None:
            return {}
        found: dict[str, Activation] = self.form.activations(self.config, sorted(self._modules.values()))
        modules = {new: old for new, old in sorted(self._modules.items()) if old in found}
        return {new: with_scale(found[old], old, self.folder.tensor) for new, old in modules.items()}

    @property
    def cache_scales(self) -> dict[int, dict[str, Tensor]]:
        """The constant scales of keys and values, "k_scale" and "v_scale", of each layer that has some."""
        return cache_scales(self.folder.names, self.folder.tensor)

    @property
    def prefix_outputs(self) -> dict[str, Tensor]:
        """What linears of keys and values give for the model's prefix, by the model's name of each."""
        end = ".prefix_output"
        return {n.removesuffix(end): self.folder.tensor(old) for n, old in self.originals.items() if n.endswith(end)}

    def quantized(self, module: str, device: torch.device | None = None, bits: int | None = None) -> Quantized:
        """One matrix, unpacked on `device`, its codes as they are in the file; nested codes read at `bits`, if it is given.

        Raises FormatError where `bits` is given and codes are not nested.
        """

        def get(name: str) -> Tensor:
            return self.folder.tensor(name, device)

        found: Quantized = self.form.quantized(self._modules[module], self.formats[module], get)
        if bits is not None and side_of(found) is None:
            fact = f"{module} is stored as {found.format}, which has one precision"
            raise FormatError(f"bits={bits}: {fact}. Leave bits out.")
        return found if bits is None else narrow(found, bits)


def input_tensors(module: str, activation: "Activation | None") -> dict[str, Tensor]:
    """The stored scale of a matrix's inputs by its name; nothing where none is stored."""
    if activation is None or not activation.scale:
        return {}
    return {f"{module}.{activation.stored}": torch.tensor(activation.scale)}


def with_scale(activation: "Activation", module: str, get: Callable[[str], Tensor]) -> "Activation":
    """The activation with the scale that is stored under `module`, if any."""
    if not activation.stored:
        return activation
    return replace(activation, scale=tuple(get(f"{module}.{activation.stored}").float().flatten().tolist()))


def cache_scales(names: Iterable[str], get: Callable[[str], Tensor]) -> dict[int, dict[str, Tensor]]:
    """The constant scales, and bases, of keys and values by layer. names: of all tensors; get: one of them."""
    found: dict[int, dict[str, Tensor]] = {}
    for name in names:
        match = CACHE_SCALE.fullmatch(name)
        if match:
            found.setdefault(int(match["layer"]), {})[match["part"]] = get(name)
    return found


def rename(name: str, renames: Iterable[tuple[str, str]]) -> str:
    """The model's name of a tensor that a file calls `name`."""
    for pattern, replacement in renames:
        name = re.sub(pattern, replacement, name)
    return name


def _module(name: str) -> str:
    """The module of a tensor beside a weight."""
    match = PART.fullmatch(name)
    return match["module"] if match else name
