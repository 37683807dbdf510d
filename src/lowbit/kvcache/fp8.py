"""fp8 - e4m3 numbers with a scale for each token and head.

In / Out  keys and values [tokens, head_dim] of a head -> 8-bit floats, one 16-bit scale a token.
Idea      Four significant bits at every size: outliers cost nothing, small numbers keep their precision.
Source    vLLM's fp8 cache, which has one scale a layer, measured before or 1; a token's own needs no measuring.
Figures   head_dim 64: 8.25 bits.
Traps     Worse than int8 for numbers of even size: e4m3 has 4 significant bits at most, int8 has 7 below the largest.
"""

from lowbit.core.errors import RequestError
from lowbit.kernels.pages import Half
from lowbit.kvcache import _policy
from lowbit.kvcache._policy import Policy

EXAMPLES = ("fp8",)
HALF = Half("e4m3-row")


def policy(text: str, number: str, words: list[str]) -> Policy:
    """See lowbit.kvcache."""
    if number:
        raise RequestError(f"{text}: floats of 8 bits are called fp8. Use fp8, or int{number}.")
    return _policy.policy(text, HALF, HALF, _policy.read(text, words))
