"""oscar - integers of 2 bits in a basis that the model's own queries and values choose: oscar2, oscar3, oscar4.

In / Out  keys and values [tokens, head_dim] of a head -> codes, 16-bit scale and zero for each token (or for gN channels).
Idea      An error d of a key costs (q d)^2 in each query's score: the eigenvectors of E[q q^T] say in which directions that is
          much. Turned into them, then mixed by a Hadamard matrix, every channel costs alike, and no token has an outlier. Of
          values the same with E[w v v^T], w how strongly a token is asked for. A basis for each layer and key head, found on
          calibration text when the model is quantized (pipeline/caching.py) and stored with it.
Source    OSCAR (2605.17757), FutureMLS-Lab/OSCAR; bases for each head: its pull request 20, where one for all heads of a
          layer costs a mixture of experts 17 % of perplexity.
Defaults  As there: 64 sinks and 256 recent tokens stay floats, 0.96 of keys' and 0.92 of values' range is covered, a group is
          a head. There 30,000 tokens to calibrate, here 4096.
Figures   head_dim 128: 2.25 bits. lowbit-tiny (head_dim 64, 2.5 bits), 2 windows of 2048, KL in milli-nats: 30.1; a plain
          Hadamard basis with as many floats (int2-rot-s64-r256) 41.1; both with -s4-r128 51.8 and 68.7; kivi2 (3 bits) 44.7.
Traps     Only for models that are quantized with + kv(oscar2): without calibration there is no basis.
"""

from lowbit.kernels.pages import Half
from lowbit.kvcache import _policy
from lowbit.kvcache._policy import Policy

EXAMPLES = ("oscar2",)
KEYS, VALUES = 0.96, 0.92
"""Shares of the range."""


def policy(text: str, number: str, words: list[str]) -> Policy:
    """See lowbit.kvcache."""
    told = _policy.read(text, words, "g")
    group = f"g{told['g']}" if told.get("g") else "row"
    format = f"int{_policy.bits(text, number, 2, 4)}-{group}-floatzero"
    keys, values = (Half(format, rotated=True, learned=True, clip=clip) for clip in (KEYS, VALUES))
    return _policy.policy(text, keys, values, told, sinks=64, recent=256)
