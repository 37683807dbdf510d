"""squeezellm - a table of values for each row, put where the weights lie that matter.

In / Out  W [out, in], how much each weight matters -> Quantized, codes of the nearest values.
Idea      Weights of a row are clustered by k-means, each weighted by what an error of it costs; the best clusters of a row are
          intervals of its sorted weights, and are found exactly (formats/lut.py). The cost is the Fisher diagonal, the mean
          over windows of a weight's squared gradient; for experts
          diag(H), the mean square of the input that a weight meets, the same for all rows.
Source    SqueezeLLM (2306.07629), without its sparse part.
Defaults  k-means to the end (the paper's code: scikit-learn, at most 50 steps from random starts).
Figures   lowbit-tiny, 64 windows, books / docs / wikitext2: lut3-row 168.7 / 212.6 / 332.1, by diag(H) 169.7 / 218.0 / 349.0.
          With diag(H): lowbit-tiny, 8 windows of 1024 tokens, KL in milli-nats on bundled / pydoc (4 windows):
          lut3-row, 3.28 bits: 261 / 209; lnq 209 / 183.
Traps     No feedback: methods/lnq.py goes on from here and loses less. Other formats are refused.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method
from lowbit.methods._taken import Formats
from lowbit.statistics import Stats


@dataclass(frozen=True)
class SqueezeLLM(Method):
    """format: lut2-row, lut3-row or lut4-row."""

    format: str = ""

    needs: ClassVar[tuple[str, ...]] = ("second_moment", "fisher_diagonal")
    takes: ClassVar[Formats] = Formats(
        "a table of values for each row", ("lut4-row", "lut3-row", "lut2-row"), lambda format: format.rule == "lut"
    )

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        moment, fisher = stats.get("second_moment"), stats.get("fisher_diagonal")
        if moment is None or not stats.tokens:
            quantized = _clustered(weight, weight.new_ones(weight.shape[1]), format)
            quantized.report["fallback"] = "no input was seen: all weights count alike"
            return quantized
        if fisher is None or not bool(fisher.any()):
            quantized = _clustered(weight, moment.diagonal(), format)
            quantized.report["fallback"] = "no gradients at its outputs: weights count by the mean square of their inputs"
            return quantized
        seen = fisher.any(1, keepdim=True)
        quantized = _clustered(weight, torch.where(seen, fisher, moment.diagonal().expand_as(fisher)), format)
        if stats.tokens < weight.shape[1]:
            quantized.report["fallback"] = f"{stats.tokens} tokens for {weight.shape[1]} inputs: their weights are rough"
        return quantized


def _clustered(weight: Tensor, importance: Tensor, format: Format) -> Quantized:
    """Nearest values of tables for importance [in] or [out, in]. Report: "error", weighted, relative."""
    quantized = format.fit(weight, importance).quantize(weight)
    lost = ((quantized.decode() - weight).square() * importance).double().sum()
    quantized.report["error"] = float(lost / (weight.float().square() * importance).double().sum().clamp_min(1e-300))
    return quantized
