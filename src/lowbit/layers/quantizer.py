"""quantizer - what transformers needs to load and save `quant_method: "lowbit"`: a configuration and a quantizer.

Idea      Before the weights are read, what config.json names becomes a packed module with empty buffers of the names,
          shapes and dtypes that the files' headers give; transformers fills them like any tensor; then they are prepared.
          Saving puts the stored tensors back, bit by bit, in the file format that the model came in.
Traps     transformers casts a float tensor to the dtype of its place: scales are declared as they are stored, so they stay.
          This file is imported while transformers.quantizers is: it may import nothing of transformers but the four below.
          Importing it registers both classes (once, by name): it may itself be what makes transformers.quantizers load.
"""

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from transformers.core_model_loading import WeightConverter, WeightRenaming
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lowbit import checkpoints
from lowbit.checkpoints import lowbit as own
from lowbit.checkpoints.folder import Shard
from lowbit.checkpoints.folder.shard import Entry
from lowbit.formats import Format
from lowbit.layers import cached, replacing
from lowbit.layers import linear as linears
from lowbit.layers.cached import Cached
from lowbit.layers.embedding import QuantizedEmbedding
from lowbit.layers.linear import QuantizedLinear


class LowbitConfig(QuantizationConfigMixin):
    """The `quantization_config` of config.json, kept as it is: what a newer lowbit adds survives."""

    def __init__(self, **told: Any) -> None:
        self.told = {"quant_method": "lowbit", **told}
        self.quant_method = self.told["quant_method"]

    def to_dict(self) -> dict[str, Any]:
        return dict(self.told)


class LowbitQuantizer(HfQuantizer):
    """Swaps modules before loading, prepares them afterwards.

    form: the file format that saving writes. originals: what the files call tensors and modules, where the model differs and
    transformers does not know. renames: the architecture's. apart: experts were taken apart.
    """

    requires_calibration = True

    def __init__(self, quantization_config: LowbitConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self.form: ModuleType = own
        self.originals: dict[str, str] = {}
        self.renames: tuple[tuple[str, str], ...] = ()
        self.apart = False
        self.cached = Cached()

    def _process_model_before_weight_loading(self, model: Any, checkpoint_files: Iterable[str] = (), **kwargs: Any) -> None:
        entries: dict[str, Entry] = {}
        self.cached = Cached(checkpoint_files, model)
        for file in checkpoint_files or ():
            with Shard(Path(file)) as shard:
                entries |= shard.entries
        modules = sorted({m["module"] for m in map(checkpoints.PART.fullmatch, entries) if m})
        formats = own.formats(self.quantization_config.to_dict(), modules)
        self.renames = replacing.renames_of(model.config, formats)
        self.apart = replacing.has_experts(formats)
        if self.apart:
            replacing.open_experts(model)
        for module, format in formats.items():
            _swap(model, module, self.renames, format, entries)
        told = own.activations(self.quantization_config.to_dict(), modules)
        replacing.declare(model, {_place(model, module, self.renames): activation for module, activation in told.items()})

    def update_weight_conversions(self, weight_conversions: list[Any], *model: Any) -> list[Any]:
        """Experts that are apart stay so: without the conversions that would fuse them, with the new names of their parts.

        model: transformers 5.17 does not give it yet.
        """
        if self.apart:
            weight_conversions = [c for c in weight_conversions if not _fuses(c)]
            weight_conversions += [WeightRenaming(pattern, replacement) for pattern, replacement in self.renames]
        converted: list[Any] = super().update_weight_conversions(weight_conversions, *model)
        return converted

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        return self.cached.restore(linears.prepare(model), lambda name: _place(model, name, self.renames))

    def get_state_dict_and_metadata(self, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The tensors to save, in the file format of `form`."""
        state: dict[str, Tensor] = model.state_dict()
        packed = {name: m for name, m in model.named_modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)}
        state = {self.originals.get(name, name): t for name, t in state.items() if replacing.module_of(name) not in packed}
        for name, module in packed.items():
            told, activation = self.originals.get(name, name), getattr(module, "activation", None)
            state |= self.form.tensors(told, module.quantized(), module.dtype, activation=activation)
            state |= checkpoints.input_tensors(told, activation)
        return state | cached.tensors(model, self.originals), {}

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    @property
    def is_compileable(self) -> bool:
        return True


def _fuses(conversion: Any) -> bool:
    """Whether a conversion of transformers merges the experts' matrices."""
    return isinstance(conversion, WeightConverter) and any("experts" in pattern for pattern in conversion.target_patterns)


def _place(model: Any, module: str, renames: Iterable[tuple[str, str]]) -> str:
    """What the model calls a module of the files; a model without its head has shorter names."""
    name = checkpoints.rename(f"{module}.weight", renames).removesuffix(".weight")
    return name if name in dict(model.named_modules()) else name.removeprefix(f"{model.base_model_prefix}.")


def _swap(model: Any, module: str, renames: Iterable[tuple[str, str]], format: Format, entries: dict[str, Entry]) -> None:
    """Put a packed module with empty buffers in the place of `module`."""
    name = _place(model, module, renames)
    own_entries = {n.removeprefix(f"{module}."): e for n, e in entries.items() if replacing.module_of(n) == module}
    named = {n: e for n, e in sorted(own_entries.items()) if n.startswith("weight")}
    parts = {n.removeprefix("weight").removeprefix("_"): e for n, e in named.items()}
    stored = {part: torch.empty(e.shape, dtype=e.dtype, device="meta") for part, e in parts.items()}
    replacing.replace(model, name, format, stored)


def attach(model: Any, stored: "checkpoints.Stored") -> None:
    """Make `save_pretrained` of a model write its packed layers as the folder that it came from has them."""
    config = LowbitConfig(**(stored.config or {}))
    model.hf_quantizer = LowbitQuantizer(config, pre_quantized=True)
    model.hf_quantizer.form = stored.form
    model.hf_quantizer.originals = stored.originals | {module: stored.original(module) for module in stored.formats}
    model.config.quantization_config = config
    model._weight_conversions = []  # the names that `originals` gives are final


def _restoring(quantizer: type) -> type:
    """A quantizer of transformers whose models get, and save, the packed cache that their config.json asks for."""

    def before(self: Any, model: Any, **kwargs: Any) -> Any:
        self.cached = Cached(kwargs.get("checkpoint_files"), model)
        return quantizer._process_model_before_weight_loading(self, model, **kwargs)  # type: ignore[attr-defined]

    def after(self: Any, model: Any, **kwargs: Any) -> Any:
        done = quantizer._process_model_after_weight_loading(self, model, **kwargs)  # type: ignore[attr-defined]
        return self.cached.restore(done or model)

    def saved(self: Any, model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
        state, told = quantizer.get_state_dict_and_metadata(self, model)  # type: ignore[attr-defined]
        return (model.state_dict() if state is None else state) | cached.tensors(model, {}), told

    changed: dict[str, Any] = {"get_state_dict_and_metadata": saved}
    changed |= {"_process_model_before_weight_loading": before, "_process_model_after_weight_loading": after}
    return type(quantizer.__name__, (quantizer,), changed)


AUTO_QUANTIZER_MAPPING["compressed-tensors"] = _restoring(AUTO_QUANTIZER_MAPPING["compressed-tensors"])
AUTO_QUANTIZATION_CONFIG_MAPPING.setdefault("lowbit", LowbitConfig)
AUTO_QUANTIZER_MAPPING.setdefault("lowbit", LowbitQuantizer)
