"""yaqa - rounding with feedback along inputs and outputs, by a Kronecker sketch of the curvature of the model's divergence.

In / Out  W [out, in], H_I ~ E[GT G], H_O ~ E[G GT] of its gradients G, window by window -> Quantized.
Idea      KL(original || quantized) is near E (H_O x H_I) E for small errors E of one matrix. H_I sees what later layers do
          with its outputs, other than E[x xT]; H_O says which outputs count together. Feedback goes along both
          (solvers/two_sided.py).
Source    YAQA (2505.22988), sketch B, one step of power iteration from the identity; there with trellis codes in a turned
          basis: yaqa(trellis2). alpha 0 is the paper; otherwise errors of the inputs are made up for as in gptaq.
Defaults  alpha 0.5, damp 0.01; blocks of 16 rows; 3 sweeps.
Traps     Two passes with gradients. H_O [out, out] and H_I [in, in] for every matrix stay on the disk while the run lasts.
          Slow: block of rows after block of rows (on an H200 shared by twelve, lowbit-tiny took more than 150 s).
          Not yet measured on a whole model. 64 windows are few for a sketch; the paper takes thousands. Experts: see
          guidedquant; they are rounded as by gptq.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lowbit.formats import Format, Quantized
from lowbit.methods import Count, Method, Share
from lowbit.solvers import grid, tables, two_sided
from lowbit.solvers.target import trusted
from lowbit.statistics import Stats


@dataclass(frozen=True)
class YAQA(Method):
    """alpha: how far the target makes up for errors of the inputs; ridge: its pull toward W. damp: added to both H. rows: of a
    block. sweeps: of coordinate descent in a block."""

    format: str = ""
    alpha: Share = 0.5
    ridge: float = 0.01
    damp: float = 0.01
    rows: Count = 16
    sweeps: int = 3

    needs: ClassVar[tuple[str, ...]] = (
        "second_moment", "cross_moment", "input_gradient_moment", "output_gradient_moment",
    )  # fmt: skip

    def solve(self, weight: Tensor, stats: Stats, format: Format) -> Quantized:
        plain, cross, inputs, outputs = (stats.get(need) for need in self.needs)
        if plain is None or not stats.tokens:
            return grid.unseen(weight, format, "rtn(search=mse)")
        if inputs is None or outputs is None or not bool(inputs.any()):
            given = grid.problem(plain, stats.tokens)
            fact = "no gradients at its outputs: errors count by the inputs alone"
            given.report["fallback"] = "; ".join(filter(None, (str(given.report.get("fallback", "")), fact)))
            return grid.solve(weight, given, format, damp=self.damp, sweeps=self.sweeps)
        given, target = grid.problem(inputs, stats.tokens), None
        if cross is not None:
            target = trusted(weight.float(), plain, cross, stats.tokens, self.ridge, self.alpha)
        return two_sided.solve(
            weight, given, outputs, format, tables.refit, target=target, damp=self.damp, rows=self.rows, sweeps=self.sweeps
        )
