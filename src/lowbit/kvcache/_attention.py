"""_attention - transformers' attention over a packed cache, without decoding it as a whole.

Idea      The cache hands its keys and values over as a `Lazy` tensor: a shape, and what is held. lowbit's attention function,
          registered with transformers as "lowbit" and chosen by `use`, takes it as it is; anything else that touches it (eager
          attention, a model that pads its values) sees the decoded floats, as from any cache. So a model without `use` is slow
          and takes more memory, never wrong.
Traps     Models whose attention is not transformers' "sdpa" (soft caps, learned sinks, flash kernels) keep theirs.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lowbit.kernels.attention import Held, attend

NAME, OWN, WATCHED = "lowbit", "sdpa", "lowbit-watched"
FACTS = {getattr(Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim", "is_cuda", "layout", "requires_grad")}
FACTS |= {Tensor.size, Tensor.dim, Tensor.numel}
"""What can be told of a tensor without its numbers."""


class Lazy(Tensor):
    """Keys or values [batch, heads, tokens, width] that are decoded when something but lowbit's attention touches them."""

    held: Held

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTS:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        args, kwargs = tree_map(_floats, (args, kwargs or {}))
        return func(*args, **kwargs)


def lazy(held: Held) -> Tensor:
    """What a layer holds, as a tensor; plain floats where nothing is packed."""
    if not held.packed:
        return held.read()
    first = held.first
    shape = (first.shape[0], first.shape[1], len(held), held.width)
    found: Any = Tensor._make_wrapper_subclass(Lazy, shape, dtype=first.dtype, device=first.device)
    found.held = held
    return found  # type: ignore[no-any-return]


def _floats(value: Any) -> Any:
    return value.held.read() if isinstance(value, Lazy) else value


def attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None,
    dropout: float = 0.0, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """As transformers calls it: query [batch, heads, new, width] -> [batch, new, heads, width]."""
    if not isinstance(key, Lazy) or not isinstance(value, Lazy) or dropout or kwargs.get("position_bias") is not None:
        told = _floats(key), _floats(value), attention_mask
        plain: tuple[Tensor, None] = sdpa_attention_forward(module, query, *told, dropout=dropout, scaling=scaling, **kwargs)
        return plain
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key.held, value.held, scale, attention_mask).transpose(1, 2).contiguous(), None


def use(model: Any) -> None:
    """Let a model attend to packed caches tile by tile, where its attention is the usual one."""
    if model.config._attn_implementation == OWN:
        model.set_attn_implementation(NAME)


def watched(module: Any, *states: Any, **kwargs: Any) -> Any:
    """transformers' own, which leaves queries, keys and values [batch, heads, tokens, width] in `module.seen`."""
    module.seen = states[:3]
    return sdpa_attention_forward(module, *states, **kwargs)


AttentionInterface.register(WATCHED, watched)
AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
