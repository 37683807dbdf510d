"""aqlm - learned codebooks: eight weights are a sum of vectors, and codes, vectors and scales suit each other and the inputs.

In / Out  W [out, in], H = E[x xT] -> Quantized.
Idea      Start: k-means of what is left, weighted by diag(H) (formats/aqlm.py), and one pass of feedback over steps of eight.
          Then in turn: vectors and scales (solvers/codebooks.py), codes by beam search, step after step, what is near measured
          by the step's own block of H and the errors of all others made up for. No part raises tr(E H ET).
Source    AQLM (2401.06118), without the tuning of blocks. Its code: up to 1000 rounds of 100 steps of Adam, beam 1.
Defaults  rounds 8, beam 8 (formats/_books.py).
Figures   lowbit-tiny, 8 windows of 1024 tokens, KL in milli-nats on bundled / pydoc (4 windows):
          aqlm2x8, 2.33 bits of which 0.3 are codebooks: 661 / 550; quip_sharp(e8p2), 2.07 bits: 787 / 593. Synthetic layer,
          relative loss after 0, 1, 2, 4, 8 rounds: 0.069, 0.031, 0.022, 0.018, 0.016.
Traps     Codebooks count: 8 KiB a matrix for aqlm2x8, 1 MiB for aqlm1x16; the report says where they outweigh the codes. Other
          formats are refused: with e8p2 it would be quip_sharp, with int4-g128 gptq.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Count, Method
from lowbit.methods._taken import Formats
from lowbit.solvers import codebooks, grid
from lowbit.statistics import Stats


@dataclass(frozen=True)
class AQLM(Method):
    """damp: added to H, relative to the mean of its diagonal. rounds: of new codebooks and new codes."""

    format: str = ""
    damp: float = 0.01
    rounds: Count = 8

    needs: ClassVar[tuple[str, ...]] = ("second_moment",)
    takes: ClassVar[Formats] = Formats(
        "learned codebooks", ("aqlm2x8", "aqlm1x16", "aqlm2x16"), lambda format: format.rule == "aqlm"
    )

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        moment = stats.get("second_moment")
        if moment is None or not stats.tokens:
            quantized = grid.nearest(weight, format, search=True)
            quantized.report["fallback"] = "no input was seen: k-means of all weights alike"
        else:
            given = grid.problem(moment, stats.tokens)
            quantized = grid.solve(weight, given, format, damp=self.damp, sweeps=self.rounds, refit=codebooks.refit)
        said = [str(quantized.report["fallback"])] if "fallback" in quantized.report else []
        if _outweighed(quantized):
            books, codes = (bits / weight.numel() for bits in _bits(quantized))
            said.append(f"codebooks take {books:.2f} bits a weight beside {codes:.2f} of codes: use a smaller book, as aqlm2x8")
        if said:
            quantized.report["fallback"] = "; ".join(said)
        return quantized


def _bits(quantized: Quantized) -> tuple[int, int]:
    """Bits of the codebooks, and of the codes."""
    books = quantized.parts.get("codebooks")
    return 0 if books is None else 8 * books.nbytes, 8 * quantized.packed().nbytes


def _outweighed(quantized: Quantized) -> bool:
    books, codes = _bits(quantized)
    return books > codes
