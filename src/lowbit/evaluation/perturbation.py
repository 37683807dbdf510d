"""perturbation - what quantizing one thing alone costs: weights, inputs of linears or the cache, by kind of layer.

In / Out  a float model, windows -> {"what", "kind", "kl", "kl_se", "top1"} for every kind of stage and every way to round.
Idea      Everything else stays exact, so the KL divergence from the original says where a recipe will lose. Weights are rounded
          to nearest: a solver with feedback loses less, by much the same factor everywhere. Losses of several parts add up
          roughly while they are small.
Traps     It runs the whole model once for each figure and window, in memory: for a model that fits.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lowbit import formats
from lowbit.evaluation.ranges import stages
from lowbit.kernels import activation as acting
from lowbit.kvcache import Half, Policy
from lowbit.pipeline import held
from lowbit.statistics._divergence import Divergence

ALL = "all"
WEIGHTS = ("int4", "int8")
INPUTS = ("int8-tensor", "int8-token", "int4-token")
CACHE = {"int8": "int8-row-floatzero", "int4": "int4-row-floatzero"}
GROUP = 128
Row = dict[str, Any]


def probe(model: Any, rows: Sequence[Tensor], originals: Sequence[Tensor], tell: Callable[[str], None]) -> list[Row]:
    """All figures. originals: logits of the model as it is, of every window. tell: what is being measured."""
    members: dict[str, list[str]] = {}
    for _, kind, names in stages(model):
        members.setdefault(kind, []).extend(names)
    groups = {**members, ALL: [name for names in members.values() for name in names]}
    found = []
    for kind, names in groups.items():
        tell(kind)
        for bits in WEIGHTS:
            with _weights(model, names, bits):
                found.append(_row(f"weights {bits}", kind, _plain(model, rows), rows, originals))
        for text in INPUTS:
            with _inputs(model, names, text):
                found.append(_row(f"inputs {text}", kind, _plain(model, rows), rows, originals))
    tell("cache")
    return found + [_cached(model, rows, originals, name, side) for name in CACHE for side in ("keys", "values", ALL)]


def _cached(model: Any, rows: Sequence[Tensor], originals: Sequence[Tensor], name: str, side: str) -> Row:
    """Keys, values or both held by token, a few sinks as floats."""
    half = Half(CACHE[name])
    policy = Policy(name, Half() if side == "values" else half, Half() if side == "keys" else half, recent=0)
    return _row(f"cache {name}", side, [held.logits(model, row, policy)[0] for row in rows], rows, originals)


def _plain(model: Any, rows: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [model(row[None], use_cache=False).logits[0] for row in rows]


def _row(what: str, kind: str, logits: Sequence[Tensor], rows: Sequence[Tensor], originals: Sequence[Tensor]) -> Row:
    found = Divergence()
    for row, ours, theirs in zip(rows, logits, originals, strict=True):
        found.add(row, ours, theirs)
    told = found.summary()
    return {"what": what, "kind": kind, "kl": told["kl"], "kl_se": told["kl_se"], "top1": told["top1"]}


def format_for(bits: str, inputs: int) -> str:
    """Groups of 128 where they divide, else whole rows."""
    return f"{bits}-g{GROUP}" if inputs % GROUP == 0 else f"{bits}-row"


@contextmanager
def _weights(model: Any, names: Sequence[str], bits: str) -> Any:
    """Linears with their weights rounded to nearest."""
    kept = {}
    for name in names:
        weight = model.get_parameter(f"{name}.weight")
        kept[name] = weight.data
        format = formats.parse(format_for(bits, weight.shape[1]))
        values = weight.data.float()
        weight.data = format.fit(values).quantize(values).decode().to(weight.dtype)
    try:
        yield
    finally:
        for name, value in kept.items():
            model.get_parameter(f"{name}.weight").data = value


@contextmanager
def _inputs(model: Any, names: Sequence[str], text: str) -> Any:
    """Linears with their inputs rounded."""
    activation = acting.parse(text)
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args: (acting.fake(args[0], activation), *args[1:]))
        for name in names
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
