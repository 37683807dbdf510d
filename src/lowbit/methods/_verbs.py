"""_verbs - the verbs of methods as protocols: what each is given, and what it has to do."""

from collections.abc import Sequence
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods._work import Block, Model
from lowbit.statistics import Stats
from lowbit.transforms.turning import Turning


@runtime_checkable
class Solver(Protocol):
    """A method that rounds one matrix."""

    needs: ClassVar[tuple[str, ...]]

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized: ...


@runtime_checkable
class Transform(Protocol):
    """A method that rewrites a block without changing its function."""

    needs: ClassVar[tuple[str, ...]]

    def rewrite(self, block: Block, stats: dict[str, Stats]) -> None: ...


@runtime_checkable
class Tuner(Protocol):
    """A method that trains a quantized block. steps: of gradient descent, batch: windows in each; for estimates too."""

    needs: ClassVar[tuple[str, ...]]

    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...

    def refusal(self, format: Format) -> str:
        """Why it cannot tune matrices in `format`; "" where it can."""

    def tune(self, block: Block, inputs: list[Tensor], targets: list[Tensor]) -> None:
        """Replace block.quantized and what stays in floats by better ones, the same in every run.

        inputs: hidden states [windows, tokens, hidden] that enter, by batch, as quantized blocks before give them; targets:
        what the full-precision model has after this block. Puts "before" and "after" into block.report: losses.
        """


@runtime_checkable
class Finisher(Protocol):
    """A method that trains the whole model. steps, batch: as of tuners; weight_bytes: that it holds for every weight."""

    needs: ClassVar[tuple[str, ...]]
    weight_bytes: ClassVar[int]

    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...

    def refusal(self, format: Format) -> str:
        """Why it cannot train matrices in `format`; "" where it can."""

    def finish(self, model: Model) -> None:
        """Replace model.quantized and what stays in floats by better ones, the same in every run.

        Puts "before" and "after" into model.report: losses on held-out windows.
        """


@runtime_checkable
class Turner(Protocol):
    """A method that puts the whole model into another basis."""

    def turn(self, turning: Turning, learned: dict[str, Tensor]) -> None:
        """Say what becomes of the tensors. learned: what `study`, if it has that, found; {} before: then the start of it.

        Raises ArchitectureError where that would change the model's function.
        """


@runtime_checkable
class Prefixing(Protocol):
    """A method that chooses tokens to begin every sequence, whose keys and values become constants."""

    def prefix(self, tokens: Tensor, reach: Sequence[Tensor], first: int) -> tuple[int, ...]:
        """Their ids. tokens [windows, length]; reach: greatest |x| of each token before the down projection of each block
        (of experts: behind the block); first: what texts begin with."""


class Linear(Protocol):
    """A linear as a plan and `around` see it. name: full. role: attn, mlp, experts, head or embed; layer: its block's number;
    writes: into the residual stream."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def role(self) -> str: ...
    @property
    def layer(self) -> int: ...
    @property
    def writes(self) -> bool: ...
