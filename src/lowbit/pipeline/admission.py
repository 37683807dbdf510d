"""admission - what can be refused before a weight is read: methods that do not find in the model what they work along, a place
that cannot be written to."""

import os
import shutil
from pathlib import Path

from lowbit import statistics
from lowbit.core import ranks, words
from lowbit.core.errors import CapacityError, CheckpointError, RequestError
from lowbit.pipeline import prefixed, turned
from lowbit.pipeline.source import Source
from lowbit.recipe.grammar import step_text
from lowbit.recipe.plan import Plan
from lowbit.transforms import fold


def shareable(plan: Plan) -> None:
    """Raise RequestError when several processes cannot share the work of a plan."""
    if ranks.count() == 1:
        return
    told = [
        (name, f"{name} cannot be put together from parts of the text") for name in plan.needs if not statistics.joins(name)
    ]
    told += [(f"{t.name}", "tuners and finishers train on all windows") for t in plan.rows if t.tuners or t.finishers]
    told += [("the prefix", "one process looks for it")] if prefixed.method_of(plan) else []
    told += [("the basis", "it is searched on all windows") for turner in plan.turners if hasattr(turner, "study")]
    for name, reason in told[:1]:
        raise RequestError(f"{name} in {ranks.count()} processes: {reason}. Run it in one, without torchrun.")


def check(source: Source, plan: Plan) -> None:
    """Raise CheckpointError when the weights do not fit config.json, ArchitectureError when a transform that needs folds
    targets a block without any, or the model cannot be turned."""
    source.check_shapes()
    turned.check(source, plan)
    prefixed.check(source, plan)
    seen = {(transform, target.layer) for target in plan.rows for transform in target.transforms}
    for transform, layer in sorted(seen, key=lambda pair: pair[1]):
        if not getattr(transform, "needs_folds", False) or not 0 <= layer < len(source.blocks):
            continue
        fold.known(source.architecture.folds, source.blocks[layer], step_text(transform), source.prefix(layer))  # type: ignore[arg-type]


def place(out: Path, size: int = 0) -> None:
    """See that `size` bytes can be written to a new folder `out`. Raises CheckpointError, CapacityError."""
    if out.exists():
        raise CheckpointError(f"{out}: the folder exists already. Remove it or choose another --out.")
    folder = writable(out)
    free = shutil.disk_usage(folder).free
    if free < size * 1.1:
        raise CapacityError(f"{out}: {words.size(size)} to write, {words.size(free)} free. Free some or choose another --out.")


def writable(out: Path) -> Path:
    """See that files can be written to the folder `out`, there or not: the nearest folder that is. Raises CheckpointError."""
    folder = next(path for path in (out.absolute(), *out.absolute().parents) if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        fact = "cannot be written to" if folder.is_dir() else "is a file"
        raise CheckpointError(f"{out}: {folder} {fact}. Choose another --out.")
    return folder
