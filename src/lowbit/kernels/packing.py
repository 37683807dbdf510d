"""packing - a quantized matrix <-> the tensors that kernels, layers and files hold.

Idea      Codes become the bytes of their layout; an integer zero point, a code itself, is packed too, so that what is stored
          is what bits_per_weight says. The names are standard everywhere: "" is the codes, the others are parts' names.
Layout    packed codes: `Format.layout`, dense int32 [rows of codes, words] for all widths but that of ternary digits.
          zero: int32 [ceil(out * bits / 32), groups], the dense stream along the outputs (compressed-tensors' arrangement).
"""

import torch
from torch import Tensor

from lowbit import layouts
from lowbit.formats import Format, Parts, Quantized

Stored = dict[str, Tensor]
"""The tensors of one matrix by name: "" the codes, "scale", "zero", ... as they are stored."""


def pack(quantized: Quantized) -> Stored:
    """The tensors to store for one matrix."""
    format = quantized.format
    stored = {"": quantized.packed(), **quantized.parts}
    if format.zero == "int":
        stored["zero"] = pack_zero(format, quantized.parts["zero"])
    return stored


def unpack(format: Format, stored: Stored, shape: tuple[int, int]) -> Quantized:
    """The way back: codes and parts, exactly."""
    packed, parts = split(format, stored, shape)
    return Quantized(format, codes(format, packed, shape), parts, shape)


def split(format: Format, stored: Stored, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    """Packed codes, and parts as lowbit.formats wants them."""
    parts = {name: tensor for name, tensor in stored.items() if name}
    if format.zero == "int":
        parts["zero"] = unpack_zero(format, parts["zero"], shape)
    return stored[""], parts


def codes(format: Format, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """Codes uint8 of packed rows (all of them or some)."""
    found: Tensor = layouts.shelf.get(format.layout).unpack(packed, format.dtype.bits, format.codes_shape(shape)[1])
    return found


def pack_codes(format: Format, codes: Tensor) -> Tensor:
    """The way back."""
    packed: Tensor = layouts.shelf.get(format.layout).pack(codes, format.dtype.bits)
    return packed


def pack_zero(format: Format, zero: Tensor) -> Tensor:
    """Zero codes uint8 [out, groups] -> int32 [ceil(out * bits / 32), groups]."""
    packed: Tensor = layouts.shelf.get("dense").pack(zero.t().clone(memory_format=torch.contiguous_format), format.dtype.bits)
    return packed.t().contiguous()


def unpack_zero(format: Format, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """The way back, for the zero codes of a matrix of `shape`."""
    rows = format.groups(shape)[0]
    zero: Tensor = layouts.shelf.get("dense").unpack(packed.t().contiguous(), format.dtype.bits, rows)
    return zero.t().contiguous()


def bytes_of(stored: Stored) -> int:
    """Bytes that the tensors take."""
    return sum(t.numel() * t.element_size() for t in stored.values())


def device_of(stored: Stored) -> torch.device:
    """Where the codes are."""
    return stored[""].device
