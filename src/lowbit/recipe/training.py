"""training - what a plan asks of whatever needs gradients: tuners and finishers (their place in the sentence, the linears and
formats that they take), and solvers whose statistics come from the original's gradients."""

from collections.abc import Sequence
from typing import Any

from lowbit import formats, sides, statistics
from lowbit.core.chain import Link
from lowbit.core.errors import RecipeError
from lowbit.formats import Format
from lowbit.methods import Linear, verb
from lowbit.recipe.grammar import Recipe, step_text
from lowbit.recipe.selection import OUTSIDE

ORDER = {"rewrite": 0, "solve": 0, "tune": 1, "finish": 2}


def check(tuner: Any, linear: Linear, format: Format) -> None:
    """A tuner trains linears of blocks, in the format that they have, and one that it knows."""
    step = step_text(tuner)
    if linear.role in OUTSIDE:
        raise RecipeError(f"{step}: {linear.name} is in no decoder block, which is what tuners train. Narrow the selector.")
    own = getattr(tuner, "format", "")
    if own and formats.parse(own) != format:
        raise RecipeError(f"{step}: {linear.name} is rounded to {format} before. Leave {own} out, or name {format}.")
    fixed = [word for word in format.sides if getattr(sides.get(word), "fixed", False)]
    reason = f"{fixed[0]} is about these very codes and scales" if fixed else tuner.refusal(format)
    if reason:
        raise RecipeError(f"{step} cannot tune {linear.name} in {format}: {reason}.")


def check_order(recipe: Recipe, method: Link, step: str, trained: dict[str, str]) -> None:
    """Tuners come after all that rounds, finishers after tuners. trained: the last step of either so far, by verb."""
    later = next((trained[v] for v in ("tune", "finish") if v in trained and ORDER.get(verb(method), 2) < ORDER[v]), "")
    if later:
        what = "the whole model when its blocks are done" if later == trained.get("finish") else "what solvers have rounded"
        raise RecipeError(f"{recipe}: {later} trains {what}. Put {step} before it.")
    if verb(method) in {"tune", "finish"}:
        trained[verb(method)] = step


def check_gradients(solver: Any, linear: Linear, transforms: Sequence[Any]) -> None:
    """Gradients are those of the original, inside its blocks; a transform would leave them without their weights."""
    wanted = statistics.gradients(solver.needs)
    if wanted and linear.role in OUTSIDE:
        fact = f"{', '.join(wanted)} of {linear.name} is not known: gradients are collected inside blocks"
        raise RecipeError(f"{step_text(solver)}: {fact}. Narrow the selector, or use gptq there.")
    if wanted:
        step, rewriting = step_text(solver), step_text(transforms[0])
        fact = f"{', '.join(wanted)} comes from the original, whose weights {rewriting} changes"
        raise RecipeError(f"{step}: {fact} in {linear.name}. Leave {rewriting} out, or use a solver such as gptq.")
