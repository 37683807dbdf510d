"""tuned - what surrounds a tuner: gradients that are the same in every run, and what its block gives afterwards.

Traps     On a GPU attention and sums over indices have gradients that differ in the last bits from run to run unless torch is
          told otherwise, and a resumed run must give the same bytes.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.core.errors import RequestError
from lowbit.pipeline.stream import first

CUBLAS, WORKSPACE = "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
os.environ.setdefault(CUBLAS, WORKSPACE)  # torch looks at it once, when it first multiplies on a GPU


@contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Make gradients the same in every run; on the CPU they are. Raises RequestError where cuBLAS is set otherwise."""
    if device.type != "cuda":
        yield
        return
    was, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        try:
            torch.ones(2, 2, device=device).mm(torch.ones(2, 2, device=device))
        except RuntimeError as error:
            fact = "this process used cuBLAS before lowbit could make it repeatable"
            raise RequestError(f"Tuning on {device}: {fact}. Set {CUBLAS}={WORKSPACE} before Python starts.") from error
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warned)


def outputs(
    module: nn.Module, kwargs: Mapping[str, Any], batches: Sequence[Tensor], originals: Mapping[str, Tensor]
) -> tuple[list[Tensor], dict[str, float]]:
    """What leaves the block, and by linear the squared error of its output, relative to what its original weight gives."""
    sums: dict[str, Tensor] = {}

    def compare(name: str, weight: Tensor) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
        def hook(linear: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            wanted = nn.functional.linear(args[0], weight)
            got = out if linear.bias is None else out - linear.bias.data  # type: ignore[operator]
            both = torch.stack([(got - wanted).float().square().sum(), wanted.float().square().sum()]).double()
            sums[name] = sums.get(name, torch.zeros_like(both)) + both

        return hook

    hooks = [module.get_submodule(n).register_forward_hook(compare(n, w)) for n, w in originals.items()]
    found = [first(module(h, **kwargs)) for h in batches]
    for hook in hooks:
        hook.remove()
    return found, {name: float(lost / power) for name, (lost, power) in sums.items() if power > 0}
