"""ends - the two matrices outside the blocks: the embedding, before them, and the output head, after them.

Idea      The embedding is rounded first, without data: a lookup has no inputs that would tell one weight from another. What
          enters block 0 then comes out of the rounded table. The head is rounded last, on what the quantized blocks and the
          final norm give, caught batch by batch.
Traps     Tied embeddings part as soon as one end is quantized: the other one stays as it is, in floats.
"""

import time
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lowbit.core.errors import CheckpointError, RecipeError
from lowbit.formats import Quantized
from lowbit.layers.embedding import readable
from lowbit.methods import name_of
from lowbit.pipeline.outer import Outer
from lowbit.pipeline.progress import Progress
from lowbit.recipe.grammar import step_text
from lowbit.recipe.selection import OUTSIDE
from lowbit.recipe.target import Target
from lowbit.statistics import Collecting, Stats

Row = dict[str, object]


def check(targets: Iterable[Target]) -> None:
    """Refuse what neither end can take. Raises RecipeError."""
    for target in targets:
        if target.role not in OUTSIDE:
            continue
        for method in (*target.transforms, *target.tuners, *target.finishers):
            step, name = step_text(method, target.role), name_of(method)  # type: ignore[arg-type]
            fact = f"{name} works on decoder blocks, {target.name} is in none"
            raise RecipeError(f"{step}: {fact}. Name a solver: rtn({target.format})@{target.role}.")
        if target.role == "embed":
            _check_embedding(target)


def _check_embedding(target: Target) -> None:
    step = step_text(target.solver, "embed")  # type: ignore[arg-type]
    if target.solver.needs:
        fact = f"it wants {', '.join(target.solver.needs)} of inputs, and the embedding {target.name} is looked up, it has none"
        raise RecipeError(f"{step}: {fact}. Use rtn({target.format}, search=mse)@embed.")
    reason = readable(target.format)
    if reason:
        raise RecipeError(f"{step}: {target.name} is read row by row, but {reason}. Use a format such as int8-row.")


def solve(target: Target, weight: Tensor, stats: Stats, progress: Progress) -> tuple[Quantized, Row]:
    """Round one end: weight float [out, in] -> its matrix and its row of the result. Raises CheckpointError."""
    start = time.perf_counter()
    bad = weight.numel() - int(torch.isfinite(weight).sum())
    if bad:
        raise CheckpointError(
            f"{target.name}.weight: {bad} of {weight.numel()} values are NaN or Inf. Mend or download the checkpoint again."
        )
    quantized = target.solver.solve(weight, stats, target.format)
    error = quantized.report.get("error")
    if "fallback" in quantized.report:
        progress.say(f"{target.name}: {quantized.report['fallback']}")
    progress.layer(target.name, error if isinstance(error, float) else None, time.perf_counter() - start)
    told: Row = {"name": target.name, "role": target.role, "format": str(target.format), "bits": target.bits}
    return quantized, {**told, "tokens": stats.tokens, **quantized.report}


def head_statistics(
    target: Target, outer: Outer, tokens: Sequence[Tensor], hidden: Sequence[Tensor], references: Sequence[Tensor] | None
) -> Stats:
    """What the head's solver wants to know of its inputs.

    tokens: windows [windows, length] by batch. hidden: after the last quantized block, references: after the last original one.
    """
    collecting = Collecting(tuple(target.solver.needs), target.shape[1], outer.device)
    for i, batch in enumerate(tokens):
        beside = outer.head_inputs(batch, references[i]) if collecting.reference and references is not None else None
        collecting.add(outer.head_inputs(batch, hidden[i]), beside)
    return collecting.stats()
