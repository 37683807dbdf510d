"""_training - what tuners and finishers do once they know what is trained: descend, and keep what is better."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lowbit.formats import Quantized
from lowbit.methods import Block, Model
from lowbit.solvers import trained, tuning, whole
from lowbit.solvers.trained import Piece, Trained
from lowbit.solvers.tuning import Settings


class Matrix(Protocol):
    """A solved matrix as a function of what is trained."""

    @property
    def trained(self) -> list[Trained]: ...

    def value(self) -> Tensor:
        """The matrix [out, in] as it would be stored, with gradients."""

    def quantized(self) -> Quantized:
        """The same matrix, to be stored."""


def train(
    block: Block,
    matrices: Mapping[str, Matrix],
    floats: Mapping[str, Piece],
    inputs: Sequence[Tensor],
    targets: Sequence[Tensor],
    settings: Settings,
) -> None:
    """Train `matrices`, by the names of linears, and `floats`, by those of parameters; change the block if that is better."""
    pieces = {f"{name}.weight": matrix for name, matrix in matrices.items()} | dict(floats)
    outcome = tuning.run(block.module, block.kwargs, pieces, inputs, targets, settings, block.index)
    block.report |= {"before": outcome.before, "after": outcome.after}
    if not outcome.better:
        return
    block.quantized.update({name: matrix.quantized() for name, matrix in matrices.items()})
    for name, piece in floats.items():
        parameter = block.module.get_parameter(name)
        parameter.data = piece.value().detach().to(parameter.dtype)


def partway(block: Block, inputs: Sequence[Tensor], targets: Sequence[Tensor], alpha: float) -> Sequence[Tensor]:
    """Targets that make up for a share `alpha` of the error of the inputs: from what the block with its original weights makes
    of `inputs` (0) to `targets` (1)."""
    if alpha == 1:
        return targets
    weights = {f"{name}.weight": weight for name, weight in block.originals.items()}
    found = []
    for x, target in zip(inputs, targets, strict=True):
        out = torch.func.functional_call(block.module, weights, (x,), dict(block.kwargs))
        found.append(torch.lerp(out[0] if isinstance(out, tuple) else out, target, alpha))
    return found


def floats(model: Model, rate: float) -> dict[str, Piece]:
    """All norm weights and biases of the blocks that hold a matrix to be trained, by full name."""
    found: dict[str, Piece] = {}
    for name, block in zip(model.names, model.blocks, strict=True):
        if any(matrix.startswith(f"{name}.") for matrix in model.quantized):
            found |= {f"{name}.{n}": piece for n, piece in trained.floats(block, rate, model.stored).items()}
    return found


def finish(
    model: Model,
    matrices: Mapping[str, Matrix],
    floats: Mapping[str, Piece],
    loss: whole.Loss,
    settings: Settings,
    moved: Callable[[], None] = lambda: None,
    held: Sequence[Tensor] = (),
) -> None:
    """Train `matrices` and `floats`, by full name, of a whole model; change it if that is better.

    moved: called after every step; held: tensors that it changes in place.
    """
    pieces = {f"{name}.weight": matrix for name, matrix in matrices.items()} | dict(floats)
    start = {f"{name}.weight": q.decode for name, q in (model.fixed | model.quantized).items()}
    stack = whole.Stack(model.blocks, model.names, model.kwargs)
    columns = (model.entering, model.wanted, model.tokens)
    outcome = whole.run(stack, start, pieces, columns, lambda *batch: loss(model.logits, *batch), settings, moved, held)
    model.report |= {"before": outcome.before, "after": outcome.after}
    if not outcome.better:
        return
    model.quantized.update({name: matrix.quantized() for name, matrix in matrices.items()})
    for name, piece in floats.items():
        stack.set(name, piece.value().detach())
