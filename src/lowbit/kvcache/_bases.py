"""_bases - what a layer's attention was given -> the bases in which its keys and values are rounded (see oscar).

In / Out  queries, keys, values [batch, heads, tokens, width] of some windows -> orthogonal [key heads, width, width] each.
Idea      Sums over windows of q q^T and of w v v^T, w = k^T E[q q^T] k of a token over its mean; eigenvectors, greatest first,
          then a Hadamard matrix, its columns in bit-reversed order so that groups of neighbours share directions evenly.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lowbit.core.errors import RequestError
from lowbit.sides import _hadamard


def watch(block: nn.Module) -> Any:
    """The attention of a block, which leaves what it is given in `seen` from now on. Raises RequestError."""
    from lowbit.kvcache._attention import OWN, WATCHED

    attention: Any = getattr(block, "self_attn", None)
    told = getattr(getattr(attention, "config", None), "_attn_implementation", "nothing that is known")
    if told != OWN:
        raise RequestError(f"{type(block).__name__} attends by {told}, so its queries cannot be watched. Use kivi2.")
    attention.config._attn_implementation = WATCHED
    return attention


class Moments:
    """The sums of one layer."""

    def __init__(self) -> None:
        self.queries: Tensor | None = None
        self.values: Tensor | None = None

    def add(self, seen: tuple[Tensor, Tensor, Tensor]) -> None:
        """Take one window."""
        query, key, value = (x.double() for x in seen)
        heads = key.shape[1]
        query = query.unflatten(1, (heads, -1)).flatten(2, 3)
        queries = torch.einsum("bhtc,bhtd->hcd", query, query) / (query.shape[0] * query.shape[2])
        asked = torch.einsum("bhtc,hcd,bhtd->bht", key, queries, key)
        asked = asked / asked.mean((0, 2), keepdim=True).clamp_min(1e-30)
        values = torch.einsum("bhtc,bht,bhtd->hcd", value, asked, value) / (value.shape[0] * value.shape[2])
        self.queries = queries if self.queries is None else self.queries + queries
        self.values = values if self.values is None else self.values + values

    def bases(self) -> tuple[Tensor, Tensor]:
        """Of keys and of values, float32."""
        assert self.queries is not None and self.values is not None  # noqa: S101 - for the type checker
        return basis(self.queries), basis(self.values)


def basis(moments: Tensor) -> Tensor:
    """Eigenvectors of each of moments [heads, width, width], mixed: [heads, width, width], columns are the new channels."""
    vectors, width = torch.linalg.eigh(moments).eigenvectors.flip(-1), moments.shape[-1]
    mixed = _hadamard.apply(vectors, _hadamard.block(width))
    bits = max(width - 1, 1).bit_length()
    order = sorted(range(width), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    return mixed[..., order].float().contiguous()
