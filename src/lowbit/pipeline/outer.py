"""outer - what of a model lies outside its decoder blocks: tokens -> the hidden states that enter block 0, and back to logits.

Idea      The model's own forward runs, with the forward of every decoder layer replaced: the first one hands over what came
          in, and later the last one gives out hidden states computed elsewhere. So embedding scales, masks of sliding layers,
          rotary tables and logit caps are the model's own, for every architecture, and no decoder weight is needed.
"""

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.pipeline.blocks import fill

Get = Callable[[str], Tensor]


class _Entered(Exception):
    """Carries the first block's input out of the model's forward."""


class Outer:
    """Embedding, final norm and head of a skeleton, with weights; `drop` takes them away again.

    get: tensor by full name, in any float dtype. The skeleton's blocks stay on meta.
    """

    def __init__(self, model: nn.Module, blocks: nn.ModuleList, get: Get, dtype: torch.dtype, device: torch.device) -> None:
        self.model = model
        self.blocks = blocks
        self.device = device
        inside = {id(p) for p in blocks.parameters()}
        self._names = [n for n, p in model.named_parameters(remove_duplicate=True) if id(p) not in inside]
        for name in self._names:
            fill(model, name, get(name).to(device, dtype))
        model.tie_weights()  # type: ignore[operator]
        for module in model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[key] = buffer.to(device)

    def drop(self) -> None:
        """Put the weights back on meta."""
        for name in self._names:
            fill(self.model, name, torch.empty_like(self.model.get_parameter(name), device="meta"))
        self.model.tie_weights()  # type: ignore[operator]

    @contextmanager
    def _layers(self, forward: Callable[[int, Any, dict[str, Any]], Any]) -> Iterator[None]:
        """Every block's forward replaced by forward(index, hidden, kwargs)."""
        try:
            for index, block in enumerate(self.blocks):

                def replaced(_: nn.Module, hidden: Tensor, *args: Any, index: int = index, **kwargs: Any) -> Any:
                    return forward(index, hidden, kwargs)

                block.forward = types.MethodType(replaced, block)
            yield
        finally:
            for block in self.blocks:
                del block.forward

    def enter(self, tokens: Tensor) -> Tensor:
        """Tokens [windows, length] -> hidden states [windows, length, hidden] that enter block 0."""

        def leave_at_once(index: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
            raise _Entered(hidden)

        with self._layers(leave_at_once):
            try:
                self.model(tokens.to(self.device), use_cache=False)
            except _Entered as found:
                hidden: Tensor = found.args[0]
                return hidden
        raise RuntimeError("the model's forward never reached its first decoder layer")

    def kwargs(self, length: int) -> list[dict[str, Any]]:
        """What each block takes beside hidden states, for windows of `length` tokens (batch dimension 1)."""
        found: list[dict[str, Any]] = [{} for _ in self.blocks]

        def note(index: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
            found[index] = kwargs
            return hidden

        with self._layers(note):
            self.model(torch.zeros(1, length, dtype=torch.long, device=self.device), use_cache=False, logits_to_keep=1)
        return found

    def leave(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Hidden states [length, hidden] after the last block of one window [length] -> logits [length, vocab]."""
        last = len(self.blocks) - 1

        def give(index: int, entered: Tensor, kwargs: dict[str, Any]) -> Tensor:
            return hidden[None] if index == last else entered

        with self._layers(give):
            logits: Tensor = self.model(tokens[None].to(self.device), use_cache=False).logits
        return logits[0]
