"""_pages - tokens of keys or values <-> what is held of them in packed bits.

In / Out  x [batch, heads, tokens, width] -> tensors [batch, heads, steps, ...] by name: "" codes (int32, dense), "scale",
          "zero", "mean", "outlier" and "place"; a step is `Half.step` tokens.
Idea      Every step of every head is a few rows of a matrix that a format of lowbit.formats encodes. All tensors have batch
          first and steps third: appending, rolling back and picking beams are cat, slice and index for any policy.
          Integers run from the least to the greatest of their group. (For weights the range takes 0 in, which costs a channel
          of keys that lies around 9 most of its codes.) scale >= max|x| / 4096, so that the 16-bit zero stays exact enough.
"""

import torch
from torch import Tensor

from lowbit.formats import Format, Grid
from lowbit.kernels import packing
from lowbit.kvcache._policy import Half
from lowbit.sides import _hadamard

Pages = dict[str, Tensor]
BESIDE = {"mean", "outlier", "place"}
"""What is held of tokens beside their matrix."""
FINEST = 2.0**-12
"""Least scale, in the greatest number of its group."""
SMALLEST = 2.0**-14
"""Least scale of all, for groups of zeros."""


def encode(half: Half, x: Tensor) -> Pages:
    """Pack whole steps of tokens."""
    if half.grid is None:
        return {"": x.clone()}
    steps, width = (*x.shape[:2], x.shape[2] // half.step), x.shape[3]
    x = x.float().reshape(*steps, half.step, width)
    found: Pages = {}
    if half.centred:
        found["mean"] = x.mean(3).to(torch.bfloat16)
        x = x - found["mean"].float()[:, :, :, None]
    if half.rotated:
        x = _hadamard.apply(x, _hadamard.block(width))
    if half.outliers:
        place = x.abs().topk(half.outliers, -1).indices
        found |= {"outlier": x.gather(-1, place).to(torch.bfloat16), "place": place.to(torch.uint8)}
        x = x.scatter(-1, place, 0.0)
    x = x.transpose(-1, -2) if half.along == "channel" else x
    matrix = x.reshape(-1, half.rows(width)[1])
    found |= packing.pack(_fitted(half.grid, matrix).quantize(matrix))
    return {name: tensor.reshape(*steps, -1) for name, tensor in found.items()}


def decode(half: Half, pages: Pages, width: int) -> Tensor:
    """The tokens that pages hold, float32 [batch, heads, tokens, width] (the model's floats where nothing is packed)."""
    if half.grid is None:
        return pages[""]
    steps = pages[""].shape[:3]
    x = _matrix(half.grid, half, pages, width).view(*steps, *half.rows(width))
    x = x.transpose(-1, -2) if half.along == "channel" else x
    if half.outliers:
        place, outlier = (pages[name].view(*steps, half.step, -1) for name in ("place", "outlier"))
        x = x.scatter(-1, place.long(), outlier.float())
    if half.rotated:
        x = _hadamard.apply(x, _hadamard.block(width), back=True)
    if half.centred:
        x = x + pages["mean"].float()[:, :, :, None]
    return x.reshape(*steps[:2], -1, width)


def _fitted(format: Format, matrix: Tensor) -> Grid:
    """The grid of a matrix [rows, columns], by the plain range rule."""
    if format.zero != "float":
        return format.fit(matrix, search=False)
    groups = matrix.view(matrix.shape[0], -1, format.group[1] or matrix.shape[1])
    low, high = groups.amin(-1), groups.amax(-1)
    least = (torch.maximum(-low, high) * FINEST).clamp_min(SMALLEST)
    scale = torch.maximum((high - low) / (format.dtype.codes - 1), least).to(torch.bfloat16)
    parts = {"scale": scale, "zero": (-low / scale.float()).to(torch.bfloat16)}
    return Grid(format, parts, (matrix.shape[0], matrix.shape[1]))


def _matrix(format: Format, half: Half, pages: Pages, width: int) -> Tensor:
    """The values [rows, columns] of the codes of all pages."""
    rows, columns = half.rows(width)
    shape = (pages[""].shape[:3].numel() * rows, columns)
    stored = {name: t.reshape(shape[0], -1) for name, t in pages.items() if name not in BESIDE}
    return packing.unpack(format, stored, shape).decode()
