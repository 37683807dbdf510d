"""_policy - what a policy of the KV cache is, and how the words of its text are read.

Idea      Keys and values of one head are matrices [tokens, head_dim]; a `Half` (lowbit.kernels.pages) says which format of
          lowbit.formats holds them, which way its groups run, and what is done before.
"""

import math
import re
from dataclasses import dataclass, field

from lowbit.core.errors import RequestError, nearest
from lowbit.kernels.pages import Half

PAGE = 32
"""Tokens that are packed at once, at least: appending copies what is packed once a page."""
CENTRED = 64
"""Tokens that share a mean, where a policy gives no number."""
COUNT = r"[1-9]\d*"
WORDS = {
    "s": r"\d+", "r": r"\d+", "g": COUNT, "k": COUNT, "out": COUNT, "rot": "", "pre": "", "tensor": "", "head": "",
    "centred": f"({COUNT})?",
}  # fmt: skip
"""What follows the name of a word."""


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

    @property
    def static(self) -> bool:
        """Whether its scales are constants of a layer, found when the model is quantized."""
        return bool(self.keys.static or self.values.static)

    @property
    def learned(self) -> bool:
        """Whether its bases are."""
        return self.keys.learned or self.values.learned

    @property
    def page(self) -> int:
        """Tokens that are packed at once: whole steps of keys and of values, so that both have the same number in pages."""
        step = math.lcm(self.keys.step, self.values.step)
        return -(-PAGE // step) * step

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
            like = [n if not WORDS[n] or n == "centred" else f"{n}32" for n in known]
            raise RequestError(f"{text}: a KV policy of this kind has no word '{word}'. {nearest(word, like)}")
        found[name] = int(word.removeprefix(name) or CENTRED)
    return found


def policy(text: str, keys: Half, values: Half, words: dict[str, int], sinks: int = 4, recent: int = 128) -> Policy:
    """A policy whose words may change its floats. Raises RequestError when a format does not exist."""
    return Policy(text, keys, values, words.get("s", sinks), words.get("r", recent))


def static(words: dict[str, int]) -> str:
    """Whose the constant scale is: "tensor", "head", or "" where there is none."""
    return next((word for word in ("tensor", "head") if word in words), "")


def bits(text: str, number: str, least: int, greatest: int) -> int:
    """The bits in a policy's name. Raises RequestError when they are not within the limits."""
    if not number.isdecimal() or not least <= int(number) <= greatest:
        raise RequestError(f"{text}: {number or 'no'} bits; this policy takes {least} to {greatest}. Give one of them.")
    return int(number)
