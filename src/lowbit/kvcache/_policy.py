"""_policy - what a policy of the KV cache is, and how the words of its text are read.

Idea      Keys and values of one head are matrices [tokens, head_dim]; a `Half` says which format of lowbit.formats holds
          them, which way its groups run, and what is done before. bits_per_number follows from the format, as for weights.
"""

import re
from dataclasses import dataclass, field
from functools import cached_property

from lowbit import formats
from lowbit.core.errors import RequestError, ShapeError, nearest
from lowbit.formats import Format

OUTLIER_BITS = 16 + 8
"""A float and its place among at most 256 channels."""
CENTRED = 64
"""Tokens that share a mean, where a policy gives no number."""
COUNT = r"[1-9]\d*"
WORDS = {"s": r"\d+", "r": r"\d+", "g": COUNT, "k": COUNT, "out": COUNT, "rot": "", "centred": f"({COUNT})?"}
"""What follows the name of a word."""


@dataclass(frozen=True)
class Half:
    """How keys, or values, are held once they are packed.

    format: a format with a scale a row or a group of a row; "": the model's own floats. along: what a row of it is:
    "token" (the channels of one token of a head) or "channel" (as many tokens of one channel as the format's group).
    centred: so many tokens in a row are packed less their mean (0: none). rotated: in a Hadamard basis of the head.
    outliers: numbers of each token and head that stay floats, the greatest.
    """

    format: str = ""
    along: str = "token"
    centred: int = 0
    rotated: bool = False
    outliers: int = 0

    @cached_property
    def grid(self) -> Format | None:
        """The format's object."""
        return formats.parse(self.format) if self.format else None

    @property
    def step(self) -> int:
        """Tokens that are packed together: they share scales, or a mean."""
        return self.grid.group[1] if self.grid and self.along == "channel" else max(self.centred, 1)

    def rows(self, width: int) -> tuple[int, int]:
        """Shape [rows, columns] of the matrix that `step` tokens of one head of `width` channels are."""
        return (width, self.step) if self.along == "channel" else (self.step, width)

    def bits_per_number(self, width: int) -> float:
        """All stored bits (codes, scales, zeros, means, outliers) of packed tokens, per number. Raises ShapeError."""
        if self.grid is None:
            return 16.0
        mean = 16 / self.step if self.centred else 0
        return self.grid.bits_per_weight(self.rows(width)) + mean + self.outliers * OUTLIER_BITS / width

    def check(self, text: str, width: int) -> None:
        """See that heads of `width` channels can be held. Raises ShapeError."""
        group = self.grid.group[1] if self.grid and self.along == "token" else 0
        if group and width % group:
            fits = ", ".join(f"g{g}" for g in (128, 64, 32, 16) if width % g == 0)
            advice = f"Use {fits}, or leave the word out." if fits else "Leave the word out."
            raise ShapeError(f"{text}: group {group} does not divide the {width} channels of a head. {advice}")
        if self.outliers and (self.outliers > width or width > 256):
            raise ShapeError(f"{text}: {self.outliers} outliers of {width} channels; places are 8 bits. Use fewer, or none.")


@dataclass(frozen=True)
class Policy:
    """How one model's KV cache is held. text: its name. sinks, recent: first and last tokens of a sequence kept as floats."""

    text: str = field(compare=False)
    keys: Half
    values: Half
    sinks: int = 4
    recent: int = 128

    def __str__(self) -> str:
        return self.text

    def bits_per_number(self, width: int) -> float:
        """Mean stored bits of a packed number of keys and values in heads of `width` channels."""
        return (self.keys.bits_per_number(width) + self.values.bits_per_number(width)) / 2


def read(text: str, words: list[str], *own: str) -> dict[str, int]:
    """The words of a policy: name -> its number. own: words of this file beside "s" and "r".

    Raises RequestError for a word that is not among them.
    """
    known = ("s", "r", *own)
    found = {}
    for word in words:
        name = next((n for n in known if re.fullmatch(n + WORDS[n], word)), None)
        if name is None:
            like = [n if n in {"rot", "centred"} else f"{n}32" for n in known]
            raise RequestError(f"{text}: a KV policy of this kind has no word '{word}'. {nearest(word, like)}")
        found[name] = int(word.removeprefix(name) or CENTRED)
    return found


def policy(text: str, keys: Half, values: Half, words: dict[str, int], sinks: int = 4, recent: int = 128) -> Policy:
    """A policy whose words may change its floats. Raises RequestError when a format does not exist."""
    return Policy(text, keys, values, words.get("s", sinks), words.get("r", recent))


def bits(text: str, number: str, least: int, greatest: int) -> int:
    """The bits in a policy's name. Raises RequestError when they are not within the limits."""
    if not number.isdecimal() or not least <= int(number) <= greatest:
        raise RequestError(f"{text}: {number or 'no'} bits; this policy takes {least} to {greatest}. Give one of them.")
    return int(number)
