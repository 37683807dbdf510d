"""awq - input channels that carry much are scaled up before rounding, and what feeds them down.

In / Out  a block, mean |x| of its linears' inputs -> the block with other weights and the same function; nothing is rounded.
          With a format and no solver after it, rtn follows in that format.
Idea      A weight scaled by s > 1 and its input by 1 / s meets the same rounding error, which the input then shrinks; the
          group's scale hardly grows. So s = mean|x|^r per channel, with one exponent r per fold: the r of a grid in 0 .. 1 that
          brings the output of the inspected module (attention, MLP, or the linear itself) nearest to what full precision gives,
          on real inputs, with the weights rounded to their formats. The scales move into the norm or linear before
          (transforms/fold.py).
Source    AWQ (2306.00978), section 3.2; auto_scale.py of llm-awq.
Defaults  grid 20 as in the paper, r = 1 included; of its 21 points those are tried that halving steps around the best ones meet
          (9), by several processes beside each other. windows 2: text that candidates are tried on.
Figures   lowbit-tiny, KL in milli-nats on books / docs / wikitext2, with rtn(search=weighted) after it and, in brackets, that
          alone: int4-g128-asym 47.8 / 59.9 / 102.8 (56.2 / 69.3 / 113.8), int3-g128-asym 197 / 254 / 389 (230 / 297 / 450).
          llm-compressor's AWQ: 52.6 / 66.0 / 110.0 at int4. With gptq after it there is no gain, as in other tools: 37.1 / 41.8
          / 88.2 against 36.4 / 40.6 / 85.0 (int3: 154 / 167 / 329 against 146 / 161 / 324). gptq weighs channels by itself.
Traps     The paper's second step, clipping by the outputs' error, is a choice of the group's scale: it is the solver's, and
          rtn(search=weighted) or gptq make it. rtn(search=mse) does not know the inputs: 53.1 / 66.0 / 111.8 at int4.
          Grouped queries: the reference leaves v -> o out; here a value channel takes the greatest of its query heads' means.
          Also dividing s by the weights' own size ("duo scaling") doubles the time and gained nothing (47.4 / 60.2 / 101.8).
          An expert that saw no token keeps its scales. Trellises are refused: each trial would search for all codes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lowbit.architectures import Fold
from lowbit.core import ranks
from lowbit.core.errors import CalibrationError
from lowbit.methods import Block, Count, Method
from lowbit.methods._taken import AT_ONCE, Formats
from lowbit.statistics import Stats
from lowbit.transforms import fold as folding

FLOOR = 1e-4
"""Least mean |x| of a channel, of the mean over channels: a silent channel must not blow up what feeds it."""
Call = tuple[tuple[Any, ...], dict[str, Any], Tensor]


@dataclass(frozen=True)
class AWQ(Method):
    """grid: steps of the exponent between 0 and 1. windows: of hidden states that candidates are tried on."""

    format: str = ""
    grid: Count = 20
    windows: Count = 2

    needs: ClassVar[tuple[str, ...]] = ("mean_magnitude",)
    takes: ClassVar[Formats] = AT_ONCE
    needs_folds: ClassVar[bool] = True

    @torch.no_grad()
    def rewrite(self, block: Block, stats: dict[str, Stats]) -> None:
        """Scale along every fold of the block whose readers are to be rounded. Raises ArchitectureError when none is known."""
        folds = folding.known(block.folds, block.module, "awq", block.name)
        if block.samples is None:
            raise CalibrationError(f"awq: {block.name} has no hidden states to try scales on. Give a calibration text.")
        calls = _record(block, {fold.inspect for fold in folds}, block.samples[: self.windows])
        for fold in folds:
            seen = [stats[name] for name in fold.targets if name in block.linears]
            if calls[fold.inspect] and any(s.tokens for s in seen):
                folding.apply(block.module, fold, self._best(block, fold, _magnitude(seen), calls[fold.inspect]), block.heads)

    def _best(self, block: Block, fold: Fold, magnitude: Tensor, calls: list[Call]) -> Tensor:
        """The scales [channels] with the least error; those of r = 0, which are 1, are among the tried."""
        trial = _Trial(block, fold, calls)
        channels = folding.gather(magnitude, fold, block.heads)
        tried: dict[int, tuple[float, Tensor]] = {}

        def attempt(*steps: int) -> None:
            fresh = [step for step in steps if 0 <= step <= self.grid and step not in tried]
            scales = [trial.exact(_balanced(channels ** (step / self.grid))) for step in fresh]
            own = [trial.error(s) if i % ranks.count() == ranks.mine() else 0.0 for i, s in enumerate(scales)]
            tried.update(zip(fresh, zip(ranks.total(own, channels.device), scales, strict=True), strict=True))

        def best() -> int:
            return min(tried, key=lambda step: tried[step][0])

        stride = max(1, self.grid // 4)
        attempt(*dict.fromkeys((*range(0, self.grid, stride), self.grid)))
        while stride > 1:
            stride //= 2
            centre = best()
            attempt(centre - stride, centre + stride)
        return tried[best()][1]


class _Trial:
    """The inspected module of one fold, run on what it was given, with rounded weights."""

    def __init__(self, block: Block, fold: Fold, calls: list[Call]) -> None:
        self.block, self.fold, self.calls = block, fold, calls
        self.readers = {name: block.linears[name] for name in fold.targets if name in block.linears}
        self.inspected = block.module.get_submodule(fold.inspect)
        self.moment: Tensor | None = None
        if isinstance(self.inspected, nn.Linear):
            x = torch.cat([args[0].flatten(0, -2).float() for args, _, _ in calls])
            self.moment = x.T @ x / len(x)

    def exact(self, scales: Tensor) -> Tensor:
        """The nearest scales that the source can take without a rounding error of its own, where it is a norm."""
        weight: Any = self.block.module.get_submodule(self.fold.source).weight
        return folding.storable(weight, scales, self.fold.offset) if weight.dim() == 1 else scales

    def error(self, scales: Tensor) -> float:
        """Mean squared error of the inspected module's output when its inputs are scaled so."""
        columns = folding.spread(scales, self.fold, self.block.heads)
        rounded = {name: self._rounded(name, linear.weight, columns) for name, linear in self.readers.items()}
        if self.moment is not None:
            name, linear = next(iter(self.readers.items()))
            off = rounded[name] - linear.weight.float()
            return float((off @ self.moment * off).sum() / len(off))
        with _weights(self.readers, rounded):
            errors = [(_first(self.inspected(*args, **kwargs)) - y).float().square().mean() for args, kwargs, y in self.calls]
        return float(torch.stack(errors).mean())

    def _rounded(self, name: str, weight: Tensor, columns: Tensor) -> Tensor:
        """What `weight` [out, in] comes to when it is scaled, rounded in its format and scaled back; float32."""
        scaled = weight.float() * columns
        return self.block.formats[name].fit(scaled, search=False).quantize(scaled).decode() / columns


def _magnitude(seen: list[Stats]) -> Tensor:
    """Mean |x| over all tokens of all readers [in], relative to its mean over channels."""
    total = torch.stack([s["mean_magnitude"] * s.tokens for s in seen]).sum(0)
    mean = float(total.mean())
    return (total / mean).clamp_min(FLOOR) if mean > 0 else torch.ones_like(total)


def _balanced(scales: Tensor) -> Tensor:
    """Scales whose least and greatest multiply to 1: norms stay within the range of 16-bit floats."""
    return scales / (scales.max() * scales.min()).sqrt()


def _record(block: Block, names: set[str], samples: Tensor) -> dict[str, list[Call]]:
    """The arguments and the output of every named submodule in one forward of the block; [] where it did not run."""
    calls: dict[str, list[Call]] = {name: [] for name in names}

    def keeper(name: str) -> Any:
        return lambda _, args, kwargs, output: calls[name].append((args, kwargs, _first(output)))

    hooks = [block.module.get_submodule(name).register_forward_hook(keeper(name), with_kwargs=True) for name in names]
    try:
        block.run(samples)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


@contextmanager
def _weights(linears: dict[str, nn.Linear], weights: dict[str, Tensor]) -> Iterator[None]:
    """The linears with other weights, for a while."""
    kept = {name: linear.weight.data for name, linear in linears.items()}
    try:
        for name, linear in linears.items():
            linear.weight.data = weights[name].to(linear.weight.dtype)
        yield
    finally:
        for name, linear in linears.items():
            linear.weight.data = kept[name]


def _first(output: Any) -> Tensor:
    """The hidden states of a module's output."""
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
