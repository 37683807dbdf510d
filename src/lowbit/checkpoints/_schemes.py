"""_schemes - formats of weights and inputs <-> what compressed-tensors calls QuantizationArgs."""

import re
from dataclasses import dataclass
from typing import Any

from lowbit import formats as all_formats
from lowbit.core.errors import CheckpointError
from lowbit.formats import Format
from lowbit.kernels.activation import Activation


@dataclass(frozen=True)
class Scheme:
    """How compressed-tensors says one format: its `format`, the strategy, and the group or block."""

    kind: str
    bits: int
    type: str
    strategy: str
    size: int = 0
    symmetric: bool = True

    def arguments(self) -> dict[str, Any]:
        """QuantizationArgs of the weights."""
        told: dict[str, Any] = {"num_bits": self.bits, "type": self.type, "strategy": self.strategy}
        told |= {"symmetric": self.symmetric, "dynamic": False}
        told["group_size"] = self.size if "group" in self.strategy else None
        if self.strategy == "block":
            told["block_structure"] = [self.size, self.size]
        if self.kind.startswith(("nvfp", "mxfp")):
            told["scale_dtype"] = "torch.float8_e4m3fn" if self.kind.startswith("nvfp") else "torch.uint8"
        return told

    @property
    def text(self) -> str:
        """The format's name in lowbit."""
        if self.kind.startswith(("nvfp", "mxfp")):
            return self.kind.partition("-")[0]
        places = {"tensor": "tensor", "channel": "row", "group": f"g{self.size}", "block": f"b{self.size}x{self.size}"}
        head = "int" if self.type == "int" else "fp"
        return f"{head}{self.bits}-{places[self.strategy]}" + ("" if self.symmetric else "-asym")


WIDE = {"fp16", "bf16", "fp32"}
"""Scales of foreign files that are not exact in both 16-bit types: read, and written back as they are."""
SCALE_TYPES = {"nvfp4": "torch.float8_e4m3fn", "mxfp": "torch.uint8"}
"""Of found scales, by the rule of a format."""
FLOATS = {
    ("e4m3", (0, 0), "half"): Scheme("float-quantized", 8, "float", "tensor"),
    ("e4m3", (1, 0), "half"): Scheme("float-quantized", 8, "float", "channel"),
    ("e4m3", (128, 128), "half"): Scheme("float-quantized", 8, "float", "block", 128),
    ("e2m1", (1, 16), "e4m3"): Scheme("nvfp4-pack-quantized", 4, "float", "tensor_group", 16),
    ("e2m1", (1, 32), "e8m0"): Scheme("mxfp4-pack-quantized", 4, "float", "group", 32),
    ("e2m3", (1, 32), "e8m0"): Scheme("mxfp6-pack-quantized", 6, "float", "group", 32),
    ("e4m3", (1, 32), "e8m0"): Scheme("mxfp8-quantized", 8, "float", "group", 32),
}


def scheme_of(format: Format, activation: Activation | None = None) -> Scheme | None:
    """The scheme that says `format` of weights whose inputs are rounded or not, or None."""
    if format.sides:
        return None
    scale = "half" if format.scale in WIDE else format.scale
    if re.fullmatch(r"int[2-8]", format.element) and format.group[0] == 1 and scale == "half" and format.zero != "float":
        group = format.group[1]
        kind = "int-quantized" if activation and format.element == "int8" and not group else "pack-quantized"
        return Scheme(kind, int(format.dtype.bits), "int", "group" if group else "channel", group, not format.zero)
    return FLOATS.get((format.element, format.group, scale)) if not format.zero else None


def inputs_of(activation: Activation | None) -> dict[str, Any] | None:
    """QuantizationArgs of the inputs."""
    if activation is None:
        return None
    group, element, rule = activation.format.group, activation.format.dtype, activation.format.rule
    strategy = "tensor_group" if rule == "nvfp4" else "group" if group[1] else "token" if group[0] else "tensor"
    told: dict[str, Any] = {"num_bits": int(element.bits), "type": "int" if activation.integer else "float"}
    told |= {"strategy": strategy, "symmetric": True, "group_size": group[1] or None}
    told["dynamic"] = "local" if rule == "nvfp4" else not activation.static
    if rule in SCALE_TYPES:
        told["scale_dtype"] = SCALE_TYPES[rule]
    return told


def unsaid(activation: Activation, format: Format) -> str:
    """Why no scheme says these inputs of a matrix in `format`; "" where one does."""
    told, number = activation.format, activation.clip
    if number != 1 and not activation.static:
        return f"compressed-tensors has no word for a clip of {number:g}"
    if activation.beyond:
        return f"compressed-tensors has no word for columns beyond {activation.beyond:g}"
    if activation.observer == "mse" and not activation.static:
        return "engines find scales by the plain rule, not by mse"
    if activation.static and told.group[1]:
        return "engines store one scale for all inputs, not one a group"
    if format.zero:
        return f"transformers would not round the inputs of {format}"
    if told.rule in SCALE_TYPES:
        return "" if format.rule == told.rule else f"inputs in {told} go with weights in {told}"
    known = re.fullmatch(r"int[2-8]", told.element) or (told.element == "e4m3" and told.group[1] in {0, 128})
    return "" if known else f"compressed-tensors has no scheme for inputs in {activation}"


def activation_of(told: dict[str, Any] | None) -> Activation | None:
    """The way back. Raises CheckpointError for what lowbit does not run."""
    if not told:
        return None
    group, bits, integer = told.get("group_size"), told["num_bits"], told.get("type", "int") == "int"
    place, dynamic = told.get("strategy", ""), told.get("dynamic")
    text = {"token": "token", "tensor": "tensor", "group": f"g{group}"}.get(place, "")
    head = f"{'int' if integer else 'fp'}{bits}-{text}" if text and (integer or bits == 8) else ""
    if not integer and place == "tensor_group" and (bits, group, dynamic) == (4, 16, "local"):
        head, dynamic = "nvfp4", True
    elif not integer and place == "group" and group == 32 and told.get("scale_dtype") == SCALE_TYPES["mxfp"]:
        head = f"mxfp{bits}"
    if not head or not isinstance(dynamic, bool) or not (dynamic or place == "tensor") or not told.get("symmetric", True):
        raise CheckpointError(
            f"compressed-tensors: the checkpoint quantizes activations by {told}; lowbit runs symmetric ones: static for all, "
            "dynamic for a token, a group or all, nvfp4 and mxfp. Use another checkpoint."
        )
    return Activation(all_formats.parse(head), static=not dynamic)
