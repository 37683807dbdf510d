"""methods - a block and its statistics -> a better or smaller block. One file is one paper.

A method is a frozen dataclass, the only public one of its file; its fields are the paper's hyper-parameters; `needs` names
the statistics it wants (files of lowbit.statistics). It has exactly one verb:
    rewrite(self, block: Block, stats: dict[str, Stats]) -> None      transform: the block's function stays the same
    solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized   solver: rounds one matrix [out, in]
    tune(self, block: Block, inputs, targets) -> None    tuner: trains a block whose matrices are solved
    finish(self, model: Model) -> None    finisher: trains the whole model once all blocks are done
A method may also have `turn(self, turning, learned) -> None`: it puts the whole model into another basis before its blocks
stream, alone or beside its verb (Turner); and `around(self, linear) -> str`: the side of its format that a linear gets;
and `takes`: the formats that it is made for (_taken.py), or `refusal(self, format) -> str`: why it cannot round to, prepare for
or train a format; others end a run before it begins;
and `prefix(self, tokens, reach, first) -> ids`: the tokens that shall begin every sequence (Prefixing).
Declarations (act, kv, budget) have none: they set formats in the plan. A field `format: str` names what the method quantizes
to; in a transform it is the format that it prepares for, in a tuner the one that `start`, a solver, rounds to before it.
Numbers are checked by the types of their fields: `steps: Count` (1, 2, ..), `alpha: Share` (0 to 1), `Annotated[float,
Range(1, 16)]`; others are finite and not negative.
"""

import functools
from typing import ClassVar

from lowbit.core.chain import Link
from lowbit.core.errors import RecipeError
from lowbit.core.shelf import Shelf
from lowbit.formats import Format
from lowbit.methods._settings import Count, Range, Share, check
from lowbit.methods._taken import Taken
from lowbit.methods._verbs import Finisher, Linear, Prefixing, Solver, Transform, Tuner, Turner
from lowbit.methods._work import Block, Model, Study

__all__ = [
    "Block", "Count", "Finisher", "Linear", "Method", "Model", "Prefixing", "Range", "Share", "Solver", "Study", "Transform",
    "Tuner", "Turner", "check", "get", "name_of", "shelf", "verb",
]  # fmt: skip

shelf = Shelf(__name__, "method")


class Method(Link):
    """Base of all methods. needs: names of statistics. stacks: whether it rounds each row for itself, by statistics of the
    inputs alone, so that matrices of one input may come as one, rows under rows. takes: formats it is made for; None: all."""

    needs: ClassVar[tuple[str, ...]] = ()
    stacks: ClassVar[bool] = False
    takes: ClassVar[Taken | None] = None

    def refusal(self, format: Format) -> str:
        """Why it cannot round to, prepare for or train `format`; "" where it can."""
        return self.takes.refusal(format) if self.takes else ""


VERBS = ("rewrite", "solve", "tune", "finish", "turn")


@functools.cache
def get(name: str) -> type[Method]:
    """The class of the method called `name`. Raises RequestError with the nearest names."""
    module = shelf.get(name)
    for value in vars(module).values():
        kind = value if isinstance(value, type) and value.__module__ == module.__name__ else object
        if issubclass(kind, Method) and hasattr(kind, "__dataclass_fields__"):
            return kind
    raise RecipeError(f"The file of method '{name}' holds no dataclass derived from Method. Add one.")


def name_of(method: Link) -> str:
    """The name of a method: that of its file."""
    return type(method).__module__.rpartition(".")[2]


def verb(method: object) -> str:
    """The one verb of a method: "rewrite", "solve", "tune", "finish", else "turn", or "" for a declaration."""
    return next((v for v in VERBS if hasattr(method, v)), "")
