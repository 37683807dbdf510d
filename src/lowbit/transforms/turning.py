"""turning - a whole model in another basis: what each of its tensors becomes, one by one, while the model computes the same.

In / Out  an Outline (names and sizes), matrices on its edges -> Turning; `tensor(name, get)` gives a tensor in the new basis,
          `get` the stored ones. No two tensors have to be in memory but a matrix and the norm before it.
Idea      The residual stream x becomes x Q. Norms commute with an orthogonal Q once their weights are merged into what reads
          them (W diag(g), g = 1); then readers become W Q, writers Qt W with biases b Q, the embedding E Q. Values of a
          key-value head h become V_h R_h: rows of v by R_ht, columns of o, for each query head that reads h, by R_h.
Source    QuaRot (2404.00456), section 4; SpinQuant (2405.16406), section 3; computational invariance: SliceGPT (2401.15024).
Traps     Everything is computed in float64 and cast once. Embeddings are not centred: RMSNorm is no LayerNorm, and the model
          would be another one. Tied embeddings part: the head takes up the final norm. A norm between a sublayer and the sum
          (Gemma 2 and 3, OLMo 2) does not commute: such streams are refused by name.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lowbit.architectures import Fold
from lowbit.core.errors import ArchitectureError
from lowbit.sides import _hadamard
from lowbit.transforms import fold as folding
from lowbit.transforms.outline import Outline

Get = Callable[[str], Tensor]
Step = Callable[[Tensor, Get], Tensor]
Basis = Callable[[Tensor], Tensor]
"""x [..., n] -> x Q."""
Scales = Callable[[Get], Tensor]
"""Scales [channels] made of stored tensors."""


class Turning:
    """What each tensor becomes; `stream`, `values`, `diagonal` and `even` add to it. dtype: of the tensors that it gives."""

    def __init__(self, outline: Outline, dtype: torch.dtype = torch.float32) -> None:
        self.outline = outline
        self.dtype = dtype
        self.exact = torch.float64
        self._steps: dict[str, list[Step]] = defaultdict(list)

    def __contains__(self, name: str) -> bool:
        return name in self._steps

    def tensor(self, name: str, get: Get) -> Tensor:
        """The tensor called `name` in the new basis; one that nothing touches comes as it is."""
        if name not in self._steps:
            return get(name)
        value = get(name).to(self.exact)
        for step in self._steps[name]:
            value = step(value, get)
        return value.to(self.dtype)

    def stream(self, basis: Basis) -> None:
        """Turn the residual stream by an orthogonal basis. Raises ArchitectureError where that changes the function."""
        known, outline = self.outline.architecture, self.outline
        if known.fixed or not known.writers:
            fact = known.fixed or "nothing says which of its linears read and write the residual stream"
            raise ArchitectureError(
                f"{outline.kind}: the residual stream cannot be turned, {fact}. Turn inputs while running: quarot(online=all)."
            )
        self._merge()
        readers = [outline.full(i, t) for i in range(len(outline.blocks)) for fold in outline.norms(i) for t in fold.targets]
        for name in (known.embed, known.head, *readers):
            self._add(name, lambda w, _: basis(w))
        for index in range(len(outline.blocks)):
            for name in outline.writers(index):
                self._add(outline.full(index, name), lambda w, _: basis(w.mT).mT, lambda b, _: basis(b))

    def _merge(self) -> None:
        """Move the weights of all norms that feed linears into these."""
        outline = self.outline
        edges = [(outline.full(i, f.source), outline.full(i, t), f.offset) for i, f in self._folds() for t in f.targets]
        offset = max((f.offset for _, f in self._folds()), default=0.0)
        edges.append((outline.architecture.norm, outline.architecture.head, offset))
        for norm, reader, offset in edges:
            if f"{norm}.bias" in outline.parameters:
                raise ArchitectureError(f"{outline.kind}: {norm} has a bias, which no turned stream takes. Use online=all.")
            self._add(reader, self._merged(f"{norm}.weight", offset))
        for norm, offset in {norm: offset for norm, _, offset in edges}.items():
            self._add(norm, self._one(offset))

    def _folds(self) -> Iterator[tuple[int, Fold]]:
        for index in range(len(self.outline.blocks)):
            for fold in self.outline.norms(index):
                yield index, fold

    def _one(self, offset: float) -> Step:
        return lambda w, _: torch.full_like(w, 1 - offset)

    def _merged(self, norm: str, offset: float) -> Step:
        return lambda w, get: w * (get(norm).to(w.device, w.dtype) + offset)

    def values(self, index: int, matrices: Tensor) -> None:
        """Turn the values of block `index`: matrices [key-value heads or 1, width, width], orthogonal."""
        (queries, keys), width = self.outline.heads, self.outline.width
        for fold in self.outline.values(index):

            def rows(w: Tensor, _: Get) -> Tensor:
                """The last rows of a weight or bias, which are the values."""
                kept, values = w[: len(w) - keys * width], w[len(w) - keys * width :]
                m = matrices.to(w.device, w.dtype).expand(keys, -1, -1)
                return torch.cat([kept, (m.mT @ values.view(keys, width, -1)).reshape(values.shape)])

            def columns(w: Tensor, _: Get) -> Tensor:
                m = matrices.to(w.device, w.dtype).expand(keys, -1, -1).repeat_interleave(queries // keys, 0)
                return torch.einsum("onw,nwv->onv", w.view(-1, queries, width), m).reshape(w.shape)

            self._add(self.outline.full(index, fold.source), rows, rows)
            for target in fold.targets:
                self._add(self.outline.full(index, target), columns)

    def diagonal(self, index: int, fold: Fold, scales: Tensor | Scales) -> None:
        """Divide what the source of a fold of block `index` gives by `scales` [channels], multiply its readers' columns."""
        offset = fold.offset

        def found(w: Tensor, get: Get) -> Tensor:
            return (scales if isinstance(scales, Tensor) else scales(get)).to(w.device, w.dtype)

        def rows(w: Tensor, get: Get) -> Tensor:
            s = found(w, get).view(-1, *[1] * (w.dim() - 1))
            first = len(w) - len(s) if fold.heads else round(fold.rows[0] * len(w))
            inside = w[first : first + len(s)]
            changed = (inside + offset) / s - offset if w.dim() == 1 else inside / s
            return torch.cat([w[:first], changed, w[first + len(s) :]])

        self._add(self.outline.full(index, fold.source), rows, rows)
        for target in fold.targets:
            name = self.outline.full(index, target)
            self._add(name, lambda w, get: w * folding.spread(found(w, get), fold, self.outline.heads))

    def even(self, index: int) -> None:
        """Leave rows and the columns that read them with equal norms, along every fold between linears of block `index`.

        From weights alone, as they are stored: before anything else turns them.
        """
        for fold in self.outline.folds(index):
            if fold not in self.outline.norms(index):
                self.diagonal(index, fold, self._balance(index, fold))

    def _balance(self, index: int, fold: Fold) -> Scales:
        source, targets = self.outline.full(index, fold.source), [self.outline.full(index, t) for t in fold.targets]

        def scales(get: Get) -> Tensor:
            columns = torch.stack([get(f"{t}.weight").double().square().sum(0) for t in targets]).sum(0)
            columns = folding.gather(columns, fold, self.outline.heads)
            rows = get(f"{source}.weight").double().square().sum(1)
            first = len(rows) - len(columns) if fold.heads else round(fold.rows[0] * len(rows))
            ratio = rows[first : first + len(columns)] / columns
            return torch.where((ratio > 0) & ratio.isfinite(), ratio, 1.0) ** 0.25

        return scales

    def _add(self, module: str, weight: Step, bias: Step | None = None) -> None:
        self._steps[f"{module}.weight"].append(weight)
        if bias is not None and f"{module}.bias" in self.outline.parameters:
            self._steps[f"{module}.bias"].append(bias)


def dense(matrix: Tensor) -> Basis:
    """The basis of a matrix [n, n]."""
    return lambda x: x @ matrix.to(x.device, x.dtype)


def random_hadamard(n: int, seed: int) -> Basis:
    """Random signs, then a Hadamard matrix; of widths that are no order, one of blocks, which a random rotation mixes."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(2, (n,), generator=generator, dtype=torch.float64) * 2 - 1
    size = _hadamard.block(n)
    mixing = orthogonal(n // size, generator) if size < n else None

    def turn(x: Tensor) -> Tensor:
        turned = _hadamard.apply(x * signs.to(x.device, x.dtype), size)
        if mixing is None:
            return turned
        cube = turned.unflatten(-1, (n // size, size))
        return torch.einsum("...ab,ac->...cb", cube, mixing.to(x.device, x.dtype)).flatten(-2)

    return turn


def orthogonal(n: int, generator: torch.Generator) -> Tensor:
    """A matrix [n, n] drawn alike from all orthogonal ones, float64."""
    q, r = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    drawn: Tensor = q * r.diagonal().sign()
    return drawn


def matrix(basis: Basis, n: int) -> Tensor:
    """The matrix [n, n] of a basis, float64."""
    return basis(torch.eye(n, dtype=torch.float64))
