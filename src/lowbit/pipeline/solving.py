"""solving - the matrices of one stage of a block rounded, their values put in place.

Idea      Matrices that read one input, in one format, by a solver that rounds each row for itself are rounded as one
          (solvers/stacked.py). Several processes end with the same codes: those of the first.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lowbit.architectures import shares
from lowbit.core import ranks
from lowbit.formats import Quantized
from lowbit.formats._narrow import followed
from lowbit.recipe.target import Target
from lowbit.solvers import stacked
from lowbit.statistics import Stats

if TYPE_CHECKING:
    from lowbit.pipeline.job import Done, Job

STACKED = {"cuda"}
"""Devices on which matrices of one input are rounded as one where their solver allows it."""


def solve(job: "Job", names: Sequence[str], stats: dict[str, Stats], done: "Done") -> None:
    """Round the matrices of one stage and put the rounded weights in place."""
    for members in _together(job, names, stats):
        start, target, seen = time.perf_counter(), job.targets[members[0]], stats.get(members[0], Stats())
        weights: list[Tensor] = [job.module.get_submodule(name).weight.data for name in members]  # type: ignore[misc]

        def one(weight: Tensor, target: Target = target, seen: Stats = seen) -> Quantized:
            return target.solver.solve(weight, seen, target.format.inner)

        found = stacked.solve(weights, one) if len(members) > 1 else [one(weights[0])]
        seconds = time.perf_counter() - start
        for name, weight, quantized in zip(members, weights, found, strict=True):
            _take(job, name, weight, quantized, done, seen.tokens, seconds / len(members))


def _together(job: "Job", names: Sequence[str], stats: dict[str, Stats]) -> list[list[str]]:
    """The matrices of a stage, those that are rounded as one side by side."""
    groups: dict[Any, list[str]] = {}
    for key, members in shares(names).items():
        for name in members:
            target = job.targets[name]
            format, weight = target.format.inner, job.module.get_submodule(name).weight
            stacks = getattr(target.solver, "stacks", False) and weight.device.type in STACKED and stacked.possible(format)
            alike = (key, target.solver, str(format)) if stacks and name in stats and stats[name].tokens else name
            groups.setdefault(alike, []).append(name)
    return list(groups.values())


def _take(job: "Job", name: str, weight: Tensor, quantized: Quantized, done: "Done", tokens: int, seconds: float) -> None:
    """Put one rounded matrix in place of `weight`, and note it."""
    target, full, error = job.targets[name], f"{job.prefix}.{name}", quantized.report.get("error")
    ranks.agree([quantized.codes, *quantized.parts.values()])
    job.module.get_submodule(name).weight = nn.Parameter(followed(quantized).to(weight.dtype), requires_grad=False)
    done.quantized[name] = quantized
    if target.tuners:
        done.originals[name] = weight
    told = {"name": full, "format": str(target.format), "bits": target.bits, "tokens": tokens}
    done.rows.append(told | quantized.report)
    if "fallback" in quantized.report:
        job.progress.say(f"{full}: {quantized.report['fallback']}")
    job.progress.layer(full, error if isinstance(error, float) else None, seconds)
