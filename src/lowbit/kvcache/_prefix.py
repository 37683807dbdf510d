"""_prefix - tokens that begin every sequence, whose keys and values are constants: those that the original gives them.

In / Out  a model, token ids, what the linears of keys and values of every layer give for them [prefix, out] -> the same model;
          where a sequence begins with the prefix, the constants take the places of what the linears give.
Idea      The first tokens of a sequence see none but each other, so all that is computed of them is constant. Taken as outputs
          of linears, before norms and RoPE, it holds wherever the sequence begins (left padding), and masks, caches, beams and
          drafts see keys and values as ever. Nothing of them depends on how inputs and weights of the layer are rounded.
Source    PrefixQuant (2410.05265), section 4.
Traps     A sequence that does not begin with the prefix is computed as any other, and a warning says so. So is one that is
          given as embeddings, or whose first part is shorter than the prefix.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

LINEARS = ("k_proj", "v_proj", "qkv_proj")
"""What gives keys and values, by the last part of its name."""
CACHES = ("cache", "past_key_values")
"""What versions of transformers call a cache."""
PART = "prefix_output"
"""The name under a linear of its constants in files."""


@dataclass(frozen=True)
class Prefix:
    """ids: of the tokens. outputs: [prefix, out] of each linear by name; none where only the ids matter."""

    ids: tuple[int, ...]
    outputs: Mapping[str, Tensor] = field(default_factory=dict)

    def before(self, tokens: Tensor) -> Tensor:
        """The ids that a sequence [length] lacks in front: all, or all but the last, which it begins with."""
        have = len(tokens) and int(tokens[0]) == self.ids[-1]
        return torch.tensor(self.ids[: len(self.ids) - bool(have)], dtype=tokens.dtype, device=tokens.device)


class Places:
    """Which tokens of a forward are the prefix. whole: the first ones of every row; else those at `index`, if any."""

    def __init__(self, whole: bool = False) -> None:
        self.whole = whole
        self.index: tuple[Tensor, Tensor] | None = None

    def put(self, out: Tensor, constant: Tensor) -> Tensor:
        """out [rows, tokens, channels] with the constants [prefix, channels] in their places."""
        if self.whole:
            return torch.cat([constant.to(out).expand(len(out), -1, -1), out[:, len(constant) :]], 1)
        return out if self.index is None else out.index_put(self.index, constant.to(out))

    def find(self, tokens: Tensor, mask: Any, prefix: Prefix) -> None:
        """Look for the prefix where sequences begin. tokens [rows, length]; mask: 0 where they are padded."""
        ids, (rows, length) = torch.tensor(prefix.ids, device=tokens.device), tokens.shape
        padded = isinstance(mask, Tensor) and mask.dim() == 2
        starts = mask.long().argmax(1) if padded else torch.zeros(rows, dtype=torch.long, device=tokens.device)
        places = starts[:, None] + torch.arange(len(ids), device=tokens.device)
        there = (tokens.gather(1, places.clamp_max(length - 1)) == ids).all(1) & (places[:, -1] < length)
        found = there.nonzero()
        self.index = (found, places[found[:, 0]]) if len(found) else None
        if len(found) < rows:
            told = f"{rows - len(found)} of {rows} sequences do not begin with the tokens {list(prefix.ids)}"
            warnings.warn(f"{told}, which this model was quantized with: put them in front.", stacklevel=2)


def linears(names: Iterable[str]) -> list[str]:
    """Those of a block's modules that give keys and values."""
    return [name for name in names if name.rpartition(".")[2] in LINEARS]


def pin(module: nn.Module, outputs: Mapping[str, Tensor], places: Places) -> list[Any]:
    """Put constants in the places of what linears of `module` give, for as long as the hooks live, which are returned."""

    def hook(constant: Tensor) -> Any:
        return lambda _, args, out: places.put(out, constant)

    return [module.get_submodule(name).register_forward_hook(hook(constant)) for name, constant in outputs.items()]


class Front:
    """The prefix before one float block. entering: its hidden states [1, prefix, hidden]; None: there is no prefix.

    kwargs: what the block takes beside them. dtype: as constants are stored. outputs: the constants, by linear, once found.
    """

    def __init__(
        self, entering: Tensor | None = None, kwargs: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        self.entering, self.kwargs, self.dtype = entering, kwargs or {}, dtype
        self.outputs: dict[str, Tensor] = {}
        self._hooks: list[Any] = []

    def find(self, module: nn.Module) -> None:
        """Take the constants of a block as it stands, and hold them."""
        self._drop()
        if self.entering is None:
            return

        def keep(name: str) -> Any:
            return lambda _, args, out: self.outputs.update({name: out[0].detach().to(self.dtype)})

        self._hooks = [
            module.get_submodule(name).register_forward_hook(keep(name))
            for name in linears(name for name, _ in module.named_modules())
        ]
        module(self.entering, **self.kwargs)
        self.hold(module)

    def hold(self, module: nn.Module) -> None:
        """Hold the constants in windows that begin with the prefix, behind whatever hooks there are."""
        self._drop()
        self._hooks = pin(module, self.outputs, Places(whole=True))

    def _drop(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def behind(self, x: Tensor) -> Tensor:
        """What of [windows, tokens, channels] lies behind the prefix; inputs that are not windows (of experts) as they are."""
        return x if self.entering is None or x.dim() != 3 else x[:, self.entering.shape[1] :]


def attach(model: Any, prefix: Prefix) -> Any:
    """Hold the keys and values of a prefix, and remember it in `model.prefix`; the model."""
    places = Places()

    def look(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        places.index = None
        tokens = kwargs.get("input_ids", args[0] if args else None)
        cache = next((kwargs[word] for word in CACHES if kwargs.get(word) is not None), None)
        if tokens is not None and (cache is None or not int(cache.get_seq_length())):
            places.find(tokens, kwargs.get("attention_mask"), prefix)

    pin(model, prefix.outputs, places)
    model.prefix = prefix
    model.register_forward_pre_hook(look, with_kwargs=True)
    return model
