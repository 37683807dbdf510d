"""kivi - keys with a scale for each channel and block of tokens, values with one for each token: kivi2, kivi4.

In / Out  keys [tokens, head_dim] of a head -> codes in groups of 32 tokens of one channel; values in groups of 32 channels.
Idea      The outliers of keys stay in their channels, those of values do not. Keys wait as floats until a block is whole.
Source    KIVI (2402.02750) section 3, jy-yuan/KIVI.
Defaults  Groups of 32, 128 recent tokens, no sinks, as there.
Figures   3 bits a number for kivi2, 5 for kivi4 (a 16-bit scale and zero for every 32).
Traps     The original empties its window of keys whenever it is full; here it never holds less than the recent tokens.
"""

from lowbit.kernels.pages import Half
from lowbit.kvcache import _policy
from lowbit.kvcache._policy import Policy

EXAMPLES = ("kivi2", "kivi4")


def policy(text: str, number: str, words: list[str]) -> Policy:
    """See lowbit.kvcache."""
    told = _policy.read(text, words, "g", "pre")
    format = f"int{_policy.bits(text, number, 2, 8)}-g{told.get('g', 32)}-floatzero"
    return _policy.policy(text, Half(format, "channel", before="pre" in told), Half(format), told, sinks=0)
