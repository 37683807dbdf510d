"""cached - what files hold of keys and values beside weights: constant scales of the cache, constants of a prefix.

Idea      transformers casts and drops what no module declares: these tensors are read beside it, and written back beside it.
Traps     This file is imported while transformers.quantizers is: it may import nothing of transformers.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit import architectures, checkpoints
from lowbit.checkpoints.folder import Shard

END = ".prefix_output"
"""What follows the name of a linear of keys or values in that of its constants."""


BESIDE = (r"\.[kv]_(scale|basis)$", r"\.prefix_output$")
"""Their names."""


class Cached:
    """Such tensors of a model's files: scales by layer, outputs by the files' names of their linears.

    model: transformers is told that it expects them.
    """

    def __init__(self, files: Iterable[str] | None = (), model: Any = None) -> None:
        if model is not None:
            model._keys_to_ignore_on_load_unexpected = {*(model._keys_to_ignore_on_load_unexpected or ()), *BESIDE}
        self.scales: dict[int, dict[str, Tensor]] = {}
        self.outputs: dict[str, Tensor] = {}
        for file in files or ():
            with Shard(Path(file)) as shard, torch.device("cpu"):  # transformers is building the model on meta
                for layer, scales in checkpoints.cache_scales(shard.entries, shard.tensor).items():
                    self.scales.setdefault(layer, {}).update(scales)
                names = [name for name in shard.entries if name.endswith(END)]
                self.outputs |= {name.removesuffix(END): shard.tensor(name) for name in names}

    def restore(self, model: Any, place: Callable[[str], str] = str) -> Any:
        """The model, with the packed cache and the prefix that its config.json asks for. place: what it calls a linear."""
        from lowbit import kvcache

        ids = tuple(getattr(model.config, kvcache.PREFIX, ()))
        if ids:
            outputs = {place(name): tensor for name, tensor in self.outputs.items()}
            kvcache.attach_prefix(model, kvcache.Prefix(ids, outputs))
        return kvcache.attach(model, getattr(model.config, kvcache.KEY, None), self.scales)


def tensors(model: Any, originals: Mapping[str, str]) -> dict[str, Tensor]:
    """What is to be saved of a model. originals: what the files call linears, where the model differs."""
    blocks, found = architectures.find(model.config).blocks, dict[str, Tensor]()
    for layer, scales in getattr(model, "kv_scales", {}).items():
        found |= {f"{blocks}.{layer}.self_attn.{name}": tensor for name, tensor in scales.items()}
    prefix = getattr(model, "prefix", None)
    for name, tensor in prefix.outputs.items() if prefix else ():
        found[f"{originals.get(name, name)}{END}"] = tensor
    return found
