"""_words - the words of a format's name behind its head: group, scale type, zero kind.

In / Out  ["g64", "asym"] -> {"group": (1, 64), "zero": "int"}. Each kind of word may stand once.
"""

import re
from typing import TypedDict

from lowbit.core.errors import FormatError, nearest

SCALES = {"fp16": 16, "bf16": 16, "half": 16, "e4m3": 8, "e8m0": 8, "fp32": 32, "dq": 8, "bilevel": 3}
"""Bits of a stored scale. "half" is 16 bits whose values are exact in fp16 and in bf16; "dq" is double quantization,
"bilevel" has zeros too and brings its own count."""

_GROUPS = {"row": (1, 0), "token": (1, 0), "tensor": (0, 0)}
_ZEROS = {"asym": "int", "floatzero": "float"}
_SHAPE = re.compile(r"g(?P<group>[1-9]\d*)|b(?P<rows>[1-9]\d*)x(?P<columns>[1-9]\d*)")


class Words(TypedDict, total=False):
    """What words say; what they leave out keeps the default of Format."""

    group: tuple[int, int]
    scale: str
    zero: str


def read(text: str, words: list[str], only: tuple[str, ...] = ("group", "scale", "zero")) -> Words:
    """What `words` of the format `text` say. only: the kinds that this head takes. Raises FormatError."""
    found: Words = {}
    for word in words:
        kind, meant = _meaning(word)
        if not kind:
            known = ["row", "tensor", "token", "g128", "g64", "g32", "b128x128", *_ZEROS, *SCALES]
            raise FormatError(f"Unknown word '{word}' in format '{text}'. {nearest(word, known)}")
        if kind not in only:
            raise FormatError(f"{text}: {text.split('-')[0]} has its own {kind}. Leave '{word}' out.")
        if kind in found:
            raise FormatError(f"{text}: '{word}' sets the {kind} a second time. Keep one.")
        found |= meant
    return found


def _meaning(word: str) -> tuple[str, Words]:
    """The kind of a word and what it says; ("", {}) when it is unknown."""
    if word in _GROUPS:
        return "group", {"group": _GROUPS[word]}
    if word in SCALES:
        return "scale", {"scale": word}
    if word in _ZEROS:
        return "zero", {"zero": _ZEROS[word]}
    match = _SHAPE.fullmatch(word)
    if not match:
        return "", {}
    if match["group"]:
        return "group", {"group": (1, int(match["group"]))}
    return "group", {"group": (int(match["rows"]), int(match["columns"]))}
