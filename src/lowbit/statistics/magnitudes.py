"""magnitudes - how often each size of input is met: a histogram of |x| over all channels, the greatest, and a moving maximum.

In / Out  x [tokens, in] -> [32770] float32: counts by the upper 16 bits of |x| as float32 (`values` gives the middle of each
          bin), then the greatest |x|, then the moving average of the maxima of 512 tokens.
Idea      Bins of equal ratio (0.8 %) need no range beforehand and are merged by adding, so that any observer of ranges can look
          afterwards: maximum, percentile, least error (lowbit.solvers.observers).
Source    Moving average m += 0.01 (new - m), the first maximum as it is: compressed-tensors' observers.
Traps     Counts above 16 million are float32, off by 6e-8 of themselves.
"""

import torch
from torch import Tensor

BINS = 1 << 15
WINDOW = 512
"""Tokens whose maximum counts once in the moving average."""
SHARE = 0.01
"""Of the newest maximum in it."""


class Magnitudes:
    """The running counts."""

    def __init__(self, inputs: int, device: torch.device) -> None:
        self._counts = torch.zeros(BINS, dtype=torch.int64, device=device)
        self._greatest = torch.zeros(1, device=device)
        self._moving: Tensor | None = None
        self._peaks = torch.zeros(0, device=device)

    def add(self, x: Tensor, reference: Tensor | None) -> None:
        if not len(x):
            return
        size = x.float().abs()
        self._counts += torch.bincount(size.view(torch.int32).flatten() >> 16, minlength=BINS)
        peaks = size.amax(1)
        self._greatest = torch.maximum(self._greatest, peaks.amax())
        self._peaks = torch.cat([self._peaks, peaks])
        while len(self._peaks) >= WINDOW:
            self._moving = self._moved(self._peaks[:WINDOW])
            self._peaks = self._peaks[WINDOW:]

    def _moved(self, peaks: Tensor) -> Tensor:
        peak = peaks.amax().reshape(1)
        return peak if self._moving is None else self._moving + SHARE * (peak - self._moving)

    def result(self) -> Tensor:
        """Counts, greatest, moving maximum; zeros when no token was seen."""
        last = self._moved(self._peaks) if len(self._peaks) else self._moving
        return torch.cat([self._counts.float(), self._greatest, self._greatest if last is None else last])


def values(device: torch.device) -> Tensor:
    """The middle of every bin [32768]; the last 128 are no numbers."""
    bits = torch.arange(BINS, dtype=torch.int32, device=device)
    return (bits << 16 | 1 << 15).view(torch.float32)


def collector(inputs: int, device: torch.device) -> Magnitudes:
    return Magnitudes(inputs, device)
