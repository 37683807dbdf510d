"""aqlm2x - sums of two vectors for every eight weights: aqlm2xB, books of 2**B vectors.

In / Out  As the rule aqlm.
Idea      aqlm2x8: 2 bits a weight, and 8 KiB of codebooks; aqlm2x16: 4 bits, and 2 MiB.
Source    AQLM (2401.06118).
"""

from lowbit.formats import Format, _books


def parse(number: str, words: list[str]) -> Format:
    """The format aqlm2x{number} with its words."""
    return _books.head(2, number, words)
