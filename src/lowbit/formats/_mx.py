"""_mx - power-of-two scales of 32-blocks, as the OCP microscaling formats have them.

In / Out  W [out, in] -> parts {"scale" uint8 [R, G]}, exponent + 127.
Idea      Plain: e = floor(log2 max|w|) - the element's greatest exponent; what then lies beyond the element's range saturates.
          search: e - 1, e or e + 1, whichever loses least by weighted squared error; the format leaves that to the encoder.
"""

import torch
from torch import Tensor

from lowbit.dtypes import Element
from lowbit.formats import Format, Parts
from lowbit.formats import _search as searching
from lowbit.formats import _table_search as tables
from lowbit.formats._scales import load


def fit(format: Format, weight: Tensor, importance: Tensor | None, search: bool, greatest: int, element: Element) -> Parts:
    """Choose the exponents. greatest: exponent of the element's largest power of two; `element` rounds to its values."""
    x = searching.grouped(format, weight)
    size = x.abs().amax(-1)
    exponent = torch.frexp(size).exponent - 1 - greatest
    stored = torch.where(size > 0, (exponent + 127).clamp(0, 254), 127).to(torch.uint8)
    if search:
        h = searching.weights_of(format, importance, weight.shape[0])
        stored = torch.cat([_best(part, h_part, stored[rows], element) for rows, part, h_part in searching.pieces(x, h)])
    return {"scale": stored}


def _best(x: Tensor, h: Tensor | None, stored: Tensor, element: Element) -> Tensor:
    """The best of each exponent and its two neighbours."""
    tried = torch.stack([stored.int(), stored.int() + 1, stored.int() - 1]).clamp_(0, 254).to(torch.uint8)
    index = tables.pick(x, h, (load(candidate, "e8m0") for candidate in tried), element)
    return tried.gather(0, index[None].long())[0]
