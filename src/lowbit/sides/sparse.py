"""sparse - a share of single weights beside the grid, those that the grid serves worst: compressed rows.

In / Out  W = C + S; parts "sparse_starts" int32 [out + 1], "sparse_columns" int16 [n] (the bits of an unsigned column),
          "sparse_values" float16 [n], row after row. `sparse1` keeps 1 in 100 weights, `sparse0.5` 1 in 200.
Idea      S holds what is missing: value = weight - grid value, so that a layer adds x ST to what the grid gives.
Source    SpQR (2306.03078) section 4; SqueezeLLM (2306.07629) dense-and-sparse.
Figures   32 bits an entry and 32 a row: sparse1 costs 0.33 bits a weight of 4096 columns.
Traps     Without data the largest magnitudes are kept; a method that knows the loss (spqr) chooses better ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.sides import Parts

EXAMPLES = ("sparse1", "sparse0.5")
COLUMNS = 1 << 16


@dataclass(frozen=True)
class Sparse:
    """percent: of the weights."""

    percent: float

    parts = ("sparse_starts", "sparse_columns", "sparse_values")

    def count(self, shape: tuple[int, ...]) -> int:
        """Entries of a matrix of `shape`."""
        return round(shape[0] * shape[1] * self.percent / 100)

    def bits(self, shape: tuple[int, int]) -> int:
        return 32 * self.count(shape) + 32 * (shape[0] + 1)

    def fits(self, shape: tuple[int, int]) -> str:
        return "" if shape[1] <= COLUMNS else f"{shape[1]} columns, an index of 16 bits counts {COLUMNS}"

    def fit(self, weight: Tensor) -> Parts:
        return self.hold(weight, self.choose(weight.abs()))

    def choose(self, score: Tensor) -> Tensor:
        """The mask [out, in] of the entries of greatest score."""
        mask = torch.zeros(score.numel(), dtype=torch.bool, device=score.device)
        mask[score.flatten().topk(self.count(score.shape)).indices] = True
        return mask.view_as(score)

    def hold(self, missing: Tensor, mask: Tensor) -> Parts:
        """The parts that keep `missing` [out, in] where the mask is."""
        starts = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).to(torch.int32)
        columns = mask.nonzero()[:, 1].to(torch.int32)
        columns = torch.where(columns < COLUMNS // 2, columns, columns - COLUMNS).to(torch.int16)
        return {"sparse_starts": starts, "sparse_columns": columns, "sparse_values": missing[mask].to(torch.float16)}

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        return weight.float() - self._dense(weight.shape, parts)

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        return values + self._dense(values.shape, parts)

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return x

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        index, shape = torch.stack([_rows(parts), _columns(parts)]), (y.shape[1], x.shape[1])
        matrix = torch.sparse_coo_tensor(
            index, parts["sparse_values"].to(_sum(x)), shape, is_coalesced=True, check_invariants=False
        )
        return y + (matrix @ x.to(_sum(x)).t()).t().to(y.dtype)

    def _dense(self, shape: tuple[int, ...], parts: Parts) -> Tensor:
        """S [out, in]."""
        dense = torch.zeros(tuple(shape), device=parts["sparse_values"].device)
        dense[_rows(parts), _columns(parts)] = parts["sparse_values"].float()
        return dense


def _sum(x: Tensor) -> torch.dtype:
    """The dtype of the product: sparse ones take no 16-bit floats everywhere."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _rows(parts: Parts) -> Tensor:
    """The row of every entry, int64."""
    counts = parts["sparse_starts"].long().diff()
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)


def _columns(parts: Parts) -> Tensor:
    """The column of every entry, int64."""
    return parts["sparse_columns"].long() & (COLUMNS - 1)


def side(number: str) -> Sparse:
    percent = float(number or 0)
    if not 0 < percent <= 50:
        raise FormatError(
            f"sparse{number}: the number is the share of kept weights in percent, above 0. Use sparse1 or sparse0.5."
        )
    return Sparse(percent)
