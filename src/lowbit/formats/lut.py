"""lut - a table of 2**N values for each output row: codes say which.

In / Out  W [out, in] -> parts {"table" [out, 2**N] float16}; value = table[row, code].
Idea      No scale and no zero: the table is the row's own best values. Search: k-means of the row's numbers, weighted by
          importance, the best intervals by dynamic programming (_kmeans.py). Plain: Lloyd's steps from equal shares.
Source    SqueezeLLM (2306.07629) section 4.1 for tables of rows; sizes N + 16 * 2**N / in bits.
Figures   Mean squared error on N(0,1), rows of 4096: lut2 0.1174, lut3 0.0342, lut4 0.0092 (Lloyd-Max of the source: 0.1175,
          0.0345, 0.0095); a row's table fits its row.
Traps     Entries may stand in any order and be equal: `encode` sorts them, and gives the first of equal ones.
"""

import torch
from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.formats import Format, Grid, Parts, _kmeans, _words
from lowbit.formats._scalars import Scalars

EXAMPLES = ("lut2-row", "lut3-row", "lut4-row")
LARGEST = 65504.0


def parse(number: str, words: list[str]) -> Format:
    """The format lut{number} with its words."""
    text = "-".join([f"lut{number}", *words])
    found = _words.read(text, words, only=("group",))
    if number not in {"2", "3", "4"}:
        raise FormatError(f"{text}: tables hold 4, 8 or 16 values. Use lut2-row, lut3-row or lut4-row.")
    if found.get("group", (1, 0)) != (1, 0):
        raise FormatError(f"{text}: a table belongs to a row; for a group it would outweigh its codes. Use lut{number}-row.")
    return Format(element=f"uint{number}", group=(1, 0), rule="lut", text=text)


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool) -> Parts:
    """Choose the tables of `weight`; see lowbit.formats."""
    h = None
    if importance is not None and importance.any():
        h = (importance.float() / importance.float().mean()).clamp_min(1e-6).view(-1, weight.shape[1])
    return {"table": stored(_kmeans.rows(weight, h, format.dtype.codes, exact=search))}


def stored(table: Tensor) -> Tensor:
    """The table as it is stored."""
    return table.clamp(-LARGEST, LARGEST).half()


TRAINED = {"table": stored}


def expand(format: Format, parts: Parts) -> tuple[Tensor, Tensor | None]:
    """Scales of 1 [out, 1]: values are those of the table."""
    return torch.ones_like(parts["table"][:, :1], dtype=torch.float32), None


def part_bits(format: Format, shape: tuple[int, int]) -> int:
    return 16 * format.dtype.codes * shape[0]


def encode(format: Format, parts: Parts, weight: Tensor) -> Tensor:
    """Codes of the nearest values, uint8."""
    return Tables(parts["table"]).codes(weight).to(torch.uint8)


def decode(format: Format, parts: Parts, codes: Tensor, rows: slice) -> Tensor:
    """The values of the codes of some rows."""
    return parts["table"].float()[rows].gather(1, codes.long())


def codec(grid: Grid) -> "Tables":
    return Tables(grid.parts["table"])


class Tables:
    """Rounds columns to the tables of their rows."""

    width = 1
    height = 1

    def __init__(self, table: Tensor) -> None:
        self._sorted, self._order = table.float().sort(dim=1, stable=True)
        self._middles = (self._sorted[:, 1:] + self._sorted[:, :-1]) / 2
        self._first = torch.searchsorted(self._sorted, self._sorted)

    def codes(self, x: Tensor) -> Tensor:
        """The nearest codes, int64 [out, any]."""
        return self._order.gather(1, self._places(x))

    def round(self, x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        places = self._places(x)
        return self._order.gather(1, places), self._sorted.gather(1, places)

    def stored(self, codes: Tensor) -> Tensor:
        return codes.to(torch.uint8)

    def scalars(self) -> Scalars:
        rows, ends = self._sorted.shape[0], (-LARGEST, LARGEST)
        ones = torch.ones(1, rows, device=self._sorted.device)

        def codes(places: Tensor) -> Tensor:
            return self._order.gather(1, self._first.gather(1, places.long()))

        return Scalars(0, ones, None, *ends, self._sorted.T.contiguous(), codes)

    def _places(self, x: Tensor) -> Tensor:
        """Places in the sorted tables, of equal entries the first."""
        return self._first.gather(1, torch.searchsorted(self._middles, x.contiguous()))
