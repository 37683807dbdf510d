"""turned - methods that put a whole model into another basis, before its blocks stream.

Idea      Such a method says what it does to the tensors of an Outline (transforms/turning.py); from then on the source gives
          them in the new basis, one by one, and every other step of a run reads those. A basis made of a seed is made again
          when a run goes on.
"""

from lowbit.pipeline.source import Source
from lowbit.recipe.plan import Plan
from lowbit.transforms.turning import Outline, Turning


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
    make(source, plan)


def make(source: Source, plan: Plan) -> Turning | None:
    """The turning of a plan; None where it has none."""
    if not plan.turners:
        return None
    turning = Turning(outline(source))
    for method in plan.turners:
        method.turn(turning, {})
    return turning
