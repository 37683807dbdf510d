"""fp8 - e4m3 numbers with a scale for each token and head, or with constant scales for a layer or a head.

In / Out  keys and values [tokens, head_dim] of a head -> 8-bit floats; fp8: one 16-bit scale a token, else none.
Idea      Four significant bits at every size: outliers cost nothing, small numbers keep their precision. A token's own scale
          needs no measuring; constant ones are the greatest magnitude in calibration over 448, and are what engines run.
Source    vLLM's fp8 cache; compressed-tensors' `kv_cache_scheme`, which says fp8-tensor and fp8-head.
Defaults  fp8-tensor and fp8-head hold all tokens so: no sinks, no recent window, as engines do. Without scales: 1.
Figures   head_dim 64: 8.25 bits, constant scales 8.
Traps     Worse than int8 for numbers of even size: e4m3 has 4 significant bits at most, int8 has 7 below the largest.
"""

from lowbit.core.errors import RequestError
from lowbit.kernels.pages import Half
from lowbit.kvcache import _policy
from lowbit.kvcache._policy import Policy

EXAMPLES = ("fp8", "fp8-tensor", "fp8-head")


def policy(text: str, number: str, words: list[str]) -> Policy:
    """See lowbit.kvcache."""
    if number:
        raise RequestError(f"{text}: floats of 8 bits are called fp8. Use fp8, or int{number}.")
    told = _policy.read(text, words, "tensor", "head")
    static = _policy.static(told)
    half = Half("e4m3-row", static=static)
    return _policy.policy(text, half, half, told, **({"sinks": 0, "recent": 0} if static else {}))
