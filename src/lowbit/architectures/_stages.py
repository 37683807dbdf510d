"""_stages - which linears of a block share an input, by name or as a trial forward shows.

Idea   Linears that are given the same memory belong to one stage, in the order in which a forward meets them.
Traps  Two views of one tensor are one input; the same memory after a change in place is another.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def shares(names: Sequence[str]) -> dict[str, list[str]]:
    """The linears of a stage by the one whose input they share: all of it, or those of one expert."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[0] if ".experts." in name else "", []).append(name)
    return {members[0]: members for members in groups.values()}


def traced(block: nn.Module, run: Callable[[], Any]) -> tuple[tuple[str, ...], ...]:
    """The linears of a block by shared input, in the order in which a forward meets them.

    run: runs the block once, with any hidden states of at least one token. Experts taken apart (lowbit.layers.experts) announce
    their inputs together and make one stage, whatever the tokens chose. A linear that did not run is in no stage.
    """
    found: dict[tuple[int, ...], list[str]] = {}
    met: set[str] = set()
    alive: list[Tensor] = []

    def meet(names: list[str], x: Tensor) -> None:
        alive.append(x)  # its memory must not be given to another tensor before the end
        place = (x.untyped_storage().data_ptr(), int(x.storage_offset()), x.numel(), x._version)
        found.setdefault(place, []).extend(n for n in names if n not in met)
        met.update(names)

    def linear_hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _, args: meet([name], args[0])

    def announce_hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        prefix = name.removesuffix("announce")

        def announced(_: nn.Module, args: tuple[Any, ...]) -> None:
            experts = [prefix + n.rpartition(".")[0] for n in args[0]]
            meet([f"{expert}.{leaf}" for leaf in args[1] for expert in experts], next(iter(args[0].values())))

        return announced

    hooks = [m.register_forward_pre_hook(linear_hook(n)) for n, m in block.named_modules() if isinstance(m, nn.Linear)]
    hooks += [m.register_forward_pre_hook(announce_hook(n)) for n, m in block.named_modules() if n.endswith(".announce")]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(tuple(names) for names in found.values() if names)
