"""quarot - integers by token in a Hadamard basis of each head, nothing kept as floats: quarot4, quarot3, quarot2.

In / Out  keys and values [tokens, head_dim] of a head -> codes, 16-bit scale and zero for each token (or for gN channels).
Idea      A rotation leaves scores alone and spreads outliers over the head. Here keys are turned back on reading instead of
          turning queries, and values instead of folding the turn into the weights: the same numbers are rounded.
Source    QuaRot (2404.00456) section 4, spcl/QuaRot.
Defaults  Groups of a whole head (128 there, which is a head), no sinks; tokens wait as floats for a page of 32 at most.
Figures   head_dim 128: 4.25 bits.
"""

from lowbit.kernels.pages import Half
from lowbit.kvcache import _policy
from lowbit.kvcache._policy import Policy

EXAMPLES = ("quarot4",)


def policy(text: str, number: str, words: list[str]) -> Policy:
    """See lowbit.kvcache."""
    told = _policy.read(text, words, "g")
    group = f"g{told['g']}" if told.get("g") else "row"
    half = Half(f"int{_policy.bits(text, number, 2, 8)}-{group}-floatzero", rotated=True)
    return _policy.policy(text, half, half, told, sinks=0, recent=0)
