"""_cache - transformers' cache with packed layers: generate, beams, assisted decoding and left padding work as ever.

Idea      A layer answers an update with what it held and the new tokens as they came: a prompt is attended to unrounded, and
          each later token sees the past as it is held, which lowbit's attention never decodes as a whole (see _attention).
          Layers that attend to everything are packed; a sliding or a linear layer holds a bounded state and stays
          transformers' own.
Traps     `crop` takes the tokens to remove as a negative number. `early_initialization` passes tensors without tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from lowbit.core.errors import RequestError
from lowbit.kernels.pages import NONE, Constants, Half
from lowbit.kvcache import _rope
from lowbit.kvcache._attention import lazy
from lowbit.kvcache._policy import Policy
from lowbit.kvcache._store import Store

Scales = Mapping[int, Mapping[str, Tensor]]


class PackedLayer(DynamicLayer):  # type: ignore[misc]
    """The keys and values of one decoder layer."""

    def __init__(self, policy: Policy, constants: tuple[Constants, Constants] = (NONE, NONE)) -> None:
        super().__init__()
        self.policy, self.constants = policy, constants
        self.stores: tuple[Store, ...] = ()

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the empty stores. Raises ShapeError where the policy does not fit the heads."""
        self.device = key_states.device
        halves = ((self.policy.keys, key_states), (self.policy.values, value_states))
        for half, states in halves:
            half.check(self.policy.text, states.shape[-1])
        sizes = self.policy.sinks, self.policy.recent, self.policy.page
        self.stores = tuple(
            Store(half, *sizes, states, {name: tensor.to(self.device) for name, tensor in constants.items()})
            for (half, states), constants in zip(halves, self.constants, strict=True)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Take new states [batch, heads, new, width]; gives those of all tokens, which are decoded where they are touched."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys, values = self.stores
        return lazy(keys.take(key_states)), lazy(values.take(value_states))

    def get_seq_length(self) -> int:
        return len(self.stores[0]) if self.stores else 0

    def reset(self) -> None:
        self.stores, self.is_initialized = (), False

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens; their number is given as a negative one. Raises RequestError."""
        if tokens_to_remove > 0:
            raise RequestError(
                f"crop({tokens_to_remove}): the number of tokens to remove is negative. Use -{tokens_to_remove}."
            )
        length = max(self.get_seq_length() + tokens_to_remove, 0)
        for store in self.stores if tokens_to_remove else ():
            store.crop(length)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        for store in self.stores:
            store.batch(lambda held: held.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        for store in self.stores:
            store.batch(lambda held: held[indices.to(held.device)])

    def offload(self) -> None:
        for store in self.stores:
            store.to("cpu")

    def prefetch(self) -> None:
        for store in self.stores:
            store.to(self.device)

    @property
    def bytes(self) -> int:
        """Bytes that are really held."""
        return sum(store.bytes for store in self.stores)


class PackedCache(Cache):  # type: ignore[misc]
    """A cache for one model whose full-attention layers are packed. policies: by layer, None: as floats. config: the model's.

    scales: k_scale and v_scale by layer, for policies with constant ones.
    Raises RequestError when no layer that has a policy attends to all tokens.
    """

    def __init__(self, policies: Sequence[Policy | None], config: Any, scales: Scales) -> None:
        layers = [
            PackedLayer(policy, _constants(policy, config, index, scales.get(index, {})))
            if policy and type(layer) is DynamicLayer
            else layer
            for index, (policy, layer) in enumerate(zip(policies, DynamicCache(config=config).layers, strict=True))
        ]
        if not any(isinstance(layer, PackedLayer) for layer in layers):
            told = ", ".join(dict.fromkeys(str(policy) for policy in policies if policy))
            fact = f"no layer of {config.model_type} that it is for attends to all tokens"
            raise RequestError(f"{told}: {fact}. Leave the KV policy out.")
        super().__init__(layers=layers)

    @property
    def bytes(self) -> int:
        """Bytes that the packed layers hold."""
        return sum(layer.bytes for layer in self.layers if isinstance(layer, PackedLayer))


def _constants(policy: Policy, config: Any, index: int, scales: Mapping[str, Tensor]) -> tuple[Constants, Constants]:
    """What the keys and the values of layer `index` need beside their tokens. Raises RequestError."""
    keys, values = (
        ({"scale": _scale(policy, half, scales.get(f"{side}_scale"))} if half.static else {})
        | ({"basis": _basis(policy, scales.get(f"{side}_basis"))} if half.learned else {})
        for side, half in (("k", policy.keys), ("v", policy.values))
    )
    if policy.keys.before:
        text = config.get_text_config(decoder=True)
        kinds = getattr(text, "layer_types", None)
        keys["frequencies"] = _rope.frequencies(text, kinds[index] if kinds else "full_attention", policy.text)
    return keys, values


def _basis(policy: Policy, found: Tensor | None) -> Tensor:
    """A layer's own basis. Raises RequestError."""
    if found is None:
        fact = "the model has no bases for its cache, which calibration finds"
        raise RequestError(f"{policy}: {fact}. Quantize it by a recipe with + kv({policy}), or use kivi2.")
    return found


def _scale(policy: Policy, half: Half, found: Tensor | None) -> Tensor:
    """A layer's constant scale; floats do without. Raises RequestError."""
    if found is None and half.grid is not None and half.grid.element.startswith("int"):
        fact = "the model has no scales for its cache, which calibration finds"
        raise RequestError(f"{policy}: {fact}. Quantize it by a recipe with + kv({policy}), or use int8.")
    return torch.ones(1) if found is None else found
