"""_map - what a file of this shelf says: the map of a model family, and the edges along which scales may move."""

from dataclasses import dataclass


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
