"""quarot - the whole model in a random Hadamard basis: no channel of any input stands out, so that 4 bits can hold it.

In / Out  the model -> the same function in another basis, folded into weights: the residual stream (norms become ones), the
          values of every head. What no weight can take is turned while running, before the inputs of o and down are rounded.
          Follow it by a solver and `act`: quarot + gptq(int4-row) + act(int4-token, clip=0.9).
Idea      An outlier in one channel becomes 1 / sqrt(n) of itself in each of n. x Q (Qt W) = x W, and a norm without weights
          commutes with an orthogonal Q. Before the turn, channels between two linears (values to o, up to down) are scaled
          until their row and the columns that read them have equal norms: a turn spreads what an outlier there costs, it does
          not take it away.
Source    QuaRot (2404.00456). Evening out by weights alone is ours; between linears, as in cross-layer equalization
          (1906.04721).
Defaults  online some: inputs of what writes to the stream; none: folds alone, which any engine loads; all: every linear turns
          its own inputs and nothing is folded, for models whose stream cannot be turned (Gemma 2 and 3, OLMo 2). seed 0.
Figures   lowbit-tiny, KL in milli-nats on books / docs / wikitext2 (64 calibration, 32 evaluation windows): gptaq(int4-row) +
          act(int4-token, clip=0.8) after it 116 / 135 / 227, with clip 0.9 124 / 146 / 242 (the best rival 156 / 190 / 324;
          nothing turned, rtn: 861 / 1166 / 1248); gptaq(int8-row) + act(int8-token) 0.55 / 0.65 / 1.18.
          With planted outliers (8 windows of 512 to calibrate): rtn(int8-row) + act(int8-tensor) after it 2.62 (37.8 when
          channels between linears are not evened out), 2.68 (2.79) on the plain model; gptq(int4-row) + act(int4-token,
          clip=0.8) 227 (692), 220 (218) on the plain model.
          Weights alone, online=none + gptaq(int4-g128): 32.9 / 35.8 / 82.7 at 4.125 bits.
Traps     Tied embeddings part: the head takes up the final norm, so the files grow by one table. The values' basis has random
          signs: a plain Hadamard matrix and the one before o would undo each other. smoothquant(edges=all) after it finds
          values turned already.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lowbit.methods import Linear, Method
from lowbit.transforms import turning as turns
from lowbit.transforms.turning import Turning

SIDE = "turn"


@dataclass(frozen=True)
class QuaRot(Method):
    """online: which linears turn their inputs while running. seed: of the signs."""

    online: Literal["some", "none", "all"] = "some"
    seed: int = 0

    def turn(self, turning: Turning, learned: dict[str, Tensor]) -> None:
        """Turn the stream and the values. Raises ArchitectureError where the stream cannot be turned."""
        if self.online == "all":
            return
        outline = turning.outline
        for index in range(len(outline.blocks)):
            turning.even(index)
        turning.stream(turns.random_hadamard(outline.hidden, self.seed))
        for index in range(len(outline.blocks)):
            basis = turns.random_hadamard(outline.width, self.seed + 1 + index)
            turning.values(index, turns.matrix(basis, outline.width)[None])

    def around(self, linear: Linear) -> str:
        """The side of one linear."""
        return SIDE if self.online == "all" or (self.online == "some" and linear.writes) else ""
