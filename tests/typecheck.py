"""typecheck - what jaxtyping's import hook puts around every function of the rooms below while tests run.

Types and, where a file declares them, shapes are compared with what is really passed. A function whose hints cannot be compared
(it takes a Protocol) stays as it is. layers, kernels and what kernels call are left out: torch.compile must see
them bare.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintException

ROOMS = ("statistics", "solvers", "transforms", "methods", "recipe", "checkpoints", "pipeline", "evaluation", "report")
_beartype: Any = beartype(conf=BeartypeConf(is_pep484_tower=True))


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, comparing what it is given and gives with its hints."""
    try:
        return _beartype(function)  # type: ignore[no-any-return]
    except BeartypeDecorHintException:
        return function
