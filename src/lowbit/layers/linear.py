"""linear - a quantized matrix in the place of an nn.Linear: packed bytes in memory, one call into the kernels.

Idea      The layer is in one of two states. Stored: buffers `weight` (packed codes) and `weight_<part>`, exactly what a file of
          quant_method "lowbit" holds; it runs on the reference. Prepared: the buffers that the best kernel for its device and
          dtype wants, in their place; the stored ones are dropped and come back, bit by bit, for saving, moving or decoding.
          With an `activation` x is rounded first: inside the kernel where one multiplies both codes, else x is a float again;
          behind what the format has around its grid (lowbit.sides). A stored scale of the inputs is a buffer `input_scale` or
          `input_global_scale`, float32 in every dtype of the model. Calls are bound when a layer is prepared; copies look up.
Traps     A move (`.to`, `.half`, `.cuda`) never casts codes, scales or zeros: it goes through the stored state and prepares
          again. `memory_bytes` is what is stored (the size that was promised); `resident_bytes` what the kernel keeps now.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from lowbit.formats import Format, Quantized
from lowbit.kernels import activation as acting
from lowbit.kernels import dispatch, packing
from lowbit.kernels.activation import Activation
from lowbit.kernels.packing import Stored


class QuantizedLinear(nn.Module):
    """y = x @ decode(W).T + bias.

    format: of W. shape: (out, in). stored: the tensors of lowbit.kernels.packing, or empty ones on "meta". dtype: what x will
    be in; kernels are picked for it, though any float x runs. activation: how x is rounded.
    """

    def __init__(
        self,
        format: Format,
        shape: tuple[int, int],
        stored: Stored,
        bias: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        activation: Activation | None = None,
    ) -> None:
        super().__init__()
        self._activation: Activation | None = None
        self.format, self.dtype = format, dtype
        self.out_features, self.in_features = self.shape = shape
        self.bias = None if bias is None else nn.Parameter(bias.to(dtype), requires_grad=False)
        self.kernel = dispatch.REFERENCE
        self._names: tuple[str, ...] = ()
        self._bound: Callable[[Tensor, Tensor | None], Tensor] | None = None
        self._hold(stored)
        self._bytes = packing.bytes_of(stored)
        self.activation = activation

    @classmethod
    def from_quantized(cls, quantized: Quantized, bias: Tensor | None = None, dtype: torch.dtype = torch.float32) -> Self:
        """A layer in the stored state; call `prepare` for speed."""
        return cls(quantized.format, quantized.shape, packing.pack(quantized), bias, dtype)

    @property
    def activation(self) -> Activation | None:
        """How inputs are rounded, with the scale that is stored now. Set it before `prepare`; a scale may be loaded later."""
        scale, found = self._input_scale(), self._activation
        return found if found is None or scale is None or scale.is_meta else replace(found, scale=tuple(scale.tolist()))

    @activation.setter
    def activation(self, activation: Activation | None) -> None:
        self._buffers.pop(self._activation.stored if self._activation else "", None)
        self._activation, self._bound = activation, None
        if activation is not None and activation.stored:
            device = packing.device_of(self.stored())
            scale, empty = activation.stored_scale(device), torch.empty(activation.scales(self.in_features), device=device)
            self.register_buffer(activation.stored, empty if scale is None else scale)

    def _input_scale(self) -> Tensor | None:
        return self._buffers.get(self._activation.stored) if self._activation else None

    def stored(self) -> Stored:
        """The tensors as a file holds them, by the names of lowbit.kernels.packing."""
        if self.kernel == dispatch.REFERENCE:
            return {name: self._buffers[_buffer(name)] for name in self._names}  # type: ignore[misc]
        packed, parts = dispatch.restore(self.kernel, self._prepared(), self.format, self.shape)
        prepared = dispatch.prepare(dispatch.REFERENCE, self.format, packed, parts, self.shape)
        return {"" if name == "codes" else name: tensor for name, tensor in prepared.items()}

    def quantized(self) -> Quantized:
        """Format, codes and parts, exactly as they came in."""
        return packing.unpack(self.format, self.stored(), self.shape)

    def memory_bytes(self) -> int:
        """Bytes of the matrix as stored: bits_per_weight * out * in / 8."""
        return self._bytes

    def resident_bytes(self) -> int:
        """Bytes that the buffers take now."""
        return sum(t.numel() * t.element_size() for t in self.buffers())

    def prepare(self) -> Self:
        """Arrange the weights for the best kernel of this device and dtype."""
        if self.kernel != dispatch.REFERENCE:
            return self
        stored = self.stored()
        device, acts = packing.device_of(stored), self._activation
        name = dispatch.rounding(self.format, self.shape, device, acts) if acts else ""
        name = name or dispatch.pick(self.format, self.shape, device, self.dtype)
        if device.type == "meta" or name == dispatch.REFERENCE:
            return self
        packed, parts = packing.split(self.format, stored, self.shape)
        prepared = dispatch.prepare(name, self.format, packed, parts, self.shape)
        self._drop()
        self.kernel, self._names = name, tuple(prepared)
        for key, tensor in prepared.items():
            self.register_buffer(f"prepared_{key}", tensor, persistent=False)
        self._bound = dispatch.bind(self._prepared(), name, self.format, self.shape, self._activation)
        return self

    def unprepare(self) -> Self:
        """Back to the stored state."""
        stored = self.stored()
        self._drop()
        self.kernel = dispatch.REFERENCE
        self._hold(stored)
        return self

    def forward(self, x: Tensor) -> Tensor:
        if self._bound is not None and not torch.compiler.is_compiling() and not torch.is_grad_enabled():
            return self._bound(x, self.bias)
        y = dispatch.linear(x, self._prepared(), self.kernel, self.format, self.shape, self._activation)
        return y if self.bias is None else y + self.bias

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bound": None}

    def extra_repr(self) -> str:
        sizes = f"in={self.in_features}, out={self.out_features}, bias={self.bias is not None}"
        inputs = f", inputs={self._activation}" if self._activation else ""
        return f"{sizes}, {self.format}{inputs}, kernel={self.kernel}"

    def _prepared(self) -> dict[str, Tensor]:
        """What the kernel takes; the reference takes the stored tensors."""
        scale = self._input_scale()
        found: dict[str, Any] = {} if scale is None else {acting.STORED: scale}
        for name in self._names:
            plain = self.kernel == dispatch.REFERENCE
            found[(name or "codes") if plain else name] = self._buffers[_buffer(name) if plain else f"prepared_{name}"]
        return found

    def _hold(self, stored: Stored) -> None:
        self._names = tuple(stored)
        for name, tensor in stored.items():
            self.register_buffer(_buffer(name), tensor)

    def _drop(self) -> None:
        self._bound = None
        for name in list(self._buffers):
            if not name.startswith("input"):
                delattr(self, name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        prepared = self.kernel != dispatch.REFERENCE
        stored = self.unprepare().stored()
        self._drop()
        scales = {name: self._buffers.pop(name) for name in list(self._buffers)}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._hold({name: _moved(tensor, fn) for name, tensor in stored.items()})
        for name, scale in scales.items():
            self.register_buffer(name, _moved(scale, fn))  # type: ignore[arg-type]
        self.dtype = fn(torch.empty(1, dtype=self.dtype, device=packing.device_of(stored))).dtype
        return self.prepare() if prepared else self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.stored().items():
            destination[prefix + _buffer(name)] = tensor

    def _load_from_state_dict(self, *args: Any) -> None:
        prepared = self.kernel != dispatch.REFERENCE
        self.unprepare()
        super()._load_from_state_dict(*args)
        if prepared:
            self.prepare()


def _buffer(name: str) -> str:
    """The buffer of a stored tensor: `weight` for the codes, `weight_scale` for the scales."""
    return f"weight_{name}" if name else "weight"


def _moved(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """fn(tensor) without a change of dtype."""
    moved = fn(tensor)
    return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)


def prepare(model: nn.Module) -> nn.Module:
    """Prepare every quantized layer of a model."""
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            module.prepare()
    return model
