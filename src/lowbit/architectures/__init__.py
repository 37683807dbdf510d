"""architectures - a Hugging Face config -> the map of its decoder blocks. One file is one model family, found by model_type.

A file is data: it says which linears share an input (stages), which transforms may be folded where (folds), what stays in full
precision, how the file's tensors are named. It has no forward: the model's own class in transformers runs it.
Contract of a file: `ARCHITECTURE: Architecture`; its tests need no more, `lowbit.testing` makes a tiny model of the real class.
A model_type without a file is mapped from its module tree (_discover.py): blocks, stages, but no folds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lowbit.core.shelf import Shelf

shelf = Shelf(__name__, "architecture")


@dataclass(frozen=True)
class Fold:
    """An edge along which a per-channel scale moves: what `source` gives is what `targets` take.

    source: a norm or a linear, targets: linears or routers, all that read it (names inside the block; "*" stands for the
    number of each expert: in source, targets and inspect alike one fold an expert, in targets alone one fold for all).
    inspect: the submodule whose output AWQ compares ("" = the block itself; equal to the only target for a plain linear).
    offset: added to a norm's weight before use (1.0 in Gemma's (1 + w) norms).
    heads: source is the value projection: its outputs reach the target once per query head of the group. In a fused qkv
    projection the values are the last rows, as many as the target's inputs / query heads * key-value heads.
    rows: the slice (from, to) of the source's output rows, as fractions, for fused projections ((0.5, 1.0): the second half).
    """

    source: str
    targets: tuple[str, ...]
    inspect: str = ""
    offset: float = 0.0
    heads: bool = False
    rows: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Architecture:
    """The map of one model family.

    blocks, embed, norm, head: module names in the causal-LM class. stages: linears of a block in the order in which they
    run; those of one stage run side by side, so that the inputs of a stage depend on earlier stages alone; within one, names
    joined in `shared` have the very same input. folds: edges for transforms. keep: names of linears in a block that are
    never quantized, each with the reason. experts: module (in a block) that holds fused 3-D experts, "" for dense models.
    renames: (pattern, replacement) regular expressions from tensor names in files to lowbit's (experts taken apart).
    published: the way back, for folders that transformers saved with names of its own.
    writers: linears whose outputs are added to the residual stream; its readers are what norms of `folds` feed. fixed: why the
    stream cannot be put into another basis, "" where it can: then every reader takes it through a norm of `folds`.
    """

    blocks: str = "model.layers"
    embed: str = "model.embed_tokens"
    norm: str = "model.norm"
    head: str = "lm_head"
    stages: tuple[tuple[str, ...], ...] = ()
    folds: tuple[Fold, ...] = ()
    keep: tuple[tuple[str, str], ...] = ()
    experts: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    published: tuple[tuple[str, str], ...] = ()
    writers: tuple[str, ...] = ()
    fixed: str = ""
    notes: str = ""


def find(config: Any) -> Architecture:
    """The map of the model that a Hugging Face config describes: its file on this shelf, else what its module tree shows.

    Raises ArchitectureError when there is no file and the tree does not show decoder blocks of linears.
    """
    if config.model_type in shelf:
        found: Architecture = shelf.get(config.model_type).ARCHITECTURE
        return found
    from lowbit.architectures import _discover

    return _discover.of_config(config)


def shares(names: Sequence[str]) -> dict[str, list[str]]:
    """The linears of a stage by the one whose input they share: all of it, or those of one expert."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rpartition(".")[0] if ".experts." in name else "", []).append(name)
    return {members[0]: members for members in groups.values()}
