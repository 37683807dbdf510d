"""pages - tokens of keys or values <-> what is held of them in packed bits.

In / Out  x [batch, heads, tokens, width] -> tensors [batch, heads, steps, ...] by name: "" codes (int32, dense), "scale",
          "zero", "mean", "outlier" and "place"; a step is `Half.step` tokens.
Idea      Every step of every head is a few rows of a matrix that a format of lowbit.formats encodes. All tensors have batch
          first and steps third: appending, rolling back and picking beams are cat, slice and index for any policy.
          The order is: back before RoPE, less the mean, into the basis, outliers out, rows or columns, codes.
          Integers run from the least to the greatest of their group. (For weights the range takes 0 in, which costs a channel
          of keys that lies around 9 most of its codes.) scale >= max|x| / 4096, so that the 16-bit zero stays exact enough.
Layout    Rows of codes are dense streams of int32 words, padded to whole words. along "token": a row is the channels of one
          token; codes [.., step * words], scale and zero [.., step * groups], mean [.., width]; with a step of 1 the tensors
          are [batch, heads, tokens, words] and so on. along "channel": a row is one channel's tokens of a step; codes
          [.., width * words], scale and zero [.., width]. A number is (code - zero) * scale (+ mean), where the format has one.
          outlier bfloat16, place uint8: [.., step * outliers], they take the place of what the codes say.
Traps     RoPE is undone by the place in the cache, not by the model's positions: with left padding they differ by a constant
          turn, and reading turns by the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from lowbit import formats
from lowbit.core.errors import ShapeError
from lowbit.formats import Format, Grid
from lowbit.kernels import packing
from lowbit.sides import _hadamard

Pages = dict[str, Tensor]
Constants = Mapping[str, Tensor]
"""What a layer needs beside its tokens. "frequencies" [n]: RoPE turns channels i and i + n by token * frequencies[i].
"scale" [heads] or [1]: of a static half. "basis" [heads, width, width]: orthogonal, of a learned one."""
NONE: Constants = MappingProxyType({})
BESIDE = {"mean", "outlier", "place"}
"""What is held of tokens beside their matrix."""
FINEST = 2.0**-12
"""Least scale, in the greatest number of its group."""
SMALLEST = 2.0**-14
"""Least scale of all, for groups of zeros."""
OUTLIER_BITS = 16 + 8
"""A float and its place among at most 256 channels."""


@dataclass(frozen=True)
class Half:
    """How keys, or values, are held once they are packed.

    format: a format with a scale a row or a group of a row; "": the model's own floats. along: what a row of it is:
    "token" (the channels of one token of a head) or "channel" (as many tokens of one channel as the format's group).
    centred: so many tokens in a row are packed less their mean (0: none). rotated: in a Hadamard basis of the head.
    outliers: numbers of each token and head that stay floats, the greatest. before: keys are packed as they are before RoPE.
    static: the scale is a constant of the layer, "tensor" or "head"; the format gives the element alone.
    learned: the basis is the layer's own. clip: share of a group's range that its grid covers, around the middle.
    """

    format: str = ""
    along: str = "token"
    centred: int = 0
    rotated: bool = False
    outliers: int = 0
    before: bool = False
    static: str = ""
    learned: bool = False
    clip: float = 1.0

    @cached_property
    def grid(self) -> Format | None:
        """The format's object."""
        return formats.parse(self.format) if self.format else None

    @property
    def step(self) -> int:
        """Tokens that are packed together: they share scales, or a mean."""
        return self.grid.group[1] if self.grid and self.along == "channel" else max(self.centred, 1)

    def rows(self, width: int) -> tuple[int, int]:
        """Shape [rows, columns] of the matrix that `step` tokens of one head of `width` channels are."""
        return (width, self.step) if self.along == "channel" else (self.step, width)

    def bits_per_number(self, width: int) -> float:
        """All stored bits (codes, scales, zeros, means, outliers) of packed tokens, per number. Raises ShapeError."""
        if self.grid is None:
            return 16.0
        if self.static:
            return float(self.grid.dtype.bits)
        mean = 16 / self.step if self.centred else 0
        return self.grid.bits_per_weight(self.rows(width)) + mean + self.outliers * OUTLIER_BITS / width

    def check(self, text: str, width: int) -> None:
        """See that heads of `width` channels can be held. Raises ShapeError."""
        group = self.grid.group[1] if self.grid and self.along == "token" else 0
        if group and width % group:
            fits = ", ".join(f"g{g}" for g in (128, 64, 32, 16) if width % g == 0)
            advice = f"Use {fits}, or leave the word out." if fits else "Leave the word out."
            raise ShapeError(f"{text}: group {group} does not divide the {width} channels of a head. {advice}")
        if self.outliers and (self.outliers > width or width > 256):
            raise ShapeError(f"{text}: {self.outliers} outliers of {width} channels; places are 8 bits. Use fewer, or none.")


def encode(half: Half, x: Tensor, start: int = 0, constants: Constants = NONE) -> Pages:
    """Pack whole steps of tokens. start: the place of the first one in its sequence."""
    if half.grid is None:
        return {"": x.clone()}
    x = x.float()
    if half.before:
        x = turn(x, constants["frequencies"], start, back=True)
    steps, width = (*x.shape[:2], x.shape[2] // half.step), x.shape[3]
    x = x.reshape(*steps, half.step, width)
    found: Pages = {}
    if half.centred:
        found["mean"] = x.mean(3).to(torch.bfloat16)
        x = x - found["mean"].float()[:, :, :, None]
    if half.rotated:
        x = into_basis(x, constants)
    if half.outliers:
        place = x.abs().topk(half.outliers, -1).indices
        found |= {"outlier": x.gather(-1, place).to(torch.bfloat16), "place": place.to(torch.uint8)}
        x = x.scatter(-1, place, 0.0)
    x = x.transpose(-1, -2) if half.along == "channel" else x
    if half.static:
        x = x / _scale(constants, x.dim())
    matrix = x.reshape(-1, half.rows(width)[1])
    if half.static:
        found[""] = packing.pack_codes(half.grid, half.grid.dtype.encode(matrix))
        return {name: tensor.reshape(*steps, -1) for name, tensor in found.items()}
    found |= packing.pack(_fitted(half.grid, matrix, half.clip).quantize(matrix))
    return {name: tensor.reshape(*steps, -1) for name, tensor in found.items()}


def decode(half: Half, pages: Pages, width: int, start: int = 0, constants: Constants = NONE) -> Tensor:
    """The tokens that pages hold, float32 [batch, heads, tokens, width] (the model's floats where nothing is packed)."""
    if half.grid is None:
        return pages[""]
    x = in_basis(half, pages, width, constants)
    if half.rotated:
        x = out_of_basis(x, constants)
    if half.centred:
        x = x + pages["mean"].float()[:, :, :, None]
    x = x.reshape(*x.shape[:2], -1, width)
    return turn(x, constants["frequencies"], start) if half.before else x


def in_basis(half: Half, pages: Pages, width: int, constants: Constants = NONE) -> Tensor:
    """What the codes and the outliers say, float32 [batch, heads, steps, step, width]: in the basis, less the means."""
    assert half.grid is not None  # noqa: S101 - for the type checker
    steps = pages[""].shape[:3]
    if half.static:
        codes = packing.codes(half.grid, pages[""].reshape(-1, pages[""].shape[-1] // half.step), (steps.numel(), width))
        return half.grid.dtype.decode(codes).view(*steps, *half.rows(width)) * _scale(constants, 5)
    x = _matrix(half.grid, half, pages, width).view(*steps, *half.rows(width))
    x = x.transpose(-1, -2) if half.along == "channel" else x
    if half.outliers:
        place, outlier = (pages[name].view(*steps, half.step, -1) for name in ("place", "outlier"))
        x = x.scatter(-1, place.long(), outlier.float())
    return x


def into_basis(x: Tensor, constants: Constants = NONE) -> Tensor:
    """x [batch, heads, ..., width] in the basis of a turned half: its scores with turned keys are those of plain ones."""
    if "basis" in constants:
        return torch.einsum("bh...c,hcd->bh...d", x, constants["basis"].to(x.dtype))
    return _hadamard.apply(x, _hadamard.block(x.shape[-1]))


def out_of_basis(x: Tensor, constants: Constants = NONE) -> Tensor:
    """The way back."""
    if "basis" in constants:
        return torch.einsum("bh...d,hcd->bh...c", x, constants["basis"].to(x.dtype))
    return _hadamard.apply(x, _hadamard.block(x.shape[-1]), back=True)


def turn(x: Tensor, frequencies: Tensor, start: int, back: bool = False) -> Tensor:
    """RoPE of x [..., tokens, width], whose first token stands at `start`; channels that no frequency turns stay."""
    n = frequencies.numel()
    angle = torch.arange(start, start + x.shape[-2], device=x.device)[:, None] * frequencies.float()
    cos, sin = angle.cos(), -angle.sin() if back else angle.sin()
    a, b, rest = x.split([n, n, x.shape[-1] - 2 * n], -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def _scale(constants: Constants, dimensions: int) -> Tensor:
    """The constant scales, to stand beside numbers whose second dimension is the heads."""
    scale = constants["scale"].float().reshape(-1)
    return scale.view(1, -1, *[1] * (dimensions - 2))


def _fitted(format: Format, matrix: Tensor, clip: float = 1.0) -> Grid:
    """The grid of a matrix [rows, columns], by the plain range rule; clip: share of the range that it covers."""
    if format.zero != "float":
        return format.fit(matrix, search=False)
    groups = matrix.view(matrix.shape[0], -1, format.group[1] or matrix.shape[1])
    low, high = groups.amin(-1), groups.amax(-1)
    cut = (high - low) * ((1 - clip) / 2)
    low, high = low + cut, high - cut
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
