"""_bursts - how the operations of one token are started again and again, and how the host learns the tokens: by device.

Graphs    NVIDIA GPUs: captured once, replayed. The host starts a burst, and reads the burst before it meanwhile.
Calls     CPUs: called. Each token is read before the next one is begun.
"""

from collections.abc import Callable, Hashable, Iterator

import torch
from torch import Tensor

Read = Callable[[], list[int]]
"""Gives numbers that were asked for, once they are there."""


class Graphs:
    """One graph for each key, until `forget`."""

    burst = 8

    def __init__(self) -> None:
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def forget(self) -> None:
        """Memory that graphs use is no more."""
        self._graphs.clear()

    def prepared(self, key: Hashable, one: Callable[[], None], reset: Callable[[], None]) -> Callable[[], None]:
        """What starts the operations of `one`, captured when `key` is first wanted; they run thrice for it, between resets.

        A layer that asks the host for something cannot be captured: it is launched anew for each token.
        """
        if key not in self._graphs:
            side = torch.cuda.Stream()
            reset()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    one()
            torch.cuda.current_stream().wait_stream(side)
            found = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(found):
                    one()
            except RuntimeError:
                return one
            self._graphs[key] = found
        return self._graphs[key].replay

    def read(self, written: Tensor) -> Read:
        """Numbers on their way to the host."""
        found, done = written.to("cpu", non_blocking=True), torch.cuda.Event()
        done.record()

        def read() -> list[int]:
            done.synchronize()
            numbers: list[int] = found.tolist()
            return numbers

        return read

    def in_turn(self, bursts: Iterator[Read]) -> Iterator[Read]:
        """Bursts, each handed out when the one after it has been started."""
        before = next(bursts)
        for read in bursts:
            yield before
            before = read
        yield before


class Calls:
    """Everything at once."""

    burst = 1

    def forget(self) -> None:
        """There is nothing to forget."""

    def prepared(self, key: Hashable, one: Callable[[], None], reset: Callable[[], None]) -> Callable[[], None]:
        """`one` itself."""
        return one

    def read(self, written: Tensor) -> Read:
        """Numbers that are there."""
        return written.tolist

    def in_turn(self, bursts: Iterator[Read]) -> Iterator[Read]:
        """Bursts as they come."""
        return bursts
