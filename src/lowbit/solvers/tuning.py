"""tuning - gradient descent on the tensors of a quantized block or model, kept only where held-out windows agree.

In / Out  `run`: a block's module, its matrices as functions of trained tensors, hidden states that enter and those that should
          leave -> the trained tensors at their best values, and an Outcome. `descend`: the same for any loss.
Idea      Every step runs a few windows through the whole block with the weights that the tensors stand for, exactly as they
          would be stored, and goes down the gradient of the squared error of what leaves it. Rounding passes gradients
          straight through. Every tenth of the way the held-out windows (a tenth of all) are measured; the best point seen is
          the result, and the start is one of the points. So a tuner cannot make a block worse on text like the calibration's.
          sign: p -= rate * sign(gradient), for tensors whose scale is known. adam: for all others.
Source    AutoRound (2309.05516) for sign steps; BRECQ (2102.05426) for the block's output as the objective.
Traps     The sum of squares is divided by the mean square of the target, so rates and losses mean the same in every block.
"""

import math
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lowbit.solvers.trained import Piece, Trained

HELD_OUT = 10
"""One window of so many is held out; held-out windows are measured so many times."""
GRADIENT_SCALE = 1024.0
"""Factor of the loss while gradients flow in 16 bits."""


@dataclass(frozen=True)
class Settings:
    """steps; batch: windows a step. decay: of the rates, to 0 (linear) or a 20th (cosine). trim: share of the errors, the
    largest, that the loss leaves out. balanced: every channel's error divided by the mean square of its target."""

    steps: int
    batch: int
    optimiser: Literal["sign", "adam"]
    decay: Literal["linear", "cosine"] = "linear"
    trim: float = 0.0
    balanced: bool = False


@dataclass(frozen=True)
class Outcome:
    """Loss on held-out windows before and after; the same where the start was best."""

    before: float
    after: float

    @property
    def better(self) -> bool:
        return self.after < self.before


Batch = tuple[Tensor, ...]
"""What is known of some windows, as [windows, ...]: inputs, targets, what else a loss asks for."""
Error = Callable[[Batch], Tensor]


class Windows:
    """Tensors by batch, as inputs and targets, window by window; parted into windows to train on and those held out."""

    def __init__(self, columns: Sequence[Sequence[Tensor]], generator: torch.Generator) -> None:
        self._columns = columns
        self._generator = generator
        self._places = [(b, w) for b, batch in enumerate(columns[0]) for w in range(len(batch))]
        order = torch.randperm(len(self._places), generator=generator).tolist()
        count = max(1, len(order) // HELD_OUT)
        self.held = sorted(order[:count])
        self.trained = sorted(order[count:]) or self.held

    def pick(self, numbers: Sequence[int]) -> Batch:
        """A tensor [windows, ...] of each column, of the windows with these numbers."""
        places = [self._places[n] for n in numbers]
        return tuple(torch.stack([column[b][w] for b, w in places]) for column in self._columns)

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches to train on, without end; every window once before any comes again."""
        size, order = min(size, len(self.trained)), list[int]()
        while True:
            while len(order) < size:
                shuffled = torch.randperm(len(self.trained), generator=self._generator).tolist()
                order += [self.trained[i] for i in shuffled]
            yield self.pick(order[:size])
            order = order[size:]

    def held_out(self, error: Error, size: int) -> float:
        """Mean of `error` over the windows that are held out, `size` at a time."""
        parts = [self.held[i : i + size] for i in range(0, len(self.held), size)]
        return sum(float(error(self.pick(p))) * len(p) for p in parts) / len(self.held)


def run(
    module: nn.Module,
    kwargs: Mapping[str, Any],
    pieces: Mapping[str, Piece],
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    settings: Settings,
    seed: int,
) -> Outcome:
    """Train `pieces`, by the name of the parameter of `module` that each stands for; they hold their best values afterwards.

    The start to beat is the module as it is. Where nothing beats it, the pieces are of no use: see Outcome.better.
    """
    windows = Windows((inputs, targets), torch.Generator().manual_seed(seed))
    loss = _loss(_channel_power(targets), settings)

    def start(batch: Batch, parameters: Mapping[str, Tensor] = types.MappingProxyType({})) -> Tensor:
        out = torch.func.functional_call(module, dict(parameters), (batch[0],), dict(kwargs))
        return loss(out[0] if isinstance(out, tuple) else out, batch[1])

    def error(batch: Batch) -> Tensor:
        return start(batch, {name: p.value().to(module.get_parameter(name).dtype) for name, p in pieces.items()})

    return descend([t for piece in pieces.values() for t in piece.trained], windows, start, error, settings)


@torch.no_grad()
def descend(
    trained: Sequence[Trained],
    windows: Windows,
    start: Error,
    error: Error,
    settings: Settings,
    moved: Callable[[], None] = lambda: None,
    held: Sequence[Tensor] = (),
) -> Outcome:
    """Take `trained` down the gradient of `error`; they hold their best values afterwards. start: the loss to beat.

    moved: called after every step; held: tensors that it changes in place.
    """
    state = [t.value.data for t in trained] + list(held)
    before = least = windows.held_out(start, settings.batch)
    best = [tensor.clone() for tensor in state]
    step, every = _stepper(trained, settings), max(1, settings.steps // HELD_OUT)
    for number, batch in zip(range(settings.steps), windows.batches(settings.batch), strict=False):
        with torch.enable_grad():
            (error(batch) * GRADIENT_SCALE).backward()
        step(number)
        moved()
        if (number + 1) % every == 0 or number + 1 == settings.steps:
            now = windows.held_out(error, settings.batch)
            if now < least:
                least, best = now, [tensor.clone() for tensor in state]
    for tensor, value in zip(state, best, strict=True):
        tensor.copy_(value)
    return Outcome(before, least)


def _channel_power(targets: Sequence[Tensor]) -> Tensor:
    """Mean square of each channel of the targets, float32 [hidden]."""
    total = sum(t.float().square().sum((0, 1), dtype=torch.float64) for t in targets)
    return (total / sum(t.shape[0] * t.shape[1] for t in targets)).float()  # type: ignore[union-attr]


def _loss(power: Tensor, settings: Settings) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean squared error over the mean square of the target, each channel's by its own where balanced."""
    mean = power.mean().clamp_min(1e-20)
    divisor = power + 0.01 * mean if settings.balanced else mean

    def loss(out: Tensor, target: Tensor) -> Tensor:
        errors = (out.float() - target.float()).square() / divisor
        dropped = int(settings.trim * errors.numel())
        if dropped:
            bound = errors.detach().flatten().topk(dropped).values[-1]
            errors = torch.where(errors < bound, errors, 0.0)
        return errors.mean()

    return loss


def _stepper(trained: Sequence[Trained], settings: Settings) -> Callable[[int], None]:
    """What moves every trained tensor once by its gradient, and forgets the gradient."""
    adam = (
        torch.optim.Adam([{"params": [t.value]} for t in trained], lr=0.0, eps=1e-10) if settings.optimiser == "adam" else None
    )

    def factor(number: int) -> float:
        left = 1 - number / settings.steps
        return left if settings.decay == "linear" else 0.05 + 0.95 * (1 - math.cos(math.pi * left)) / 2

    def step(number: int) -> None:
        if adam is not None:
            for group, t in zip(adam.param_groups, trained, strict=True):
                group["lr"] = t.rate * factor(number)
            adam.step()
        for t in trained:
            if adam is None and t.value.grad is not None:
                t.value.data.sub_(t.value.grad.sign_(), alpha=t.rate * factor(number))
            t.value.data.clamp_(t.low, t.high)
            t.value.grad = None

    return step
