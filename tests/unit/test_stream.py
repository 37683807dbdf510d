"""The paused forward: every stage sees what everything before it, as it stands, gives; everything is computed once."""

import pytest
import torch
from torch import nn

from lowbit.core.errors import ArchitectureError
from lowbit.pipeline.stream import Paused

STAGES = [["a", "b"], ["c"]]


class Toy(nn.Module):
    """Two linears that share an input, one after them, a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x + self.c(torch.tanh(self.a(x)) * self.b(x))


@torch.no_grad()
def test_stages_see_changed_weights_and_everything_runs_once() -> None:
    torch.manual_seed(0)
    toy = Toy()
    batches = [torch.randn(2, 3, 8) for _ in range(3)]
    with Paused(toy, toy, STAGES, batches) as runs:
        first = dict(runs.inputs(0))
        assert all(torch.equal(first[i]["a"], x) for i, x in enumerate(batches))
        toy.a.weight.mul_(0.5)
        second = dict(runs.inputs(1))
        toy.c.weight.add_(1.0)
        outputs = runs.outputs()
    for i, x in enumerate(batches):
        assert torch.equal(second[i]["c"], torch.tanh(toy.a(x)) * toy.b(x))
    assert toy.calls == 3
    assert all(torch.equal(toy(x), y) for x, y in zip(batches, outputs, strict=True))


@torch.no_grad()
def test_leaving_early_removes_hooks() -> None:
    toy = Toy()
    with Paused(toy, toy, STAGES, [torch.randn(1, 2, 8)]) as runs:
        next(runs.inputs(0))
    assert not toy.a._forward_pre_hooks and not toy.c._forward_pre_hooks
    toy(torch.randn(1, 2, 8))


@torch.no_grad()
def test_wrong_order_is_an_error() -> None:
    toy = Toy()
    with Paused(toy, toy, [["c"], ["a", "b"]], [torch.randn(1, 2, 8)]) as runs, pytest.raises(ArchitectureError, match="order"):
        list(runs.inputs(0))
