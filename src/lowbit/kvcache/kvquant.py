"""kvquant - keys by channel before RoPE, values by token, on a table that is no even grid, outliers apart: kvquant4, 3, 2.

In / Out  keys [tokens, head_dim] of a head before RoPE -> codes in blocks of 128 tokens of one channel, each with a mean and a
          scale; values -> codes and a scale for each token; the greatest number of each token stays a float.
Idea      RoPE smears a channel that lies far from zero over a circle; before it each channel has a steady range of its own.
          A table with more values where numbers are frequent loses less than an even grid, once outliers do not stretch it.
Source    KVQuant (2401.18079) section 3, SqueezeAILab/KVQuant.
Defaults  As there: the first token stays as floats, no recent window. outN: outliers of each token and head (there 1 % of all).
Figures   head_dim 64: 4.63 bits for keys and values of kvquant4, of which 0.375 are the outlier.
Traps     There, ranges and tables are calibrated, the tables weighted by gradients; here a block's own mean and scale are
          stored, and the table is the one that is best for Gaussian numbers. The block in the making waits as floats.
"""

from lowbit.kernels.pages import Half
from lowbit.kvcache import _policy
from lowbit.kvcache._policy import Policy

EXAMPLES = ("kvquant4", "kvquant3", "kvquant2")
BLOCK = 128


def policy(text: str, number: str, words: list[str]) -> Policy:
    """See lowbit.kvcache."""
    told = _policy.read(text, words, "out")
    table, outliers = f"higgs1x{1 << _policy.bits(text, number, 2, 4)}", told.get("out", 1)
    keys = Half(f"{table}-g{BLOCK}-fp16-plain", "channel", centred=BLOCK, outliers=outliers, before=True)
    return _policy.policy(text, keys, Half(f"{table}-row-fp16-plain", outliers=outliers), told, sinks=1, recent=0)
