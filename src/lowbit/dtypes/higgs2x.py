"""higgs2x - grids that are best for Gaussian numbers, n points for pairs of numbers: higgs2xN.

In / Out  values of variance 1 -> code of the nearest point in uint8 -> values; see _higgs.py.
Idea      A code tells two neighbours of a row, log2(n) / 2 bits a weight. Stored in a turned basis unless "plain".
Source    HIGGS (2411.17525).
Figures   Mean squared error on N(0,1): 16 points 0.108, 64 points 0.0299, 256 points 0.0079 (published: 0.1098, 0.0299).
"""

from lowbit.dtypes import Element, _higgs

EXAMPLES = ("higgs2x16", "higgs2x64", "higgs2x256")


def element(number: str) -> Element:
    return _higgs.element(2, number)
