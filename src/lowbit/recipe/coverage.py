"""coverage - whether the steps of a recipe find linears in a model, and none makes another useless or does its work again."""

from collections.abc import Sequence

from lowbit.core.chain import Link
from lowbit.core.errors import RecipeError
from lowbit.methods import Linear, Prefixing, name_of, verb
from lowbit.recipe import training
from lowbit.recipe.grammar import Recipe, layers, step_text
from lowbit.recipe.selection import covers, inventory, last


def check(recipe: Recipe, linears: Sequence[Linear]) -> None:
    """Every selector finds a linear, no step loses all of its linears to one later step, and nothing is transformed twice."""
    settled: dict[str, list[tuple[str, set[str]]]] = {}
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
        kind = _kind(method)
        for rival, names in settled.setdefault(kind, []):
            if kind == name_of(method) and names & found:
                raise RecipeError(f"{recipe}: {rival} and {step} would change the same layers twice. Keep one of them.")
            if kind != name_of(method) and names <= found:
                advice = f"Remove {rival}, or narrow the later selector."
                raise RecipeError(f"{recipe}: {step} takes every layer of {rival}. {advice}")
        if kind:
            settled[kind].append((step, found))


def _kind(method: Link) -> str:
    """What a step decides alone for a linear: a solver its codes, a declaration inputs or cache; a transform its own change."""
    if verb(method) in {"rewrite", "turn"} or isinstance(method, Prefixing):
        return name_of(method)
    if verb(method) == "solve":
        return "solve"
    return next((told for told in ("activation", "cache") if not verb(method) and hasattr(method, told)), "")
