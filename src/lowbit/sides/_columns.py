"""_columns - whole columns of a matrix beside its grid: the inputs that reach too far to be rounded with the others.

Idea      The grid holds zeros in these columns and gets zeros for their inputs, so that neither the weights' nor the inputs'
          scales know of them: y = grid(x without O) + x_O K^T. The inputs of O are never rounded.
Traps     Which inputs these are must come from data: without it the columns of largest weights are kept, and a method that
          knows the inputs (quik, atom) chooses better ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.core.errors import FormatError
from lowbit.sides import Parts


@dataclass(frozen=True)
class Columns:
    """count: of columns."""

    count: int

    word: ClassVar[str]
    parts: ClassVar[tuple[str, ...]]
    splits: ClassVar[bool] = True

    def fits(self, shape: tuple[int, int]) -> str:
        return "" if self.count < shape[1] else f"{self.count} of its {shape[1]} columns would be kept"

    def fit(self, weight: Tensor) -> Parts:
        columns = self.choose(weight.float().square().sum(0))
        return self.hold(columns, weight[:, columns])

    def choose(self, score: Tensor) -> Tensor:
        """The columns [count] of greatest score [in], in their order."""
        return score.topk(self.count).indices.sort().values

    def hold(self, columns: Tensor, values: Tensor) -> Parts:
        """The parts that keep values [out, count] of these columns."""
        raise NotImplementedError

    def values(self, parts: Parts) -> Tensor:
        """The kept columns, float32 [out, count]."""
        raise NotImplementedError

    def _columns(self, parts: Parts) -> Tensor:
        return parts[f"{self.word}_columns"].long()

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        return weight.float().index_fill(1, self._columns(parts), 0.0)

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        return values.index_copy(1, self._columns(parts), self.values(parts).to(values.dtype))

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        return x.index_fill(-1, self._columns(parts), 0.0)

    def within(self, x: Tensor, parts: Parts, inner: Callable[[Tensor], Tensor]) -> Tensor:
        columns = self._columns(parts)
        return inner(self.before(x, parts)).index_copy(-1, columns, x[..., columns])

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        return y + x[:, self._columns(parts)] @ self.values(parts).to(x.dtype).t()


def count(word: str, number: str) -> int:
    """The number of columns behind a word. Raises FormatError."""
    if not number.isdigit() or int(number) < 1:
        raise FormatError(f"{word}{number}: the number is that of kept columns. Use {word}64.")
    return int(number)
