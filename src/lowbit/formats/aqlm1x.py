"""aqlm1x - one codebook for every eight weights: aqlm1xB, books of 2**B vectors.

In / Out  As the rule aqlm.
Idea      aqlm1x8: 1 bit a weight; aqlm1x16: 2 bits, and 1 MiB of codebook.
Source    AQLM (2401.06118).
"""

from lowbit.formats import Format, _books


def parse(number: str, words: list[str]) -> Format:
    """The format aqlm1x{number} with its words."""
    return _books.head(1, number, words)
