"""selection - which linears of a model a step is limited to.

In / Out  a selector of a sentence (attn, layers.0-3, "*.down_proj", "" for all), a linear as the plan sees it -> whether it is
          covered. Embeddings and the head are covered only by name: @head, @embed or a glob.
"""

import fnmatch
from collections.abc import Sequence

from lowbit.methods import Linear
from lowbit.recipe.grammar import layers

OUTSIDE = {"head", "embed"}


def covers(selector: str, linear: Linear) -> bool:
    """Whether a step limited to `selector` applies to a linear."""
    span = layers(selector)
    if span:
        return span[0] <= linear.layer <= span[1] and linear.role not in OUTSIDE
    if not selector:
        return linear.role not in OUTSIDE
    return linear.role == selector or fnmatch.fnmatchcase(linear.name, selector)


def last(linears: Sequence[Linear]) -> int:
    """The number of the last decoder layer."""
    return max((linear.layer for linear in linears if linear.role not in OUTSIDE), default=0)


def inventory(linears: Sequence[Linear]) -> str:
    """What a selector may name in this model."""
    roles = dict.fromkeys(linear.role for linear in linears)
    globs = dict.fromkeys("".join(name.rpartition(".")[1:]) for name in (linear.name for linear in linears))
    globs = dict.fromkeys(f"*{glob}" if glob.startswith(".") else glob for glob in globs)
    return f"{', '.join(roles)}, layers.0-{last(linears)}, and by glob {', '.join(globs)}"
