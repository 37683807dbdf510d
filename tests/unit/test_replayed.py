"""solvers/replayed.py without a GPU, by graphs that call the captured function again on the graph's own tensors."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from lowbit import formats
from lowbit.solvers import grid, replayed


class Graph:
    """In place of replayed.CudaGraph: a replay goes on with the tensors of the capture and writes where that wrote."""

    made: "list[Graph]"

    def __init__(self, function: replayed.Function, given: Sequence[Tensor], pool: object) -> None:
        self.given = [torch.empty_like(tensor) for tensor in given]
        self._function = function
        for tensor in self.given:
            tensor.zero_()
        self.found = tuple(torch.full_like(tensor, -1) for tensor in function(*given))
        self.replays = 0
        Graph.made.append(self)

    def replay(self) -> None:
        self.replays += 1
        for to, tensor in zip(self.found, self._function(*self.given), strict=True):
            to.copy_(tensor)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Graph]]:
    Graph.made = []
    monkeypatch.setattr(replayed, "CudaGraph", Graph)
    monkeypatch.setattr(replayed, "refusal", lambda tensor: "")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    yield Graph.made
    replayed.forget()


@pytest.mark.parametrize("text", ["int4-g32", "int3-g64-asym", "int2-row", "nf4-g64"])
def test_matrices_of_one_shape_are_solved_by_one_graph(graphs: list[Graph], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix has its own H, order of columns, scales and weights: what a graph kept of another one would show."""
    format, found, plain = formats.parse(text), [], []
    for kept in (found, plain):
        if kept is plain:
            monkeypatch.setattr(replayed, "refusal", lambda tensor: "no graphs")
        for seed in range(4):
            torch.manual_seed(seed)
            seen, weight = torch.randn(300, 128) * torch.rand(128), torch.randn(24 if seed < 3 else 8, 128)
            kept.append(grid.solve(weight, grid.problem(seen.T @ seen / 300, 300), format))
    for one, other in zip(found, plain, strict=True):
        assert torch.equal(one.codes, other.codes) and one.report == other.report
        assert all(torch.equal(one.parts[name], other.parts[name]) for name in other.parts)
    in_groups = text in {"int4-g32", "int3-g64-asym"}  # others are refitted otherwise, or not by a kernel
    assert [graph.replays for graph in graphs] == ([2] if in_groups else [])


def test_what_cannot_be_captured_is_called(graphs: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*told: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(replayed, "CudaGraph", failing)
    for number in range(4):
        (found,) = replayed.call("twice", lambda x: (2 * x,), [torch.tensor([float(number)])])
        assert found.item() == 2 * number


def test_without_room_there_is_no_graph(graphs: list[Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replayed, "available_memory", lambda device: 40)
    for _ in range(3):
        assert replayed.call("one", lambda x: (x + 1,), [torch.zeros(1)])[0].item() == 1
        assert replayed.call("other", lambda x: (x + 1,), [torch.zeros(2)])[0].sum() == 2
    assert not graphs


def test_a_cpu_has_no_graphs() -> None:
    assert replayed.refusal(torch.zeros(1)) == "device cpu is not an NVIDIA GPU"
