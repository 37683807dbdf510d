"""embedding - a quantized table in the place of an nn.Embedding: packed rows in memory, those that are asked for decoded.

In / Out  token ids of any shape -> [..., in] in the layer's dtype.
Idea      Rows are cut out of the packed codes and of their scales and zeros, then decoded: the work is that of the tokens at
          hand, never of the vocabulary. Buffers are exactly what a file of quant_method "lowbit" holds.
Traps     Gemma's embedding multiplies its rows by a scale; it is kept as a number, since transformers computes such a buffer
          anew for the classes that it knows. Codes of several rows, and sides that mix rows, cannot be cut: `readable` tells.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from lowbit.formats import Format, Grid, Quantized
from lowbit.kernels import packing
from lowbit.kernels.packing import Stored

CHUNK = 32
"""Rows of zeros whose bits fill whole words, at every width."""
BY_ROW = {"scale", "zero", "table", "levels", "step"}
"""The parts whose first dimension is rows of groups; the others (global_scale, codebooks) belong to the whole matrix."""


class QuantizedEmbedding(nn.Module):
    """decode(W)[ids] * scale.

    format: of W. shape: (rows, in). stored: the tensors of lowbit.kernels.packing, or empty ones on "meta". dtype: of the
    rows that come out. scale: what the model's own embedding multiplies its rows by.
    """

    def __init__(
        self, format: Format, shape: tuple[int, int], stored: Stored, dtype: torch.dtype = torch.float32, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.format = format
        self.num_embeddings, self.embedding_dim = self.out_features, self.in_features = shape
        self.dtype = dtype
        self.scale = scale
        self._names = tuple(stored)
        for name, tensor in stored.items():
            self.register_buffer(_buffer(name), tensor)

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    def stored(self) -> Stored:
        """The tensors as a file holds them, by the names of lowbit.kernels.packing."""
        return {name: self._buffers[_buffer(name)] for name in self._names}  # type: ignore[misc]

    def quantized(self) -> Quantized:
        """Format, codes and parts, exactly as they came in."""
        return packing.unpack(self.format, self.stored(), self.shape)

    def memory_bytes(self) -> int:
        """Bytes of the table as stored: bits_per_weight * rows * in / 8."""
        return packing.bytes_of(self.stored())

    def resident_bytes(self) -> int:
        """Bytes that the buffers take now."""
        return self.memory_bytes()

    def forward(self, ids: Tensor) -> Tensor:
        rows = cut(self.format, self.stored(), self.shape, ids.flatten()).to(self.dtype)
        if self.scale != 1.0:
            rows = rows * torch.tensor(self.scale, dtype=self.dtype, device=rows.device)
        return rows.view(*ids.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.format}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move, without a change of the dtypes of codes, scales and zeros."""
        for name, tensor in self.stored().items():
            moved = fn(tensor)
            self._buffers[_buffer(name)] = moved if moved.dtype == tensor.dtype else tensor.to(moved.device)
        self.dtype = fn(torch.empty(1, dtype=self.dtype, device=packing.device_of(self.stored()))).dtype
        return self


def readable(format: Format) -> str:
    """ "" when single rows of a matrix in `format` can be decoded, else the reason why not."""
    if format.scale == "bilevel":
        return "16 rows share the range of their scales"
    if format.sides:
        return f"{format.sides[0]} mixes the rows of a matrix"
    return f"its codes hold {format.step[0]} rows at once" if format.step[0] > 1 else ""


def scale_of(module: nn.Embedding) -> float | None:
    """What an embedding multiplies its rows by; None for a class that does something else with them."""
    if type(module).forward is nn.Embedding.forward:
        return 1.0
    found = getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", None))
    return None if found is None else float(found)


def cut(format: Format, stored: Stored, shape: tuple[int, int], rows: Tensor) -> Tensor:
    """Rows [n] (int64) of a packed matrix, decoded: float32 [n, in]."""
    groups = rows // (format.group[0] or shape[0])
    parts = {name: tensor for name, tensor in stored.items() if name}
    alone, size = replace(format, group=(1, format.group[1])), (len(rows), shape[1])
    codes = packing.codes(format, stored[""].index_select(0, rows), size)
    if format.scale != "dq":
        parts = {name: _part(format, name, tensor, shape, groups) for name, tensor in parts.items()}
        return Grid(alone, parts, size).decode(codes)
    found = Grid(format, parts, shape)  # scales in blocks that do not end with rows: all of them are computed
    found.scale, found.format, found.shape = found.scale[groups], alone, size
    return found.decode(codes)


def _part(format: Format, name: str, tensor: Tensor, shape: tuple[int, int], groups: Tensor) -> Tensor:
    """The rows of one part; what belongs to the whole matrix as it is."""
    if name == "zero" and format.zero == "int":
        return _zero(format, tensor, shape, groups)
    return tensor.index_select(0, groups) if name in BY_ROW else tensor


def _zero(format: Format, packed: Tensor, shape: tuple[int, int], groups: Tensor) -> Tensor:
    """Zero codes uint8 [n, G] of some rows of scales, from the words of the chunks that they lie in."""
    bits = int(format.dtype.bits)
    words = (groups // CHUNK)[:, None] * bits + torch.arange(bits, device=groups.device)
    chunks = packed[words.flatten().clamp(max=packed.shape[0] - 1)]
    alone = replace(format, group=(1, format.group[1]))
    zero = packing.unpack_zero(alone, chunks, (len(groups) * CHUNK, shape[1]))
    return zero[torch.arange(len(groups), device=groups.device) * CHUNK + groups % CHUNK]


def _buffer(name: str) -> str:
    """The buffer of a stored tensor: `weight` for the codes, `weight_scale` for the scales."""
    return f"weight_{name}" if name else "weight"
