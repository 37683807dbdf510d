"""af4 - 4-bit AbnormalFloat with the values that belong to its group size.

In / Out  af4-g64, af4-g128-fp32, ... -> a Format of the rule `table` whose element is af4 (64) or af4.N.
Idea      The best values for blocks divided by their largest magnitude depend on the size of the block (dtypes/af.py).
Source    NF4 Isn't Information Theoretically Optimal (2306.06965).
Figures   Least absolute, not squared error: mean squared error of af4-g64 on N(0,1) 0.0091 plain (nf4: 0.0085).
"""

from lowbit.core.errors import FormatError
from lowbit.formats import Format, with_words

EXAMPLES = ("af4-g64", "af4-g128-fp32")


def parse(number: str, words: list[str]) -> Format:
    """The format af4 with its words, one of which is the group."""
    text = "-".join(["af4", *words])
    sizes = [word[1:] for word in words if word[:1] == "g" and word[1:].isdigit() and int(word[1:]) > 1]
    if not sizes:
        raise FormatError(f"{text}: the values of af4 depend on the group, and none is given. Use af4-g64.")
    return with_words(text, "af4" if sizes[0] == "64" else f"af4.{sizes[0]}", words)
