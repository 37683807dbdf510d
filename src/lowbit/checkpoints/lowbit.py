"""lowbit - the file format for everything that compressed-tensors cannot say: codebooks, other scales, mixtures of both.

Layout    `<module>.weight`: packed codes, int32 [out, words] (five ternary digits: uint8); `<module>.weight_<part>`: scales,
          zeros and tables as they are; `<module>.weight_shape` int64 [2] where the words do not tell the inputs.
Idea      The codes stand under the standard name in a shape and dtype that no float weight has, so a loader that does not know
          lowbit stops with a size mismatch. Under any other name it would give random weights and exit code 0.
Config    {"quant_method": "lowbit", "install", "min_version", "formats": {format: [modules]}}; in a name `*` stands for one
          number, and is written where all modules of that name have the same format.
Traps     Zero codes are packed along the outputs, as compressed-tensors does, so that a split by inputs stays a slice.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import lowbit
from lowbit import formats as all_formats
from lowbit import sides
from lowbit.core.errors import CheckpointError
from lowbit.formats import Format, Quantized
from lowbit.kernels import packing

MIN_VERSION = "0.1.0"
Get = Callable[[str], Tensor]


def can_hold(format: Format) -> str:
    return ""


def tensors(module: str, quantized: Quantized, dtype: torch.dtype) -> dict[str, Tensor]:
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


def config(formats: dict[str, Format], ignore: list[str]) -> dict[str, Any]:
    alike: dict[str, set[str]] = {}
    for module in [*formats, *ignore]:
        alike.setdefault(_pattern(module), set()).add(str(formats.get(module, "")))
    told: dict[str, list[str]] = {}
    for module, format in formats.items():
        name = _pattern(module) if len(alike[_pattern(module)]) == 1 else module
        names = told.setdefault(str(format), [])
        if name not in names:
            names.append(name)
    return {"quant_method": "lowbit", "install": "pip install lowbit", "min_version": MIN_VERSION, "formats": told}


def _pattern(module: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", module)


def formats(config: dict[str, Any], modules: list[str]) -> dict[str, Format]:
    needed = str(config.get("min_version", MIN_VERSION))
    if _version(needed) > _version(lowbit.__version__):
        here = lowbit.__version__
        raise CheckpointError(f"this checkpoint needs lowbit {needed}, here is {here}. pip install --upgrade lowbit.")
    named = {name: text for text, names in config["formats"].items() for name in names}
    found = {m: named.get(m) or named.get(_pattern(m)) for m in modules}
    unused = sorted(set(named) - set(modules) - {_pattern(m) for m in modules})
    if unused:
        text = named[unused[0]]
        raise CheckpointError(f"config.json: {unused[0]} is said to be {text}, but no file holds it. Download the model again.")
    return {module: all_formats.parse(text) for module, text in found.items() if text}


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
