"""outer - what of a model lies outside its decoder blocks: tokens -> the hidden states that enter block 0, and back to logits.

Idea      The model's own forward runs, with the forward of every decoder layer replaced: the first one hands over what came
          in, and later the last one gives out hidden states computed elsewhere. So embedding scales, masks of sliding layers,
          rotary tables and logit caps are the model's own, for every architecture, and no decoder weight is needed.
          What reaches the head is caught on its way in, without logits.
"""

import types
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.pipeline.blocks import fill

Get = Callable[[str], Tensor]


class _Reached(Exception):
    """Carries a tensor out of the model's forward."""


class Outer:
    """Embedding, final norm and head of a skeleton, with weights; `drop` takes them away again.

    get: tensor by full name, in any float dtype. held: names that `get` knows; a parameter that shares another one's weight
    and is not held takes that one. The skeleton's blocks stay on meta.
    """

    def __init__(
        self, model: Any, blocks: nn.ModuleList, get: Get, held: Collection[str], dtype: torch.dtype, device: torch.device
    ) -> None:
        self.model = model
        self.blocks = blocks
        self.device = device
        inside, ties = {id(p) for p in blocks.parameters()}, model.all_tied_weights_keys
        names = [n for n, p in model.named_parameters(remove_duplicate=False) if id(p) not in inside]
        self._names = [n for n in names if n in held or n not in ties]
        for name in self._names:
            fill(model, name, get(name).to(device).to(dtype))
        for name in set(names) - set(self._names):
            fill(model, name, model.get_parameter(ties[name]))
        for module in model.modules():
            for key, buffer in module._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    module._buffers[key] = buffer.to(device)

    def drop(self) -> None:
        """Put the weights back on meta."""
        for name in self._names:
            fill(self.model, name, torch.empty_like(self.model.get_parameter(name), device="meta"))
        self.model.tie_weights()

    def put(self, name: str, value: Tensor) -> None:
        """Set one parameter; those that shared its weight keep the old one."""
        old = self.model.get_parameter(name)
        fill(self.model, name, value.to(old.device, old.dtype))

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
            raise _Reached(hidden)

        with self._layers(leave_at_once):
            return self._until(tokens, "first decoder layer")

    def _until(self, tokens: Tensor, place: str) -> Tensor:
        """Run the forward until something raises _Reached; what that carries."""
        try:
            self.model(tokens.to(self.device), use_cache=False)
        except _Reached as found:
            reached: Tensor = found.args[0]
            return reached
        raise RuntimeError(f"the model's forward never reached its {place}")

    def kwargs(self, length: int) -> list[dict[str, Any]]:
        """What each block takes beside hidden states, for windows of `length` tokens (batch dimension 1)."""
        found: list[dict[str, Any]] = [{} for _ in self.blocks]

        def note(index: int, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
            found[index] = kwargs
            return hidden

        with self._layers(note):
            self.model(torch.zeros(1, length, dtype=torch.long, device=self.device), use_cache=False, logits_to_keep=1)
        return found

    def _after(self, hidden: Tensor) -> AbstractContextManager[None]:
        """Blocks that do nothing but give out `hidden` at last."""
        last = len(self.blocks) - 1
        return self._layers(lambda index, entered, _: hidden if index == last else entered)

    def head_inputs(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Hidden states [windows, length, hidden] after the last block of tokens [windows, length] -> what the head takes."""

        def stop(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            raise _Reached(args[0])

        hook = self.model.get_output_embeddings().register_forward_pre_hook(stop)
        try:
            with self._after(hidden):
                return self._until(tokens, "head")
        finally:
            hook.remove()

    def leave(self, tokens: Tensor, hidden: Tensor) -> Tensor:
        """Hidden states [length, hidden] after the last block of one window [length] -> logits [length, vocab]."""
        with self._after(hidden[None]):
            logits: Tensor = self.model(tokens[None].to(self.device), use_cache=False).logits
        return logits[0]
