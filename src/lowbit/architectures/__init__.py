"""architectures - a Hugging Face config -> the map of its decoder blocks. One file is one model family, found by model_type.

A file is data: it says which linears share an input (stages), which transforms may be folded where (folds), what stays in full
precision, how the file's tensors are named. It has no forward: the model's own class in transformers runs it.
Contract of a file: `ARCHITECTURE: Architecture`; its tests need no more, `lowbit.testing` makes a tiny model of the real class.
A model_type without a file is mapped from its module tree (_discover.py) and a trial forward (_stages.py): blocks and stages,
but no folds.
"""

from typing import Any

from lowbit.architectures import _discover
from lowbit.architectures._map import Architecture, Fold
from lowbit.architectures._stages import shares, traced
from lowbit.core.shelf import Shelf

__all__ = ["Architecture", "Fold", "find", "shares", "shelf", "traced"]

shelf = Shelf(__name__, "architecture")


def find(config: Any) -> Architecture:
    """The map of the model that a Hugging Face config describes: its file on this shelf, else what its module tree shows.

    Raises ArchitectureError when there is no file and the tree does not show decoder blocks of linears.
    """
    if config.model_type in shelf:
        found: Architecture = shelf.get(config.model_type).ARCHITECTURE
        return found
    return _discover.of_config(config)
