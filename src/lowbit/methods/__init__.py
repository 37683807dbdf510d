"""methods - a block and its statistics -> a better or smaller block. One file is one paper.

A method is a frozen dataclass, the only public one of its file; its fields are the paper's hyper-parameters; `needs` names
the statistics it wants (files of lowbit.statistics). It has exactly one verb:
    rewrite(self, block: Block, stats: dict[str, Stats]) -> None      transform: the block's function stays the same
    solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized   solver: rounds one matrix [out, in]
    tune(self, block: Block, inputs, targets) -> None    tuner: trains a block whose matrices are solved
    finish(self, model: Model) -> None    finisher: trains the whole model once all blocks are done
A method may also have `turn(self, turning, learned) -> None`: it puts the whole model into another basis before its blocks
stream, alone or beside its verb (Turner); and `around(self, linear) -> str`: the side of its format that a linear gets;
and `prefix(self, tokens, reach, first) -> ids`: the tokens that shall begin every sequence (Prefixing).
Declarations (act, kv, budget) have none: they set formats in the plan. A field `format: str` names what the method quantizes
to; in a transform it is the format that it prepares for, in a tuner the one that `start`, a solver, rounds to before it.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lowbit.architectures import Fold
from lowbit.core.chain import Link
from lowbit.core.errors import RecipeError
from lowbit.core.shelf import Shelf
from lowbit.formats import Format, Parts, Quantized
from lowbit.kernels.activation import Activation
from lowbit.statistics import Stats
from lowbit.transforms.outline import Outline
from lowbit.transforms.turning import Turning

shelf = Shelf(__name__, "method")
FIELDS = "__dataclass_fields__"


class Method(Link):
    """Base of all methods. needs: names of statistics. stacks: whether it rounds each row for itself, by statistics of the
    inputs alone, so that matrices of one input may come as one, rows under rows."""

    needs: ClassVar[tuple[str, ...]] = ()
    stacks: ClassVar[bool] = False


@dataclass
class Block:
    """One decoder layer at work.

    index, name: its place ("model.layers.3"). module: the layer with float weights. linears: the targeted linears by name
    inside the block. formats: what each will be quantized to. folds: edges for transforms, names resolved. stages: names.
    ahead: by linear the sides of its format that change its inputs while running; parts: what a transform chose for these.
    activations: how inputs are rounded, of linears whose are.
    run: hidden [windows, tokens, hidden] -> hidden, through the whole layer. heads: (query heads, key-value heads).
    samples: hidden states [windows, tokens, hidden] that enter the block, for methods that try candidates.
    kwargs: what the layer takes beside hidden states, for running submodules alone.
    For tuners, by the linears' names: quantized, the solved matrices (the linears hold their values), which a tuner replaces;
    originals, the weights [out, in] that were rounded. stored: the type of what stays in floats. report: what is to be told.
    """

    index: int
    name: str
    module: nn.Module
    linears: dict[str, nn.Linear]
    formats: dict[str, Format]
    folds: tuple[Fold, ...]
    stages: tuple[tuple[str, ...], ...]
    run: Callable[[Tensor], Tensor]
    heads: tuple[int, int] = (1, 1)
    samples: Tensor | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    quantized: dict[str, Quantized] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    stored: torch.dtype = torch.float32
    report: dict[str, float] = field(default_factory=dict)
    ahead: dict[str, tuple[str, ...]] = field(default_factory=dict)
    parts: dict[str, Parts] = field(default_factory=dict)
    activations: dict[str, Activation] = field(default_factory=dict)


@dataclass
class Model:
    """A whole quantized model and the windows that calibrate it.

    blocks: the decoder layers in order, float weights in place of the packed ones on meta; names: of each ("model.layers.3");
    kwargs: what each takes beside hidden states. quantized: every matrix that may be changed, by full name, which a finisher
    replaces; fixed: the others. original: the weight [out, in] that a matrix was made of, None where a transform rewrote it.
    By batch: tokens [windows, length]; entering [windows, length, hidden], what enters the first block; wanted, what leaves the
    last one of the original. logits: tokens [length] and hidden states [length, hidden] that leave the last block -> [length,
    vocab]. stored: the type of what stays in floats. report: what is to be told.
    """

    blocks: list[nn.Module]
    names: list[str]
    kwargs: list[dict[str, Any]]
    quantized: dict[str, Quantized]
    fixed: dict[str, Quantized]
    original: Callable[[str], Tensor | None]
    tokens: list[Tensor]
    entering: list[Tensor]
    wanted: list[Tensor]
    logits: Callable[[Tensor, Tensor], Tensor]
    stored: torch.dtype = torch.float32
    report: dict[str, float] = field(default_factory=dict)


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


@dataclass
class Study:
    """The whole float model, for methods that learn on it before its blocks stream: `study(self, study) -> {name: tensor}`.

    model: rounds inputs and changes them as its formats say; original: the same weights, without that. tokens: [windows,
    length]. formats, activations, parts (of sides ahead): of linears by full name. rounded: those whose solver looks at no
    inputs. say: tells the reader a line.
    """

    model: Any
    original: Any
    outline: Outline
    tokens: Tensor
    formats: dict[str, Format]
    parts: dict[str, Parts]
    rounded: frozenset[str]
    say: Callable[[str], None]


class Linear(Protocol):
    """What `around` is asked about. writes: into the residual stream."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def role(self) -> str: ...
    @property
    def writes(self) -> bool: ...


VERBS = ("rewrite", "solve", "tune", "finish", "turn")


@functools.cache
def get(name: str) -> type[Method]:
    """The class of the method called `name`. Raises RequestError with the nearest names."""
    module = shelf.get(name)
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, Method)
            and value.__module__ == module.__name__
            and hasattr(value, FIELDS)
        ):
            return value
    raise RecipeError(f"The file of method '{name}' holds no dataclass derived from Method. Add one.")


def name_of(method: Link) -> str:
    """The name of a method: that of its file."""
    return type(method).__module__.rpartition(".")[2]


def verb(method: object) -> str:
    """The one verb of a method: "rewrite", "solve", "tune", "finish", else "turn", or "" for a declaration."""
    return next((v for v in VERBS if hasattr(method, v)), "")
