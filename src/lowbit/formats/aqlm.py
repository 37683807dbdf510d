"""aqlm - sums of vectors out of learned codebooks, eight weights at once, and a scale for each row.

In / Out  W [out, in] -> parts {"codebooks" [M, 2**B, 8] float16, "scale" [out, 1]}; eight values = scale * sum_m C_m[code_m].
          A step has M codes of B bits, in bytes, the low one first.
Idea      The matrix' own vectors make the books: k-means of the rows over their rms, the second book of what the first leaves,
          weighted by importance. methods/aqlm.py learns on from there.
Source    AQLM (2401.06118). Names: aqlmMxB; its head files are aqlm1x and aqlm2x.
Defaults  search: 12 rounds of k-means, plain: 2; at most 256 vectors for each centroid.
Figures   Mean squared error on N(0,1), 512 x 1024: aqlm1x8 0.317, aqlm2x8 0.0930. Codebooks: 128 * M * 2**B bits a matrix,
          counted.
Traps     Books of 2**16 take 1 MiB: half a bit a weight of 4096 x 4096, and far more than the codes of a small matrix.
"""

import torch
from torch import Tensor

from lowbit.formats import Format, Grid, Parts, _books, _kmeans
from lowbit.formats._scales import load, store

EXAMPLES = ("aqlm2x8",)
SAMPLES = 256
LARGEST = 1e4


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose scales and books of `weight`; see lowbit.formats."""
    books, bits = _books.sizes(format)
    scale = store(weight.double().square().mean(1, keepdim=True).sqrt(), format.scale)
    size = load(scale, format.scale)
    rest = (weight / size).clamp(-LARGEST, LARGEST).reshape(-1, _books.WIDTH)
    h = size.square().expand_as(weight)
    if importance is not None and importance.any():
        h = h * (importance.float() / importance.float().mean()).clamp_min(1e-6)
    h = (h / h.mean()).reshape(-1, _books.WIDTH).mean(1, keepdim=True)
    step = max(1, len(rest) // (SAMPLES << bits))
    found = []
    for _ in range(books):
        found.append(_kmeans.vectors(rest[::step], h[::step], 1 << bits, 12 if search else 2))
        rest = rest - found[-1][_kmeans.nearest(rest, found[-1])]
    return {"codebooks": stored(torch.stack(found)), "scale": scale}


def stored(books: Tensor) -> Tensor:
    """The codebooks as they are stored."""
    return books.clamp(-LARGEST, LARGEST).half()


TRAINED = {"codebooks": stored}


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """The float32 scale [out, 1]; there is no zero."""
    return load(parts["scale"], format.scale), None


def rescale(format: Format, parts: Parts, scale: Tensor) -> Parts:
    """The parts with other scales [out, 1], as near as they can be stored."""
    return {**parts, "scale": store(scale, format.scale)}


def step(format: Format) -> tuple[int, int, int]:
    books, bits = _books.sizes(format)
    return 1, _books.WIDTH, books * bits // 8


def encode(format: Format, parts: Parts, weight: Tensor) -> Tensor:
    """Codes of near sums, uint8."""
    return Books(format, parts).codes(weight / load(parts["scale"], format.scale), parts["codebooks"].float())


def decode(format: Format, parts: Parts, codes: Tensor, rows: slice) -> Tensor:
    """The values of the codes of some rows."""
    return vectors(format, parts, codes) * load(parts["scale"], format.scale)[rows]


def vectors(format: Format, parts: Parts, codes: Tensor) -> Tensor:
    """The sums [rows, in] that codes mean, before scales."""
    found = sum(book[index] for book, index in zip(parts["codebooks"].float(), indices(format, codes), strict=True))
    return torch.as_tensor(found).view(codes.shape[0], -1)


def indices(format: Format, codes: Tensor) -> Tensor:
    """Which vector of each book [M, N] a step takes, row by row."""
    books, bits = _books.sizes(format)
    parts = codes.reshape(-1, books, bits // 8).long()
    return (parts[:, :, 0] if bits == 8 else parts[:, :, 0] | parts[:, :, 1] << 8).T


def codec(grid: Grid) -> "Books":
    return Books(grid.format, grid.parts)


class Books:
    """Rounds steps of eight columns to sums of the books' vectors."""

    width = _books.WIDTH
    height = 1

    def __init__(self, format: Format, parts: Parts) -> None:
        self._format, self._parts = format, parts
        self._scale = load(parts["scale"], format.scale)
        self._books = parts["codebooks"].float()

    def codes(self, x: Tensor, books: Tensor) -> Tensor:
        """Codes uint8 [rows, any] of x [rows, any], given vectors of the same basis."""
        found = _books.nearest(x.reshape(-1, _books.WIDTH), books)
        low_high = [found & 255] if _books.sizes(self._format)[1] == 8 else [found & 255, found >> 8]
        return torch.stack(low_high, 2).to(torch.uint8).view(x.shape[0], -1)

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        return self._valued(self.codes(x / self._scale, self._books))

    def round_in(self, x: Tensor, start: int, lower: Tensor) -> tuple[Tensor, Tensor]:
        """As round; what is near is told by the norm of errors e lower."""
        return self._valued(self.codes(x / self._scale @ lower, self._books @ lower))

    def _valued(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        return codes, vectors(self._format, self._parts, codes) * self._scale

    def stored(self, codes: Tensor) -> Tensor:
        return codes
