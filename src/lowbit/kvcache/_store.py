"""_store - the keys, or the values, of one layer: sinks as floats, packed pages, the recent window as floats.

Idea      tokens = first [sinks] + pages + last [recent .. recent + PAGE - 1]. Appending packs what is older than the recent
          window, a page at a time; what is packed is not touched again. Rolling back cuts from the end; a step of pages that
          is cut through becomes floats again, the decoded ones.
Traps     With left padding the sinks of a shorter row are padding: they are never attended to, so its first tokens are packed.
          A draft that is rolled back may have pushed older tokens out of the window early: they stay packed.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lowbit.kernels import pages as packing
from lowbit.kernels.attention import Held
from lowbit.kernels.pages import NONE, Constants, Half, Pages


class Store:
    """Tokens of keys or values. page: tokens that are packed at once. like [batch, heads, any, width]: its shape and dtype."""

    def __init__(self, half: Half, sinks: int, recent: int, page: int, like: Tensor, constants: Constants = NONE) -> None:
        self.half, self.sinks, self.recent, self.page, self.constants = half, sinks, recent, page, constants
        self.first = like.new_empty(like[:, :, :0].shape)  # no slice: that would keep the whole prompt
        self.last = self.first
        self.pages: Pages = {}

    @property
    def packed(self) -> int:
        """Tokens in pages."""
        return self.pages[""].shape[2] * self.half.step if self.pages else 0

    def __len__(self) -> int:
        return self.first.shape[2] + self.packed + self.last.shape[2]

    def held(self) -> Held:
        """What is held, as attention takes it."""
        return Held(self.half, self.first, self.pages, self.last, self.constants)

    def take(self, x: Tensor) -> Held:
        """Append new tokens [batch, heads, new, width]; gives what was held before and them, unrounded, behind it."""
        first, last, steps = self.first, torch.cat([self.last, x], 2), self.packed // self.half.step
        self.append(x)
        # slices of the new pages, so that the old ones need not be kept until attention is done
        pages = {name: page[:, :, :steps] for name, page in self.pages.items()} if steps else {}
        return Held(self.half, first, pages, last, self.constants)

    def read(self) -> Tensor:
        """All tokens [batch, heads, tokens, width], decoded, in the dtype that they came in."""
        return self.held().read()

    def append(self, x: Tensor) -> None:
        """Take new tokens [batch, heads, new, width]."""
        room = self.sinks - self.first.shape[2]
        if room > 0 and len(self) == self.first.shape[2]:
            self.first, x = torch.cat([self.first, x[:, :, :room]], 2), x[:, :, room:]
        self.last = torch.cat([self.last, x], 2)
        old = (self.last.shape[2] - self.recent) // self.page * self.page
        if old > 0:
            self._pack(self.last[:, :, :old])
            self.last = self.last[:, :, old:].clone()  # a slice would keep the memory of the whole

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens."""
        last = length - self.first.shape[2] - self.packed
        if last >= 0:
            self.last = self.last[:, :, :last].clone()
            return
        self.first = self.first[:, :, :length].clone()
        kept, rest = divmod(max(length - self.first.shape[2], 0), self.half.step)
        self.last = self._decoded(kept)[:, :, :rest].clone()
        self.pages = {name: page[:, :, :kept].clone() for name, page in self.pages.items()} if kept else {}

    def batch(self, change: Callable[[Tensor], Tensor]) -> None:
        """Pick, repeat or reorder sequences: `change` works on the first dimension of any tensor."""
        self.first, self.last = change(self.first), change(self.last)
        self.pages = {name: change(page) for name, page in self.pages.items()}

    def to(self, device: torch.device | str) -> None:
        """Move all that is held."""
        self.batch(lambda held: held.to(device))

    @property
    def bytes(self) -> int:
        """Bytes that are really held."""
        return sum(held.untyped_storage().nbytes() for held in (self.first, self.last, *self.pages.values()))

    def _pack(self, x: Tensor) -> None:
        """Move whole steps of tokens to the end of the pages."""
        new = packing.encode(self.half, x, self.first.shape[2] + self.packed, self.constants)
        self.pages = {name: torch.cat([self.pages[name], page], 2) for name, page in new.items()} if self.pages else new

    def _decoded(self, start: int) -> Tensor:
        """The tokens of pages from a step on, as floats."""
        if not self.pages:
            return self.last[:, :, :0]
        pages = {name: page[:, :, start:] for name, page in self.pages.items()}
        place = self.first.shape[2] + start * self.half.step
        return packing.decode(self.half, pages, self.first.shape[3], place, self.constants).to(self.first.dtype)
