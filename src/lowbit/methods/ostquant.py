"""ostquant - rotations and scales learned together: of the stream, of values, of every channel between two linears.

In / Out  the whole model, its calibration windows -> an orthogonal matrix of the stream, one of each layer's values, and scales
          along every fold; all folded into weights. What writes to the stream turns its inputs while running, after the scales.
          Follow it by a solver and `act`.
Idea      A rotation evens out directions, a scale evens out variances: together they fit the quantizer's cube better than
          either (the paper's QSUR). The loss is the divergence from the original's predictions on the tokens that it thinks
          likeliest, which a few windows fit without the noise of the next token.
Source    OSTQuant (2501.13987), sections 3.2 and 3.3: the KL-Top loss.
Defaults  100 steps of 4 windows, top 1000 as in the paper; rotations at the rate of spinquant, logarithms of scales by Adam at
          0.02 (paper: Riemannian Adam for both, 0.02 and 0.03).
Traps     As spinquant: the whole model and its gradients are in memory. Scales start where quarot evens channels out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowbit.methods import Count, Linear, Method, Study, _whole
from lowbit.solvers import stiefel
from lowbit.transforms import turning as turns
from lowbit.transforms.outline import Outline
from lowbit.transforms.turning import Turning

SIDE = "turn"
SCALE = "scale."


@dataclass(frozen=True)
class OSTQuant(Method):
    """steps: of descent. batch: windows in each. rate, scale_rate: of rotations and of scales. top: tokens that count."""

    steps: Count = 100
    batch: Count = 4
    rate: float = 1.5
    scale_rate: float = 0.02
    top: Count = 1000
    seed: int = 0

    def study(self, study: Study) -> dict[str, Tensor]:
        """Learn rotations and scales."""
        start = self._start(study)
        matrices = {n: t for n, t in start.items() if not n.startswith(SCALE)}
        scales = {n: t for n, t in start.items() if n.startswith(SCALE)}
        settings = _whole.Settings(self.steps, self.batch, self.rate, self.scale_rate)
        return _whole.learn(study, self._fold, matrices, self._loss, settings, scales)

    def turn(self, turning: Turning, learned: dict[str, Tensor]) -> None:
        """Turn the stream and the values, scale the folds. Raises ArchitectureError where the stream cannot be turned."""
        exact = {n: t.double() if n.startswith(SCALE) else stiefel.polished(t.double()) for n, t in learned.items()}
        self._fold(turning, exact or self._rotations(turning.outline))

    def around(self, linear: Linear) -> str:
        """The side of one linear."""
        return SIDE if linear.writes else ""

    def _rotations(self, outline: Outline) -> dict[str, Tensor]:
        """Random Hadamard matrices."""
        found = {"stream": turns.matrix(turns.random_hadamard(outline.hidden, self.seed), outline.hidden)}
        for index in range(len(outline.blocks)):
            basis = turns.random_hadamard(outline.width, self.seed + 1 + index)
            found[f"values.{index}"] = turns.matrix(basis, outline.width)
        return found

    def _start(self, study: Study) -> dict[str, Tensor]:
        """Rotations, and logarithms of scales, 0."""
        found, outline = self._rotations(study.outline), study.outline
        sizes = {name: p.shape for name, p in study.model.named_parameters(remove_duplicate=False)}
        for index in range(len(outline.blocks)):
            for number, fold in enumerate(outline.folds(index)):
                inputs = sizes[f"{outline.full(index, fold.targets[0])}.weight"][1]
                channels = inputs // outline.heads[0] * outline.heads[1] if fold.heads else inputs
                found[f"{SCALE}{index}.{number}"] = torch.zeros(channels)
        return found

    def _fold(self, turning: Turning, found: dict[str, Tensor]) -> None:
        for index in range(len(turning.outline.blocks)):
            turning.even(index)
        turning.stream(turns.dense(found["stream"]))
        for index in range(len(turning.outline.blocks)):
            turning.values(index, found[f"values.{index}"][None])
            for number, fold in enumerate(turning.outline.folds(index)):
                if f"{SCALE}{index}.{number}" in found:
                    turning.diagonal(index, fold, found[f"{SCALE}{index}.{number}"].exp())

    def _loss(self, logits: Tensor, wanted: Tensor, tokens: Tensor) -> Tensor:
        """KL(original || quantized) over the `top` tokens that the original thinks likeliest."""
        places = wanted.topk(min(self.top, wanted.shape[-1]), -1).indices
        p = wanted.gather(-1, places).float().log_softmax(-1)
        q = logits.gather(-1, places).float().log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean()
