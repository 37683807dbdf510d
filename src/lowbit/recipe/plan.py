"""plan - a Recipe and the model's linears -> what becomes of each linear, and what the run will take.

In / Out  Recipe, linears (name, shape [out, in], role, layer) -> Plan: a Target per linear that is rounded, in order.
Idea      A narrower later selector overrides (target.py decides linear by linear); a later solver that leaves an earlier one
          nothing is an error. Tuners come after solvers, finishers last. Embeddings and the head are covered only by name:
          @head, @embed or a glob.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lowbit import statistics
from lowbit.core.errors import RecipeError
from lowbit.formats import Format
from lowbit.kernels.activation import Activation
from lowbit.methods import Finisher, Linear, Prefixing, Tuner, Turner, verb
from lowbit.recipe import coverage, outlook
from lowbit.recipe.grammar import Recipe, step_text
from lowbit.recipe.selection import covers
from lowbit.recipe.target import Target, decide
from lowbit.solvers import observers


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
            target = decide(recipe, linear)
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


def _check_activations(recipe: Recipe, linears: Sequence[Linear], targets: dict[str, Target]) -> None:
    """Whoever declares how inputs are rounded finds a linear that a solver rounds."""
    for method, selector in recipe.steps:
        if hasattr(method, "activation") and not any(covers(selector, t) and t.name in targets for t in linears):
            step = step_text(method, selector)
            raise RecipeError(f"{step}: no solver rounds a layer that it covers. Add one: {step} + gptq(int8-row).")
