"""transforms - what every method must pass that promises to leave a model's function as it is, on every architecture.

check_function   a small random model with loud channels, transformed block by block and put into other bases, its online parts
                 applied: logits within 1e-5 of their spread, in float64
"""

import dataclasses
import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import formats, methods
from lowbit.core.errors import ArchitectureError
from lowbit.methods import Block, Turner
from lowbit.pipeline import online
from lowbit.pipeline.source import Linear
from lowbit.pipeline.stream import first
from lowbit.statistics import Collecting, Stats
from lowbit.testing import architectures as suite
from lowbit.testing._tiny import blocks_of, tokens
from lowbit.transforms.turning import Turning

QUICK = {"steps": 2, "batch": 1, "grid": 4}
FORMAT = "int8-row"


def names() -> list[str]:
    """The methods that say in their header that the function stays."""
    kept = ("the same function", "function stays", "without changing its function")
    return [n for n in methods.shelf.names() if any(k in (methods.shelf.get(n).__doc__ or "") for k in kept)]


def made(name: str) -> Any:
    """The method, with few steps."""
    method: Any = methods.get(name)()
    known = {field.name for field in dataclasses.fields(method)}
    return dataclasses.replace(method, **{k: v for k, v in QUICK.items() if k in known})


def check_function(name: str, architecture: str, bound: float = 1e-5) -> None:
    """A method leaves the logits of a small model of an architecture, or refuses it by name."""
    method, model = made(name), suite.model_of(architecture, tie_word_embeddings=False).double()
    known = suite.architecture(architecture)
    blocks = blocks_of(model, known.blocks)
    for source in {f.source for f in known.folds if "norm" in f.source}:
        blocks[0].get_parameter(f"{source}.weight").data[:3] *= 12
    with torch.no_grad(), suite.Exact():
        before = model(tokens()).logits
        if isinstance(method, Turner):
            turning = Turning(suite.outline(architecture, model), torch.float64)
            try:
                method.turn(turning, {})
            except ArchitectureError:
                return
            suite.turn(model, turning)
        for index, (module, args, kwargs) in enumerate(suite.forwards(model, known, tokens()[:1])):
            _rewrite(method, module, (args[0], kwargs), known, index, suite.heads_of(model))
        after = model(tokens()).logits
    error = float((after - before).abs().max() / before.std())
    if not error <= bound:
        raise AssertionError(f"{name} on {architecture}: the logits move by {error:.1e} of their spread, not {bound:.0e}.")


def _rewrite(method: Any, module: nn.Module, told: Any, known: Any, index: int, heads: tuple[int, int]) -> None:
    """Transform one block, and apply what its linears do while running. told: hidden states, and what stands beside them."""
    hidden, kwargs = told
    linears = {n: m for n, m in module.named_modules() if isinstance(m, nn.Linear)}
    stages = [[n for p in stage for n in fnmatch.filter(list(linears), p)] for stage in known.stages]
    made = {}
    for n, linear in linears.items():
        writes = any(fnmatch.fnmatch(n, p) for p in known.writers)
        seen = Linear(n, (linear.out_features, linear.in_features), "mlp", index, writes)
        word = method.around(seen) if hasattr(method, "around") else ""
        made[n] = formats.parse(FORMAT).behind(word) if word else formats.parse(FORMAT)

    def run(x: Tensor) -> Tensor:
        return first(module(x, **kwargs))

    block = Block(index, f"{known.blocks}.{index}", module, linears, {n: f.inner for n, f in made.items()}, known.folds,
                  tuple(map(tuple, stages)), run, heads, hidden, kwargs)  # fmt: skip
    if hasattr(method, "rewrite"):
        method.rewrite(block, _statistics(block, tuple(method.needs)))
    online.prepare(module, made, block.parts, stages)


def _statistics(block: Block, needs: tuple[str, ...]) -> dict[str, Stats]:
    """Of every linear's inputs."""
    found = {n: Collecting(needs, m.in_features, torch.device("cpu")) for n, m in block.linears.items()}
    hooks = [m.register_forward_pre_hook(lambda _, a, n=n: found[n].add(a[0])) for n, m in block.linears.items()]
    block.run(block.samples)  # type: ignore[arg-type]
    for hook in hooks:
        hook.remove()
    return {n: c.stats() for n, c in found.items()}
