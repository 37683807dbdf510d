"""guidedquant - rounding with feedback where tokens count by what their errors cost the model, group of outputs by group.

In / Out  W [out, in], H_k = E[s_k x xT] for groups k of outputs -> Quantized.
Idea      The loss of the whole model grows with the squared errors of a linear's outputs, each times its squared gradient.
          Their mean s_k(t) over a group of outputs weighs token t in the group's second moment; then any solver goes on with
          that H_k in place of E[x xT]. Formats that tie rows together take the mean of the groups (solvers/grouped.py).
Source    GuidedQuant (2505.07004), with the solver of gptaq: alpha 0 is guidance alone, on gptq. With lut formats it is the
          paper's LNQ: guidedquant(lut3-row).
Defaults  4 groups (statistics/saliency.py). alpha 0.5, damp 0.01, 3 sweeps: as gptaq and gptq.
Figures   lowbit-tiny, 64 windows, KL in milli-nats on books / docs / wikitext2: lut3-row 118 / 125 / 265, lnq 133 / 143 / 300;
          trellis2 283 / 286 / 549, gptaq 285 / 291 / 579; int4-g128-asym 31.8 / 34.5 / 78.9, gptaq 31.8 / 34.5 / 79.8: with
          target correction already there, weighing tokens adds little on this model.
Traps     A pass with gradients over the whole model before any block is rounded; what it keeps is told by --dry-run.
          Experts: which tokens they see changes with rounding, so theirs count alike; the report says so.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Method, Share
from lowbit.solvers import grid, grouped, tables
from lowbit.solvers.target import trusted
from lowbit.statistics import Stats


@dataclass(frozen=True)
class GuidedQuant(Method):
    """alpha: how far the target makes up for errors of the inputs; ridge: its pull toward W. damp: added to H. sweeps: of
    coordinate descent."""

    format: str = ""
    alpha: Share = 0.5
    ridge: float = 0.01
    damp: float = 0.01
    order: Literal["activation", "natural"] = "activation"
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = ("second_moment", "cross_moment", "guided_moment")

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        plain, cross, guided = (stats.get(need) for need in self.needs)
        if plain is None or not stats.tokens:
            return grid.unseen(weight, format, "rtn(search=mse)")
        target, said = None, list[str]()
        if cross is not None:
            target = trusted(weight.float(), plain, cross, stats.tokens, self.ridge, self.alpha)
        if guided is None or not bool(guided.any()):
            guided, said = plain[None], ["no gradients at its outputs: all tokens count alike"]

        def one(part: Tensor, moment: Tensor, rows: slice) -> Quantized:
            given = grid.problem(moment, stats.tokens)
            if cross is None and self.alpha:
                grid.uncorrected(given)
            how = {"damp": self.damp, "order": self.order, "sweeps": self.sweeps, "refit": tables.refit}
            return grid.solve(part, given, format, target=None if target is None else target[rows], **how)  # type: ignore[arg-type]

        quantized = grouped.solve(weight, guided, format, one)
        if said:
            said.insert(0, str(quantized.report.get("fallback", "")))
            quantized.report["fallback"] = "; ".join(filter(None, said))
        return quantized
