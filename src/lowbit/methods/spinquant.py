"""spinquant - a learned basis: rotations of the stream and of each layer's values that the quantized network likes best.

In / Out  the whole model, its calibration windows -> two kinds of orthogonal matrices, folded into weights; what writes to the
          stream turns its inputs while running. Follow it by a solver and `act`.
Idea      Random rotations differ by points of accuracy; the loss of the quantized network can choose. Its gradient moves R1
          [hidden, hidden] and an R2 [head, head] a layer along the manifold of orthogonal matrices (solvers/stiefel.py) while
          all weights stay as they are.
          Channels between linears are evened out first, as in quarot.
Source    SpinQuant (2405.16406), sections 3.2 and 4.
Defaults  100 steps at rate 1.5, cosine, as in the paper, of 4 windows (paper 8); the loss is that of the next token. Weights
          are rounded in the loss only where the solver does not look at inputs (rtn), as the paper does before GPTQ.
Figures   lowbit-tiny, gptaq(int4-row) + act(int4-token, clip=0.9), KL in milli-nats on books / docs / wikitext2: 124 / 145 /
          241, what quarot's random rotations give (124 / 146 / 242). With planted outliers and gptq 414 / 704 / 779 against
          442 / 772 / 839.
Traps     The whole model and its gradients are in memory at once. It fits the calibration text: the best point on windows held
          out is kept.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lowbit.methods import Count, Linear, Method, Study, _whole
from lowbit.solvers import stiefel
from lowbit.transforms import turning as turns
from lowbit.transforms.outline import Outline
from lowbit.transforms.turning import Turning

SIDE = "turn"


@dataclass(frozen=True)
class SpinQuant(Method):
    """steps: of descent. batch: windows in each. rate: at the first step. online: as in quarot. seed: of the start."""

    steps: Count = 100
    batch: Count = 4
    rate: float = 1.5
    online: Literal["some", "none"] = "some"
    seed: int = 0

    def study(self, study: Study) -> dict[str, Tensor]:
        """Learn the rotations."""
        return _whole.learn(
            study, self._fold, self._start(study.outline), _next_token, _whole.Settings(self.steps, self.batch, self.rate)
        )

    def turn(self, turning: Turning, learned: dict[str, Tensor]) -> None:
        """Turn the stream and the values. Raises ArchitectureError where the stream cannot be turned."""
        exact = {n: stiefel.polished(t.double()) for n, t in learned.items()}
        self._fold(turning, exact or self._start(turning.outline))

    def _start(self, outline: Outline) -> dict[str, Tensor]:
        """Random Hadamard matrices."""
        found = {"stream": turns.matrix(turns.random_hadamard(outline.hidden, self.seed), outline.hidden)}
        for index in range(len(outline.blocks)):
            basis = turns.random_hadamard(outline.width, self.seed + 1 + index)
            found[f"values.{index}"] = turns.matrix(basis, outline.width)
        return found

    def _fold(self, turning: Turning, found: dict[str, Tensor]) -> None:
        for index in range(len(turning.outline.blocks)):
            turning.even(index)
        turning.stream(turns.dense(found["stream"]))
        for index in range(len(turning.outline.blocks)):
            turning.values(index, found[f"values.{index}"][None])

    def around(self, linear: Linear) -> str:
        """The side of one linear."""
        return SIDE if self.online == "some" and linear.writes else ""


def _next_token(logits: Tensor, wanted: Tensor, tokens: Tensor) -> Tensor:
    """Cross entropy of the tokens that follow."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
