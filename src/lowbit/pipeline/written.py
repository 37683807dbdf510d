"""written - a block as files hold it: matrices decoded, inputs changed and rounded as the layers will.

Idea      The shards of an unfinished run and the folder that is checked at its end are read by the same code.
"""

import types
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lowbit import checkpoints, kvcache, sides
from lowbit.formats import Quantized
from lowbit.kernels.activation import Activation
from lowbit.pipeline import activations as acting
from lowbit.pipeline import blocks, online


def block(
    skeleton: nn.Module,
    prefix: str,
    read: Callable[[str], Quantized | Tensor],
    activations: Mapping[str, Activation],
    device: torch.device,
    dtype: torch.dtype,
    pinned: Mapping[str, Tensor] = types.MappingProxyType({}),
    decode: Callable[[Quantized], Tensor] = Quantized.decode,
) -> nn.Module:
    """A block as files hold it, its matrices decoded, inputs changed and rounded; for windows that begin with the prefix.

    read: by a tensor's full name the matrix whose weight it is, or the tensor. activations, pinned: by full name. decode: what
    a matrix is read as.
    """
    ahead: online.Ahead = {}
    inner: dict[str, Quantized] = {}

    def get(name: str) -> Tensor:
        value = read(name)
        if not isinstance(value, Quantized):
            return value
        place = name.removeprefix(f"{prefix}.").removesuffix(".weight")
        if value.format.ahead:
            parts = {part: value.parts[part] for word in value.format.ahead for part in sides.get(word).parts}
            moved = {part: tensor.to(device) for part, tensor in parts.items()}
            ahead[place] = value.format, moved
        found = online.inner(value)
        kept = {part: tensor.to(device) for part, tensor in found.parts.items()} if found.format.sides else {}
        inner[place] = Quantized(found.format, found.codes[:0], kept, found.shape)
        return decode(found)

    module = blocks.load(skeleton, prefix, get, device, dtype)
    online.hook(module, ahead)
    acting.attach(module, acting.inside(activations, prefix), {n: q.format for n, q in inner.items()}, inner.get)
    places = kvcache.Places(whole=True)
    kvcache.pin(module, acting.inside(pinned, prefix), places)
    module.places = places  # type: ignore[assignment]
    return module


def reader(stored: "checkpoints.Stored", device: torch.device) -> Callable[[str], Quantized | Tensor]:
    """Reads a written folder for `block`, matrices unpacked on `device`."""

    def read(name: str) -> Quantized | Tensor:
        module = name.removesuffix(".weight")
        packed = module in stored.formats and name.endswith(".weight")
        return stored.quantized(module, device) if packed else stored.tensor(name, device)

    return read
