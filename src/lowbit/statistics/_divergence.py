"""_divergence - how far one model's predictions are from another's, window by window.

Idea      KL(original || quantized) = sum over the vocabulary of p (ln p - ln q), in nats, mean over the positions of a window;
          negative log-likelihood of the tokens that follow; share of positions whose most likely token agrees.
Traps     Softmax runs in float32 and in slices of positions: a whole window of a 128k vocabulary takes a gigabyte a copy.
          The standard error is taken over windows, which are independent, not over tokens, which are not.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

SLICE = 256


@dataclass
class Divergence:
    """Per-window figures of one text; `summary` gives means and standard errors."""

    kl: list[float] = field(default_factory=list)
    agree: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    nll_original: list[float] = field(default_factory=list)

    def add(self, tokens: Tensor, quantized: Tensor, original: Tensor | None) -> None:
        """Take one window: tokens [length], logits [length, vocab] of both models (original None: likelihood alone)."""
        length = tokens.shape[0]
        sums = torch.zeros(4, dtype=torch.float64)
        for start in range(0, length, SLICE):
            stop = min(start + SLICE, length)
            following = tokens[start + 1 : stop + 1].to(quantized.device)
            q = quantized[start:stop].float().log_softmax(-1)
            sums[2] -= _picked(q, following)
            if original is not None:
                p = original[start:stop].to(q.device).float().log_softmax(-1)
                sums[0] += (p.exp() * (p - q)).sum().cpu()
                sums[1] += (p.argmax(-1) == q.argmax(-1)).sum().cpu()
                sums[3] -= _picked(p, following)
        self.nll.append(float(sums[2]) / (length - 1))
        if original is not None:
            self.kl.append(float(sums[0]) / length)
            self.agree.append(float(sums[1]) / length)
            self.nll_original.append(float(sums[3]) / (length - 1))

    def summary(self) -> dict[str, float | int]:
        """perplexity, kl, top1 and their standard errors (`_se`), original_perplexity, windows."""
        nll, nll_se = mean_and_error(self.nll)
        result: dict[str, float | int] = {
            "windows": len(self.nll),
            "perplexity": math.exp(nll),
            "perplexity_se": math.exp(nll) * nll_se,
        }
        if self.kl:
            result["kl"], result["kl_se"] = mean_and_error(self.kl)
            result["top1"], result["top1_se"] = mean_and_error(self.agree)
            result["original_perplexity"] = math.exp(mean_and_error(self.nll_original)[0])
        return result


def _picked(logs: Tensor, following: Tensor) -> Tensor:
    """Sum of the log-probabilities of the tokens that follow."""
    return logs[: len(following)].gather(-1, following[:, None]).sum().cpu()


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error over windows (0 for a single one)."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
