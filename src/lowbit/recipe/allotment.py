"""allotment - a Recipe with a budget and the model's linears -> who shares, what each may get, and the sentence that says it.

In / Out  `budget(3.5) + gptaq(int4-g128)` and linears -> Shares: groups of linears that take one format, their choices;
          shares and a choice for each -> `gptaq(int3-g128) + gptaq(int4-g128)@"model.layers.[05].mlp.down_proj"`.
Idea      A method without a verb that has a `family` gives formats to the linears that it covers, and that a solver rounds.
          What comes out is an ordinary recipe: its solvers take the format of most weights, followed by a step for every other
          format, limited by globs. It runs, prints, resumes and is repeated like any other, without a measure.
Traps     Globs are exact: names are merged only where one place differs, so [05] never takes more than was chosen.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from lowbit import formats
from lowbit.core.chain import Link
from lowbit.core.errors import RecipeError, ShapeError
from lowbit.formats import Format
from lowbit.methods import Linear, verb
from lowbit.recipe.grammar import Recipe, step_text
from lowbit.recipe.plan import Plan
from lowbit.recipe.selection import OUTSIDE, covers
from lowbit.recipe.target import Target

Fused = Callable[[Linear], str]
"""A name for everything that shares its format with a linear."""


class Allocator(Protocol):
    """The declaration that lets a run choose formats; see lowbit.methods.budget."""

    @property
    def bits(self) -> float: ...
    @property
    def windows(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def seed(self) -> int: ...
    def family(self, format: str) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Group:
    """Linears that take one format. options: those that all of them can take, by rising bytes; sizes: bytes of each."""

    name: str
    members: tuple[Target, ...]
    options: tuple[Format, ...]
    sizes: tuple[int, ...]

    @property
    def weights(self) -> int:
        return sum(member.weights for member in self.members)


@dataclass(frozen=True)
class Shares:
    """A budget applied to one model. asked: the recipe with the budget; declared: its step; groups: in the model's order."""

    asked: Recipe
    declared: Allocator
    groups: tuple[Group, ...]
    linears: tuple[Linear, ...]

    @cached_property
    def weights(self) -> int:
        return sum(group.weights for group in self.groups)

    @property
    def bytes(self) -> int:
        """The most that the groups may take together."""
        return int(self.declared.bits * self.weights / 8)

    def taken(self, choice: Sequence[int]) -> int:
        """Bytes of a choice, an option for each group."""
        return sum(group.sizes[i] for group, i in zip(self.groups, choice, strict=True))

    def uniform(self) -> list[int]:
        """The largest step of the family that all groups take within the bytes. Raises RecipeError where none fits."""
        ladders = [dict(zip(map(_rate, group.options), range(len(group.options)), strict=True)) for group in self.groups]
        common = [rate for rate in ladders[0] if all(rate in ladder for ladder in ladders)]
        fitting = [choice for rate in common if self.taken(choice := [ladder[rate] for ladder in ladders]) <= self.bytes]
        if not fitting:
            least = 8 * self.taken([0] * len(self.groups)) / self.weights
            fact = f"the smallest formats of its layers take {least:.3f} bits per weight, scales and all"
            raise RecipeError(f"{self.asked}: {fact}. Ask for more, or name a format with larger groups.")
        return max(fitting, key=self.taken)

    def sentence(self, choice: Sequence[int]) -> Recipe:
        """The recipe that says a choice, without the budget."""
        chosen = {t.name: (g.options[i], t.weights) for g, i in zip(self.groups, choice, strict=True) for t in g.members}
        steps: list[tuple[Link, str]] = []
        for number, (method, selector) in enumerate(self.asked.steps):
            names = [linear.name for linear in self.linears if solver_step(self.asked, linear) == number]
            shared = {name: chosen[name] for name in names if name in chosen}
            if shared:
                steps += _steps(method, selector, shared, whole=len(shared) == len(names))
            elif not _allots(method):
                steps.append((method, selector))
        return Recipe(tuple(steps))


def declared(recipe: Recipe) -> Allocator | None:
    """The budget of a recipe, if it has one. Raises RecipeError where it has two."""
    found: list[Any] = [method for method, _ in recipe.steps if _allots(method)]
    if len(found) > 1:
        raise RecipeError(f"{recipe}: {step_text(found[0])} and {step_text(found[1])} share out the same layers. Keep one.")
    return found[0] if found else None


def _allots(method: Link) -> bool:
    """Whether a step is the budget."""
    return not verb(method) and hasattr(method, "family")


def without(recipe: Recipe, allocator: Allocator) -> Recipe:
    """The recipe without its budget; solvers without a format get the largest of their family."""
    steps: list[tuple[Link, str]] = []
    for method, selector in recipe.steps:
        if _allots(method):
            continue
        bare = verb(method) == "solve" and not getattr(method, "format", "")
        steps.append((_with(method, allocator.family("")[-1]) if bare else method, selector))
    return Recipe(tuple(steps))


def share(recipe: Recipe, allocator: Allocator, linears: Sequence[Linear], fused: Fused) -> Shares:
    """Apply a budget to a model's linears. Raises RecipeError, ShapeError."""
    plan = Plan.make(without(recipe, allocator), linears)
    selector = next(s for method, s in recipe.steps if _allots(method))
    found: dict[tuple[str, int], list[Target]] = {}
    for linear in linears:
        step = solver_step(recipe, linear)
        if step >= 0 and covers(selector, linear) and linear.role not in OUTSIDE:
            found.setdefault((fused(linear), step), []).append(plan.targets[linear.name])
    for step in sorted({step for _, step in found}):
        method = recipe.steps[step][0]
        if not any(field.name == "format" for field in dataclasses.fields(method)):  # type: ignore[arg-type]
            fact = f"{step_text(method)} rounds all its layers to one format of its own"
            raise RecipeError(f"{recipe}: {fact}, so there is nothing to share out. Leave {step_text(allocator)} out.")  # type: ignore[arg-type]
    if not found:
        told = step_text(allocator, selector)  # type: ignore[arg-type]
        raise RecipeError(f"{recipe}: {told} finds no layer that a solver rounds. Add one: + gptaq(int4-g128-asym).")
    groups = (
        _group(name, members, allocator.family(getattr(recipe.steps[step][0], "format", "")))
        for (name, step), members in found.items()
    )
    return Shares(recipe, allocator, tuple(groups), tuple(linears))


def solver_step(recipe: Recipe, linear: Linear) -> int:
    """Number of the step that rounds a linear; -1 where none is a solver."""
    found = [n for n, (method, selector) in enumerate(recipe.steps) if verb(method) == "solve" and covers(selector, linear)]
    return found[-1] if found else -1


def globs(names: Sequence[str]) -> list[str]:
    """Globs that match these names and no others: where names differ in one letter or digit, that place becomes [..]."""
    patterns: list[tuple[str, ...]] = [tuple(name) for name in names]
    for place in range(max(map(len, names))):
        merged: dict[tuple[tuple[str, ...], ...], str] = {}
        for pattern in patterns:
            part = pattern[place : place + 1]
            key = (pattern[:place], () if part and part[0].isalnum() else part, pattern[place + 1 :])
            merged[key] = merged.get(key, "") + "".join(part)
        # an empty part is the end of a shorter name, which no longer one shares: their heads differ in length
        patterns = [
            (*head, *(["".join(sorted(letters))] if letters else []), *tail) for (head, _, tail), letters in merged.items()
        ]
    return ["".join(part if len(part) < 2 else f"[{part}]" for part in pattern) for pattern in patterns]


def _group(name: str, members: Sequence[Target], family: Sequence[str]) -> Group:
    """The linears of one share with the formats that all of them can take."""
    found = [format for format in map(formats.parse, family) if all(_takes(member, format) for member in members)]
    sizes = {f: sum(round(m.weights * f.bits_per_weight(m.shape) / 8) for m in members) for f in found}
    options = sorted(found, key=lambda format: sizes[format])
    return Group(name, tuple(members), tuple(options), tuple(sizes[format] for format in options))


def _takes(target: Target, format: Format) -> bool:
    """Whether a linear, and what tunes it, can have a format."""
    try:
        format.groups(target.shape)
    except ShapeError:
        return False
    return not any(tuner.refusal(format) for tuner in target.tuners)


def _steps(method: Link, selector: str, shared: Mapping[str, tuple[Format, int]], whole: bool) -> list[tuple[Link, str]]:
    """A solver's step and the narrower ones behind it. shared: format and weights of linears; whole: it rounds no others."""
    weights: dict[Format, int] = {}
    for format, count in shared.values():
        weights[format] = weights.get(format, 0) + count
    most = max(weights, key=lambda format: weights[format])
    first = _with(method, str(most)) if whole else method
    steps = [(first, selector)]
    for format in weights:
        if str(format) != str(first.format):  # type: ignore[attr-defined]
            names = [name for name, (chosen, _) in shared.items() if chosen == format]
            steps += [(_with(method, str(format)), glob) for glob in globs(names)]
    return steps


def _with(method: Link, format: str) -> Link:
    """The method with another format."""
    made: Link = dataclasses.replace(method, format=format)  # type: ignore[type-var]
    return made


def _rate(format: Format) -> str:
    """The number in a format's head: what the members of a family differ in."""
    return re.sub(r"[^\d.]", "", format.text.partition("-")[0])
