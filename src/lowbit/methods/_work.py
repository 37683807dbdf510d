"""_work - what methods work on: a block, the whole quantized model, the whole float model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.architectures import Fold
from lowbit.formats import Format, Parts, Quantized
from lowbit.kernels.activation import Activation
from lowbit.transforms.outline import Outline


@dataclass
class Block:
    """One decoder layer at work.

    index, name: its place ("model.layers.3"). module: the layer with float weights. linears: the targeted linears by name
    inside the block. formats: what each will be quantized to. folds: edges for transforms, names resolved. stages: names.
    ahead: by linear the sides of its format that change its inputs while running; parts: what a transform chose for these.
    activations: how inputs are rounded, of linears whose are.
    run: hidden [windows, tokens, hidden] -> hidden, through the whole layer. heads: (query heads, key-value heads).
    samples: hidden states [windows, tokens, hidden] that enter the block, for methods that try candidates.
    kwargs: what the layer takes beside hidden states, for running submodules alone.
    For tuners, by the linears' names: quantized, the solved matrices (the linears hold their values), which a tuner replaces;
    originals, the weights [out, in] that were rounded. stored: the type of what stays in floats. report: what is to be told.
    """

    index: int
    name: str
    module: nn.Module
    linears: dict[str, nn.Linear]
    formats: dict[str, Format]
    folds: tuple[Fold, ...]
    stages: tuple[tuple[str, ...], ...]
    run: Callable[[Tensor], Tensor]
    heads: tuple[int, int] = (1, 1)
    samples: Tensor | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    quantized: dict[str, Quantized] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    stored: torch.dtype = torch.float32
    report: dict[str, float] = field(default_factory=dict)
    ahead: dict[str, tuple[str, ...]] = field(default_factory=dict)
    parts: dict[str, Parts] = field(default_factory=dict)
    activations: dict[str, Activation] = field(default_factory=dict)


@dataclass
class Model:
    """A whole quantized model and the windows that calibrate it.

    blocks: the decoder layers in order, float weights in place of the packed ones on meta; names: of each ("model.layers.3");
    kwargs: what each takes beside hidden states. quantized: every matrix that may be changed, by full name, which a finisher
    replaces; fixed: the others. original: the weight [out, in] that a matrix was made of, None where a transform rewrote it.
    By batch: tokens [windows, length]; entering [windows, length, hidden], what enters the first block; wanted, what leaves the
    last one of the original. logits: tokens [length] and hidden states [length, hidden] that leave the last block -> [length,
    vocab]. stored: the type of what stays in floats. report: what is to be told.
    """

    blocks: list[nn.Module]
    names: list[str]
    kwargs: list[dict[str, Any]]
    quantized: dict[str, Quantized]
    fixed: dict[str, Quantized]
    original: Callable[[str], Tensor | None]
    tokens: list[Tensor]
    entering: list[Tensor]
    wanted: list[Tensor]
    logits: Callable[[Tensor, Tensor], Tensor]
    stored: torch.dtype = torch.float32
    report: dict[str, float] = field(default_factory=dict)


@dataclass
class Study:
    """The whole float model, for methods that learn on it before its blocks stream: `study(self, study) -> {name: tensor}`.

    model: rounds inputs and changes them as its formats say; original: the same weights, without that. tokens: [windows,
    length]. formats, activations, parts (of sides ahead): of linears by full name. rounded: those whose solver looks at no
    inputs, and whose codes are found at once. say: tells the reader a line.
    """

    model: Any
    original: Any
    outline: Outline
    tokens: Tensor
    formats: dict[str, Format]
    parts: dict[str, Parts]
    rounded: frozenset[str]
    say: Callable[[str], None]
