"""packing - a quantized matrix <-> the tensors that kernels, layers and files hold.

Idea      Codes become the bytes of their layout; an integer zero point, a code itself, is packed too, so that what is stored
          is what bits_per_weight says. The names are standard everywhere: "" is the codes, the others are parts' names.
Layout    packed codes: `Format.layout`, dense int32 [rows of codes, words] for all widths but that of ternary digits.
          zero, and other parts that are codes (PACKED of a rule): int32 [ceil(out * bits / 32), groups], the dense stream along
          the outputs (compressed-tensors' arrangement).
"""

import torch
from torch import Tensor

from lowbit import layouts
from lowbit.formats import Format, Parts, Quantized, shelf

Stored = dict[str, Tensor]
"""The tensors of one matrix by name: "" the codes, "scale", "zero", ... as they are stored."""


def pack(quantized: Quantized) -> Stored:
    """The tensors to store for one matrix."""
    return {"": quantized.packed(), **pack_parts(quantized.format, quantized.parts)}


def pack_parts(format: Format, parts: Parts) -> Parts:
    """Parts as they are stored: those that are codes, integer zeros among them, packed."""
    return parts | {name: _along_outputs(parts[name], bits) for name, bits in coded(format).items()}


def coded(format: Format) -> dict[str, int]:
    """Bits of the parts that are codes."""
    own: dict[str, int] = getattr(shelf.get(format.rule), "PACKED", {})
    return {"zero": int(format.dtype.bits), **own} if format.zero == "int" else own


def unpack(format: Format, stored: Stored, shape: tuple[int, int]) -> Quantized:
    """The way back: codes and parts, exactly."""
    packed, parts = split(format, stored, shape)
    return Quantized(format, codes(format, packed, shape), parts, shape)


def split(format: Format, stored: Stored, shape: tuple[int, int]) -> tuple[Tensor, Parts]:
    """Packed codes, and parts as lowbit.formats wants them."""
    parts, rows = {name: tensor for name, tensor in stored.items() if name}, format.groups(shape)[0]
    return stored[""], parts | {name: _from_outputs(parts[name], bits, rows) for name, bits in coded(format).items()}


def codes(format: Format, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """Codes uint8 of packed rows (all of them or some)."""
    found: Tensor = layouts.shelf.get(format.layout).unpack(packed, format.dtype.bits, format.codes_shape(shape)[1])
    return found


def pack_codes(format: Format, codes: Tensor) -> Tensor:
    """The way back."""
    packed: Tensor = layouts.shelf.get(format.layout).pack(codes, format.dtype.bits)
    return packed


def unpack_zero(format: Format, packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """Zero codes uint8 [out, groups] of a matrix of `shape` from int32 [ceil(out * bits / 32), groups]."""
    return _from_outputs(packed, int(format.dtype.bits), format.groups(shape)[0])


def _along_outputs(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [out, groups] -> int32 [ceil(out * bits / 32), groups]."""
    packed: Tensor = layouts.shelf.get("dense").pack(codes.t().clone(memory_format=torch.contiguous_format), bits)
    return packed.t().contiguous()


def _from_outputs(packed: Tensor, bits: int, rows: int) -> Tensor:
    """The way back."""
    codes: Tensor = layouts.shelf.get("dense").unpack(packed.t().contiguous(), bits, rows)
    return codes.t().contiguous()


def bytes_of(stored: Stored) -> int:
    """Bytes that the tensors take."""
    return sum(t.numel() * t.element_size() for t in stored.values())


def device_of(stored: Stored) -> torch.device:
    """Where the codes are."""
    return stored[""].device
