"""spqr against gptq at four bits: ahead where single weights are large, behind where none are."""

import torch

from lowbit import formats
from lowbit.methods import get
from lowbit.solvers import ldl
from lowbit.statistics import Stats
from lowbit.testing.solvers import layer, moment_of


def loss(method: str, format: str, weight: torch.Tensor, moment: torch.Tensor) -> float:
    stats = Stats(tokens=4096, values={"second_moment": moment})
    found = get(method)().solve(weight, stats, formats.parse(format))  # type: ignore[attr-defined]
    return ldl.loss(weight - found.decode(), moment)


def test_large_single_weights_are_what_entries_are_for() -> None:
    weight, x = layer()
    moment, heavy = moment_of(x), weight.clone()
    places = torch.randperm(weight.numel(), generator=torch.Generator().manual_seed(1))[: weight.numel() // 250]
    heavy.view(-1)[places] *= 16
    three, four = "int3-g16-bilevel-sparse0.5", "int4-g128"
    assert loss("spqr", three, heavy, moment) < loss("gptq", four, heavy, moment)
    assert loss("spqr", three, weight, moment) > loss("gptq", four, weight, moment)
