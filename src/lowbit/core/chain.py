"""chain - how steps are strung together in Python: `AWQ() + GPTQ("int4-g128") @ "mlp"` is the twin of the sentence.

A Link is one step (a method's dataclass), a Chain is steps in order, each with the selector it is limited to ("" = all).
"""

from __future__ import annotations

from dataclasses import dataclass


class Link:
    """Base of every method: lets it be joined to others with + and limited to layers with @."""

    def __add__(self, other: Link | Chain) -> Chain:
        return Chain(((self, ""),)) + other

    def __matmul__(self, selector: str) -> Chain:
        return Chain(((self, selector),))


@dataclass(frozen=True)
class Chain:
    """Steps in order, each with its selector."""

    steps: tuple[tuple[Link, str], ...]

    def __add__(self, other: Link | Chain) -> Chain:
        more = other.steps if isinstance(other, Chain) else ((other, ""),)
        return Chain(self.steps + more)

    def __radd__(self, other: Link) -> Chain:
        return Chain(((other, ""), *self.steps))
