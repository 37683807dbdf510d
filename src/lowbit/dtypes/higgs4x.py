"""higgs4x - grids that are best for Gaussian numbers, n points for four numbers: higgs4xN.

In / Out  values of variance 1 -> code of the nearest point in uint8 -> values; see _higgs.py.
Idea      A code tells four neighbours of a row, log2(n) / 4 bits a weight. Stored in a turned basis unless "plain".
Source    HIGGS (2411.17525).
Figures   Mean squared error on N(0,1): 256 points 0.0981 (published: 0.0975).
"""

from lowbit.dtypes import Element, _higgs

EXAMPLES = ("higgs4x256",)


def element(number: str) -> Element:
    return _higgs.element(4, number)
