"""caches - a Recipe and the model's linears -> how each layer's keys and values are held.

Idea      The last declaration with `cache` that covers a layer wins. Keys and values belong to whole layers, so a selector is
          layers.A-B or none.
"""

from collections.abc import Sequence
from typing import Any

from lowbit.core.errors import RecipeError
from lowbit.methods import Linear
from lowbit.recipe.grammar import Recipe, layers, step_text
from lowbit.recipe.selection import OUTSIDE


def policies(recipe: Recipe, linears: Sequence[Linear]) -> list[str]:
    """The policy of each layer, "" as floats; [] where all are. Raises RecipeError."""
    declared: list[tuple[Any, str]] = [(method, selector) for method, selector in recipe.steps if hasattr(method, "cache")]
    count = 1 + max(linear.layer for linear in linears if linear.role not in OUTSIDE)
    found = [""] * count
    for method, selector in declared:
        if selector and not layers(selector):
            fact, advice = "keys and values belong to whole layers", f"{step_text(method)}@layers.0-1, or no selector"
            raise RecipeError(f"{step_text(method, selector)}: {fact}. Write {advice}.")
        first, last = layers(selector) or (0, count - 1)
        found[first : last + 1] = [str(method.cache())] * (min(last, count - 1) + 1 - first)
    return found if any(found) else []


def told(policies: Sequence[str]) -> str | list[str]:
    """What config.json says of them: one text where all layers have the same."""
    return policies[0] if len(set(policies)) == 1 else list(policies)


def label(policies: Sequence[str]) -> str:
    """What they add to a folder's name."""
    return f"-kv-{policies[0]}" if len(set(policies)) == 1 else "-kv" if policies else ""
