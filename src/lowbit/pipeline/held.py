"""held - a window of tokens through a model, or one of its blocks, whose keys and values are held packed: for measuring.

Idea      STEP tokens at a time pass through the cache, so that each position sees its past as it is held when it is written:
          the recent window as floats, what is older packed. One pass would attend to everything unrounded.
Traps     Positions of one step see each other unrounded, as tokens of one prompt do; so does a policy's recent window anyway.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import kvcache
from lowbit.kvcache import Policy, Scales, Told
from lowbit.pipeline.stream import first

STEP = 64
"""Tokens of a step."""
Run = Callable[[nn.Module, Tensor, dict[str, Any]], Tensor]
"""A block, hidden states [1, tokens, hidden] and what it takes beside them -> hidden states."""


def logits(model: Any, tokens: Tensor, told: Told | None = None, step: int = STEP) -> tuple[Tensor, int]:
    """Logits [tokens, vocab] of a window [tokens], and the bytes that its cache holds at the end.

    told: how keys and values are held (default: as the model says).
    """
    given = kvcache.arguments(told or model.kv_policies, model)
    (cache,) = given.values()
    tokens, before = with_prefix(model, tokens)
    with torch.no_grad():
        found = [model(part[None], use_cache=True, **given).logits[0] for part in tokens.split(step)]
    return torch.cat(found)[before:], cache.bytes


def with_prefix(model: Any, tokens: Tensor) -> tuple[Tensor, int]:
    """A window [length] with what it lacks of the model's prefix in front, and how many tokens that is."""
    prefix = getattr(model, "prefix", None)
    before = tokens[:0] if prefix is None else prefix.before(tokens)
    return torch.cat([before, tokens]), len(before)


def plain(module: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """A block as it is."""
    return first(module(hidden, **kwargs))


def through(config: Any, index: int, policies: Sequence[Policy | None], scales: Scales) -> Run:
    """How block `index` runs when layers are held by `policies`. config: the model's. scales: constant ones, by layer."""
    if policies[index] is None or not hasattr(kvcache.build(policies, config, scales).layers[index], "stores"):
        return plain

    def run(module: nn.Module, hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
        word = "past_key_values" if "past_key_values" in kwargs else "cache"
        cache, found = kvcache.build(policies, config, scales), []
        places = getattr(module, "places", kvcache.Places())
        whole = places.whole
        for start in range(0, hidden.shape[1], STEP):
            stop = min(start + STEP, hidden.shape[1])
            places.whole = whole and not start
            part = {name: _part(name, value, start, stop) for name, value in kwargs.items()}
            part["attention_mask"] = _mask(kwargs.get("attention_mask"), start, stop, hidden.device)
            found.append(first(module(hidden[:, start:stop], **part | {word: cache, "use_cache": True})))
        places.whole = whole
        return torch.cat(found, 1)

    return run


def _part(name: str, value: Any, start: int, stop: int) -> Any:
    """What of a block's argument belongs to tokens start .. stop."""
    if isinstance(value, Tensor) and name.startswith("position"):
        return value[:, start:stop]
    if isinstance(value, tuple):
        return tuple(_part(name, item, start, stop) for item in value)
    return value


def _mask(given: Tensor | None, start: int, stop: int, device: torch.device) -> Tensor:
    """What tokens start .. stop see of the tokens up to them."""
    if given is not None:
        return given[..., start:stop, :stop]
    return torch.ones(stop - start, stop, dtype=torch.bool, device=device).tril(start)[None, None]
