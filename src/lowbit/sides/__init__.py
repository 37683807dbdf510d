"""sides - what a stored matrix has beside its grid: a rotated basis, sparse entries, a low-rank part. One file is one kind.

A side is a word of a format's name ("int4-g128-had", "int3-g16-sparse1"), from the grid outwards: `trellis2-rank16-had` is a
rotated sum of codes and a low-rank matrix. Its tensors are parts of the matrix like scales. The law of a layer,
y = outputs(grid(inputs(x)) + addend(x)), is `before` and `after`; `decode` is the same for the matrix itself.

Contract of a file: `def side(number: str) -> Side`; `number` is what follows the family's name ("16" of "rank16", or "").
A basis also has what solvers need to work inside it: `moment`. `trained` names the parts that tuners may train.
A side that changes x on its way in has `within(x, parts, inner)`: x as if `inner` changed it inside; `splits = True`: its own
product is in that already. `known = True`: its parts come from the shape alone, so that solvers may meet rounded inputs.
A side with `ahead = True` takes its place in the pipeline before inputs are observed. Such words stand last, and solvers never
meet them: the pipeline gives them the inputs behind and what is left of the weight.
A side with `fixed = True` tells something of the codes and scales of its grid: nothing may train them afterwards.
A file names its members in EXAMPLES.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from lowbit.core.shelf import Shelf

shelf = Shelf(__name__, "side")
Parts = dict[str, Tensor]


class Side(Protocol):
    """One kind of side. parts: names of its tensors."""

    @property
    def parts(self) -> tuple[str, ...]: ...

    def bits(self, shape: tuple[int, int]) -> int:
        """Stored bits for a matrix of `shape`."""

    def fits(self, shape: tuple[int, int]) -> str:
        """Empty when a matrix of `shape` can have it, else the fact that prevents it."""

    def fit(self, weight: Tensor) -> Parts:
        """Parts that need no data, for `weight` [out, in]."""

    def into(self, weight: Tensor, parts: Parts) -> Tensor:
        """What is left of `weight` [out, in] for the grid, float32."""

    def decode(self, values: Tensor, parts: Parts) -> Tensor:
        """The matrix [out, in] that inner `values` [out, in] and this side make."""

    def before(self, x: Tensor, parts: Parts) -> Tensor:
        """The inputs [tokens, in] that the inner matrix gets."""

    def after(self, y: Tensor, x: Tensor, parts: Parts) -> Tensor:
        """The outputs [tokens, out], from inner outputs `y` and the outer inputs `x`."""


@runtime_checkable
class Basis(Side, Protocol):
    """A side that turns the inputs of the grid; its `into` takes any matrix to the basis of `parts`."""

    def moment(self, moment: Tensor, parts: Parts) -> Tensor:
        """The second moment [in, in] of the inputs that the inner matrix gets."""


@functools.cache
def get(word: str) -> Side:
    """The side called `word`, as "had128". Raises RequestError with the nearest names."""
    module, number = shelf.resolve(word)
    found: Side = module.side(number)
    return found


@functools.cache
def known(word: str) -> bool:
    """Whether a word of a format names a side."""
    try:
        shelf.resolve(word)
    except ValueError:
        return False
    return True


def ahead(words: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the sides `words` that change inputs before they are observed, from the grid outwards."""
    return tuple(word for word in words if getattr(get(word), "ahead", False))


def within(around: Sequence[str], x: Tensor, parts: Parts, inner: Callable[[Tensor], Tensor]) -> Tensor:
    """x [tokens, in] as if `inner` had changed it where the grid meets it, inside the sides `around`."""
    if not around:
        return inner(x)
    side = get(around[-1])
    deeper = functools.partial(within, around[:-1], parts=parts, inner=inner)
    found: Tensor = side.within(x, parts, deeper) if hasattr(side, "within") else deeper(x)
    return found


def beside(around: Sequence[str], x: Tensor, parts: Parts, outputs: int) -> Tensor:
    """What the sides `around` alone make of x [tokens, in]: [tokens, outputs]."""
    if not around:
        return x.new_zeros(x.shape[0], outputs)
    side = get(around[-1])
    y = beside(around[:-1], side.before(x, parts), parts, outputs)
    return y if getattr(side, "splits", False) else side.after(y, x, parts)


def examples() -> list[str]:
    """Names of sides, one or more a file."""
    return [name for file in shelf.names() for name in getattr(shelf.get(file), "EXAMPLES", (file,))]
