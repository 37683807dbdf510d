"""plan - a Recipe and the model's linears -> what becomes of each linear, and what the run will take.

In / Out  Recipe, linears (name, shape [out, in], role, layer) -> Plan: a Target per linear that is rounded, in order.
Idea      The last solver that covers a linear rounds it, so a narrower later selector overrides; a later one that leaves an
          earlier one nothing is an error. Every transform that covers it comes first. A linear that a transform with a format
          covers and no solver does is rounded by rtn with searched scales in that format: `awq(int4-g128)` is whole. So is
          `autoround(int2-g128)`: a tuner with a format says what solves before it. Tuners come after that, finishers last.
          Embeddings and the head are covered only by name: @head, @embed or a glob.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lowbit import formats, methods, sides, statistics
from lowbit.core.chain import Link
from lowbit.core.errors import RecipeError, ShapeError
from lowbit.formats import Format
from lowbit.kernels.activation import Activation
from lowbit.methods import Finisher, Linear, Prefixing, Solver, Transform, Tuner, Turner, name_of, verb
from lowbit.recipe import coverage, outlook, training
from lowbit.recipe.grammar import Recipe, step_text
from lowbit.recipe.selection import OUTSIDE, covers
from lowbit.solvers import observers


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


@dataclass(frozen=True)
class Plan:
    """What a recipe does to one model."""

    recipe: Recipe
    targets: dict[str, Target]
    """By full name."""

    @classmethod
    def make(cls, recipe: Recipe, linears: Iterable[Linear]) -> "Plan":
        """Apply a recipe to a model's linears. Raises RecipeError; ShapeError naming a linear that its format cannot take."""
        linears = list(linears)
        coverage.check(recipe, linears)
        targets = {}
        for linear in linears:
            target = _target(recipe, linear)
            if target is not None:
                targets[linear.name] = target
        _check_activations(recipe, linears, targets)
        return cls(recipe, targets)

    @property
    def rows(self) -> list[Target]:
        """The targets in the model's order."""
        return list(self.targets.values())

    @cached_property
    def formats(self) -> dict[str, Format]:
        """The format of every target by full name."""
        return {name: target.format for name, target in self.targets.items()}

    @cached_property
    def activations(self) -> dict[str, Activation]:
        """How inputs are rounded, by the full name of each target whose are."""
        return {name: target.activation for name, target in self.targets.items() if target.activation}

    @property
    def weights(self) -> int:
        return sum(t.weights for t in self.rows)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight over all targets."""
        return sum(t.weights * t.bits for t in self.rows) / self.weights

    @cached_property
    def needs(self) -> frozenset[str]:
        """The statistics that its methods want."""
        told = [(t.solver.needs, observers.needs(t.activation), *(m.needs for m in t.transforms)) for t in self.rows]
        return frozenset(need for target in told for needs in target for need in needs)

    @property
    def needs_data(self) -> bool:
        """Whether a calibration text is needed."""
        looks = any(hasattr(method, "study") or isinstance(method, Prefixing) for method, _ in self.recipe.steps)
        return bool(self.needs or self.tuners or self.finishers or looks)

    @cached_property
    def turners(self) -> list[Turner]:
        """The methods that put the whole model into another basis, in order."""
        return [method for method, _ in self.recipe.steps if isinstance(method, Turner)]

    @cached_property
    def tuners(self) -> tuple[Tuner, ...]:
        """The tuners in order."""
        return tuple(dict.fromkeys(tuner for target in self.rows for tuner in target.tuners))

    @cached_property
    def finishers(self) -> dict[Finisher, int]:
        """The finishers in order, and how many weights each trains."""
        methods: list[Any] = [method for method, _ in self.recipe.steps if verb(method) == "finish"]
        return {m: sum(t.weights for t in self.rows if m in t.finishers) for m in methods}

    @property
    def needs_reference(self) -> bool:
        """Whether a method wants the full-precision stream beside the quantized one."""
        return bool(self.tuners or self.finishers) or any(
            getattr(statistics.shelf.get(need), "NEEDS_REFERENCE", False) for need in self.needs
        )

    def label(self) -> str:
        """A short name for the result: its format, or its mean bits where it has several."""
        found, acts = {str(t.format) for t in self.rows}, {str(a) for a in self.activations.values()}
        name = found.pop() if len(found) == 1 else f"{self.bits_per_weight:.2f}bit"
        return name + (f"-act-{acts.pop()}" if len(acts) == 1 else "-act" if acts else "")

    def outlook(
        self, *, tokens: int, hidden: int, block_weights: int, blocks: int, outside_bytes: int, flops: float,
        window: int = 2048, vocabulary: int = 0, tables: int = 1,
    ) -> dict[str, Any]:  # fmt: skip
        """What the run will take, before it begins: layers (a row each), weights, bytes, bits_per_weight, peak_memory, seconds.

        tokens: of the calibration text (0: none is read), window: of one window of it. block_weights: weights of the largest
        block. outside_bytes: what stays in memory beside blocks. flops: of this machine, per second. vocabulary: rows of each
        of the tables (embedding, head). peak_memory: bytes beyond what the libraries take.
        """
        return {
            "layers": [t.row() for t in self.rows],
            "weights": self.weights,
            "bytes": sum(t.bytes for t in self.rows),
            "bits_per_weight": self.bits_per_weight,
            "peak_memory": outside_bytes
            + max(
                outlook.peak_memory(self, tokens, window, hidden, block_weights),
                outlook.finishing_memory(self, tokens, window, hidden, block_weights, blocks),
                outlook.gradient_memory(self, tokens, window, hidden, block_weights, blocks),
                outlook.study_memory(self, window, hidden, block_weights * blocks, blocks, vocabulary, tables),
            ),
            "seconds": outlook.operations(self, tokens, window, block_weights * blocks) / flops,
        }


def _target(recipe: Recipe, linear: Linear) -> Target | None:
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
    refused = solver.refusal(format.inner) if hasattr(solver, "refusal") else ""
    if refused:
        raise RecipeError(f"{step_text(solver)}: {refused}.")
    for tuner in (*tuners, *finishers):
        training.check(tuner, linear, format)
    if transforms or linear.role in OUTSIDE:
        training.check_gradients(solver, linear, transforms)
    methods_ = solver, format, transforms, tuple(tuners), tuple(finishers)
    return Target(linear.name, linear.shape, linear.role, linear.layer, *methods_, _activation(found, linear, format))  # type: ignore[arg-type]


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


def _check_activations(recipe: Recipe, linears: Sequence[Linear], targets: dict[str, Target]) -> None:
    """Whoever declares how inputs are rounded finds a linear that a solver rounds."""
    for method, selector in recipe.steps:
        if hasattr(method, "activation") and not any(covers(selector, t) and t.name in targets for t in linears):
            step = step_text(method, selector)
            raise RecipeError(f"{step}: no solver rounds a layer that it covers. Add one: {step} + gptq(int8-row).")
