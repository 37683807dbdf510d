"""whole - a stack of decoder blocks as one function of what is trained in any of them, and the losses of its predictions.

In / Out  blocks, pieces by the full name of the parameter that each stands for, windows -> the pieces at their best values.
Idea      Hidden states go through all blocks; what a packed matrix stands for is decoded where it is used and forgotten, in the
          backward pass again (checkpoints at the edges of blocks): memory is that of the codes, of one block's weights and of
          the hidden states between blocks. Logits are made window by window, likewise.
          divergence: KL(original || quantized), mean over positions. The original's predictions come from the hidden states
          that leave its last block, which are kept; so there is no second model. likelihood: of the tokens that follow.
Traps     A block's parameters are looked up by name at each use: whatever is neither a piece nor in `start` is as in the block.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lowbit.solvers import tuning
from lowbit.solvers.trained import Piece
from lowbit.solvers.tuning import Batch, Outcome, Settings

Logits = Callable[[Tensor, Tensor], Tensor]
"""Tokens [length] and the hidden states [length, hidden] that leave the last block -> [length, vocab]."""
Loss = Callable[[Logits, Tensor, Tensor, Tensor], Tensor]
"""(logits, hidden states after the last block, those of the original, tokens), each [windows, length, ...] -> mean loss."""
Values = Mapping[str, Callable[[], Tensor]]
"""Parameters by full name."""


class Stack:
    """Decoder blocks in a row. names: full name of each; kwargs: what each takes beside hidden states."""

    def __init__(self, blocks: Sequence[nn.Module], names: Sequence[str], kwargs: Sequence[Mapping[str, Any]]) -> None:
        self._blocks = list(zip(blocks, names, kwargs, strict=True))

    def run(self, hidden: Tensor, values: Values) -> Tensor:
        """Hidden states [windows, length, hidden] -> those after the last block, `values` in place of its parameters."""
        for block, prefix, kwargs in self._blocks:
            inside = {n: values[f"{prefix}.{n}"] for n, _ in block.named_parameters() if f"{prefix}.{n}" in values}

            def forward(
                x: Tensor, block: nn.Module = block, inside: Values = inside, kwargs: Mapping[str, Any] = kwargs
            ) -> Tensor:
                parameters = {n: value().to(x.dtype) for n, value in inside.items()}
                out = torch.func.functional_call(block, parameters, (x,), dict(kwargs))
                found: Tensor = out[0] if isinstance(out, tuple) else out
                return found

            hidden = _again(forward, hidden)
        return hidden

    def set(self, name: str, value: Tensor) -> None:
        """Put a value in place of the parameter with this full name."""
        block, prefix = next((b, p) for b, p, _ in self._blocks if name.startswith(f"{p}."))
        parameter = block.get_parameter(name.removeprefix(f"{prefix}."))
        parameter.data = value.to(parameter.device, parameter.dtype)


def run(
    stack: Stack,
    start: Values,
    pieces: Mapping[str, Piece],
    columns: Sequence[Sequence[Tensor]],
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    settings: Settings,
    moved: Callable[[], None] = lambda: None,
    held: Sequence[Tensor] = (),
) -> Outcome:
    """Train `pieces`; they hold their best values afterwards. start: what is to be beaten, and what is not trained.

    columns: by batch, what enters, what leaves the original, tokens. Windows are parted and shuffled alike in every run.
    """
    tried = {**start, **{name: piece.value for name, piece in pieces.items()}}

    def error(values: Values) -> Callable[[Batch], Tensor]:
        return lambda batch: loss(stack.run(batch[0], values), batch[1], batch[2])

    windows = tuning.Windows(columns, torch.Generator().manual_seed(0))
    trained = [t for piece in pieces.values() for t in piece.trained]
    return tuning.descend(trained, windows, error(start), error(tried), settings, moved, held)


def divergence(logits: Logits, out: Tensor, wanted: Tensor, tokens: Tensor) -> Tensor:
    """KL(original || quantized) in nats, mean over all positions."""

    def window(ours: Tensor, theirs: Tensor, row: Tensor) -> Tensor:
        q = logits(row, ours).float().log_softmax(-1)
        with torch.no_grad():
            p = logits(row, theirs).float().log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean()

    return torch.stack([_again(window, *rows) for rows in zip(out, wanted, tokens, strict=True)]).mean()


def likelihood(logits: Logits, out: Tensor, wanted: Tensor, tokens: Tensor) -> Tensor:
    """Negative log-likelihood of the tokens that follow, in nats, mean over all positions but the last."""

    def window(ours: Tensor, row: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits(row, ours)[:-1].float(), row[1:].to(ours.device))

    return torch.stack([_again(window, *rows) for rows in zip(out, tokens, strict=True)]).mean()


def _again(forward: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """forward(*args), computed once more where gradients pass instead of being remembered."""
    if not torch.is_grad_enabled():
        return forward(*args)
    found: Tensor = checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)
    return found
