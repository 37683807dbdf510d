"""_map - one bit for every weight <-> words of 32 bits: bit j of word k is column 32 k + j."""

import torch
from torch import Tensor

WORD = 32


def packed(mask: Tensor) -> Tensor:
    """A mask [out, in] as int32 [out, ceil(in / 32)]."""
    wide = torch.nn.functional.pad(mask.long(), (0, -mask.shape[1] % WORD)).view(mask.shape[0], -1, WORD)
    words = (wide << torch.arange(WORD, device=mask.device)).sum(2)
    return torch.where(words < 1 << 31, words, words - (1 << 32)).to(torch.int32)


def unpacked(words: Tensor, columns: int) -> Tensor:
    """The way back, bool [out, columns]."""
    bits = words[:, :, None] >> torch.arange(WORD, device=words.device) & 1
    return bits.flatten(1)[:, :columns].bool()
