"""int - integers with a scale and a zero for each token and head: int2 .. int8, plain, centred or rotated.

In / Out  keys and values [tokens, head_dim] of a head -> codes, 16-bit scale and zero for each token (or for gN channels).
Idea      A token's scale must hold its largest channel. Keys have a few channels far from zero in all tokens, and rotary pairs
          that turn slowly: `centred` takes from 64 tokens in a row their mean, which leaves little of either; `rot` spreads
          outliers over the head by a Hadamard matrix.
Source    Tokenwise int4: QServe (2405.04532). rot: QuaRot (2404.00456), keys and values. Centred keys: SageAttention
          (2410.02367) takes the mean of all tokens, for which a cache that grows is too early; the mean of a block is ours.
          pre: KVQuant (2401.18079), keys as they are before RoPE, where channels are steady.
Defaults  A scale for the whole head; kN: keys of N bits (they need more than values); 4 sinks, 128 recent tokens.
Figures   Bits at head_dim 64: int4 4.5, int4-g32 5, int4-centred 4.625 (0.25 for the means of keys), int8 8.5.
          tensor, head: constant scales from calibration, around 0, and all tokens packed, as compressed-tensors says a cache.
Traps     The mean of the tokens packed first, kept for all, is worse than none: squared error of int4 keys of lowbit-tiny 0.019
          of their variance, 0.028 less the mean of the first 32 tokens, 0.0025 less the mean of each 64.
"""

from lowbit.core.errors import RequestError
from lowbit.kernels.pages import Half
from lowbit.kvcache import _policy
from lowbit.kvcache._policy import Policy

EXAMPLES = (
    "int8",
    "int4",
    "int4-g32",
    "int4-k8",
    "int4-rot",
    "int4-centred",
    "int4-centred-rot",
    "int3-centred-out1",
    "int4-centred-rot-pre",
    "int8-tensor",
    "int8-head",
)


def policy(text: str, number: str, words: list[str]) -> Policy:
    """See lowbit.kvcache."""
    told = _policy.read(text, words, "g", "k", "rot", "centred", "out", "pre", "tensor", "head")
    value_bits = _policy.bits(text, number, 2, 8)
    static = _policy.static(told)
    if static:
        beside = ", ".join(word for word in told if word not in {"s", "r", static})
        if beside:
            fact = f"with a scale for {'a layer' if static == 'tensor' else 'a head'} there is no {beside}"
            raise RequestError(f"{text}: {fact}. Use {text.partition('-')[0]}-{static}, or leave {static} out.")
        half = Half(f"int{value_bits}-row", static=static)
        return _policy.policy(text, half, half, told, sinks=0, recent=0)
    key_bits = _policy.bits(text, str(told.get("k", value_bits)), 2, 8)
    group = f"g{told['g']}" if told.get("g") else "row"
    rotated, outliers = "rot" in told, told.get("out", 0)
    keys = Half(f"int{key_bits}-{group}-floatzero", "token", told.get("centred", 0), rotated, outliers, "pre" in told)
    values = Half(f"int{value_bits}-{group}-floatzero", "token", 0, rotated, outliers)
    return _policy.policy(text, keys, values, told)
