"""target - what becomes of one linear: its solver, format, transforms, tuners, and how its inputs are rounded.

In / Out  Recipe, a linear -> Target, or None where the recipe leaves it. Raises RecipeError, ShapeError, FormatError.
Idea      The last solver that covers a linear rounds it. Every transform that covers it comes first. A linear that a transform
          with a format covers and no solver does is rounded by rtn with searched scales in that format: `awq(int4-g128)` is
          whole. So is `autoround(int2-g128)`: a tuner with a format says what solves before it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lowbit import formats, methods, sides, statistics
from lowbit.core.chain import Link
from lowbit.core.errors import RecipeError, ShapeError
from lowbit.formats import Format
from lowbit.kernels.activation import Activation
from lowbit.methods import Finisher, Linear, Solver, Transform, Tuner, name_of, verb
from lowbit.recipe import training
from lowbit.recipe.grammar import Recipe, step_text
from lowbit.recipe.selection import OUTSIDE, covers


@dataclass(frozen=True)
class Target:
    """What becomes of one linear. activation: how its inputs are rounded; None: not at all."""

    name: str
    shape: tuple[int, int]
    role: str
    layer: int
    solver: Solver
    format: Format
    transforms: tuple[Transform, ...] = ()
    tuners: tuple[Tuner, ...] = ()
    finishers: tuple[Finisher, ...] = ()
    activation: Activation | None = None

    @property
    def weights(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def bits(self) -> float:
        """Stored bits per weight, scales and zeros counted."""
        return self.format.bits_per_weight(self.shape)

    @property
    def bytes(self) -> int:
        return round(self.weights * self.bits / 8)

    @property
    def gradients(self) -> tuple[str, ...]:
        """The statistics from gradients of the original that its solver wants."""
        return statistics.gradients(self.solver.needs)

    def row(self) -> dict[str, Any]:
        """The line of this linear in a dry run."""
        steps = [name_of(m) for m in (*self.transforms, self.solver, *self.tuners, *self.finishers)]  # type: ignore[arg-type]
        return {
            "name": self.name,
            "shape": list(self.shape),
            "method": " + ".join(steps),
            "format": str(self.format),
            "bits": self.bits,
            "bytes": self.bytes,
            **({"activation": str(self.activation)} if self.activation else {}),
        }


def decide(recipe: Recipe, linear: Linear) -> Target | None:
    """What becomes of one linear; None when the recipe leaves it."""
    found = [method for method, selector in recipe.steps if covers(selector, linear)]
    transforms = tuple(m for m in found if verb(m) == "rewrite")
    solvers = [m for m in found if verb(m) == "solve"]
    tuners, finishers = ([m for m in found if verb(m) == name] for name in ("tune", "finish"))
    carried = [m for m in (*transforms, *tuners) if getattr(m, "format", "")]
    if not solvers and not carried:
        return None
    solver: Any = solvers[-1] if solvers else _rounding(carried[-1])
    format = formats.parse(str(solver.format))
    for method in found if linear.role not in OUTSIDE else ():
        word = method.around(linear) if hasattr(method, "around") else ""
        format = format.behind(word) if word else format
    try:
        format.groups(linear.shape)
    except ShapeError as error:
        out, inputs = linear.shape
        raise ShapeError(f"{step_text(solver)} cannot take {linear.name} [{out}, {inputs}]: {_reason(error)}") from error
    for method in (*transforms, solver):
        _check_format(method, solver, format.inner)
    for tuner in (*tuners, *finishers):
        training.check(tuner, linear, format)
    if transforms or linear.role in OUTSIDE:
        training.check_gradients(solver, linear, transforms)
    methods_ = solver, format, transforms, tuple(tuners), tuple(finishers)
    return Target(linear.name, linear.shape, linear.role, linear.layer, *methods_, _activation(found, linear, format))  # type: ignore[arg-type]


def _check_format(method: Any, solver: Any, format: Format) -> None:
    """A solver and the transforms before it take the format. Raises RecipeError."""
    refused = method.refusal(format)
    if refused:
        asked = step_text(method) if getattr(method, "format", "") else f"{step_text(method)} + {step_text(solver)}"
        raise RecipeError(f"{asked}: {refused}.")


def _activation(found: Sequence[Any], linear: Linear, format: Format) -> Activation | None:
    """How the inputs of a linear are rounded: as the last declaration that covers it says. Raises RecipeError, ShapeError."""
    declared = [method for method in found if hasattr(method, "activation")]
    if not declared:
        return None
    activation: Activation = declared[-1].activation()
    if linear.role in OUTSIDE:
        fact = f"{linear.name} is in no decoder block, and only linears of blocks round their inputs"
        raise RecipeError(f"{step_text(declared[-1])}: {fact}. Narrow the selector.")
    try:
        activation.fits(linear.shape[1])
    except ShapeError as error:
        raise ShapeError(f"{step_text(declared[-1])} cannot take the inputs of {linear.name}: {_reason(error)}") from error
    late = [word for word in format.inner.sides if _late(word)]
    if late and activation.stored:
        fact = f"its stored scale is found before {late[0]} of {format} knows its inputs"
        raise RecipeError(f"{step_text(declared[-1])}: {fact}. Use scales that are found while running, as int4-token.")
    return activation


def _reason(error: ShapeError) -> str:
    """What an error says after the name of the format."""
    return str(error).partition(": ")[2]


def _late(word: str) -> bool:
    """Whether a side learns from data what it does to the inputs."""
    return hasattr(sides.get(word), "within") and not getattr(sides.get(word), "known", False)


def _rounding(method: Any) -> Link:
    """What rounds where only a transform or a tuner with a format was asked for."""
    make: Callable[..., Link] = methods.get(getattr(method, "start", "rtn"))
    return make(format=method.format) if verb(method) == "tune" else make(format=method.format, search="weighted")
