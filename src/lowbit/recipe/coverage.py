"""coverage - whether the steps of a recipe find linears in a model, and none makes another useless."""

from collections.abc import Sequence

from lowbit.core.errors import RecipeError
from lowbit.methods import Linear, verb
from lowbit.recipe import training
from lowbit.recipe.grammar import Recipe, layers, step_text
from lowbit.recipe.selection import covers, inventory, last


def check(recipe: Recipe, linears: Sequence[Linear]) -> None:
    """Every selector finds a linear, and no solver loses all of its linears to one later solver."""
    solved: list[tuple[str, set[str]]] = []
    trained: dict[str, str] = {}
    for method, selector in recipe.steps:
        step = step_text(method, selector)
        found = {linear.name for linear in linears if covers(selector, linear)}
        if not found:
            raise RecipeError(f"{step}: this selects none of the model's {len(linears)} linears. It has {inventory(linears)}.")
        span, end = layers(selector), last(linears)
        if span and span[1] > end:
            raise RecipeError(f"{step}: the model's layers are 0 to {end}. Write layers.{span[0]}-{end}.")
        training.check_order(recipe, method, step, trained)
        if verb(method) == "solve":
            for rival, names in solved:
                if names <= found:
                    advice = f"Remove {rival}, or narrow the later selector."
                    raise RecipeError(f"{recipe}: {step} takes every layer of {rival}. {advice}")
            solved.append((step, found))
