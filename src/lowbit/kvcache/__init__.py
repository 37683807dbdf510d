"""kvcache - the keys and values of past tokens, packed, in the place of transformers' own cache. One file is a policy.

A Policy is its text: `int4`, `int8-r64`, `int4-g32-k8`, `int4-centred-rot`, `kivi2`, `turbo4`, `qserve4`, `oscar2`, `fp8`.

    policy := head { "-" word }      head := a file of this shelf with its number ("int4", "kivi2", "fp8")
    word   := sN (the first N tokens stay floats: sinks) | rN (so do the last N or more: the recent window)
            | what the file takes: gN (numbers that share a scale) | kN (bits of keys) | rot (a Hadamard basis in each head)
            | centred (keys less the mean of 64 tokens in a row; centred32: of 32)
            | tensor, head (one scale a layer, or a head, found when the model is quantized)
            | pre (keys as they are before RoPE)
            | outN (the N greatest numbers of each token and head stay floats)

Layers may differ: where a policy is taken, so is a list with one for each layer ("": as floats). config.json of a checkpoint
holds either under KEY; loaders that do not know it hold floats.

Contract of a file: `def policy(text: str, number: str, words: list[str]) -> Policy`, and its members in EXAMPLES.
Attention over what is packed is lowbit.kernels.attention: it decodes a tile at a time, never the whole.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from lowbit.core.errors import RequestError, nearest
from lowbit.core.shelf import Shelf
from lowbit.kernels.pages import Half
from lowbit.kvcache._bases import Moments, watch
from lowbit.kvcache._policy import Policy
from lowbit.kvcache._prefix import PART, Front, Places, Prefix, pin
from lowbit.kvcache._prefix import attach as attach_prefix
from lowbit.kvcache._prefix import linears as prefix_linears

__all__ = [
    "KEY",
    "PART",
    "PREFIX",
    "Front",
    "Half",
    "Moments",
    "Places",
    "Policy",
    "Prefix",
    "Scales",
    "Told",
    "arguments",
    "attach",
    "attach_prefix",
    "build",
    "by_layer",
    "check",
    "examples",
    "parse",
    "pin",
    "prefix_linears",
    "shelf",
    "watch",
]

KEY = "lowbit_kv"
PREFIX = "lowbit_prefix"
"""The ids of tokens whose keys and values are constants, in config.json."""
Scales = Mapping[int, Mapping[str, Any]]
NO_SCALES: Scales = MappingProxyType({})
Told = str | Policy | Sequence[str | Policy | None]
shelf = Shelf(__name__, "KV policy")


@functools.cache
def parse(text: str) -> Policy:
    """The policy called `text`. Raises RequestError with the nearest known names or words."""
    head, *words = text.split("-")
    try:
        module, number = shelf.resolve(head)
    except ValueError as error:
        raise RequestError(f"Unknown KV policy '{text}'. {nearest(head, examples())}") from error
    found: Policy = module.policy(text, number, words)
    return found


def examples(file: str | None = None) -> list[str]:
    """Names of policies, one or more a file: of one, or of all; what lists show and conformance checks."""
    return [name for file in ([file] if file else shelf.names()) for name in shelf.get(file).EXAMPLES]


def by_layer(told: Told, layers: int) -> list[Policy | None]:
    """The policy of each of so many layers. Raises RequestError."""
    each: Sequence[str | Policy | None] = [told] * layers if isinstance(told, str | Policy) else told
    if len(each) != layers:
        raise RequestError(f"{len(each)} KV policies are given for {layers} layers. Give one, or one for each layer.")
    return [parse(policy) if isinstance(policy, str) and policy else policy or None for policy in each]


def build(told: Told, config: Any, scales: Scales = NO_SCALES) -> Any:
    """An empty cache for one model. config: the model's. scales: k_scale, v_scale, k_basis, v_basis by layer: constants."""
    from lowbit.kvcache._cache import PackedCache

    return PackedCache(by_layer(told, config.get_text_config(decoder=True).num_hidden_layers), config, scales)


def check(told: Told, config: Any) -> None:
    """See that a model's heads and layers can be held, before there is one. Raises RequestError, ShapeError."""
    text = config.get_text_config(decoder=True)
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    import torch

    parts = {part: torch.ones(1) for part in ("k_scale", "v_scale", "k_basis", "v_basis")}
    some = dict.fromkeys(range(text.num_hidden_layers), parts)
    build(told, config, some)
    for policy in {policy for policy in by_layer(told, text.num_hidden_layers) if policy}:
        for half in (policy.keys, policy.values):
            half.check(policy.text, width)


def word_of(model: Any) -> str:
    """What the model's `generate` and `forward` call a cache: "cache", or "past_key_values"."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def arguments(told: Told, model: Any) -> dict[str, Any]:
    """An empty cache as the keyword argument of the model's `generate` and `forward`.

    The model attends by lowbit's own function from then on.
    """
    from lowbit.kvcache._attention import use

    use(model)
    return {word_of(model): build(told, model.config, getattr(model, "kv_scales", NO_SCALES))}


def attach(model: Any, told: Told | None, scales: Scales = NO_SCALES) -> Any:
    """Pack every cache that a model makes from now on, and remember how in `model.kv_policies`; the model. None: nothing."""
    if told:
        from lowbit.kvcache import _attaching

        policies = by_layer(told, model.config.get_text_config(decoder=True).num_hidden_layers)
        _attaching.attach(model, policies, word_of(model), scales)
    return model
