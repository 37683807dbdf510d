"""sensitivity - what noise in each group of linears does to the predictions, and how much noise each format is.

In / Out  groups of linears by name, windows of tokens -> a_l: divergence for each unit of squared relative error, in nats.
          a format and a weight -> t^2 = |Q - W|^2 / |W|^2.
Idea      W + t |W| / sqrt(n) * N(0, 1) stands for a rounded matrix of relative error t, in one group alone; KL(original||noisy)
          grows with t^2, and a_l is the mean of KL / t^2 over LEVELS. All noisy streams go through the blocks together, so that
          each block is loaded once and only one is in memory; a stream begins at its own block.
          t^2 is measured by rounding a sample of rows to nearest. Formats that turn the basis or tell several weights by a code
          see a normal source whatever the matrix is, and are measured once on that.
          Solvers with feedback do better than nearest by a factor that is taken to be the same everywhere, so it drops out.
Source    HIGGS (2411.17525), section 4: the linearity theorem and its calibration.
Traps     The streams stay in memory, one for each group and level; `memory` tells how many bytes that is.
          A rewrite that a transform makes later is not seen here: the weights are the original's.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from lowbit.formats import Format
from lowbit.pipeline.blocks import fill
from lowbit.pipeline.closing import block as load
from lowbit.pipeline.outer import Outer
from lowbit.pipeline.progress import Progress
from lowbit.pipeline.source import Source
from lowbit.pipeline.stream import first
from lowbit.statistics._divergence import Divergence

LEVELS = (0.1, 0.25)
"""Relative sizes t of the noise: about the errors of 4 bits and of 2.5."""
BATCH_TOKENS = 2048
"""Tokens of one forward."""
SAMPLE = 1 << 15
"""Weights of a matrix that are rounded to measure a format on it."""
SOURCE_SHAPE = (32, 256)
"""Shape of the normal matrix for formats that see no other."""
SEEDS = 1_000_003
"""Distance of the seeds of two runs: more than a model has groups."""
Key = tuple[int, float]
"""A group's number and a level."""


def memory(source: Source, groups: int, tokens: int) -> int:
    """Bytes of the streams, of a block in float32, and of what lies outside the blocks."""
    config = source.text_config
    largest = max(sum(p.numel() for p in block.parameters()) for block in source.blocks)
    streams = (1 + groups * len(LEVELS)) * tokens * int(config.hidden_size)
    outside = int(config.vocab_size) * (config.hidden_size * (1 if source.tied else 2) + 4 * min(tokens, BATCH_TOKENS))
    return int(4 * (streams + 2 * largest + outside))


def slopes(
    source: Source, groups: Sequence[Sequence[str]], tokens: Tensor, seed: int, device: torch.device, progress: Progress
) -> list[float]:
    """a_l of every group of full names, in nats; never negative. tokens [windows, length]."""
    outer = source.outer(torch.float32, device)
    progress.start("sensitivities", len(source.blocks))
    try:
        clean, noisy = _streams(source, groups, outer, tokens, seed, progress)
    finally:
        progress.end()
    found: dict[Key, Divergence] = {key: Divergence() for key in noisy}
    for window, (row, hidden) in enumerate(zip(tokens, clean, strict=True)):
        original = outer.leave(row, hidden)
        for key, stream in noisy.items():
            found[key].add(row, outer.leave(row, stream[window]), original)
    outer.drop()
    return [max(0.0, _mean([_mean(found[n, t].kl) / t**2 for t in LEVELS])) for n in range(len(groups))]


def _streams(
    source: Source, groups: Sequence[Sequence[str]], outer: Outer, tokens: Tensor, seed: int, progress: Progress
) -> tuple[Tensor, dict[Key, Tensor]]:
    """Hidden states [windows, length, hidden] after the last block: of the original, and for each group and level."""
    kwargs = outer.kwargs(tokens.shape[1])
    clean = [outer.enter(batch) for batch in tokens.split(max(1, BATCH_TOKENS // tokens.shape[1]))]
    noisy: dict[Key, list[Tensor]] = {}
    for index in range(len(source.blocks)):
        module = load(source, source.stored.tensor, index, outer.device)

        def run(stream: list[Tensor], module: nn.Module = module, index: int = index) -> list[Tensor]:
            return [first(module(hidden, **kwargs[index])) for hidden in stream]

        noisy = {key: run(stream) for key, stream in noisy.items()}
        inside = f"{source.prefix(index)}."
        for number, names in enumerate(groups):
            for level in LEVELS if names[0].startswith(inside) else ():
                kept = _disturb(module, [n.removeprefix(inside) for n in names], level, SEEDS * seed + number)
                noisy[number, level] = run(clean)
                for name, weight in kept.items():
                    fill(module, name, weight)
        clean = run(clean)
        del module, run  # before the next is loaded: one block in memory
        progress.block(index, None, 0.0)
    return torch.cat(clean), {key: torch.cat(stream) for key, stream in noisy.items()}


def _disturb(module: nn.Module, names: Sequence[str], level: float, seed: int) -> dict[str, Tensor]:
    """Put noise of relative size `level` into linears of a block. Returns the weights as they were, by parameter."""
    kept = {}
    for number, name in enumerate(names):
        weight = module.get_parameter(f"{name}.weight")
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed * 1009 + number)).to(weight.device)
        kept[f"{name}.weight"] = weight.data
        fill(module, f"{name}.weight", weight.data + noise * (level * weight.norm() / noise.norm()))
    return kept


def errors(source: Source, names: Sequence[str], formats: Sequence[Format]) -> list[float]:
    """t^2 of each format on linears together, by full name."""
    total, found = 0.0, [0.0] * len(formats)
    for name in names:
        weight = source.weight(name).float()
        power = float(weight.square().sum())
        total += power
        found = [t + power * error(format, weight) for t, format in zip(found, formats, strict=True)]
    return [t / max(total, 1e-30) for t in found]


def error(format: Format, weight: Tensor) -> float:
    """Relative squared error of rounding `weight` [out, in] to nearest in `format`, on a sample of its rows."""
    if format.sides or format.step != (1, 1, 1):
        return _of_normal(format)
    rows = min(len(weight), max(format.group[0] or 1, SAMPLE // weight.shape[1], 1))
    # rows from all over the matrix where each has scales of its own, else neighbours
    sample = weight[torch.linspace(0, len(weight) - 1, rows).long()] if format.group[0] == 1 else weight[:rows]
    return _rounding(format, sample)


@cache
def _of_normal(format: Format) -> float:
    """The error on a normal source."""
    return _rounding(format, torch.randn(SOURCE_SHAPE, generator=torch.Generator().manual_seed(0)))


def _rounding(format: Format, weight: Tensor) -> float:
    values = format.fit(weight).quantize(weight).decode()
    return float((values - weight).square().sum() / weight.square().sum().clamp_min(1e-30))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
