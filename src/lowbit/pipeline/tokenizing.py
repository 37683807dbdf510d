"""tokenizing - a long text to tokens on all cores: cut into pieces that overlap, put together where two of them agree.

Idea      A tokenizer works through one text on one core, and through several beside each other. What a piece gives is right but
          near its ends; so pieces overlap, and one goes on where the other has the same AGREE tokens at the same places on both
          sides. Where they never agree, the text is taken whole.
Traps     Tokens are not strictly local in every tokenizer; after so many equal ones none was seen to differ.
"""

from typing import Any

PIECE, OVERLAP = 1 << 16, 1 << 10
"""Characters."""
AGREE, MOST = 8, 4 << 10
"""Tokens before and after the cut that are equal; tokens at an end of a piece that are looked at."""
Placed = list[tuple[int, int]]
"""Place in the text and number of each token."""


def ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, without those for its begin and end."""
    if len(text) > 2 * PIECE and getattr(tokenizer, "is_fast", False):
        found = _by_pieces(tokenizer, text)
        if found is not None:
            return found
    whole: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return whole


def _by_pieces(tokenizer: Any, text: str) -> list[int] | None:
    """The tokens of a text, or None where two pieces do not agree."""
    starts = range(0, len(text), PIECE)
    pieces = [text[a : a + PIECE + OVERLAP] for a in starts]
    told = tokenizer(pieces, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    found: list[int] = []
    before: Placed = []
    for start, ids, places in zip(starts, told["input_ids"], told["offset_mapping"], strict=True):
        cut = _meeting(before, _placed(start, ids[:MOST], places[:MOST]), start) if start else (0, 0)
        if cut is None:
            return None
        found[len(found) - cut[0] :] = ids[cut[1] :]
        before = _placed(start, ids[-MOST:], places[-MOST:])
    return found


def _placed(start: int, ids: list[int], places: list[tuple[int, int]]) -> Placed:
    return [(start + place[0], token) for token, place in zip(ids, places, strict=True)]


def _meeting(before: Placed, after: Placed, start: int) -> tuple[int, int] | None:
    """Where a token behind `start` is in both, with the same neighbours: how many tokens of `before` are left from it on, how
    many of `after` come before it. None where there is none."""
    where = {token: k for k, token in enumerate(after)}
    for i, token in enumerate(before[: len(before) - AGREE]):
        k = where.get(token, 0)
        if i >= AGREE <= k and token[0] >= start and before[i - AGREE : i + AGREE] == after[k - AGREE : k + AGREE]:
            return len(before) - i, k
    return None
