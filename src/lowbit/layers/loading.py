"""loading - a model folder -> a model that runs: packed layers where the folder holds codes, floats elsewhere.

Idea      The model's own class of transformers is built on the meta device; what the folder holds quantized becomes
          a packed layer, fused experts are taken apart first; then every tensor is read once, straight to its place.
Traps     It is strict: a tensor that is missing or left over is an error, never a random weight. Buffers that no file holds
          (rotary tables) are computed by the model's own initialisation, in float32 as transformers' from_pretrained does;
          `.to(bfloat16)` on a whole model would round them. Kernels are picked for `dtype`: bfloat16 is the fast one on CPUs.
"""

import copy
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils import logging

from lowbit import checkpoints, kvcache
from lowbit.checkpoints.folder import Folder
from lowbit.core.errors import CheckpointError, FormatError
from lowbit.kernels import packing
from lowbit.layers import cached, replacing
from lowbit.layers import linear as linears
from lowbit.layers.quantizer import attach

Get = Callable[[str], Tensor]
UNWANTED = (r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$", *cached.BESIDE)
"""Tensors of old files that no class wants any more, scales of the cache, constants of a prefix."""


def load(
    path: str | Path, dtype: torch.dtype | None = None, device: str | torch.device | None = None, bits: int | None = None
) -> Any:
    """Load a model folder: of any quant_method that lowbit reads, or of floats.

    dtype: of all that is not packed, and of the activations (default: the folder's). device: default "cpu". bits: at which
    nested codes are read (default: all that are stored).
    Raises CheckpointError when the folder is not whole, ArchitectureError when transformers does not know the model,
    FormatError when the folder cannot be read at `bits`.
    """
    folder = Folder(path)
    dtype, device = dtype or folder.dtype(), torch.device(device or "cpu")
    if "quantization_config" not in folder.settings:
        if bits is not None:
            raise FormatError(f"bits={bits}: {folder.path} holds floats. Leave bits out, or quantize it: nested(2-8).")
        return kvcache.attach(_plain(folder, dtype).to(device), folder.settings.get(kvcache.KEY))
    config = folder.config()
    del config.quantization_config
    model = skeleton(config, dtype)
    stored = checkpoints.Stored(folder, replacing.renames_of(config, folder.names))
    if replacing.has_experts(folder.names):
        replacing.open_experts(model)
    _check(model, stored)
    _fill(model, stored, device)
    _replace(model, stored, device, bits)
    if (folder.path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder.path)
    attach(model, stored)
    ids = tuple(folder.settings.get(kvcache.PREFIX, ()))
    if ids:
        kvcache.attach_prefix(model, kvcache.Prefix(ids, stored.prefix_outputs))
    return kvcache.attach(model, folder.settings.get(kvcache.KEY), stored.cache_scales)


def skeleton(config: Any, dtype: torch.dtype) -> Any:
    """The causal-LM class of a config without weights: parameters on meta, buffers that no file holds real, on the CPU."""
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
    for path, module in model.named_modules():
        unsaved = {n: module._buffers.get(n) for n in module._non_persistent_buffers_set}
        lost = {n: buffer for n, buffer in unsaved.items() if buffer is not None and buffer.is_meta}
        for name, buffer in lost.items():
            module._buffers[name] = torch.full_like(buffer, torch.nan if buffer.is_floating_point() else 0, device="cpu")
        if lost:
            _family(model, path)._init_weights(module)
        wrong = [n for n in lost if torch.isnan(module._buffers[n]).any()]
        if wrong:
            name = f"{type(module).__name__}.{wrong[0]}"
            raise CheckpointError(f"{name}: transformers does not compute this buffer. Update transformers.")
    return model.requires_grad_(False).eval()


def _family(model: Any, path: str) -> Any:
    """The nearest model of transformers around a module: a vision tower inside a language model initialises its own parts."""
    while path and not hasattr(model.get_submodule(path), "_init_weights"):
        path = path.rpartition(".")[0]
    return model.get_submodule(path)


def _places(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter and every buffer that files hold, by name; tied ones under each of their names."""
    found: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    for name, module in model.named_modules():
        kept = {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        found |= {f"{name}.{n}": b for n, b in kept.items() if b is not None}
    return found


def _tied(model: Any, stored: checkpoints.Stored) -> dict[str, str]:
    """Parameters that share another one's weight, and have none of their own in the files: name -> the other's name."""
    held = stored.originals
    return {name: source for name, source in model.all_tied_weights_keys.items() if name not in held and source in held}


def _floats(stored: checkpoints.Stored) -> set[str]:
    """The tensors that are no part of a quantized matrix."""
    return {n for n in stored.names if replacing.module_of(n) not in stored.formats}


def _check(model: Any, stored: checkpoints.Stored) -> None:
    """See that the files hold all that the model wants and nothing else. Raises CheckpointError."""
    wanted = set(_places(model)) - set(_tied(model, stored)) - {f"{module}.weight" for module in stored.formats}
    unwanted = [*(model._keys_to_ignore_on_load_unexpected or []), *UNWANTED]
    floats = {n for n in _floats(stored) if not any(re.search(pattern, n) for pattern in unwanted)}
    _refuse(stored.folder, sorted(wanted - floats), "not in the files")
    _refuse(stored.folder, sorted(floats - wanted), "in the files, but not in the model")


def _refuse(folder: Folder, names: list[str], what: str) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise CheckpointError(f"{folder.path}: {', '.join(names[:3])}{more}: {what}. The weights do not fit config.json.")


def _fill(model: Any, stored: checkpoints.Stored, device: torch.device) -> None:
    """Read every tensor that is not packed, tie what is tied, bring the buffers along."""
    wide = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    tied = _tied(model, stored)
    floats = _floats(stored)
    for name, place in _places(model).items():
        if name in floats:
            dtype = torch.float32 if any(part in name.split(".") for part in wide) else place.dtype
            _set(model, name, stored.tensor(name, device), dtype, device)
    for name, source in tied.items():
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._parameters[leaf] = model.get_parameter(source)
    for module in model.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and not buffer.is_meta:
                module._buffers[key] = buffer.to(device)


def _replace(model: nn.Module, stored: checkpoints.Stored, device: torch.device, bits: int | None) -> None:
    """Put a packed, prepared module in the place of every quantized one."""
    for name in stored.formats:
        quantized = stored.quantized(name, device, bits=bits)
        tensors = {part: tensor.to(device) for part, tensor in packing.pack(quantized).items()}
        replacing.replace(model, name, quantized.format, tensors, quantized.shape)
    replacing.declare(model, stored.activations)
    linears.prepare(model)


def _set(module: nn.Module, name: str, value: Tensor, dtype: torch.dtype, device: torch.device) -> None:
    """Put a value in the place of a parameter or buffer. Raises CheckpointError when the shapes differ."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    place: Tensor = getattr(owner, leaf)
    if place.shape != value.shape:
        sizes = f"{list(value.shape)} in the files, {list(place.shape)} by config.json"
        raise CheckpointError(f"{name}: {sizes}. The weights do not fit config.json.")
    value = value.to(device, dtype)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
    else:
        owner._buffers[leaf] = value


def _plain(folder: Folder, dtype: torch.dtype) -> Any:
    """A model of floats, as transformers loads it, but with missing or surplus tensors as errors."""
    folder.config()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(folder.path, dtype=dtype, output_loading_info=True)
    except RuntimeError as error:
        raise CheckpointError(f"{folder.path}: {str(error).splitlines()[0]} The weights do not fit config.json.") from error
    finally:
        logging.set_verbosity(verbosity)
    model, told = found
    _refuse(folder, _names(told["missing_keys"]), "not in the files")
    _refuse(folder, _names(told["mismatched_keys"]), "of another shape than config.json says")
    _refuse(folder, _names(told["unexpected_keys"]), "in the files, but not in the model")
    return model.requires_grad_(False)


def _names(keys: Iterable[Any]) -> list[str]:
    return sorted(str(key[0] if isinstance(key, tuple) else key) for key in keys)
