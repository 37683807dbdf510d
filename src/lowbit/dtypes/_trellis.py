"""_trellis - elements whose code tells a step of a path: V values come out of a state of the last L bits of a tile's stream.

In / Out  values [16 R, in] -> codes uint8 [R, in * 16 / V]: the 256 / V codes of a tile together, tiles from left to right.
          A code is the F = k V fresh bits of one step, k bits a weight.
Idea      state t = the L bits that end with code t, older codes above newer ones; the stream of a tile is a ring (tail-biting),
          so that a tile takes 256 k bits and nothing else. value = a fixed function of the state, alike for all matrices.
          Order of the 256 places of a tile, in W [out, in]: place 8 l + i is
              out = l // 4 + 8 (i // 4),   in = 2 (l % 4) + i % 2 + 8 (i // 2 % 2),
          what lane l of a warp holds of the 16 x 16 operand of mma.m16n8k16, eight weights one after the other.
Source    QTIP (2406.11235) for the codes and the search; exllamav3 for tile order and bits (its tiles are [in, out]).
Traps     `round` and `encode` cost 2**L steps a weight. A bit of the stream changes the next L / k values.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from lowbit.core.errors import FormatError, ShapeError
from lowbit.dtypes._viterbi import Code, search

SIDE = 16
TILE = SIDE * SIDE
REACH = 2.0


@dataclass(frozen=True)
class Trellis:
    """A trellis code.

    bits: F, fresh bits of a step. width: V, values of a step. length: L, bits of a state.
    rule: states int64 [n] -> values [n, V]. Values keep the code's own size, `rms`.
    """

    name: str
    bits: int
    rule: Callable[[Tensor], Tensor]
    width: int = 1
    length: int = 16

    @property
    def codes(self) -> int:
        return 1 << self.bits

    @property
    def step(self) -> tuple[int, int, int]:
        return SIDE, SIDE, TILE // self.width

    @property
    def minimum(self) -> float:
        return self._code(torch.device("cpu")).ends[0]

    @property
    def maximum(self) -> float:
        return self._code(torch.device("cpu")).ends[1]

    @property
    def rms(self) -> float:
        """Root mean square of the values of all states: what numbers of that size should be scaled to, about."""
        return self._code(torch.device("cpu")).table.double().square().mean().sqrt().item()

    def encode(self, values: Tensor, near: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Codes of a near path for each tile of values [16 R, in]; beyond twice the range numbers count as its end.

        near: another search than `search`, values [N, T, V] -> fresh bits [N, T]."""
        rows = _sequences(values.float().clamp(REACH * self.minimum, REACH * self.maximum))
        points = rows.view(-1, TILE // self.width, self.width)
        codes = near(points) if near else search(points, self._code(values.device))
        return codes.view(values.shape[0] // SIDE, values.shape[1] * SIDE // self.width)

    def decode(self, codes: Tensor) -> Tensor:
        """Values [16 R, in] of codes [R, in * 16 / V]."""
        states = self.states(codes.reshape(-1, TILE // self.width))
        values = self._code(codes.device).table.index_select(0, states.view(-1))
        return _matrix(values.view(-1, TILE), codes.shape[0])

    def round(self, values: Tensor) -> Tensor:
        return self.decode(self.encode(values))

    def states(self, codes: Tensor) -> Tensor:
        """The state at each code of rings [N, T], int32: the bits known double with every line."""
        states, known = codes.int(), 1
        while known * self.bits < self.length:
            states = states | states.roll(known, 1) << known * self.bits
            known *= 2
        return states & (1 << self.length) - 1

    def _code(self, device: torch.device) -> Code:
        return _table(self.rule, self.bits, self.length, device)


def whole(family: str, number: str, most: int) -> int:
    """The number of bits after the name of a family of codes of 1 .. most bits."""
    if number not in map(str, range(1, most + 1)):
        raise FormatError(f"{family}{number}: this trellis code has 1 to {most} bits. Use {family}1 .. {family}{most}.")
    return int(number)


@cache
def _table(rule: Callable[[Tensor], Tensor], bits: int, length: int, device: torch.device) -> Code:
    """The values of all states, computed once a device."""
    return Code(rule(torch.arange(1 << length)).float().to(device), bits)


def _sequences(values: Tensor) -> Tensor:
    """Tiles of a matrix [16 R, 16 C] as sequences [R C, 256] in the order of the header."""
    high, wide = values.shape
    if high % SIDE or wide % SIDE:
        raise ShapeError(f"trellis code of a matrix {high} x {wide}: tiles are 16 x 16. Pad it or choose a scalar element.")
    parts = values.reshape(high // SIDE, 2, 8, wide // SIDE, 2, 4, 2)
    return parts.permute(0, 3, 2, 5, 1, 4, 6).reshape(-1, TILE)


def _matrix(sequences: Tensor, rows: int) -> Tensor:
    """The matrix of `_sequences`, given its rows of tiles."""
    wide = len(sequences) // rows if rows else 0
    parts = sequences.view(rows, wide, 8, 4, 2, 2, 2)
    return parts.permute(0, 4, 2, 1, 5, 3, 6).reshape(rows * SIDE, wide * SIDE)
