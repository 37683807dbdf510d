"""plan - a Recipe and the model's linears -> what becomes of each linear, and what the run will take.

In / Out  Recipe, linears (name, shape [out, in], role, layer) -> Plan: a Target per linear that is rounded, in order.
Idea      The last solver that covers a linear rounds it, so a narrower later selector overrides; a later one that leaves an
          earlier one nothing is an error. Every transform that covers it comes first. A linear that a transform with a format
          covers and no solver does is rounded by rtn with searched scales in that format: `awq(int4-g128)` is whole.
          Embeddings and the head are covered only by name: @head, @embed or a glob.
Traps     Memory and seconds are estimates, made to be too high rather than too low: within a factor of two, not more.
"""

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from lowbit import formats, methods, statistics
from lowbit.core.chain import Link
from lowbit.core.errors import RecipeError, ShapeError
from lowbit.formats import Format
from lowbit.methods import Solver, Transform, name_of, verb
from lowbit.recipe.grammar import Recipe, layers, step_text

OUTSIDE = {"head", "embed"}
SEARCH, FEEDBACK = 5_000, 20_000
"""Operations on one weight, counted at the speed of a matrix product: of a search for scales, of a solver with statistics."""
CHECK_TOKENS = 2 * 4 * 2048
"""Tokens of the closing check: two models, four windows."""
TRIAL_TOKENS = 80_000
"""Tokens that a transform runs to try candidates."""
BATCH_TOKENS = 8192
"""Tokens of one forward."""
OVERHEAD = 150_000_000
"""Bytes that the libraries take when they first compute."""


class Linear(Protocol):
    """A linear as the plan sees it. role: attn, mlp, experts, head or embed; layer: number of its block."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def role(self) -> str: ...
    @property
    def layer(self) -> int: ...


@dataclass(frozen=True)
class Target:
    """What becomes of one linear."""

    name: str
    shape: tuple[int, int]
    role: str
    layer: int
    solver: Solver
    format: Format
    transforms: tuple[Transform, ...] = ()

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

    def row(self) -> dict[str, Any]:
        """The line of this linear in a dry run."""
        steps = [*map(name_of, self.transforms), name_of(self.solver)]  # type: ignore[arg-type]
        return {
            "name": self.name,
            "shape": list(self.shape),
            "method": " + ".join(steps),
            "format": str(self.format),
            "bits": self.bits,
            "bytes": self.bytes,
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
        _check_cover(recipe, linears)
        targets = {}
        for linear in linears:
            target = _target(recipe, linear)
            if target is not None:
                targets[linear.name] = target
        return cls(recipe, targets)

    @property
    def rows(self) -> list[Target]:
        """The targets in the model's order."""
        return list(self.targets.values())

    @cached_property
    def formats(self) -> dict[str, Format]:
        """The format of every target by full name."""
        return {name: target.format for name, target in self.targets.items()}

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
        wanted: set[str] = set()
        for target in self.rows:
            wanted.update(target.solver.needs, *(t.needs for t in target.transforms))
        return frozenset(wanted)

    @property
    def needs_data(self) -> bool:
        """Whether a calibration text is needed."""
        return bool(self.needs)

    @property
    def needs_reference(self) -> bool:
        """Whether a method wants the full-precision inputs beside the quantized ones."""
        return any(getattr(statistics.shelf.get(need), "NEEDS_REFERENCE", False) for need in self.needs)

    def label(self) -> str:
        """A short name for the result: its format, or its mean bits where it has several."""
        found = {str(t.format) for t in self.rows}
        return found.pop() if len(found) == 1 else f"{self.bits_per_weight:.2f}bit"

    def outlook(
        self, *, tokens: int, hidden: int, block_weights: int, blocks: int, outside_bytes: int, flops: float
    ) -> dict[str, Any]:
        """What the run will take, before it begins: layers (a row each), weights, bytes, bits_per_weight, peak_memory, seconds.

        tokens: of the calibration text (0: none is read). block_weights: weights of the largest block. outside_bytes: what
        stays in memory beside blocks. flops: of this machine, per second. peak_memory: bytes beyond what the libraries take.
        """
        return {
            "layers": [t.row() for t in self.rows],
            "weights": self.weights,
            "bytes": sum(t.bytes for t in self.rows),
            "bits_per_weight": self.bits_per_weight,
            "peak_memory": self._peak_memory(tokens, hidden, block_weights) + outside_bytes,
            "seconds": self._operations(tokens, block_weights * blocks) / flops,
        }

    def _peak_memory(self, tokens: int, hidden: int, block_weights: int) -> int:
        """Streams, one forward, one block, a solver's matrices.

        A token that waits at a stage holds its way in, residual, norm's input and output and that stage's input, in float32.
        A block is there as floats, as its loaded copy, as codes; a solver holds four matrices as wide as the widest input.
        """
        widest = max(t.shape[1] for t in self.rows)
        streams = tokens * 4 * (4 * hidden + widest) * (2 if self.needs_reference else 1)
        forward = min(tokens or CHECK_TOKENS, BATCH_TOKENS) * 4 * (4 * hidden + 3 * widest)
        return OVERHEAD + streams + forward + 10 * block_weights + (4 * 4 * widest**2 if tokens else 0)

    def _operations(self, tokens: int, weights: int) -> float:
        """Operations of the run: forwards, second moments and their factors, rounding, the closing check."""
        transforms = max(len(t.transforms) for t in self.rows)
        passes = tokens * (1 + transforms + self.needs_reference) + CHECK_TOKENS + (TRIAL_TOKENS * transforms if tokens else 0)
        rounding = sum(t.weights * (FEEDBACK + 8.0 * t.shape[1] if t.solver.needs else SEARCH) for t in self.rows)
        shared = {(t.layer, t.role, t.shape[1]): t.shape[1] for t in self.rows} if tokens else {}
        return 2.0 * passes * weights + rounding + sum(2.0 * tokens * n**2 + 3.0 * n**3 for n in shared.values())


def covers(selector: str, linear: Linear) -> bool:
    """Whether a step limited to `selector` applies to a linear."""
    span = layers(selector)
    if span:
        return span[0] <= linear.layer <= span[1] and linear.role not in OUTSIDE
    if not selector:
        return linear.role not in OUTSIDE
    return linear.role == selector or fnmatch.fnmatchcase(linear.name, selector)


def _target(recipe: Recipe, linear: Linear) -> Target | None:
    """What becomes of one linear; None when the recipe leaves it."""
    found = [method for method, selector in recipe.steps if covers(selector, linear)]
    transforms = tuple(m for m in found if verb(m) == "rewrite")
    solvers = [m for m in found if verb(m) == "solve"]
    carried = [m for m in transforms if getattr(m, "format", "")]
    if not solvers and not carried:
        return None
    solver: Any = solvers[-1] if solvers else _rounding(carried[-1])
    format = formats.parse(str(solver.format))
    try:
        format.groups(linear.shape)
    except ShapeError as error:
        out, inputs = linear.shape
        reason = str(error).partition(": ")[2]
        raise ShapeError(f"{step_text(solver)} cannot take {linear.name} [{out}, {inputs}]: {reason}") from error
    return Target(linear.name, linear.shape, linear.role, linear.layer, solver, format, transforms)  # type: ignore[arg-type]


def _rounding(transform: Any) -> Link:
    """What rounds where only a transform with a format was asked for."""
    make: Callable[..., Link] = methods.get("rtn")
    return make(format=transform.format, search="weighted")


def _check_cover(recipe: Recipe, linears: Sequence[Linear]) -> None:
    """Every selector finds a linear, and no solver loses all of its linears to one later solver."""
    solved: list[tuple[str, set[str]]] = []
    for method, selector in recipe.steps:
        step = step_text(method, selector)
        found = {linear.name for linear in linears if covers(selector, linear)}
        if not found:
            raise RecipeError(f"{step}: this selects none of the model's {len(linears)} linears. It has {_inventory(linears)}.")
        if verb(method) == "solve":
            for rival, names in solved:
                if names <= found:
                    advice = f"Remove {rival}, or narrow the later selector."
                    raise RecipeError(f"{recipe}: {step} takes every layer of {rival}. {advice}")
            solved.append((step, found))


def _inventory(linears: Sequence[Linear]) -> str:
    """What a selector may name in this model."""
    roles = dict.fromkeys(linear.role for linear in linears)
    last = max((linear.layer for linear in linears if linear.role not in OUTSIDE), default=0)
    globs = dict.fromkeys("".join(name.rpartition(".")[1:]) for name in (linear.name for linear in linears))
    globs = dict.fromkeys(f"*{glob}" if glob.startswith(".") else glob for glob in globs)
    return f"{', '.join(roles)}, layers.0-{last}, and by glob {', '.join(globs)}"
