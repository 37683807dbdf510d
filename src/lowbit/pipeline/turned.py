"""turned - methods that put a whole model into another basis, before its blocks stream.

Idea      Such a method says what it does to the tensors of an Outline (transforms/turning.py); from then on the source gives
          them in the new basis, one by one, and every other step of a run reads those. What a method has learned is kept in
          the work folder, so that a resumed run reads the same bytes; a basis made of a seed is made again.
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit import checkpoints, sides
from lowbit.core.errors import CalibrationError
from lowbit.formats import Parts
from lowbit.layers import replacing
from lowbit.layers.loading import load
from lowbit.methods import Study, name_of
from lowbit.pipeline import activations, online, tuned
from lowbit.pipeline.progress import Progress
from lowbit.pipeline.source import Source
from lowbit.recipe.plan import Plan
from lowbit.transforms.outline import Outline
from lowbit.transforms.turning import Turning

LEARNED = "learned-{}-{}.tensors"
"""What the method with this number in the sentence has learned; a safetensors file that no loader takes for weights."""


def outline(source: Source) -> Outline:
    """What a turning must know of the model of `source`."""
    config, model = source.text_config, source.skeleton
    heads = int(getattr(config, "num_attention_heads", 1))
    return Outline(
        architecture=source.architecture,
        blocks=tuple(tuple(name for name, _ in block.named_modules() if name) for block in source.blocks),
        parameters={name: p.dim() for name, p in model.named_parameters(remove_duplicate=False)},
        heads=(heads, int(getattr(config, "num_key_value_heads", None) or heads)),
        hidden=int(config.hidden_size),
        width=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
        kind=f"model_type '{source.config.model_type}'",
    )


def check(source: Source, plan: Plan) -> None:
    """Let every method of a plan that turns the model do so without a weight. Raises ArchitectureError."""
    turning = Turning(outline(source))
    for method in plan.turners:
        method.turn(turning, {})


def make(
    source: Source, plan: Plan, work: Path, tokens: Tensor | None, device: torch.device, progress: Progress
) -> Turning | None:
    """The turning of a plan; None where it has none. What methods learn on tokens [windows, length] is kept in `work`."""
    if not plan.turners:
        return None
    turning = Turning(outline(source))
    for number, method in enumerate(plan.turners):
        kept = work / LEARNED.format(number, name_of(method))  # type: ignore[arg-type]
        if hasattr(method, "study") and not kept.exists():
            if tokens is None:
                raise CalibrationError(f"{name_of(method)} learns on text, and there is none. Give a calibration text.")  # type: ignore[arg-type]
            with tuned.repeatable(device):
                found = method.study(study(source, plan, tokens, device, progress))
            checkpoints.write_shard(kept, {name: t.contiguous().cpu() for name, t in found.items()})
        learned: dict[str, Tensor] = {}
        if kept.exists():
            with checkpoints.Shard(kept) as shard:
                learned = {name: shard.tensor(name) for name in shard.entries}
        method.turn(turning, learned)
    return turning


def study(source: Source, plan: Plan, tokens: Tensor, device: torch.device, progress: Progress) -> Study:
    """The whole model in memory, and what will be done to it."""
    original: Any = load(source.folder.path, dtype=torch.float32, device=device).requires_grad_(False)
    replacing.open_experts(original)
    model = copy.deepcopy(original, {id(p): p for p in original.parameters()})  # the same weights
    ahead: online.Ahead = {}
    for name, format in plan.formats.items():
        weight, parts = model.get_submodule(name).weight, dict[str, Tensor]()
        for word in reversed(format.ahead):
            parts |= sides.get(word).fit(weight)
        if format.ahead:
            ahead[name] = format, parts
    online.hook(model, ahead)
    activations.attach(model, plan.activations, {n: format.inner for n, format in plan.formats.items()}, lambda _: None)
    kept: dict[str, Parts] = {name: parts for name, (_, parts) in ahead.items()}
    # a trellis is searched for minutes: no loss can have it in every step
    blind = frozenset(t.name for t in plan.rows if not t.solver.needs and t.format.step[0] == 1)
    return Study(model, original, outline(source), tokens, dict(plan.formats), kept, blind, progress.say)


def forget(work: Path) -> None:
    """Remove what was kept: the written model holds it in its weights."""
    for path in work.glob(LEARNED.format("*", "*")):
        path.unlink()
