"""beside - work that goes on beside the run on a GPU: the next block is read, the last one written, while it computes.

Idea      One thread with a stream of its own; it waits for what the run's stream was given before, then works freely. On a CPU
          it would take cores and memory from the run: there the work is done when its result is asked for.
Traps     Memory that was made on one stream and is freed while another one still reads it is given away too early: results
          are recorded on the stream that asks for them, and work holds what it reads until its own stream has finished.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


class Pending(Generic[Result]):
    """Work that was started, or waits to be asked for. tensors: of its result."""

    def __init__(self, ask: Callable[[], Result], tensors: Callable[[Result], Iterable[Tensor]]) -> None:
        self._ask = ask
        self._tensors = tensors

    def result(self) -> Result:
        """What the work gave; raises what it raised."""
        found = self._ask()
        for tensor in self._tensors(found):
            if tensor.is_cuda:
                tensor.record_stream(torch.cuda.current_stream(tensor.device))
        return found


class Beside:
    """A thread for the work of one device. real: whether there is one."""

    def __init__(self, device: torch.device) -> None:
        self.real = device.type == "cuda"
        self._pool = ThreadPoolExecutor(1) if self.real else None
        self._stream = torch.cuda.Stream(device) if self.real else None
        self._last: Pending[None] | None = None

    def start(
        self, work: Callable[[], Result], tensors: Callable[[Result], Iterable[Tensor]] = lambda _: ()
    ) -> Pending[Result]:
        """Begin `work` after what was started before it. tensors: those of its result that the caller will use."""
        if self._pool is None or self._stream is None:
            return Pending(work, tensors)
        stream, before = self._stream, torch.cuda.Event()
        before.record(torch.cuda.current_stream(stream.device))

        @torch.no_grad()
        def run() -> Result:
            with torch.cuda.stream(stream):
                stream.wait_event(before)
                found = work()
                stream.synchronize()
                return found

        return Pending(self._pool.submit(run).result, tensors)

    def do(self, work: Callable[[], None]) -> None:
        """Begin `work` once what `do` began before has ended (raises what that raised); on a CPU, do it."""
        self.wait()
        self._last = self.start(work)
        if not self.real:
            self.wait()

    def wait(self) -> None:
        """Wait for what `do` began; raises what it raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """Wait for all work; what it raised is not raised here."""
        if self._pool is not None:
            self._pool.shutdown()
