"""prefixquant - tokens whose activations tower over all others begin every sequence, their keys and values kept as constants.

In / Out  calibration tokens, how far each reaches in every block -> the tokens of the prefix. Their keys and values are stored
          with the layers that give them; static scales never see them. Follow it by a solver and `act`:
          prefixquant + gptq(int8-row) + act(int8-tensor, static=true).
Idea      A sequence's first token, and in some models the first "." or line break, is a sink: attention rests on it, its
          activations are 20 to 1000 times the median, always the same. As a prefix it is computed once, in floats; there is
          no second one behind it, and what is left suits one static scale.
Source    PrefixQuant (2410.05265), sections 3 and 4: inputs of down projections, beyond 64 times the median of a sequence;
          as many tokens as there are outliers in a sequence, the most frequent ones, beginning-of-text last.
Defaults  beyond 20 (the paper: 64), as the bundled model's first token reaches 27 times the median, no other more than 6.
          most 8 tokens. Block-wise training, which the paper adds, is a tuner's work: block_tuning.
Figures   lowbit-tiny, KL in milli-nats (8 windows of 512 to calibrate, 4 of 1024 to measure), act(int8-tensor, static=true)
          after gptaq(int8-row): 129 without it, 60 with it; after rtn(int8-row), observer mse: 85 and 29; after quarot and
          rtn(int8-row): 3.1 and 2.9; quarot, gptq(int4-row), act(int4-tensor, static=true, observer=mse): 270 and 252.
Traps     A prefix of more than beginning-of-text changes what the original computes, and every sequence must begin with it:
          lowbit's own commands see to that, other callers are warned. The file is lowbit's own, so that nothing else loads it
          without the prefix. Its tokens' other activations are clipped: the logits behind the prefix's own tokens are poor.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.methods import Count, Method

SHARE = 0.1
"""Of the windows: a token that stands out in fewer is a chance."""


@dataclass(frozen=True)
class PrefixQuant(Method):
    """beyond: times the median of its window that an outlier's greatest |x| reaches. most: tokens of the prefix."""

    beyond: float = 20.0
    most: Count = 8

    def prefix(self, tokens: Tensor, reach: Sequence[Tensor], first: int) -> tuple[int, ...]:
        """The prefix. tokens [windows, length]; reach: greatest |x| of each of them, by block; first: what texts begin with."""
        outliers = [size > self.beyond * size.median(1, keepdim=True).values for size in reach]
        count = max(math.ceil(float(found.sum(1).float().mean())) for found in outliers)
        later = torch.stack(outliers).any(0)[:, 1:]
        windows = [set(row[there].tolist()) for row, there in zip(tokens[:, 1:], later.to(tokens.device), strict=True)]
        often = Counter(token for window in windows for token in window if token != first)
        wanted = min(count, self.most) - 1
        common = [token for token, times in often.most_common() if times >= SHARE * len(windows)]
        return (*common[: max(wanted, 0)], first)
