"""zigzag - inputs turned in blocks, dealt out anew, turned in blocks again, before they are rounded.

In / Out  parts "zigzag_first", "zigzag_second" [B, B] float16, the same for every block of B inputs; "zigzag_order" int32
          [in], which input goes where between the two. C = W (first, order, second)^-1 is what the grid holds.
Idea      A turn of B inputs evens out what is inside a block; dealing the strongest channels out to all blocks and turning once
          more evens out the blocks. Cheaper than a turn of all inputs, and made for the outliers that are there.
Source    DuQuant (2406.01721), section 3.
Figures   32 B^2 + 32 in bits: 0.04 a weight of 4096 x 4096 with B = 128.
Traps     B is the largest power of two up to 128 that divides the inputs. Without a method: random turns, channels in turn.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import RequestError
from lowbit.sides import Parts, _kronecker

LARGEST = 128
SEED = 0xD0A


def width(inputs: int) -> int:
    """B for so many inputs."""
    return min(LARGEST, inputs & -inputs)


@dataclass(frozen=True)
class ZigZag:
    """The only side of this file."""

    parts: tuple[str, ...] = ("zigzag_first", "zigzag_order", "zigzag_second")
    ahead: bool = True

    def bits(self, shape: tuple[int, int]) -> int:
        return 32 * width(shape[1]) ** 2 + 32 * shape[1]

    def fits(self, shape: tuple[int, int]) -> str:
        return "" if width(shape[1]) > 1 else f"{shape[1]} inputs are no multiple of 2"

    def fit(self, weight: Tensor) -> Parts:
        inputs, generator = weight.shape[1], torch.Generator().manual_seed(SEED)
        size = width(inputs)
        first, second = (_kronecker.orthogonal(size, generator).to(weight.device) for _ in range(2))
        order = torch.arange(inputs, dtype=torch.int32, device=weight.device).view(size, -1).T.reshape(-1)
        return {"zigzag_first": first, "zigzag_order": order.contiguous(), "zigzag_second": second}

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        return self._through(weight.float(), parts, *(_kronecker.inverse(parts[f"zigzag_{n}"]).T for n in ("first", "second")))

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        return self._back(values, parts, *(parts[f"zigzag_{n}"].to(values.dtype).T for n in ("first", "second")))

    def moment(self, moment: Tensor, parts: Parts) -> Tensor:
        return self.before(self.before(moment, parts).T.contiguous(), parts)

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return self._through(x, parts, *(parts[f"zigzag_{n}"].to(x.dtype) for n in ("first", "second")))

    def within(self, x: Tensor, parts: Parts, inner: Callable[[Tensor], Tensor]) -> Tensor:
        back = (_kronecker.inverse(parts[f"zigzag_{n}"]).to(x.dtype) for n in ("first", "second"))
        return self._back(inner(self.before(x, parts)), parts, *back)

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return y

    def _through(self, x: Tensor, parts: Parts, first: Tensor, second: Tensor) -> Tensor:
        """x [rows, in], turned, dealt out, turned."""
        dealt = turned(x, first)[:, parts["zigzag_order"].long()]
        return turned(dealt, second)

    def _back(self, x: Tensor, parts: Parts, first: Tensor, second: Tensor) -> Tensor:
        """The way back, by the matrices that undo both turns."""
        dealt = turned(x, second)
        gathered = torch.empty_like(dealt)
        gathered[:, parts["zigzag_order"].long()] = dealt
        return turned(gathered, first)


def turned(x: Tensor, matrix: Tensor) -> Tensor:
    """Every block of x [rows, in] times `matrix` [B, B]."""
    return (x.reshape(-1, matrix.shape[0]) @ matrix).view(x.shape)


def side(number: str) -> ZigZag:
    if number:
        raise RequestError(f"zigzag{number}: its blocks follow from the matrix. Use zigzag.")
    return ZigZag()
