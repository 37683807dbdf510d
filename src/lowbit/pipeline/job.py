"""job - what it takes to quantize one block, and what comes of it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import kvcache
from lowbit.architectures import Architecture
from lowbit.formats import Quantized
from lowbit.kernels.activation import Activation
from lowbit.pipeline.progress import Progress
from lowbit.recipe.target import Target


@dataclass
class Job:
    """What it takes to quantize one block. targets: by name inside the block. kwargs: beside hidden states. batches: the
    stream that enters, references: the full-precision stream (None: no method asks for it). gradients: statistics from them, by
    linear. front: the tokens that begin every window, whose keys and values are constants; none without a prefix."""

    index: int
    prefix: str
    module: nn.Module
    architecture: Architecture
    targets: dict[str, Target]
    kwargs: dict[str, Any]
    batches: list[Tensor]
    references: list[Tensor] | None
    stored: torch.dtype
    heads: tuple[int, int]
    progress: Progress
    gradients: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    front: kvcache.Front = field(default_factory=kvcache.Front)


@dataclass
class Done:
    """A quantized block: its matrices, a row per matrix, the streams that leave it. originals: the weights that were rounded,
    of matrices that will be tuned. activations: with the scales that are stored."""

    quantized: dict[str, Quantized] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    references: list[Tensor] | None = None
    originals: dict[str, Tensor] = field(default_factory=dict)
    activations: dict[str, Activation] = field(default_factory=dict)
