"""caching - the KV cache of a run: how a recipe holds it, what is measured for that, what config.json and the files say.

In / Out  a recipe -> policies by layer, checked; finished blocks -> tensors "<block>.self_attn.k_scale" and "v_scale", float32
          [1], or [heads, 1, 1] by head, for policies whose scales are constants; "k_basis" and "v_basis" [heads, width, width]
          for those whose bases are.
Idea      A few windows pass through the blocks as they are on the disk, each with a cache of transformers' own that shows keys
          and values as attention gets them. scale = greatest magnitude / greatest of the element (448 for e4m3). For bases
          attention itself is watched, as they depend on queries.
Source    compressed-tensors' names and shapes, which vLLM reads.
Traps     What is larger at run time is clipped.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from lowbit import kvcache
from lowbit.kvcache import Half, Policy
from lowbit.pipeline import text
from lowbit.pipeline.prefixed import Prefixed
from lowbit.pipeline.source import Source
from lowbit.pipeline.stream import first
from lowbit.pipeline.writer import Writer
from lowbit.recipe import Recipe, caches

SCHEME = "kv_cache_scheme"
"""What compressed-tensors calls it, in its `quantization_config`."""
WINDOWS, LENGTH = 8, 512
"""Of calibration text, for constant scales."""


class Caching:
    """The cache of one run. told: its policy, or one for each layer, "" as floats; label: what it adds to a folder's name."""

    def __init__(self, source: Source, recipe: Recipe) -> None:
        found = caches.policies(recipe, source.linears())
        self.source, self.label = source, caches.label(found)
        self.told: str | list[str] = caches.told(found) if found else ""
        self.policies = kvcache.by_layer(self.told or "", len(source.blocks))
        if self.told:
            kvcache.check(self.told, source.config)

    @property
    def config(self) -> dict[str, Any]:
        """What config.json says beside the weights: lowbit's own key, and compressed-tensors' where that has the words."""
        if not self.told:
            return {}
        scheme = _scheme(self.policies[0]) if isinstance(self.told, str) else None
        return {kvcache.KEY: self.told, "quantization_config": {SCHEME: scheme} if scheme else {}}

    @torch.no_grad()
    def scales(self, writer: Writer, calibration: str, device: torch.device, front: Prefixed) -> dict[str, Tensor]:
        """The constants of all layers that have some, as they are stored. front: begins every window, and needs no scale."""
        if not any(policy and (policy.static or policy.learned) for policy in self.policies):
            return {}
        source, length = self.source, min(LENGTH, self.source.context)
        tokens = text.calibration(calibration, source.tokenizer, length, WINDOWS).tokens
        tokens, self._begin = front.windows(tokens), len(front)
        outer = source.outer(torch.float32, device)
        kwargs, stream = outer.kwargs(length), [outer.enter(row[None]) for row in tokens]
        outer.drop()
        found: dict[str, Tensor] = {}
        for index, policy in enumerate(self.policies):
            moments = kvcache.Moments() if policy and policy.learned else None
            stream, most = self._through(writer, index, stream, kwargs[index], device, moments)
            place = f"{source.prefix(index)}.self_attn"
            if moments is not None:
                found |= dict(zip((f"{place}.k_basis", f"{place}.v_basis"), moments.bases(), strict=True))
            if policy and policy.static:
                for part, half, size in zip(("k_scale", "v_scale"), (policy.keys, policy.values), most, strict=True):
                    found[f"{place}.{part}"] = scale(half, size)
        return found

    def _through(
        self, writer: Writer, index: int, stream: list[Tensor], kwargs: dict[str, Any], device: torch.device,
        moments: kvcache.Moments | None,
    ) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
        """The hidden states after a block, and the greatest keys and values of each head. moments: take every window."""
        module, most = writer.block(index, device, torch.float32), [torch.zeros(1), torch.zeros(1)]
        word = "past_key_values" if "past_key_values" in kwargs else "cache"
        attention, after = kvcache.watch(module) if moments is not None else None, []
        for hidden in stream:
            cache: Any = DynamicCache(config=self.source.config)
            after.append(first(module(hidden, **kwargs | {word: cache, "use_cache": True})))
            if moments is not None and attention is not None:
                moments.add(attention.seen)
            layer = cache.layers[index]
            held = [states[:, :, self._begin :] for states in (layer.keys, layer.values)]
            sizes = [states.abs().float().amax((0, 2, 3)).cpu() for states in held]
            most = [torch.maximum(m, size) for m, size in zip(most, sizes, strict=True)]
        return after, most


def _scheme(policy: Policy | None) -> dict[str, Any] | None:
    """QuantizationArgs of a cache that engines know: constant scales, keys and values alike."""
    if policy is None or not policy.static or policy.keys != policy.values or policy.keys.grid is None:
        return None
    element = policy.keys.grid.dtype
    kind = "float" if element.name.startswith("e") else "int"
    strategy = "attn_head" if policy.keys.static == "head" else "tensor"
    told: dict[str, Any] = {"num_bits": int(element.bits), "type": kind, "strategy": strategy, "symmetric": True}
    return told | {"dynamic": False, "group_size": None}


def scale(half: Half, most: Tensor) -> Tensor:
    """The scale of a half whose heads reach `most` [heads]."""
    largest = half.grid.dtype.maximum if half.grid else 1.0
    value = most.clamp_min(1e-6) / largest
    return value.max().reshape(1) if half.static == "tensor" else value.view(-1, 1, 1)
