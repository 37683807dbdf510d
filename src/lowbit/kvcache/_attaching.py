"""_attaching - a model whose own caches are packed: `generate` and `forward` as ever, without a word about caches.

Idea      Before each forward: no cache and one wanted, an empty packed one is handed in; a new, empty one of transformers gets
          packed layers in place of its own, so beams, drafts and what else `generate` does keep their object. A cache that is
          given packed, static or filled stays as it is.
"""

from collections.abc import Sequence
from typing import Any

from transformers import DynamicCache

from lowbit.kvcache._attention import use
from lowbit.kvcache._cache import PackedCache, Scales
from lowbit.kvcache._policy import Policy


def attach(model: Any, policies: Sequence[Policy | None], word: str, scales: Scales) -> Any:
    """Pack every cache that `model` makes from now on; the model.

    policies: by layer. word: what its forward calls a cache. scales: constant ones by layer.
    """

    def pack(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given: Any = kwargs.get(word)
        wanted = kwargs.get("use_cache")
        if given is None and (model.config.get_text_config(decoder=True).use_cache if wanted is None else wanted):
            kwargs[word] = PackedCache(policies, model.config, scales)
        elif type(given) is DynamicCache and not given.get_seq_length():
            given.layers, given.layer_class_to_replicate = PackedCache(policies, model.config, scales).layers, None
        return args, kwargs

    use(model)
    model.kv_policies, model.kv_scales = tuple(policies), scales
    model.register_forward_pre_hook(pack, with_kwargs=True)
    return model
