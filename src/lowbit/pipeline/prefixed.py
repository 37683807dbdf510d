"""prefixed - the tokens that begin every sequence of a run, and what enters each block of them.

Idea      A few windows pass the blocks of the original once, to see which tokens stand out before down (in blocks of experts,
          which part the tokens among them, in what leaves the block); a method chooses; the chosen ones pass the blocks once
          more. What enters a block of them gives, with the block's weights as transforms left them, the keys and values that
          its file holds as constants. Both passes are kept in the work folder, so that a resumed run reads the same bytes.
"""

import fnmatch
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import checkpoints
from lowbit.core.errors import ArchitectureError, CalibrationError
from lowbit.kvcache import Front, Prefix, prefix_linears
from lowbit.methods import Prefixing
from lowbit.pipeline.reading import Reading
from lowbit.pipeline.source import Source
from lowbit.pipeline.stream import first
from lowbit.recipe.plan import Plan

WINDOWS, LENGTH = 8, 512
"""Of the calibration text: what is looked at."""
KEPT = "learned-prefix.tensors"
"""A safetensors file that no loader takes for weights."""


@dataclass
class Prefixed:
    """The prefix of a run. entering: by block."""

    prefix: Prefix = field(default_factory=lambda: Prefix(()))
    entering: list[Tensor] = field(default_factory=list)
    kwargs: list[dict[str, Any]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prefix.ids)

    def front(self, index: int, dtype: torch.dtype) -> Front:
        """The prefix before block `index`. dtype: as constants are stored."""
        return Front(self.entering[index], self.kwargs[index], dtype) if len(self) else Front()

    def windows(self, tokens: Tensor) -> Tensor:
        """Windows [windows, length] that begin with the prefix, of the same length."""
        if not len(self):
            return tokens
        before = self.prefix.before(tokens[0]).expand(len(tokens), -1)
        return torch.cat([before, tokens[:, : tokens.shape[1] - before.shape[1]]], 1)


def method_of(plan: Plan) -> Prefixing | None:
    """The method that chooses tokens to begin every sequence; the last one, None where there is none."""
    return next((method for method, _ in reversed(plan.recipe.steps) if isinstance(method, Prefixing)), None)


def check(source: Source, plan: Plan) -> None:
    """Raise ArchitectureError where a prefix is asked for and nothing says what gives keys and values."""
    if method_of(plan) is None:
        return
    for index, block in enumerate(source.blocks):
        if not prefix_linears(name for name, _ in block.named_modules()):
            where = f"{type(block).__name__} ({source.prefix(index)})"
            fact = "has no linears of keys and values by the names that are known"
            raise ArchitectureError(f"prefixquant: {where} {fact}. Leave this step out.")


def make(source: Source, plan: Plan, work: Path, tokens: Tensor | None, reading: Reading) -> Prefixed:
    """The prefix of a plan, empty where it has none; found on tokens [windows, length] once, and kept in `work`."""
    method = method_of(plan)
    if method is None:
        return Prefixed()
    if tokens is None:
        raise CalibrationError("prefixquant looks for tokens in a text, and there is none. Give a calibration text.")
    kept, outer = work / KEPT, source.outer(reading.dtype, reading.device)
    if not kept.exists():
        _find(source, method, outer, tokens[:WINDOWS, :LENGTH], reading, kept)
    with checkpoints.Shard(kept) as shard:
        ids = tuple(shard.tensor("ids").tolist())
        entering = [shard.tensor(f"{index}").to(reading.device) for index in range(len(source.blocks))]
    kwargs = outer.kwargs(len(ids))
    outer.drop()
    return Prefixed(Prefix(ids), entering, kwargs)


def _find(source: Source, method: Prefixing, outer: Any, tokens: Tensor, reading: Reading, kept: Path) -> None:
    """Choose the tokens, and write them and their hidden states."""
    tokenizer = source.tokenizer
    begin = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    reach: list[Tensor] = []
    hidden, kwargs = outer.enter(tokens), outer.kwargs(tokens.shape[1])
    for index in range(len(source.blocks)):
        module = reading.block(index)
        seen: list[Tensor] = []
        for name in _downs(source, module)[:1]:
            module.get_submodule(name).register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        hidden = first(module(hidden, **kwargs[index]))
        reach.append((seen or [hidden])[0].abs().amax(-1).float())
    ids = torch.tensor(method.prefix(tokens, reach, int(begin or 0)))
    found, state, kwargs = {"ids": ids}, outer.enter(ids[None]), outer.kwargs(len(ids))
    for index in range(len(source.blocks)):
        found[f"{index}"] = state.cpu().contiguous()
        state = first(reading.block(index)(state, **kwargs[index]))
    kept.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write_shard(kept, found)


def _downs(source: Source, block: nn.Module) -> list[str]:
    """The linears of a block that write into the stream and belong to no attention."""
    names = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    found = [name for pattern in source.architecture.writers for name in fnmatch.filter(names, pattern)]
    return [name for name in found if "attn" not in name and "expert" not in name]


def forget(work: Path) -> None:
    """Remove what was kept: the written model holds it with its layers."""
    (work / KEPT).unlink(missing_ok=True)
