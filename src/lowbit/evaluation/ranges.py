"""ranges - what goes into a model's linears, and what its keys are: ranges, outlier channels, outlier tokens, kurtosis.

In / Out  a float model, windows of tokens -> a row for each stage of a block (linears that share an input) and for its keys.
Idea      A channel's size is the magnitude that it stays below in 99 of 100 tokens, a token's the largest of its channels.
          Outliers are sizes many times the median of their kind: such a channel stretches the range of every token, such a
          token every range that is not its own (and, being rare, makes no channel an outlier). kurtosis of all numbers: 3 is a
          normal distribution, more has heavier tails.
          Keys are taken as a cache gets them, after RoPE; offset is |mean| over deviation of the channel where that is most.
Source    Outlier channels: LLM.int8() (2208.07339). Tokens 64 times the median: PrefixQuant (2410.05265).
Defaults  Channels from CHANNEL times the median, tokens from TOKEN times (a third of PrefixQuant's bound: sinks of small models
          show).
"""

import math
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from lowbit import architectures, kvcache
from lowbit.layers import replacing

CHANNEL, TOKEN = 16.0, 20.0
OFTEN = 0.99
"""Share of tokens below whose magnitude a channel's size is."""
LISTED = 8
"""Outliers that are named, the greatest."""
BINS, PLACES = 256, 64
"""Channels, or runs of channels, of a profile; first positions of a window."""


class Inputs:
    """The inputs of one stage, window after window."""

    def __init__(self) -> None:
        self.most = 0.0
        self.sizes: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self.sums = torch.zeros(3, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Take x [..., tokens, channels] of one window."""
        x = x.detach().float().reshape(-1, x.shape[-1])
        size = x.abs()
        if not len(x):
            return
        self.most = max(self.most, float(size.max()))
        self.sizes.append(size.kthvalue(math.ceil(OFTEN * len(x)), dim=0).values)
        self.tokens.append(size.amax(1))
        square = x.double().square()
        self.sums += torch.stack([square.sum().cpu(), square.square().sum().cpu(), torch.tensor(float(x.numel()))])

    def row(self, rows: Sequence[Tensor], tokenizer: Any) -> dict[str, Any]:
        """What was found. rows: the windows."""
        channels = torch.stack(self.sizes).mean(0)
        middle = float(channels.median().clamp_min(1e-12))
        second, fourth = (float(s / self.sums[2]) for s in self.sums[:2])
        return {
            "inputs": channels.numel(),
            "max": self.most,
            "rms": second**0.5,
            "kurtosis": fourth / max(second**2, 1e-30),
            "ratio": float(channels.max()) / middle,
            "channels": _greatest(channels / middle, CHANNEL),
            "tokens": self._tokens(rows, tokenizer),
            "profile": _pooled(channels / middle),
            "positions": self._positions(),
        }

    def _tokens(self, rows: Sequence[Tensor], tokenizer: Any) -> list[dict[str, Any]]:
        """The tokens that are outliers, by what they say: how often, at which first position, how large."""
        found: dict[int, dict[str, Any]] = {}
        for row, sizes in zip(rows, self.tokens, strict=False):
            if sizes.numel() != row.numel():
                continue  # an expert saw some of the tokens: which ones is not known here
            ratios = sizes / sizes.median().clamp_min(1e-12)
            for position in (ratios > TOKEN).nonzero()[:, 0].tolist():
                token = int(row[position])
                told = {"token": tokenizer.decode([token]), "id": token, "count": 0, "position": position, "ratio": 0.0}
                entry = found.setdefault(token, told)
                entry["count"] += 1
                entry["ratio"] = max(entry["ratio"], float(ratios[position]))
        return sorted(found.values(), key=lambda entry: -entry["ratio"])[:LISTED]

    def _positions(self) -> list[float]:
        """Size of the tokens at the first positions, in medians, the greatest of all windows."""
        whole = [sizes for sizes in self.tokens if sizes.numel() >= PLACES]
        ratios = [sizes[:PLACES] / sizes.median().clamp_min(1e-12) for sizes in whole]
        return torch.stack(ratios).amax(0).tolist() if ratios else []


def stages(model: Any) -> list[tuple[int, str, list[str]]]:
    """(block, kind, full names) of linears that share an input. kind: the last words of their names, as "q k v"."""
    architecture = architectures.find(model.config)
    blocks: Any = model.get_submodule(architecture.blocks)
    found = []
    for index, block in enumerate(blocks):
        names = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
        kinds: dict[str, list[str]] = {}
        for name in names:
            patterns = next((s for s in architecture.stages if any(fnmatch(name, p) for p in s)), (name,))
            kind = " ".join(dict.fromkeys(pattern.rpartition(".")[2].removesuffix("_proj") for pattern in patterns))
            kinds.setdefault(kind, []).append(f"{architecture.blocks}.{index}.{name}")
        found += [(index, kind, members) for kind, members in kinds.items()]
    return found


def survey(model: Any, rows: Sequence[Tensor], tokenizer: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of all stages, and of all layers' keys. Takes fused experts of the model apart."""
    replacing.open_experts(model)
    seen = {members[0]: Inputs() for _, _, members in stages(model)}
    hooks = [model.get_submodule(name).register_forward_pre_hook(_noting(inputs)) for name, inputs in seen.items()]
    keys: dict[int, Inputs] = {}
    try:
        for row in rows:
            cache = DynamicCache(config=model.config)
            with torch.no_grad():
                model(row[None], use_cache=True, logits_to_keep=1, **{kvcache.word_of(model): cache})
            for index, layer in enumerate(cache.layers):
                if isinstance(getattr(layer, "keys", None), Tensor) and layer.keys.dim() == 4:
                    keys.setdefault(index, _Keys()).add(layer.keys[0].transpose(0, 1).flatten(1))
    finally:
        for hook in hooks:
            hook.remove()
    layers = [
        {"block": index, "kind": kind, "name": members[0], **seen[members[0]].row(rows, tokenizer)}
        for index, kind, members in stages(model)
        if seen[members[0]].sizes
    ]
    return layers, [{"block": index, "kind": "keys", **found.row(rows, tokenizer)} for index, found in keys.items()]


class _Keys(Inputs):
    """Keys of all heads side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.moments: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        super().add(x)
        self.moments.append(x.float().mean(0).abs() / x.float().std(0).clamp_min(1e-12))

    def row(self, rows: Sequence[Tensor], tokenizer: Any) -> dict[str, Any]:
        return super().row(rows, tokenizer) | {"offset": float(torch.stack(self.moments).mean(0).max())}


def _noting(inputs: Inputs) -> Any:
    return lambda _, args: inputs.add(args[0])


def _greatest(ratios: Tensor, least: float) -> list[dict[str, Any]]:
    """Places of the greatest ratios that reach `least`, with them."""
    values, places = ratios.topk(min(LISTED, ratios.numel()))
    return [{"channel": int(p), "ratio": float(v)} for v, p in zip(values, places, strict=True) if v >= least]


def _pooled(values: Tensor) -> list[float]:
    """At most BINS numbers in order, each the greatest of a run of channels."""
    if values.numel() <= BINS:
        return [float(v) for v in values]
    return [float(v) for v in torch.nn.functional.adaptive_max_pool1d(values[None], BINS)[0]]
