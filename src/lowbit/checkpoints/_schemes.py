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
    group, element = activation.format.group, activation.format.dtype
    strategy = "group" if group[1] else "token" if group[0] else "tensor"
    told: dict[str, Any] = {"num_bits": int(element.bits), "type": "int" if activation.integer else "float"}
    return told | {"strategy": strategy, "symmetric": True, "dynamic": True, "group_size": group[1] or None}


def activation_of(told: dict[str, Any] | None) -> Activation | None:
    """The way back. Raises CheckpointError for what lowbit does not run."""
    if not told:
        return None
    places = {"token": "token", "tensor": "tensor", "group": f"g{told.get('group_size')}"}
    place, bits, integer = places.get(told.get("strategy", "")), told["num_bits"], told.get("type", "int") == "int"
    if told.get("dynamic") is not True or not told.get("symmetric", True) or not place or not (integer or bits == 8):
        raise CheckpointError(
            f"compressed-tensors: the checkpoint quantizes activations by {told}; lowbit runs symmetric, dynamic ones of a "
            "token, a group or all. Use another checkpoint."
        )
    return Activation(all_formats.parse(f"{'int' if integer else 'fp'}{bits}-{place}"))
