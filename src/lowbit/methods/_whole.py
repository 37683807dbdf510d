"""_whole - what methods share that learn a basis on the loss of the whole quantized network, before its blocks stream.

Idea      Every step turns all weights by the matrices as they are now, rounds what will be rounded (straight through), runs a
          few windows and moves the matrices down the gradient: orthogonal ones along the Stiefel manifold, scales by Adam.
          Weights whose solver looks at inputs stay floats: it makes up for their rounding later, better than a basis can.
          The best point on held-out windows is the result, and the start is one of the points.
Traps     The whole model, its turned copy and one backward pass are in memory.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit import sides
from lowbit.methods import Study
from lowbit.solvers import stiefel
from lowbit.solvers.trained import through
from lowbit.transforms.turning import Turning

HELD_OUT = 8
"""One window of so many is held out."""
CHECKS = 10
Turn = Callable[[Turning, dict[str, Tensor]], None]
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(logits, logits of the original, tokens), [windows, length, ...] -> mean loss."""


@dataclass(frozen=True)
class Settings:
    """steps; batch: windows in each. rate: of orthogonal matrices at the start, scale_rate: of logarithms of scales."""

    steps: int
    batch: int
    rate: float
    scale_rate: float = 0.0


def parameters(study: Study, turn: Turn, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters of the quantized network in the basis of `found`, with gradients to it."""
    held = dict(study.model.named_parameters(remove_duplicate=False))
    turning = Turning(study.outline, torch.float32)
    turning.exact = torch.float32
    turn(turning, found)
    values = {name: turning.tensor(name, held.__getitem__) for name in held if name in turning}
    for name, format in study.formats.items():
        weight: Tensor = values[f"{name}.weight"] if f"{name}.weight" in values else held[f"{name}.weight"]
        for word in reversed(format.ahead):
            weight = sides.get(word).into(weight, study.parts.get(name, {}))
        if name in study.rounded:
            inner = format.inner
            weight = through(weight, inner.fit(weight.detach(), search=False).quantize(weight.detach()).decode())
        values[f"{name}.weight"] = weight
    return values


def learn(
    study: Study, turn: Turn, start: Mapping[str, Tensor], loss: Loss, settings: Settings, scales: Mapping[str, Tensor] = {}
) -> dict[str, Tensor]:
    """Move `start`, orthogonal matrices by name, and `scales`, logarithms of scales, down the loss; their best values."""
    device = next(study.model.parameters()).device
    matrices = {n: t.detach().float().to(device).requires_grad_() for n, t in start.items()}
    logs = {n: t.detach().float().to(device).requires_grad_() for n, t in scales.items()}
    both = matrices | logs
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(study.tokens), generator=generator)
    count = max(1, len(order) // HELD_OUT)
    held, used = study.tokens[order[:count]], study.tokens[order[count:] if len(order) > count else order]

    def error(tokens: Tensor) -> Tensor:
        tokens = tokens.to(device)
        with torch.no_grad():
            wanted = study.original(tokens, use_cache=False).logits
        values = parameters(study, turn, both)
        options = {"use_cache": False}
        out = torch.func.functional_call(study.model, values, (tokens,), options, tie_weights=False)
        return loss(out.logits, wanted, tokens)

    @torch.no_grad()
    def held_out() -> float:
        return sum(float(error(row[None])) for row in held) / len(held)

    adam = torch.optim.Adam([*logs.values()], lr=settings.scale_rate) if logs else None
    least, best = held_out(), {n: t.detach().clone() for n, t in both.items()}
    study.say(f"held-out loss {least:.4f} at the start")
    every = max(1, settings.steps // CHECKS)
    for number in range(settings.steps):
        share = 0.5 * (1 + math.cos(math.pi * number / settings.steps))
        picked = torch.randint(len(used), (min(settings.batch, len(used)),), generator=generator)
        with torch.enable_grad():
            error(used[picked]).backward()
        with torch.no_grad():
            for matrix in matrices.values():
                if matrix.grad is not None:
                    matrix.copy_(stiefel.step(matrix, matrix.grad, settings.rate * share))
                    matrix.grad = None
            if adam is not None:
                adam.param_groups[0]["lr"] = settings.scale_rate * share
                adam.step()
                adam.zero_grad()
        if (number + 1) % every == 0 or number + 1 == settings.steps:
            now = held_out()
            if now < least:
                least, best = now, {n: t.detach().clone() for n, t in both.items()}
    study.say(f"held-out loss {least:.4f} after {settings.steps} steps")
    return best
