"""dtypes - what a code means: real numbers <-> codes of one element. One file is one element or one family of them.

A code may also tell several weights at once (a vector, a tile of a trellis): `step` says how many.

Contract of a file: `def element(number: str) -> Element`; `number` is what follows the family's name ("4" of "int4"; "" for
a file that is one element). Codes are unsigned integers 0 .. codes - 1 in uint8, whatever the element means by them. A family
names its members in EXAMPLES. NaN has no code: `Format.fit` refuses it; elements give some code or other for it.
"""

import functools
from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from lowbit.core.shelf import Shelf

shelf = Shelf(__name__, "dtype")


class Element(Protocol):
    """One number type.

    bits: bits that one code takes on disk (8/5 for five ternary digits in a byte). codes: how many codes there are.
    minimum, maximum: the least and the greatest value. step: (height, width, codes): so many rows and columns of a matrix
    are told together by so many codes; (1, 1, 1) for numbers that stand alone.
    """

    @property
    def name(self) -> str: ...
    @property
    def bits(self) -> float: ...
    @property
    def codes(self) -> int: ...
    @property
    def minimum(self) -> float: ...
    @property
    def maximum(self) -> float: ...
    @property
    def step(self) -> tuple[int, int, int]: ...

    def encode(self, values: Tensor) -> Tensor:
        """The nearest code of each value (beyond the range: the end of it; of two equally near: the even one); uint8."""

    def decode(self, codes: Tensor) -> Tensor:
        """The value of each code, float32; codes [R, n] of a step (h, w, c) give [R h, n / c w]."""

    def round(self, values: Tensor) -> Tensor:
        """decode(encode(values)) without the codes, a new float32 tensor: what solvers call in their inner loop."""


@functools.cache
def get(name: str) -> Element:
    """The element called `name`, as "int4", "e2m1", "nf4"."""
    module, number = shelf.resolve(name)
    element: Element = module.element(number)
    return element


def names() -> Iterator[str]:
    """The files of this shelf: elements and families."""
    yield from shelf.names()


def examples() -> list[str]:
    """Names of elements: every file, and the members of families."""
    return [name for file in names() for name in getattr(shelf.get(file), "EXAMPLES", (file,))]
