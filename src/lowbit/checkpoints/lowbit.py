"""lowbit - the file format for everything that compressed-tensors cannot say: codebooks, other scales, mixtures of both.

Layout    `<module>.weight`: packed codes, int32 [out, words] (five ternary digits: uint8); `<module>.weight_<part>`: scales,
          zeros and tables as they are; `<module>.weight_shape` int64 [2] where the words do not tell the inputs.
Idea      The codes stand under the standard name in a shape and dtype that no float weight has, so a loader that does not know
          lowbit stops with a size mismatch. Under any other name it would give random weights and exit code 0.
Config    {"quant_method": "lowbit", "install", "min_version", "formats": {format: [modules]}, "activations": {activation:
          [modules]} where inputs are rounded}; in a name `*` stands for one number, and is written where all modules of that
          name have the same.
Traps     Zero codes are packed along the outputs, as compressed-tensors does, so that a split by inputs stays a slice.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

import lowbit
from lowbit import formats as all_formats
from lowbit import sides
from lowbit.core.errors import CheckpointError
from lowbit.formats import Format, Quantized
from lowbit.kernels import activation as acting
from lowbit.kernels import packing
from lowbit.kernels.activation import Activation

MIN_VERSION = "0.1.0"
Get = Callable[[str], Tensor]


def can_hold(format: Format) -> str:
    return ""


def can_act(activation: Activation, format: Format) -> str:
    return ""


def tensors(module: str, quantized: Quantized, dtype: torch.dtype, activation: Activation | None = None) -> dict[str, Tensor]:
    stored = packing.pack(quantized)
    if _shape(quantized.format, stored[""]) != quantized.shape:
        stored["shape"] = torch.tensor(quantized.shape)
    return {f"{module}.{name_of(name)}": tensor.contiguous() for name, tensor in stored.items()}


def name_of(part: str) -> str:
    """The name under a module of a tensor of lowbit.kernels.packing."""
    return f"weight_{part}" if part else "weight"


def _shape(format: Format, packed: Tensor) -> tuple[int, int]:
    """The shape of a matrix whose words are full."""
    height, width, codes = format.step
    in_row = int(packed.shape[1] * packed.element_size() * 8 / format.dtype.bits)
    return packed.shape[0] * height, in_row // codes * width


def config(
    formats: dict[str, Format], ignore: list[str], activations: Mapping[str, Activation] = MappingProxyType({})
) -> dict[str, Any]:
    modules = [*formats, *ignore]
    told: dict[str, Any] = {"quant_method": "lowbit", "install": "pip install lowbit", "min_version": MIN_VERSION}
    told["formats"] = _told({module: str(format) for module, format in formats.items()}, modules)
    if activations:
        told["activations"] = _told({module: str(activation) for module, activation in activations.items()}, modules)
    return told


def _told(texts: dict[str, str], modules: list[str]) -> dict[str, list[str]]:
    """Names, or patterns, by text. modules: all that a pattern may not mean by mistake."""
    alike: dict[str, set[str]] = {}
    for module in modules:
        alike.setdefault(_pattern(module), set()).add(texts.get(module, ""))
    told: dict[str, list[str]] = {}
    for module, text in texts.items():
        name = _pattern(module) if len(alike[_pattern(module)]) == 1 else module
        names = told.setdefault(text, [])
        if name not in names:
            names.append(name)
    return told


def _pattern(module: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", module)


def formats(config: dict[str, Any], modules: list[str]) -> dict[str, Format]:
    needed = str(config.get("min_version", MIN_VERSION))
    if _version(needed) > _version(lowbit.__version__):
        here = lowbit.__version__
        raise CheckpointError(f"this checkpoint needs lowbit {needed}, here is {here}. pip install --upgrade lowbit.")
    named = _named(config["formats"])
    unused = sorted(set(named) - set(modules) - {_pattern(m) for m in modules})
    if unused:
        text = named[unused[0]]
        raise CheckpointError(f"config.json: {unused[0]} is said to be {text}, but no file holds it. Download the model again.")
    return {module: all_formats.parse(text) for module, text in _of(named, modules).items()}


def activations(config: dict[str, Any], modules: list[str]) -> dict[str, Activation]:
    found = _of(_named(config.get("activations", {})), modules)
    return {module: acting.parse(text) for module, text in found.items()}


def _named(told: dict[str, list[str]]) -> dict[str, str]:
    return {name: text for text, names in told.items() for name in names}


def _of(named: dict[str, str], modules: list[str]) -> dict[str, str]:
    """The text of each module that is meant by its name or its pattern."""
    found = {m: named.get(m) or named.get(_pattern(m)) for m in modules}
    return {module: text for module, text in found.items() if text}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:3])


def quantized(module: str, format: Format, get: Get) -> Quantized:
    stored = {"": get(f"{module}.weight"), **{part: get(f"{module}.{name_of(part)}") for part in parts_of(format)}}
    shape = _shape(format, stored[""])
    try:
        rows, columns = get(f"{module}.weight_shape").tolist()
        shape = (rows, columns)
    except CheckpointError:
        pass
    return packing.unpack(format, stored, shape)


@functools.cache
def parts_of(format: Format) -> list[str]:
    """The names of a format's parts, found by fitting the smallest matrix that has a group and a code."""
    (height, width, _), (rows, columns) = format.step, format.group
    small = torch.ones(max(rows, height), math.lcm(columns or 32, width))
    around = [part for side in format.sides for part in sides.get(side).parts]
    return sorted([*format.core.fit(small, search=False).parts, *around])
