"""outline - what a transform of a whole model must know of it: names, sizes, and which edges its blocks have.

In / Out  an Architecture and the names of modules and parameters -> norms, folds and writers of each block, names resolved.
"""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass

from lowbit.architectures import Architecture, Fold
from lowbit.transforms import fold as folding


@dataclass(frozen=True)
class Outline:
    """What a turning must know of a model. blocks: the modules in each block. parameters: dimensions by full name.

    heads: query heads, key-value heads. hidden: channels of the residual stream. width: of a head. kind: its model_type.
    """

    architecture: Architecture
    blocks: tuple[tuple[str, ...], ...]
    parameters: Mapping[str, int]
    heads: tuple[int, int]
    hidden: int
    width: int
    kind: str = ""

    def norms(self, index: int) -> list[Fold]:
        """The folds of block `index` that begin at a norm."""
        folds = folding.resolve(self.architecture.folds, self.blocks[index])
        return [fold for fold in folds if self.parameters[f"{self.full(index, fold.source)}.weight"] == 1]

    def folds(self, index: int) -> list[Fold]:
        """All folds of block `index`."""
        return folding.resolve(self.architecture.folds, self.blocks[index])

    def values(self, index: int) -> list[Fold]:
        """The fold from values to the projection that reads them."""
        return [fold for fold in folding.resolve(self.architecture.folds, self.blocks[index]) if fold.heads]

    def writers(self, index: int) -> list[str]:
        """The linears of block `index` that write into the residual stream."""
        return [n for pattern in self.architecture.writers for n in fnmatch.filter(self.blocks[index], pattern)]

    def full(self, index: int, name: str) -> str:
        """The full name of a module of block `index`."""
        return f"{self.architecture.blocks}.{index}.{name}"
