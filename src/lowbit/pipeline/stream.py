"""stream - a decoder block over all windows, paused at each stage.

Idea      The inputs of a linear must be those that it will get at run time: from the quantized blocks before it and from the
          quantized linears before it in its own block. Running the block again for every stage would cost its attention four
          times. Here each batch's forward is a coroutine (greenlet): it runs until it reaches the first linear of the next
          stage, hands over that linear's input and waits. When the stage's linears hold their quantized weights it goes on.
          So one quantized pass computes everything once, for any architecture, since the forward is the model's own.
Traps     A forward must meet the stages in their order. Experts (lowbit.layers.experts) announce the inputs of all experts
          together, for the same reason. A paused forward holds its intermediate tensors: one stage's worth for all windows.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from lowbit.core.errors import ArchitectureError

Inputs = dict[str, Tensor]
"""Input [..., in] of each linear of a stage that does not share another one's."""


class Paused:
    """The forwards of one block, one coroutine a batch.

    stages: names of linears inside `module`, in running order. Use: for each stage `for i, x in runs.inputs(s)`, change
    weights, next stage; at last `outputs()`.
    """

    def __init__(
        self, module: nn.Module, forward: Callable[[Tensor], Tensor], stages: Sequence[Sequence[str]], batches: Sequence[Tensor]
    ) -> None:
        self._stage_of = {name: s for s, names in enumerate(stages) for name in names}
        self._stages = stages
        self._reached = [-1] * len(batches)
        self._running = 0
        self._main = getcurrent()
        self._forward = forward
        self._batches = batches
        self._runs = [greenlet(forward) for _ in batches]
        self._hooks = [
            h for name in self._stage_of for h in [module.get_submodule(name).register_forward_pre_hook(self._hook(name))]
        ]
        self._hooks += [
            m.register_forward_pre_hook(self._announced(n)) for n, m in module.named_modules() if n.endswith(".announce")
        ]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def reached(_: nn.Module, args: tuple[Any, ...]) -> None:
            self._pause(self._stage_of[name], {name: args[0]})

        return reached

    def _announced(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        prefix = path.removesuffix("announce")

        def reached(_: nn.Module, args: tuple[Any, ...]) -> None:
            inputs: Inputs = {}
            for name, x in args[0].items():
                takers = (f"{prefix}{name.rpartition('.')[0]}.{leaf}" for leaf in args[1])
                inputs |= {taker: x for taker in list(filter(self._stage_of.__contains__, takers))[:1]}
            if inputs:
                self._pause(self._stage_of[next(iter(inputs))], inputs)

        return reached

    def _pause(self, stage: int, inputs: Inputs) -> None:
        if stage > self._reached[self._running]:
            self._reached[self._running] = stage
            self._main.switch(inputs)

    def inputs(self, stage: int) -> Iterator[tuple[int, Inputs]]:
        """Run every batch up to `stage`; yields the batch's number and the inputs there."""
        for i, run in enumerate(self._runs):
            found = self._go(i, run)
            if run.dead or self._reached[i] != stage:
                names = ", ".join(self._stages[stage])
                raise ArchitectureError(
                    f"The forward of this block never reached {names} in the declared order. Declare its stages."
                )
            yield i, found

    def outputs(self) -> list[Tensor]:
        """Run every batch to its end; the block's outputs."""
        out = [self._go(i, run) for i, run in enumerate(self._runs)]
        if not all(run.dead for run in self._runs):
            raise ArchitectureError(
                "The forward of this block met a stage twice. Declare its stages in the order in which they run."
            )
        return out

    def _go(self, i: int, run: greenlet) -> Any:
        self._running = i
        return run.switch() if self._reached[i] >= 0 else run.switch(self._batches[i])

    def close(self) -> None:
        """Remove the hooks and drop what is still paused."""
        for hook in self._hooks:
            hook.remove()
        for run in self._runs:
            if not run.dead and run:
                run.throw()

    def __enter__(self) -> "Paused":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states of a decoder layer's output (older classes return a tuple)."""
    return output[0] if isinstance(output, tuple) else output
