"""attention - new queries over the keys and values of all tokens, most of which are packed; picks the kernel that does it.

In / Out  q [batch, query heads, new, width], keys and values as they are held, each [batch, heads, tokens, width] in all
          -> [batch, query heads, new, value width] in q's dtype: softmax(scale q K^T + mask) V.
Idea      The decoded keys and values of all tokens are never in memory together. What a policy does to keys is undone on the
          smaller side: a turned basis is taken by the query once, of a mean only its product with the query is added, values
          are summed in their basis and turned back once. Query head h reads head h // (query heads / heads).

A kernel is one file of a folder of lowbit.kernels whose name begins with "attention", with
    supports(case) -> str      "" = takes it; else the reason why not. Reads no data.
    attend(q, keys, values, scale, mask, counts) -> Tensor       as above
    RANK: int                  among the files that take a case the highest rank runs; reference.attention takes everything
and must equal the reference up to float rounding of q's dtype (lowbit.testing.attention).

Held      The tokens of a row are `first` (floats), then pages, then `last` (floats), in this order; keys and values have the
          same number in each. `first` and `last` are [batch, heads, n, width], n may be 0; new tokens are the end of `last`.
          lowbit.kernels.pages says how pages look; decoding them (lowbit.kernels.pages.decode) is the law. Tensors may be
          slices along tokens or steps: take the strides of batch and heads from them.
Paged     table None: pages are contiguous, [batch, heads, steps, ...]. Else they are a pool, [blocks, heads, steps of a block,
          ...], and row b's pages are blocks table[b] (int32 [batch, blocks of a row]) one after the other.
counts    int32 [batch, 3]: how many tokens of first, pages and last row b really has, from the start of each; None: all. What
          lies behind is never read, and a block behind may have any number.
mask      bool (True: seen) or floats that are added to scores, [batch or 1, query heads or 1, new, tokens]. None: query i sees
          all tokens of its row but the last new - 1 - i, the ones that are newer.
"""

import functools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lowbit.core.errors import KernelUnavailable
from lowbit.kernels import dispatch, pages
from lowbit.kernels.pages import NONE, Constants, Half, Pages


@dataclass(frozen=True, eq=False)
class Held:
    """The keys, or the values, of one layer."""

    half: Half
    first: Tensor
    pages: Pages
    last: Tensor
    constants: Constants = field(default_factory=lambda: NONE)
    table: Tensor | None = None

    @property
    def width(self) -> int:
        return self.first.shape[3]

    @property
    def packed(self) -> int:
        """Tokens in pages, of a row."""
        if not self.pages:
            return 0
        steps = self.pages[""].shape[2] * (1 if self.table is None else self.table.shape[1])
        return steps * self.half.step

    @property
    def block(self) -> int:
        """Tokens that are read together at least."""
        return self.half.step * (1 if self.table is None or not self.pages else self.pages[""].shape[2])

    def __len__(self) -> int:
        return self.first.shape[2] + self.packed + self.last.shape[2]

    def part(self, start: int, stop: int) -> Pages:
        """The pages of tokens start .. stop of those packed; both are whole blocks."""
        a, b = start // self.block, stop // self.block
        if self.table is None:
            return {name: page[:, :, a:b] for name, page in self.pages.items()}
        index = self.table[:, a:b].long()
        return {name: page[index].transpose(1, 2).flatten(2, 3) for name, page in self.pages.items()}

    def read(self) -> Tensor:
        """All tokens [batch, heads, tokens, width], decoded, in the dtype of `first`."""
        if not self.packed:
            return torch.cat([self.first, self.last], 2)
        part, start = self.part(0, self.packed), self.first.shape[2]
        decoded = pages.decode(self.half, part, self.width, start, self.constants)
        return torch.cat([self.first, decoded.to(self.first.dtype), self.last], 2)


@dataclass(frozen=True)
class Case:
    """What a kernel is asked for. width: of keys and of values. heads: of queries, of keys. tokens: new ones."""

    keys: Half
    values: Half
    width: tuple[int, int]
    heads: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    tokens: int
    masked: bool = False
    paged: bool = False


def attend(
    q: Tensor, keys: Held, values: Held, scale: float, mask: Tensor | None = None, counts: Tensor | None = None
) -> Tensor:
    """See the header. Raises KernelUnavailable."""
    heads = (q.shape[1], keys.first.shape[1])
    case = Case(
        keys.half, values.half, (keys.width, values.width), heads, q.device, q.dtype, q.shape[2],
        mask is not None, keys.table is not None,
    )  # fmt: skip
    found: Tensor = dispatch.get(pick(case)).attend(q, keys, values, scale, mask, counts)
    return found


def explain(case: Case) -> list[tuple[str, str]]:
    """Every kernel, best first, with "" when it takes the case, else the reason why not."""
    ranked, missing = dispatch.ranked(dispatch.ATTENTION)
    return [(name, dispatch.get(name).supports(case)) for name in ranked] + sorted(missing.items())


@functools.lru_cache(maxsize=4096)
def pick(case: Case) -> str:
    """The name of the kernel that runs. Raises KernelUnavailable when none does, with every reason."""
    told = explain(case)
    for name, reason in told:
        if not reason:
            return name
    reasons = "; ".join(f"{name}: {reason}" for name, reason in told)
    raise KernelUnavailable(f"attention over {case.keys.format} keys on {case.device}: {reasons}. Use another device.")
