"""fp8e5m2 - 8-bit floats (e5m2) with one scale a tensor, a row, a token or a block of weights.

In / Out  fp8e5m2-row (= fp8e5m2), fp8e5m2-tensor, fp8e5m2-b128x128, ... -> the same words behind e5m2.
Idea      scale = max|w| / 57344; stored in 16 bits unless a word says fp32.
Source    torch.float8_e5m2.
Figures   Mean squared error on N(0,1), any group: 0.0028, four times that of fp8: for what needs the range, as gradients.
"""

from lowbit.formats import Format, with_words

EXAMPLES = ("fp8e5m2-tensor", "fp8e5m2-row")


def parse(number: str, words: list[str]) -> Format:
    """The format fp8e5m2 with its words."""
    return with_words("-".join(["fp8e5m2", *words]), "e5m2", words)
