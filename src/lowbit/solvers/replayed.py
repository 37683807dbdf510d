"""replayed - what is done to every matrix of one shape alike, as a CUDA graph from the second time on.

In / Out  a function of tensors, the tensors -> the tensors that it gives.
Idea      A matrix is rounded by a thousand launches, each a few microseconds of the GPU and tens of the host, on one GPU as on
          each of several that share its rows. Blocks have matrices of the same shapes, so the first call compiles, the second
          is captured, and all others are one launch. What is given is copied into the graph's own tensors, what it gives out
          of them.
Traps     The function may use no tensor that it is not given (a graph goes on with the memory of the call that was captured)
          and may not wait for the GPU. Graphs share one pool of memory: results are copied before the next one runs.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lowbit.core.device import available_memory

Function = Callable[..., tuple[Tensor, ...]]
ROOM = 12
"""A graph is made where so many times the bytes of what is given are free."""


class Graph(Protocol):
    """A captured function: its own inputs, and what it writes."""

    given: Sequence[Tensor]
    found: tuple[Tensor, ...]

    def replay(self) -> None:
        """Run the function on `given` into `found`."""


class CudaGraph:
    """The graph of a GPU."""

    def __init__(self, function: Function, given: Sequence[Tensor], pool: Any) -> None:
        self.given: Sequence[Tensor] = [torch.empty_like(tensor, memory_format=torch.preserve_format) for tensor in given]
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):  # others read and write meanwhile
            self.found: tuple[Tensor, ...] = function(*self.given)

    def replay(self) -> None:
        self._graph.replay()


_graphs: dict[Hashable, Graph | None] = {}
"""By function and shapes; None: called once, or not to be captured."""
_failed: set[Hashable] = set()
_pools: dict[torch.device, Any] = {}


def refusal(tensor: Tensor) -> str:
    """Why calls with such tensors are launched anew each time, or ""."""
    nvidia = tensor.device.type == "cuda" and torch.version.hip is None
    return "" if nvidia else f"device {tensor.device.type} is not an NVIDIA GPU"


def call(name: Hashable, function: Function, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """function(*given). name: what, beside the kinds of the tensors, makes two calls the same work."""
    key = (name, *((tensor.device, tensor.dtype, tensor.shape, tensor.stride()) for tensor in given))
    if key not in _graphs or key in _failed:
        _graphs[key] = None
        return function(*given)
    graph = _graphs[key] or _captured(key, function, given)
    if graph is None:
        return function(*given)
    for own, tensor in zip(graph.given, given, strict=True):
        own.copy_(tensor)
    graph.replay()
    return tuple(tensor.clone() for tensor in graph.found)


def _captured(key: Hashable, function: Function, given: Sequence[Tensor]) -> Graph | None:
    """The graph of a function, or None where there is no room or something in it cannot be captured."""
    device = given[0].device
    if ROOM * sum(tensor.nbytes for tensor in given) > available_memory(device):
        _failed.add(key)
        return None
    if device not in _pools:
        _pools[device] = torch.cuda.graph_pool_handle()
    try:
        _graphs[key] = CudaGraph(function, given, _pools[device])
    except RuntimeError:
        _failed.add(key)
    return _graphs[key]


def forget() -> None:
    """Give the memory of all graphs back."""
    _graphs.clear()
    _failed.clear()
    _pools.clear()
